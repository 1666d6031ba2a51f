"""Recommended ranges of settings with their sources, and the advice printed outside of them."""

from dataclasses import dataclass

from ssd1b.few_steps import GUIDANCE_EMBEDDED, Recognised
from ssd1b.sampler_names import SAMPLERS
from ssd1b.settings import ARTICLE, CARD, GenerationSettings, few_step_loras

FULL_SIZE = 1024
"""Side in pixels of the square images that SDXL and its distilled models were trained on."""

SIZES: tuple[tuple[int, int], ...] = (
    (1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216),
    (1344, 768), (768, 1344), (1536, 640), (640, 1536),
)  # fmt: skip
"""(width, height) listed in the model card; all are SDXL training sizes (2307.01952, appendix I)."""

SAMPLERS_ADVISED = ("unipc", "euler", "ddpm")
"""The samplers that the article highly recommends."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvisedRange:
    """A recommended range of one setting, and the advice for values below and above it."""

    setting: str
    low: float
    high: float
    below: str
    above: str
    source: str = ARTICLE


SSD_1B_ADVICE = (
    AdvisedRange(
        setting="guidance_scale",
        low=2.0,  # the article says "near 1"
        high=19.0,  # "above 19 or 20"
        below="near 1 artistic quality suffers; for tiny details take 12 to 17",
        above="above 19 the image follows the prompt strictly, at the expense of quality and diversity",
    ),
    AdvisedRange(
        setting="steps",
        low=15.0,
        high=25.0,
        below="high quality is reached between 15 and 25 steps",
        above="beyond 25 steps shapes keep changing without new details",
    ),
)


def advise(
    settings: GenerationSettings, model_size: int, family: str, few_steps: Recognised | None = None
) -> list[str]:
    """Write one line for each setting outside its recommended range.

    Args:
        settings: the settings, which are not changed.
        model_size: side in pixels of the square images the model was trained on (``ModelLayout.size``).
        family: a name of ``layouts.UNETS``. Only size is checked for families other than SSD-1B.
        few_steps: what ``Model.few_steps`` says. A few-step model or LoRA is judged by its own kind's ranges.
    """
    found = [*([few_steps] if few_steps else []), *few_step_loras(settings.loras)]
    embeds = few_steps is not None and few_steps.kind is GUIDANCE_EMBEDDED
    lines = [line for each in found for line in _about_few_steps(settings, each)]
    if len(found) > 1:
        names = ", ".join(each.file for each in found)
        lines.append(f"{names}: each makes a model a few-step one; use only one of them")
    if settings.negative_prompt and (settings.guidance_scale == 1 or embeds):
        lines.append(
            "negative prompt: it is ignored, because without a second pass nothing moves away from it"
        )
    if not found and family == "ssd-1b":
        lines += _about_ssd_1b(settings)
    sizes = SIZES if model_size == FULL_SIZE else ((model_size, model_size),)
    if (settings.width, settings.height) not in sizes:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes)
        source = CARD if model_size == FULL_SIZE else "the model's training size"
        lines.append(
            f"size {settings.width}x{settings.height}: the model was trained on {listed}; at other sizes "
            f"expect objects that are cut off or repeated ({source})"
        )
    return lines


def _about_few_steps(settings: GenerationSettings, found: Recognised) -> list[str]:
    kind, lines = found.kind, list[str]()
    low, high = kind.guidance
    if settings.guidance_scale > high:
        lines.append(
            f"guidance_scale {settings.guidance_scale:g}: {kind.name} was distilled with guidance; above "
            f"{high:g} colours burn ({kind.source})"
        )
    elif settings.guidance_scale < low:
        lines.append(f"guidance_scale {settings.guidance_scale:g}: {kind.name} needs {low:g} ({kind.source})")
    fewest, most = (found.made_for,) * 2 if kind.exact and found.made_for else kind.steps
    if not fewest <= settings.steps <= most:
        wanted = f"{fewest} to {most}" if fewest < most else f"exactly {fewest}"
        lines.append(f"steps {settings.steps}: {found.file} is made for {wanted} ({kind.source})")
    if settings.sampler not in kind.samplers:
        names = ", ".join(SAMPLERS[name].a1111 for name in kind.samplers)
        lines.append(
            f"sampler {SAMPLERS[settings.sampler].a1111}: {kind.name} is made for {names} ({kind.source})"
        )
    if settings.schedule == "leading":
        lines.append(f"schedule leading: it starts below the top, and greys the image ({kind.source})")
    return lines


def _about_ssd_1b(settings: GenerationSettings) -> list[str]:
    lines: list[str] = []
    for advised in SSD_1B_ADVICE:
        value = getattr(settings, advised.setting)
        if not advised.low <= value <= advised.high:
            expected = advised.below if value < advised.low else advised.above
            lines.append(f"{advised.setting} {value:g}: {expected} ({advised.source})")
    if settings.sampler not in SAMPLERS_ADVISED:
        best = ", ".join(SAMPLERS[name].a1111 for name in SAMPLERS_ADVISED)
        lines.append(f"sampler {SAMPLERS[settings.sampler].a1111}: highly recommended are {best} ({ARTICLE})")
    return lines
