"""Advice on settings: recommended ranges with their sources, and settings that have no effect."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import NamedTuple

from ssd1b.few_steps import GUIDANCE_EMBEDDED, Recognised
from ssd1b.sampler_names import SAMPLERS
from ssd1b.settings import ARTICLE, CARD, DEFAULTS, RANDOM_SEED, GenerationSettings, few_step_loras

FULL_SIZE = 1024
"""Side in pixels of the square images that SDXL and its distilled models were trained on."""

SIZES: tuple[tuple[int, int], ...] = (
    (1024, 1024), (1152, 896), (896, 1152), (1216, 832), (832, 1216),
    (1344, 768), (768, 1344), (1536, 640), (640, 1536),
)  # fmt: skip
"""(width, height) listed in the model card; all are SDXL training sizes (2307.01952, appendix I)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvisedRange:
    """A recommended range of one setting, and the advice for values below and above it."""

    setting: str
    low: float
    high: float
    below: str
    above: str
    source: str = ARTICLE


@dataclass(frozen=True, slots=True, kw_only=True)
class Advised:
    """Recommended settings of a model or a few-step LoRA.

    Attributes:
        ranges: of settings with numbers.
        samplers: the recommended ones; empty if any will do.
        others: what to say of other samplers, before their list.
        source: of the samplers.
    """

    ranges: tuple[AdvisedRange, ...] = ()
    samplers: tuple[str, ...] = ()
    others: str = ""
    source: str = ARTICLE


_SSD_1B_RANGES = (
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

FAMILIES: Mapping[str, Advised] = {
    "ssd-1b": Advised(
        ranges=_SSD_1B_RANGES, samplers=("unipc", "euler", "ddpm"), others="highly recommended are"
    )
}
"""Recommended settings by family, a name of ``layouts.UNETS``."""


def advised(family: str, few_steps: Recognised | None = None) -> Advised:
    """Return what is recommended for a model.

    Args:
        family: of the model.
        few_steps: what ``Model.few_steps`` says, or a few-step LoRA. It is judged by its kind's own ranges.
    """
    if few_steps is None:
        return FAMILIES.get(family, Advised())
    kind, (fewest, most), (low, high) = few_steps.kind, few_steps.steps, few_steps.kind.guidance
    number = f"exactly {fewest}" if fewest == most else f"{fewest} to {most}"
    made_for = f"{few_steps.file} is made for {number}"
    return Advised(
        ranges=(
            AdvisedRange(
                setting="guidance_scale", low=low, high=high, below=f"{kind.name} needs {low:g}",
                above=f"{kind.name} was distilled with guidance; above {high:g} colours burn",
                source=kind.source,
            ),
            AdvisedRange(
                setting="steps", low=float(fewest), high=float(most), below=made_for, above=made_for,
                source=kind.source,
            ),
        ),
        samplers=kind.samplers, others=f"{kind.name} is made for", source=kind.source,
    )  # fmt: skip


FEW_STEP_SAMPLERS = ("lcm", "tcd")
"""Samplers that add new noise at each step, for models that remove all of it at once."""


class Condition(NamedTuple):
    """When settings have an effect.

    Attributes:
        settings: fields of ``GenerationSettings``. Other ones that have no effect alone are refused; see
            ``settings.check_needs``.
        needs: the condition in words, after "no effect without".
        met: whether it holds in a pass.
        second: only the second pass counts; otherwise one of all passes is enough.
    """

    settings: tuple[str, ...]
    needs: str
    met: Callable[[GenerationSettings], bool]
    second: bool = False


def _is_guided(run: GenerationSettings) -> bool:
    return run.guidance_scale != 1


CONDITIONS: tuple[Condition, ...] = (
    Condition(("variation_seed",), "variation_strength", lambda run: run.variation_strength > 0),
    Condition(
        ("seed_resize_width", "seed_resize_height"), "another size of the image",
        lambda run: (run.seed_resize_width, run.seed_resize_height) != (run.width, run.height),
    ),
    Condition(
        ("guidance_rescale", "guidance_interval"), "classifier-free guidance: guidance_scale is 1, or "
        "embedded by the UNet", _is_guided,
    ),
    Condition(
        ("hires_negative_prompt",), "classifier-free guidance in the second pass", _is_guided, second=True
    ),
    Condition(("gamma",), "sampler tcd", lambda run: run.sampler == "tcd"),
    Condition(
        ("resize_mode",), "controls, or init_image with mask_area whole",
        lambda run: bool(run.controls) or (run.init_image is not None and run.mask_area == "whole"),
    ),
    Condition(("strength_steps",), "init_image", lambda run: run.init_image is not None),
    Condition(("mask_change",), "mask", lambda run: run.mask is not None),
    Condition(
        ("mask_content",), "mask or outpaint", lambda run: run.mask is not None or run.outpaint is not None
    ),
    Condition(("mask_padding",), "mask_area masked", lambda run: run.mask_area == "masked"),
    Condition(("outpaint_fill",), "outpaint", lambda run: run.outpaint is not None),
)  # fmt: skip
"""Settings that do nothing unless a condition is met."""


def without_effect(
    settings: GenerationSettings, given: Mapping[str, object], *, guidance_embedded: bool = False
) -> list[str]:
    """Write a line for each condition that is not met, with the settings that have no effect therefore.

    Args:
        settings: of an image.
        given: what the user set, by name. Nothing is said of other settings, of default values, and of seeds
            left to chance.
        guidance_embedded: the model embeds the guidance scale, and takes no second forward pass for it.
    """
    chosen = [
        name for name, value in given.items()
        if value not in (None, RANDOM_SEED)
        and (tuple(value) if isinstance(value, list) else value) != DEFAULTS.get(name)
    ]  # fmt: skip
    runs = [replace(run, guidance_scale=1.0) if guidance_embedded else run for run, _ in settings.passes]
    lines: list[str] = []
    for each in CONDITIONS:
        names = [name for name in each.settings if name in chosen]
        if names and not any(map(each.met, runs[1:] if each.second else runs)):
            lines.append(f"{', '.join(names)}: no effect without {each.needs}")
    return lines


def advise(
    settings: GenerationSettings,
    model_size: int,
    family: str,
    few_steps: Recognised | None = None,
    given: Mapping[str, object] = MappingProxyType({}),
) -> list[str]:
    """Write one line for each setting outside its recommended range, or without effect.

    Args:
        settings: the settings, which are not changed.
        model_size: side in pixels of the square images the model was trained on (``ModelLayout.size``).
        family: a name of ``layouts.UNETS``. Only size is checked where nothing else is recommended.
        few_steps: what ``Model.few_steps`` says. A few-step model or LoRA is judged by its own kind's ranges;
            LoRAs' files are looked into, where they are.
        given: what the user set, by name, of which a line says what has no effect; see ``without_effect``.
    """
    found = [*([few_steps] if few_steps else []), *few_step_loras(settings.loras)]
    embeds = few_steps is not None and few_steps.kind is GUIDANCE_EMBEDDED
    if not found and settings.sampler in FEW_STEP_SAMPLERS:
        sampler = SAMPLERS[settings.sampler].a1111
        lines = [
            f"sampler {sampler}: it is made for few-step models and LoRAs, and this model is not known as one"
        ]
    else:
        lines = [line for each in found or [None] for line in _outside(settings, advised(family, each))]
    if found and settings.schedule == "leading":
        lines.append(
            f"schedule leading: it starts below the top, and greys the image ({found[0].kind.source})"
        )
    if len(found) > 1:
        names = ", ".join(each.file for each in found)
        lines.append(f"{names}: each makes a model a few-step one; use only one of them")
    if settings.negative_prompt and (settings.guidance_scale == 1 or embeds):
        lines.append(
            "negative prompt: it is ignored, because without a second pass nothing moves away from it"
        )
    sizes = SIZES if model_size == FULL_SIZE else ((model_size, model_size),)
    if (settings.width, settings.height) not in sizes:
        listed = ", ".join(f"{width}x{height}" for width, height in sizes)
        source = CARD if model_size == FULL_SIZE else "the model's training size"
        lines.append(
            f"size {settings.width}x{settings.height}: the model was trained on {listed}; at other sizes "
            f"expect objects that are cut off or repeated ({source})"
        )
    width, height = settings.final_size
    if settings.hires and width < settings.width and height < settings.height:
        lines.append(
            f"hires size {width}x{height}: the second pass is smaller than the first, of "
            f"{settings.width}x{settings.height}, whose detail is lost"
        )
    return lines + without_effect(settings, given, guidance_embedded=embeds)


def _outside(settings: GenerationSettings, wanted: Advised) -> list[str]:
    """Write a line for each setting that is outside of what is recommended."""
    lines: list[str] = []
    for each in wanted.ranges:
        value = getattr(settings, each.setting)
        if not each.low <= value <= each.high:
            expected = each.below if value < each.low else each.above
            lines.append(f"{each.setting} {value:g}: {expected} ({each.source})")
    if wanted.samplers and settings.sampler not in wanted.samplers:
        names = ", ".join(SAMPLERS[name].a1111 for name in wanted.samplers)
        sampler = SAMPLERS[settings.sampler].a1111
        lines.append(f"sampler {sampler}: {wanted.others} {names} ({wanted.source})")
    return lines
