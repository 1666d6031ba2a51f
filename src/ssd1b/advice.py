"""Recommended ranges of settings with their sources, and the advice printed outside of them."""

from dataclasses import dataclass

from ssd1b.sampler_names import SAMPLERS
from ssd1b.settings import ARTICLE, CARD, GenerationSettings

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


def advise(settings: GenerationSettings, model_size: int, family: str) -> list[str]:
    """Write one line for each setting outside its recommended range.

    Args:
        settings: the settings, which are not changed.
        model_size: side in pixels of the square images the model was trained on (``ModelLayout.size``).
        family: a name of ``layouts.UNETS``. Only size is checked for families other than SSD-1B.
    """
    lines = _about_ssd_1b(settings) if family == "ssd-1b" else []
    sizes = SIZES if model_size == FULL_SIZE else ((model_size, model_size),)
    if (settings.width, settings.height) not in sizes:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes)
        source = CARD if model_size == FULL_SIZE else "the model's training size"
        lines.append(
            f"size {settings.width}x{settings.height}: the model was trained on {listed}; at other sizes "
            f"expect objects that are cut off or repeated ({source})"
        )
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
