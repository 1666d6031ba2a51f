"""A sweep: every combination of its axes' values, each drawn once."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.metadata import version
from itertools import groupby, product
from pathlib import Path
from typing import Any, NamedTuple

import torch
from PIL import Image

from ssd1b import model as models
from ssd1b.batching import batch_key, batch_limit
from ssd1b.batching import batches as divided
from ssd1b.diffusion.samplers import SAMPLERS
from ssd1b.errors import InputError, shown
from ssd1b.evaluate.cost import counted, deep_share
from ssd1b.images import Picture, encode_picture
from ssd1b.lab.axes import AXES, Axis, Value
from ssd1b.lab.memory import remembering
from ssd1b.lab.store import DONE, FAILED, Outcome, Store
from ssd1b.models.tokenizer import CLIPTokenizer
from ssd1b.pipeline import Pipeline
from ssd1b.prompts import NO_PROMPT
from ssd1b.runtime import dtype_name
from ssd1b.settings import (
    RANDOM_SEED,
    GenerationSettings,
    Preset,
    check_overrides,
    resolve_settings,
    with_drawn_seed,
)
from ssd1b.weights.checkpoint import SETTINGS_FILE
from ssd1b.weights.files import json_text, read_json

MAX_CELLS = 100_000

PROMPT = "prompt"
"""The axis of a sweep's prompts."""

_ORDER = ("model", "size", PROMPT, *AXES)
"""Outer loops first: what is dear to change."""

DRAWING = 2
"""Raised when the same settings draw another picture, so that cells drawn before are not taken for known.

2: a picture is no longer padded to the longest prompt of its batch.
"""

THUMBNAIL = 16
"""Pixels on a side."""

_WAIT = 0.5
"""Seconds between looks at what others are drawing."""

Measure = Callable[[Image.Image, str], Mapping[str, float]]
"""``measure(picture, prompt)``: figures by name."""

Attempt = Callable[[Sequence[GenerationSettings]], list[tuple[Outcome, bytes | None]]]
"""``attempt(batch)``: of each picture what became of it, and the file if there is one."""

PIXELS_AT_ONCE = 8 * 128 * 128
"""In one batch: small pictures leave a processor idle one by one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """What is to be drawn.

    Attributes:
        prompts: at least one.
        axes: at most one of a name; where two set the same setting the later one wins.
        model: where no axis says another.
        preset: settings beneath those that are given.
        settings: fields of ``GenerationSettings`` for all cells, beneath the axes'.
    """

    prompts: tuple[str, ...]
    axes: tuple[Axis, ...] = ()
    model: str
    preset: Preset | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without a model; a random seed is drawn once, for all cells."""
        chosen = {**(self.preset.settings if self.preset else {}), **self.settings}
        if chosen.get("seed") == RANDOM_SEED:
            object.__setattr__(self, "settings", with_drawn_seed({**self.settings, "seed": RANDOM_SEED}))
        if not self.prompts:
            raise InputError(NO_PROMPT)
        names = [axis.name for axis in self.axes]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"axis {twice[0]} is there twice: write all its values into one")
        if self.count > MAX_CELLS:
            raise InputError(
                f"the axes have {self.count} combinations: allowed are {MAX_CELLS}; "
                f"at a second each they would take {self.count / 86400:.3g} days"
            )

    @property
    def count(self) -> int:
        """How many combinations."""
        return len(self.prompts) * math.prod(len(axis.values) for axis in self.axes)

    @property
    def all_axes(self) -> tuple[Axis, ...]:
        """The prompts' axis and the others, those that are dear to change first."""
        prompts = Axis(name=PROMPT, values=tuple(Value(label=each, prompt=each) for each in self.prompts))
        return tuple(sorted((prompts, *self.axes), key=lambda axis: _ORDER.index(axis.name)))

    def chosen(self, places: Sequence[int]) -> "Choice":
        """What is asked for at a place: which value it has on each of ``all_axes``.

        Raises:
            InputError: words that are to be replaced are not in the prompt.
        """
        values = {axis.name: axis.values[place] for axis, place in zip(self.all_axes, places, strict=True)}
        model = values["model"].model if "model" in values else self.model
        prompt = values[PROMPT].prompt
        assert model is not None and prompt is not None
        # Over each other in the order in which they were given, whatever the order of drawing.
        settings = {**(self.preset.settings if self.preset else {}), **self.settings}
        for axis in self.axes:
            settings |= values[axis.name].settings
        if words := values["words"].words if "words" in values else None:
            prompt, settings = _replaced(prompt, settings, *words)
        return Choice(model, prompt, settings)


class Choice(NamedTuple):
    """What a sweep asks for at one place: the model's name, the prompt, and the settings that it names."""

    model: str
    prompt: str
    settings: dict[str, Any]


class Model(NamedTuple):
    """What is known of a model without its weights.

    Attributes:
        path: of its folder or file; family: whose advice applies; defaults: its makers' settings.
        fingerprint: of everything in its files, and of what it was said to predict.
        tokenizers: of its text encoders.
    """

    path: Path
    family: str
    defaults: dict[str, Any]
    fingerprint: str
    tokenizers: tuple[CLIPTokenizer, ...]


class Cell(NamedTuple):
    """One picture of a sweep.

    Attributes:
        key: the hash of all that decides the picture.
        places: which value it has on each of ``Sweep.all_axes``.
        model: as it was named; settings: of the picture.
        batch: equal for cells that may be drawn at once; see ``batching.batch_key``.
    """

    key: str
    places: tuple[int, ...]
    model: str
    settings: GenerationSettings
    batch: tuple[Hashable, ...]

    @property
    def cost(self) -> int:
        """About how many passes of the UNet, times pixels; ``Outcome.passes`` counts them."""
        settings = self.settings
        start, end = settings.guidance_interval
        guided = 0.0 if settings.guidance_scale == 1 else end - start
        return round(self.evaluations * (1 + guided) * settings.width * settings.height)

    @property
    def evaluations(self) -> int:
        """How often the sampler asks the model: in one pass of the UNet, or two with guidance."""
        return SAMPLERS[self.settings.sampler].evaluations * (self.settings.steps - 1) + 1


def describe(name: str, store: Store, *, offline: bool, prediction: str | None = None) -> Model:
    """Find a model; its files are read once for their fingerprint, which the store remembers.

    Raises:
        InputError: there is no such model.
    """
    found = models.Model.find(name, offline=offline, prediction=prediction)
    return Model(
        path=found.path,
        family=found.info.family,
        defaults=found.info.defaults,
        fingerprint=found.digest(partial(_file_digest, store=store)),
        tokenizers=found.tokenizers,
    )


def _file_digest(file: Path, store: Store) -> str:
    """SHA-256 of a model's file, without the world that it declares, which decides no picture."""
    if file.name == SETTINGS_FILE and "world" in (content := read_json(file)):
        del content["world"]
        return hashlib.sha256(json_text(content).encode()).hexdigest()
    return store.file_digest(file)


def cells(
    sweep: Sweep, describe: Callable[[str], Model], *, device: torch.device, dtype: torch.dtype
) -> Iterator[Cell]:
    """Every combination, in the order in which they are drawn best.

    Args:
        sweep: what is wanted.
        describe: finds a model; asked for every cell.
        device: where it will be drawn.
        dtype: in which number format.

    Raises:
        InputError: a setting that is not allowed, or words that are not in the prompt.
    """
    drawn_by = {
        "device": device.type,
        "dtype": dtype_name(dtype),
        "ssd1b": version("ssd1b"),
        "drawing": DRAWING,
    }
    for places in product(*(range(len(axis.values)) for axis in sweep.all_axes)):
        chosen = sweep.chosen(places)
        model = describe(chosen.model)
        settings = resolve_settings(
            chosen.prompt, family=model.family, model_defaults={"seed": 0, **model.defaults}, preset=None,
            **chosen.settings,
        )  # fmt: skip
        decides = {"settings": asdict(settings), "model": model.fingerprint, **drawn_by}
        key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()
        yield Cell(key, places, chosen.model, settings, batch_key(settings, model.tokenizers))


def _replaced(
    prompt: str, settings: dict[str, Any], searched: str, instead: str
) -> tuple[str, dict[str, Any]]:
    negative = settings.get("negative_prompt")
    if not any(text and searched in text for text in (prompt, negative)):
        raise InputError(f"axis words: {shown(searched)} is not in the prompt {shown(prompt)}")
    if negative:
        settings = {**settings, "negative_prompt": negative.replace(searched, instead)}
    return prompt.replace(searched, instead), settings


def identity(sweep: Sweep, wanted: Iterable[Cell]) -> str:
    """A name for a sweep: that of its axes and cells."""
    labels = [[axis.name, *(value.label for value in axis.values)] for axis in sweep.all_axes]
    text = json.dumps([labels, [cell.key for cell in wanted]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def definition(sweep: Sweep) -> dict[str, Any]:
    """A sweep as JSON: for the report, and for whoever reads the store."""
    return {
        "prompts": sweep.prompts,
        "axes": [asdict(axis) for axis in sweep.axes],
        "model": sweep.model,
        "preset": sweep.preset and {"name": sweep.preset.name, "settings": dict(sweep.preset.settings)},
        "settings": dict(sweep.settings),
    }


def restored(told: Any) -> Sweep:
    """The sweep of a definition.

    Raises:
        InputError: it is damaged, or of another version: it has parts or settings that are unknown here.
    """
    try:
        axes = (Axis(name=each["name"], values=tuple(map(_value, each["values"]))) for each in told["axes"])
        sweep = Sweep(
            prompts=tuple(told["prompts"]), axes=tuple(axes), model=told["model"],
            preset=told["preset"] and Preset(source="", **told["preset"]), settings=told["settings"],
        )  # fmt: skip
        for axis in sweep.all_axes:
            _check(sweep, axis)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"no definition of a sweep: {type(error).__name__} {shown(error)}") from None
    return sweep


def _value(told: Mapping[str, Any]) -> Value:
    return Value(**{**told, "words": told["words"] and tuple(told["words"])})


def _check(sweep: Sweep, axis: Axis) -> None:
    texts = [sweep.model, axis.name]
    for value in axis.values:
        texts += [value.label, value.model or "", value.prompt or "", *(value.words or ())]
        if value.settings:
            preset = sweep.preset.settings if sweep.preset else {}
            check_overrides({**preset, **sweep.settings, **value.settings})
        if axis.name == "steps":
            value.settings["steps"]
    if not all(isinstance(each, str) for each in texts):
        raise InputError("no definition of a sweep: not all of its names are texts")


def draw(
    wanted: Iterable[Cell],
    store: Store,
    prepare: Callable[[str], AbstractContextManager[Attempt]],
    *,
    retry: bool = False,
    advance: Callable[[Cell], None] = lambda cell: None,
) -> None:
    """Draw every cell that nobody has drawn or is drawing; then wait for what others are drawing.

    Cells that can be are drawn in batches, which depend on what is wanted and not on what is there already:
    so a sweep that was killed ends with the same pictures. A cell that fails is written down with its reason,
    and the others go on.

    Args:
        wanted: cells, those of a model together.
        store: where they go.
        prepare: loads a model, by its name, and gives what draws with it; not called where everything is
            there.
        retry: draw again what failed before.
        advance: is told of every cell that is done with.

    Raises:
        InputError: a model cannot be loaded, or the disk refused.
    """
    for name, group in groupby(wanted, key=lambda cell: cell.model):
        left = list(group)
        with ExitStack() as stack:
            attempt: Attempt | None = None
            while left:
                waiting = []
                for batch in batches(left):
                    keys = [cell.key for cell in batch]
                    if attempt is None and store.free(keys, retry=retry):
                        # Before the claim: a model that cannot be loaded leaves no folder behind.
                        attempt = stack.enter_context(prepare(name))
                    mine = [] if attempt is None else store.claim(keys, retry=retry)
                    if attempt is not None and mine:
                        settings = {cell.key: cell.settings for cell in batch}
                        found = attempt([settings[key] for key in mine])
                        store.finish((key, *each) for key, each in zip(mine, found, strict=True))
                    known = {*mine, *store.outcomes(keys)}
                    for cell in batch:
                        if cell.key in known:
                            advance(cell)
                        else:
                            waiting.append(cell)
                left = waiting
                if left:
                    time.sleep(_WAIT)


def batches(wanted: Iterable[Cell]) -> list[list[Cell]]:
    """Divide cells of one model into batches, ordered by each batch's first cell."""

    def limit(cell: Cell) -> int:
        settings = cell.settings
        return batch_limit(settings, PIXELS_AT_ONCE // (settings.width * settings.height))

    return divided(wanted, lambda cell: cell.batch, limit)


def thumbnail(image: Image.Image) -> bytes:
    """A picture's form, by which pictures are compared without opening their files: RGB, 16 x 16."""
    return image.resize((THUMBNAIL, THUMBNAIL), Image.Resampling.BOX).tobytes()


@contextmanager
def attempts(pipeline: Pipeline, measure: Measure) -> Iterator[Attempt]:
    """What draws and measures batches of pictures, remembering what they have in common.

    Args:
        pipeline: the model.
        measure: what is measured of each picture; what is not a finite number is left out.
    """

    def attempt(batch: Sequence[GenerationSettings]) -> list[tuple[Outcome, bytes | None]]:
        whole.clear()
        deep.clear()
        try:
            pictures = pipeline.draw(batch)
            return [finished(each, passes_taken(batch[0]) / len(batch)) for each in pictures]
        except (ArithmeticError, InputError, MemoryError, RuntimeError) as error:
            if len(batch) > 1:  # the others of its batch are not to blame
                return [found for settings in batch for found in attempt([settings])]
            return [(Outcome(state=FAILED, error=" ".join(str(error).split()) or type(error).__name__), None)]

    def passes_taken(settings: GenerationSettings) -> float:
        """For all pictures that were just drawn, those answered from memory included."""
        if settings.feature_reuse == 0:
            return float(sum(whole))
        factor = pipeline.layout.vae.factor
        share = deep_share(pipeline.layout.unet, settings.height // factor, settings.width // factor)
        return sum(whole) - share * (sum(whole) - sum(deep))

    def finished(picture: Picture, passes: float) -> tuple[Outcome, bytes]:
        metrics = measure(picture.image, picture.recipe.settings.prompt)
        known = {name: value for name, value in metrics.items() if math.isfinite(value)}
        digest = hashlib.sha256(picture.image.tobytes()).hexdigest()
        outcome = Outcome(
            state=DONE, digest=digest, passes=passes, metrics=known, thumbnail=thumbnail(picture.image)
        )
        return outcome, encode_picture(picture, "png")

    unet, text = pipeline.unet, pipeline.text
    with (
        remembering([unet, text.encoder, text.encoder_2]),
        counted(unet) as whole,
        counted(unet.up_blocks[0].resnets[0]) as deep,  # type: ignore[index]
    ):
        yield attempt
