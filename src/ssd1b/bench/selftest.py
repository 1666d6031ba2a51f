"""A model tried out on this machine: its files against what was published, its pictures beside diffusers'.

Every check is caught: what goes wrong in one is its result, and the others go on.
"""

import json
import math
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch

from ssd1b.bench import contract
from ssd1b.bench.one_picture import Task, task_text
from ssd1b.errors import InputError, line
from ssd1b.model import Model
from ssd1b.weights.keymap import PARTS
from ssd1b.weights.loading import read_part
from ssd1b.weights.vocabulary import PADDING, tokenizer_folder
from ssd1b.weights.writing import save_folder

PASS, FAIL, NOT_RUN = "pass", "FAIL", "not run"

FORMATS: Mapping[str, tuple[str, ...]] = {
    "cpu": ("fp32", "bf16"),
    "cuda": ("fp16", "bf16"),
    "mps": ("fp32", "fp16"),
    "xpu": ("fp16", "bf16"),
}
"""The number formats that are tried on each kind of device."""

LARGEST_FP32 = 2
"""Levels of 255 by which a pixel may differ from diffusers' in fp32, where only the order of sums differs."""

LARGEST_RATIO = 2.0
"""How many times as far from fp32 as diffusers' the latents may be in 16 bits, after the first step.

One step shows the rounding of the networks. Later steps multiply it by what the sampler makes of it, which
differs from seed to seed; see docs/log/2026-11-28-selftest.md.
"""

LARGEST_MEAN = 12.0
"""Levels of 255 by which a picture in 16 bits may differ from the one in fp32, on average."""


class NotRun(Exception):
    """A check that this machine cannot do."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """What one check found.

    Attributes:
        name: of the check.
        result: ``PASS``, ``FAIL`` or ``NOT_RUN``.
        said: one line, without paths.
        figures: for JSON.
    """

    name: str
    result: str
    said: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What is to be tried.

    Attributes:
        model: which.
        expected: name of the layout that it should have; None for any.
        places: devices and number formats to draw with.
        steps: of each picture.
        size: side in pixels; None takes the model's, 512 at most.
        seconds: after which a picture is given up.
    """

    model: Model
    expected: str | None
    places: Sequence[tuple[str, str]]
    steps: int
    size: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class _Drawn:
    """Pixels, [size, size, 3], the latents after the first step, [4, size / 8, size / 8], and the cost."""

    pixels: np.ndarray
    first: np.ndarray
    figures: dict[str, Any]


def places(device: torch.device | None, dtype: str | None) -> list[tuple[str, str]]:
    """List the devices and number formats that are here, the CPU first, or those that were asked for."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kinds = ["cpu", *([found.type] if found is not None and found.type in FORMATS else [])]
    devices = [str(device)] if device is not None else kinds
    return [
        (name, each)
        for name in devices
        for each in ((dtype,) if dtype is not None else FORMATS[name.partition(":")[0]])
    ]


def checks(trial: Trial, told: Callable[[str], None]) -> Iterator[Check]:
    """Run every check, one after the other.

    Args:
        trial: the model and what to try.
        told: hears what is done next.
    """
    path = trial.model.path
    try:
        file_checks = _file_checks(trial)
    except InputError as error:
        yield Check(name="files", result=FAIL, said=without_paths(str(error), path))
        return

    for name, check in file_checks.items():
        told(name)
        yield _caught(name, check, path)
    with TemporaryDirectory(prefix="ssd1b-selftest-") as folder:
        pictures = _Pictures(trial, Path(folder))
        for device, dtype in trial.places:
            name = f"picture {device} {dtype}"
            told(name)
            yield _caught(name, partial(pictures.check, device, dtype), path)


def _file_checks(trial: Trial) -> dict[str, Callable[[], contract.Found]]:
    """The checks that draw nothing, by name; of the networks and tokenizers that are there."""
    checkpoint = trial.model.checkpoint
    found: dict[str, Callable[[], contract.Found]] = {
        "files": partial(contract.files, checkpoint, trial.expected),
        "digests": partial(contract.digests, checkpoint),
    }
    found |= {part: partial(contract.network, checkpoint, part) for part in PARTS if part in checkpoint.parts}
    for part in PADDING:
        if part in checkpoint.parts:
            found[tokenizer_folder(part)] = partial(contract.tokenizer, checkpoint, part)
    return found


def _caught(name: str, check: Callable[[], contract.Found], path: Path) -> Check:
    """Run a check, whatever happens in it."""
    figures: dict[str, Any] = {}
    try:
        said, figures = check()
        result = PASS
    except NotRun as error:
        result, said = NOT_RUN, str(error)
    except InputError as error:
        result, said = FAIL, str(error)
    except Exception as error:
        result, said = FAIL, f"{type(error).__name__}: {error}"
    return Check(name=name, result=result, said=without_paths(said, path), figures=figures)


def without_paths(text: str, model: Path) -> str:
    """Write a text as one line that shows neither where files lie nor a token of the hub."""
    for folder, name in ((model.resolve(), "MODEL"), (model, "MODEL"), (model.resolve().parent, "..")):
        if len(str(folder)) > 2:
            text = text.replace(str(folder), name)
    text = text.replace(str(Path.home()), "~").replace(str(Path(sys.prefix)), "PYTHON")
    text = re.sub(r"(?<![\w.])(?:/[\w.@+-]+){2,}/?", "PATH", text)
    return line(re.sub(r"hf_\w+", "hf_...", text))


def verdict(found: Sequence[Check]) -> str:
    """Say in a line how it ended."""
    failed = [each.name for each in found if each.result == FAIL]
    skipped = [each.name for each in found if each.result == NOT_RUN]
    alone = [
        each.name for each in found if each.result == PASS and each.figures.get("diffusers", each) is None
    ]
    missing = f"; not run: {', '.join(skipped)}" if skipped else ""
    missing += f"; not compared with diffusers: {', '.join(alone)}" if alone else ""
    if failed:
        return f"FAIL: {len(failed)} of {len(found)} checks: {', '.join(failed)}{missing}"
    return f"PASS: {len(found) - len(skipped)} checks{missing}"


class _Pictures:
    """Pictures of one model, each in a process of its own; others are held to the first one in fp32."""

    def __init__(self, trial: Trial, folder: Path) -> None:
        self._trial, self._folder = trial, folder
        self._reference: _Drawn | None = None
        self._peers_model: Path | None = None
        self._peer = find_spec("diffusers") is not None

    def check(self, device: str, dtype: str) -> contract.Found:
        """Draw one picture by ourselves and one by diffusers, and compare them.

        Raises:
            NotRun: this machine cannot draw it, or not in time.
            InputError: the difference is larger than number formats explain.
        """
        ours = self._draw("ssd1b", self._trial.model.path, device, dtype)
        if ours.pixels.std() < 1:
            raise InputError("the picture is a single colour")
        theirs, problem = self._drawn_by_diffusers(device, dtype)
        figures: dict[str, Any] = {"ssd1b": ours.figures, "diffusers": theirs.figures if theirs else None}
        sentences = []
        if theirs is not None:
            apart = _apart(ours, theirs)
            figures |= {"largest": float(apart.max()), "mean": float(apart.mean())}
            sentences.append(
                f"from diffusers' {apart.max():.0f} levels at most, {apart.mean():.2f} on average"
            )
        else:
            sentences.append(problem)
        if dtype == "fp32":
            self._reference = self._reference or theirs or ours
            wrong = theirs is not None and figures["largest"] > LARGEST_FP32
        else:
            wrong = self._is_far(ours, theirs, figures, sentences)
        sentences.append(_cost(ours, theirs))
        if wrong:
            raise InputError("; ".join(["differs too much", *sentences]))
        return "; ".join(sentences), figures

    def _is_far(
        self, ours: _Drawn, theirs: _Drawn | None, figures: dict[str, Any], sentences: list[str]
    ) -> bool:
        """Whether 16 bits move the latents farther from fp32 than the peer's, or change the picture."""
        reference = self._reference or theirs
        if reference is None:
            return False
        mean = float(_apart(ours, reference).mean())
        ratio = None
        if self._reference is not None:
            figures["from_fp32"] = mean
            sentences.append(f"from fp32 on average {mean:.2f}")
        if self._reference is not None and theirs is not None:
            own, usual = (float(np.linalg.norm(each.first - reference.first)) for each in (ours, theirs))
            figures["rounding"] = ratio = own / usual if usual else math.inf if own else 1.0
            sentences.append(f"the first step's rounding is {ratio:.2f} times diffusers'")
        return mean > LARGEST_MEAN or (ratio is not None and ratio > LARGEST_RATIO)

    def _drawn_by_diffusers(self, device: str, dtype: str) -> tuple[_Drawn | None, str]:
        """The peer's picture, or why there is none."""
        if not self._peer:
            return None, "diffusers is not installed, so there is nothing to compare with"
        try:
            return self._draw("diffusers", self._model_for_diffusers(), device, dtype), ""
        except (NotRun, InputError, OSError) as error:
            return None, f"diffusers drew no picture ({error})"

    def _model_for_diffusers(self) -> Path:
        """A folder in its format; a single file is written as one first."""
        model = self._trial.model
        if model.path.is_dir():
            return model.path
        if self._peers_model is None:
            needed = sum(part.size_in_bytes for part in model.checkpoint.parts.values())
            if shutil.disk_usage(self._folder).free < 1.1 * needed:
                raise NotRun(f"{needed / 1e9:.1f} GB of disk are needed to write the file as a folder")
            tensors = {part: read_part(model.checkpoint, part) for part in PARTS}
            save_folder(self._folder / "model", model.info, tensors)
            self._peers_model = self._folder / "model"
        return self._peers_model

    def _draw(self, engine: str, model: Path, device: str, dtype: str) -> _Drawn:
        layout = self._trial.model.layout
        out = self._folder / f"{engine}-{device.replace(':', '-')}-{dtype}.npz"
        task = Task(
            engine=engine, model=str(model.resolve()), device=device, dtype=dtype, steps=self._trial.steps,
            size=self._trial.size or min(layout.size, 512), out=str(out),
        )  # fmt: skip
        done = _run(task, self._trial.seconds)
        with np.load(out) as found:
            return _Drawn(found["pixels"].astype(int), found["first"], done)


def _run(task: Task, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "ssd1b.bench.one_picture", task_text(task)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotRun(f"given up after {seconds / 60:.3g} minutes") from None
    if done.returncode == -getattr(signal, "SIGKILL", 9):
        raise NotRun("the process was killed, as for want of memory")
    if done.returncode != 0:
        said = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        short_of_memory = "out of memory" in said.lower() or said.startswith("MemoryError")
        raise (NotRun if short_of_memory else InputError)(said.removeprefix("ssd1b.errors.InputError: "))
    return json.loads(done.stdout.strip().splitlines()[-1])


def _apart(one: _Drawn, other: _Drawn) -> np.ndarray:
    return np.abs(one.pixels - other.pixels)


def _cost(ours: _Drawn, theirs: _Drawn | None) -> str:
    """Seconds of drawing and memory at most, of both."""
    parts = [f"{ours.figures['seconds']:.1f} s"]
    if ours.figures["memory"]:
        parts.append(f"{ours.figures['memory'] / 1e9:.2f} GB")
    if theirs is not None:
        peers = f"{theirs.figures['seconds']:.1f} s"
        peers += f", {theirs.figures['memory'] / 1e9:.2f} GB" if theirs.figures["memory"] else ""
        parts.append(f"diffusers {peers}")
    return ", ".join(parts)
