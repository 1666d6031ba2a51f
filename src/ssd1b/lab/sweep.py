"""Sweeps: grids of settings, each combination of which is a job."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssd1b import model as models
from ssd1b.errors import InputError, shown
from ssd1b.jobs.job import Job, environment, make_job
from ssd1b.jobs.store import Store
from ssd1b.lab.axes import AXES, Axis, Value
from ssd1b.models.tokenizer import CLIPTokenizer
from ssd1b.prompts import NO_PROMPT
from ssd1b.settings import (
    RANDOM_SEED,
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
"""Outer loops first: what is expensive to change."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sweep:
    """A grid of pictures to draw.

    Attributes:
        prompts: at least one.
        axes: at most one for each name. If two axes set the same setting, the later one wins.
        model: the model's name, unless an axis sets it.
        preset: settings that ``settings`` and the axes override.
        settings: fields of ``GenerationSettings`` for all pictures, which the axes override.
    """

    prompts: tuple[str, ...]
    axes: tuple[Axis, ...] = ()
    model: str
    preset: Preset | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without a model. A random seed is drawn once, for all pictures."""
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
        """The number of combinations."""
        return len(self.prompts) * math.prod(len(axis.values) for axis in self.axes)

    @property
    def all_axes(self) -> tuple[Axis, ...]:
        """The axis of the prompts and the other axes; those that are expensive to change come first."""
        prompts = Axis(name=PROMPT, values=tuple(Value(label=each, prompt=each) for each in self.prompts))
        return tuple(sorted((prompts, *self.axes), key=lambda axis: _ORDER.index(axis.name)))

    @property
    def places(self) -> Iterator[tuple[int, ...]]:
        """All combinations, as the index of a value on each of ``all_axes``; the last axis runs fastest."""
        return product(*(range(len(axis.values)) for axis in self.all_axes))

    def request(self, places: Sequence[int]) -> "Request":
        """What the sweep asks for at a place.

        Args:
            places: the index of a value on each of ``all_axes``.

        Raises:
            InputError: words to be replaced are not in the prompt.
        """
        values = {axis.name: axis.values[place] for axis, place in zip(self.all_axes, places, strict=True)}
        model = values["model"].model if "model" in values else self.model
        prompt = values[PROMPT].prompt
        assert model is not None and prompt is not None
        # In the order in which the axes were given, not that of all_axes.
        settings = {**(self.preset.settings if self.preset else {}), **self.settings}
        for axis in self.axes:
            settings |= values[axis.name].settings
        if words := values["words"].words if "words" in values else None:
            prompt, settings = _replaced(prompt, settings, *words)
        return Request(model, prompt, settings)


class Request(NamedTuple):
    """A picture as the user asks for it: the model's name, the prompt, and the settings that are named."""

    model: str
    prompt: str
    settings: dict[str, Any]


class Model(NamedTuple):
    """A model without its weights.

    Attributes:
        path: its folder or file.
        family: name in ``layouts.UNETS`` of the family whose advice applies.
        defaults: settings that its makers recommend.
        fingerprint: digest of its files, and of what its UNet was said to predict.
        tokenizers: of its text encoders.
        world: name of the world of which it draws pictures, if it declares one.
    """

    path: Path
    family: str
    defaults: dict[str, Any]
    fingerprint: str
    tokenizers: tuple[CLIPTokenizer, ...]
    world: str | None = None


def describe(name: str, store: Store, *, offline: bool, prediction: str | None = None) -> Model:
    """Find a model. The store remembers the digests of its files.

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
        world=found.info.world,
    )


def _file_digest(file: Path, store: Store) -> str:
    """SHA-256 of a model's file, without the world that it declares, which decides no picture."""
    if file.name == SETTINGS_FILE and "world" in (content := read_json(file)):
        del content["world"]
        return hashlib.sha256(json_text(content).encode()).hexdigest()
    return store.file_digest(file)


def expand(
    sweep: Sweep, known: Callable[[str], Model], *, device: torch.device, dtype: torch.dtype
) -> Iterator[Job]:
    """Give a job for every combination of values, in the order of ``Sweep.places``.

    Args:
        sweep: what to draw.
        known: describes a model by its name; called for every job.
        device: where the jobs will be drawn.
        dtype: number format of the networks.

    Raises:
        InputError: a setting is out of range, or words to be replaced are not in the prompt.
    """
    drawn_by = environment(device, dtype)
    for places in sweep.places:
        request = sweep.request(places)
        model = known(request.model)
        settings = resolve_settings(
            request.prompt, family=model.family, model_defaults={"seed": 0, **model.defaults}, preset=None,
            **request.settings,
        )  # fmt: skip
        yield make_job(
            request.model, settings, fingerprint=model.fingerprint, tokenizers=model.tokenizers,
            environment=drawn_by,
        )  # fmt: skip


def _replaced(
    prompt: str, settings: dict[str, Any], searched: str, instead: str
) -> tuple[str, dict[str, Any]]:
    negative = settings.get("negative_prompt")
    if not any(text and searched in text for text in (prompt, negative)):
        raise InputError(f"axis words: {shown(searched)} is not in the prompt {shown(prompt)}")
    if negative:
        settings = {**settings, "negative_prompt": negative.replace(searched, instead)}
    return prompt.replace(searched, instead), settings


def sweep_id(sweep: Sweep, jobs: Iterable[Job]) -> str:
    """The id of a sweep: a hash of its axes and its jobs."""
    labels = [[axis.name, *(value.label for value in axis.values)] for axis in sweep.all_axes]
    text = json.dumps([labels, [job.key for job in jobs]])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def record(sweep: Sweep, jobs: Sequence[Job], store: Store) -> str:
    """Store a sweep's definition and jobs, and return its id."""
    name = sweep_id(sweep, jobs)
    members = zip((job.key for job in jobs), sweep.places, strict=True)
    store.record(name, definition(sweep), list(members))
    return name


def definition(sweep: Sweep) -> dict[str, Any]:
    """A sweep as JSON; ``parse_definition`` reads it."""
    return {
        "prompts": sweep.prompts,
        "axes": [asdict(axis) for axis in sweep.axes],
        "model": sweep.model,
        "preset": sweep.preset and {"name": sweep.preset.name, "settings": dict(sweep.preset.settings)},
        "settings": dict(sweep.settings),
    }


def parse_definition(content: Any) -> Sweep:
    """Read a sweep from its ``definition``.

    Raises:
        InputError: it is damaged, or of a version with other parts or settings.
    """
    try:
        axes = tuple(
            Axis(name=each["name"], values=tuple(map(_parse_value, each["values"])))
            for each in content["axes"]
        )
        sweep = Sweep(
            prompts=tuple(content["prompts"]), axes=axes, model=content["model"],
            preset=content["preset"] and Preset(source="", **content["preset"]), settings=content["settings"],
        )  # fmt: skip
        for axis in sweep.all_axes:
            _check(sweep, axis)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"no definition of a sweep: {type(error).__name__} {shown(error)}") from None
    return sweep


def _parse_value(content: Mapping[str, Any]) -> Value:
    return Value(**{**content, "words": content["words"] and tuple(content["words"])})


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
