"""Sweeps: grids of settings with a job for each combination."""

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ssd1b.errors import InputError, shown
from ssd1b.inputs import with_tables
from ssd1b.jobs.job import Job, environment, make_job, seeded_job
from ssd1b.jobs.store import Store
from ssd1b.lab.axes import AXES, FIELD_AXES, LORA_STRENGTH, Axis, Value, applied
from ssd1b.layouts import ModelLayout
from ssd1b.model import Model
from ssd1b.models.tokenizer import CLIPTokenizer
from ssd1b.prompts import NO_PROMPT
from ssd1b.recipe import NetworkFile
from ssd1b.settings import (
    RANDOM_SEED,
    Preset,
    check_overrides,
    resolve_settings,
    with_drawn_seed,
)

MAX_CELLS = 1_000_000
"""A plan takes 1 KB for each."""

PROMPT = "prompt"
"""The axis of a sweep's prompts."""

_ORDER = ("model", "lora", LORA_STRENGTH, "control", "ip-adapter", *FIELD_AXES, "size", PROMPT, *AXES)
"""Outer loops first: the axes that are expensive to change."""


@dataclass(frozen=True, kw_only=True)
class Sweep:
    """A grid of images to generate.

    Attributes:
        prompts: at least one.
        axes: names must be unique. If two axes change the same setting, the later one wins.
        model: the model's name, unless an axis sets it.
        preset: settings that ``settings`` and the axes override.
        settings: fields of ``GenerationSettings`` for all images, which the axes override.
    """

    prompts: tuple[str, ...]
    axes: tuple[Axis, ...] = ()
    model: str
    preset: Preset | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """Check what can be checked without a model. A random seed is chosen once for all images."""
        chosen = {**(self.preset.settings if self.preset else {}), **self.settings}
        if chosen.get("seed") == RANDOM_SEED:
            object.__setattr__(self, "settings", with_drawn_seed({**self.settings, "seed": RANDOM_SEED}))
        if not self.prompts:
            raise InputError(NO_PROMPT)
        names = [axis.name for axis in self.axes]
        if twice := [name for name in names if names.count(name) > 1]:
            raise InputError(f"axis {twice[0]} is given twice: write all its values into one")
        if self.count > MAX_CELLS:
            raise InputError(
                f"the axes have {self.count} combinations: allowed are {MAX_CELLS}; "
                f"at one second each, they would take {self.count / 86400:.3g} days"
            )

    @property
    def count(self) -> int:
        """The number of combinations."""
        return len(self.prompts) * math.prod(len(axis.values) for axis in self.axes)

    @cached_property
    def all_axes(self) -> tuple[Axis, ...]:
        """The axis of the prompts and the other axes; those that are expensive to change come first."""
        prompts = Axis(name=PROMPT, values=tuple(Value(label=each, prompt=each) for each in self.prompts))
        return tuple(
            sorted((prompts, *self.axes), key=lambda axis: _ORDER.index(axis.name.partition(".")[0]))
        )

    @property
    def places(self) -> Iterator[tuple[int, ...]]:
        """All combinations, as the index of a value on each of ``all_axes``; the last axis varies fastest."""
        return product(*(range(len(axis.values)) for axis in self.all_axes))

    def request(self, places: Sequence[int]) -> "Request":
        """Return the request of one combination.

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
        given = {**(self.preset.settings if self.preset else {}), **self.settings}
        settings = applied(given, {axis.name: values[axis.name] for axis in self.axes})
        if words := values["words"].words if "words" in values else None:
            prompt, settings = _replace_words(prompt, settings, *words)
        return Request(model, prompt, settings)


class Request(NamedTuple):
    """An image as the user specifies it: the model's name, the prompt, and the settings given."""

    model: str
    prompt: str
    settings: dict[str, Any]


class ModelDescription(NamedTuple):
    """What a sweep needs to know about a model; it contains no weights.

    Attributes:
        path: the folder or file.
        family: name in ``layouts.UNETS`` of the family whose advice applies.
        defaults: settings that its authors recommend.
        fingerprint: digest of its files and of the prediction type given by the user.
        tokenizers: the tokenizers of both text encoders.
        world: name of the world that it was trained on, if it declares one.
        embeds_guidance: its UNet takes the guidance scale as an input, so that guidance needs no second pass.
        layout: the layouts of its networks, which adapters are matched to; None if it is not known.
    """

    path: Path
    family: str
    defaults: dict[str, Any]
    fingerprint: str
    tokenizers: tuple[CLIPTokenizer, ...]
    world: str | None = None
    embeds_guidance: bool = False
    layout: ModelLayout | None = None


def describe(
    name: str,
    file_digest: Callable[[Path], str],
    *,
    offline: bool,
    prediction: str | None = None,
    networks: Iterable[NetworkFile] = (),
) -> ModelDescription:
    """Find and describe a model.

    Args:
        name: the model's name.
        file_digest: see ``Model.digest``.
        offline: never use the network.
        prediction: what the UNet predicts, if the model's files do not say.
        networks: files with networks that replace the model's own.

    Raises:
        InputError: there is no such model.
    """
    found = Model.find(name, offline=offline, prediction=prediction, networks=networks)
    return ModelDescription(
        path=found.path,
        family=found.info.family,
        defaults=found.info.defaults,
        fingerprint=found.digest(file_digest),
        tokenizers=found.tokenizers,
        world=found.info.world,
        embeds_guidance=found.layout.unet.guidance_embed_dim is not None,
        layout=found.layout,
    )


_MOST_KEPT = 1000


def expand(
    sweep: Sweep, find_model: Callable[[str], ModelDescription], *, device: torch.device, dtype: torch.dtype
) -> Iterator[Job]:
    """Yield a job for every combination of values, in the order of ``Sweep.places``.

    Args:
        sweep: the grid.
        find_model: describes a model by its name; called for every job.
        device: where the jobs will run.
        dtype: number format of the networks.

    Raises:
        InputError: a setting is out of range, or words to be replaced are not in the prompt.
    """
    runtime = environment(device, dtype)
    axes = sweep.all_axes
    of_seeds = [k for k, axis in enumerate(axes) if any("seed" in each.settings for each in axis.values)]
    # A job that differs from another in its seed alone is made in half the time.
    seed_axis = of_seeds[0] if [axes[k].name for k in of_seeds] == ["seed"] else None
    made: dict[tuple[int, ...], Job] = {}  # by the places on the other axes
    for places in sweep.places:
        request = sweep.request(places)
        model = find_model(request.model)
        others = () if seed_axis is None else (*places[:seed_axis], *places[seed_axis + 1 :])
        if seed_axis is not None and (similar := made.get(others)):
            settings = replace(similar.settings, **with_drawn_seed({"seed": request.settings["seed"]}))
            yield seeded_job(similar, settings, fingerprint=model.fingerprint, environment=runtime)
            continue
        settings = resolve_settings(
            request.prompt, family=model.family, model_defaults={"seed": 0, **model.defaults}, preset=None,
            **request.settings,
        )  # fmt: skip
        job = make_job(
            request.model, settings, fingerprint=model.fingerprint, tokenizers=model.tokenizers,
            environment=runtime,
        )  # fmt: skip
        if len(made) >= _MOST_KEPT:
            made.clear()
        made[others] = job
        yield job


def _replace_words(
    prompt: str, settings: dict[str, Any], searched: str, replacement: str
) -> tuple[str, dict[str, Any]]:
    negative = settings.get("negative_prompt")
    if not any(text and searched in text for text in (prompt, negative)):
        raise InputError(f"axis words: {shown(searched)} is not in the prompt {shown(prompt)}")
    if negative:
        settings = {**settings, "negative_prompt": negative.replace(searched, replacement)}
    return prompt.replace(searched, replacement), settings


def sweep_id(sweep: Sweep, jobs: Iterable[Job]) -> str:
    """The id of a sweep: a hash of its axes and jobs."""
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
    """Convert a sweep to JSON for ``parse_definition``."""
    return {
        "prompts": sweep.prompts,
        "axes": [asdict(axis) for axis in sweep.axes],
        "model": sweep.model,
        "preset": sweep.preset
        and {"name": sweep.preset.name, "settings": with_tables(sweep.preset.settings)},
        "settings": with_tables(sweep.settings),
    }


def parse_definition(content: Any) -> Sweep:
    """Parse the JSON written by ``definition``.

    Raises:
        InputError: the JSON is damaged or from an incompatible version.
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
            _check_axis(sweep, axis)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"not the definition of a sweep: {type(error).__name__} {shown(error)}") from None
    return sweep


def _parse_value(content: Mapping[str, Any]) -> Value:
    pairs = (
        "words",
        "lora_strength",
        "control",
        "image_prompt",
    )  # of which earlier versions lack the last ones
    fields: dict[str, Any] = {
        **content,
        **{name: tuple(content[name]) for name in pairs if content.get(name)},
    }
    return Value(**fields)


def _check_axis(sweep: Sweep, axis: Axis) -> None:
    texts: list[object] = [sweep.model, axis.name]
    for value in axis.values:
        texts += [value.label, value.model or "", value.prompt or "", *(value.words or ())]
        if value.settings:
            preset = sweep.preset.settings if sweep.preset else {}
            check_overrides({**preset, **sweep.settings, **value.settings})
        if axis.name == "steps":
            value.settings["steps"]
    if not all(isinstance(each, str) for each in texts):
        raise InputError("not the definition of a sweep: some names are not texts")
