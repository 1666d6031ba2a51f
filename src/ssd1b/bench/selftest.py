"""Self-test of a model on this machine: its files against what was published, its images against diffusers'.

An exception in a check becomes its result, and the other checks still run.
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
"""Number formats to test on each type of device."""

LARGEST_FP32 = 2
"""Largest allowed difference of a pixel from diffusers' in fp32, in levels of 255."""

LARGEST_RATIO = 2.0
"""Largest allowed error of the latents in 16 bits after the first step, relative to that of diffusers.

One step shows the networks' rounding errors. Later steps amplify them, differently for each seed; see
docs/log/2026-11-28-selftest.md.
"""

LARGEST_MEAN = 12.0
"""Largest allowed mean difference of an image in 16 bits from the one in fp32, in levels of 255."""


class NotRun(Exception):
    """This machine cannot run a check."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """The result of one check.

    Attributes:
        name: name of the check.
        result: ``PASS``, ``FAIL`` or ``NOT_RUN``.
        said: one line of explanation, without paths.
        figures: figures for JSON.
    """

    name: str
    result: str
    said: str
    figures: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What to test.

    Attributes:
        model: the model.
        expected: name of the layout that it should have; None for any.
        targets: devices and number formats to generate with.
        steps: denoising steps of each image.
        size: side in pixels; None is the model's, at most 512.
        seconds: time limit for each image.
    """

    model: Model
    expected: str | None
    targets: Sequence[tuple[str, str]]
    steps: int
    size: int | None
    seconds: float


@dataclass(frozen=True, slots=True)
class _Output:
    """Pixels, [size, size, 3], latents after the first step, [4, size / 8, size / 8], time and memory."""

    pixels: np.ndarray
    first: np.ndarray
    figures: dict[str, Any]


def targets(device: torch.device | None, dtype: str | None) -> list[tuple[str, str]]:
    """List the machine's devices, the CPU first, with their number formats; the arguments restrict them."""
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kinds = ["cpu", *([found.type] if found is not None and found.type in FORMATS else [])]
    devices = [str(device)] if device is not None else kinds
    return [
        (name, each)
        for name in devices
        for each in ((dtype,) if dtype is not None else FORMATS[name.partition(":")[0]])
    ]


def checks(trial: Trial, notify: Callable[[str], None]) -> Iterator[Check]:
    """Run every check, one after the other.

    Args:
        trial: the model and what to test.
        notify: called with the name of each check before it runs.
    """
    path = trial.model.path
    try:
        file_checks = _file_checks(trial)
    except InputError as error:
        yield Check(name="files", result=FAIL, said=without_paths(str(error), path))
        return

    for name, check in file_checks.items():
        notify(name)
        yield _run_check(name, check, path)
    with TemporaryDirectory(prefix="ssd1b-selftest-") as folder:
        images = _ImageChecks(trial, Path(folder))
        for device, dtype in trial.targets:
            name = f"picture {device} {dtype}"
            notify(name)
            yield _run_check(name, partial(images.check, device, dtype), path)


def _file_checks(trial: Trial) -> dict[str, Callable[[], contract.Finding]]:
    """List the checks of files, networks and tokenizers, by name."""
    checkpoint = trial.model.checkpoint
    found: dict[str, Callable[[], contract.Finding]] = {
        "files": partial(contract.files, checkpoint, trial.expected),
        "digests": partial(contract.digests, checkpoint),
    }
    found |= {part: partial(contract.network, checkpoint, part) for part in PARTS if part in checkpoint.parts}
    for part in PADDING:
        if part in checkpoint.parts:
            found[tokenizer_folder(part)] = partial(contract.tokenizer, checkpoint, part)
    return found


def _run_check(name: str, check: Callable[[], contract.Finding], path: Path) -> Check:
    """Run a check, turning exceptions into its result."""
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
    """Turn a text into one line without paths and hub tokens."""
    for folder, name in ((model.resolve(), "MODEL"), (model, "MODEL"), (model.resolve().parent, "..")):
        if len(str(folder)) > 2:  # not as a part of a word or of another path
            text = re.sub(rf"(?<![\w./]){re.escape(str(folder))}(?!\w)", name, text)
    text = text.replace(str(Path.home()), "~").replace(str(Path(sys.prefix)), "PYTHON")
    text = re.sub(r"(?<![\w.])(?:/[\w.@+-]+){2,}/?", "PATH", text)
    return line(re.sub(r"hf_\w+", "hf_...", text))


def verdict(found: Sequence[Check]) -> str:
    """Summarize the results in one line."""
    failed = [each.name for each in found if each.result == FAIL]
    skipped = [each.name for each in found if each.result == NOT_RUN]
    uncompared = [
        each.name for each in found if each.result == PASS and each.figures.get("diffusers", each) is None
    ]
    missing = f"; not run: {', '.join(skipped)}" if skipped else ""
    missing += f"; not compared with diffusers: {', '.join(uncompared)}" if uncompared else ""
    if failed:
        return f"FAIL: {len(failed)} of {len(found)} checks: {', '.join(failed)}{missing}"
    return f"PASS: {len(found) - len(skipped)} checks{missing}"


class _ImageChecks:
    """Checks of a model's images, each generated in its own process; the first in fp32 is the reference."""

    def __init__(self, trial: Trial, folder: Path) -> None:
        self._trial, self._folder = trial, folder
        self._reference: _Output | None = None
        self._diffusers_model: Path | None = None
        self._has_diffusers = find_spec("diffusers") is not None

    def check(self, device: str, dtype: str) -> contract.Finding:
        """Generate an image with this package and with diffusers, and compare them.

        Raises:
            NotRun: this machine cannot generate it, or not within the time limit.
            InputError: the difference is larger than the number format explains.
        """
        ours = self._generate("ssd1b", self._trial.model.path, device, dtype)
        if ours.pixels.std() < 1:
            raise InputError("the image is a single colour")
        theirs, problem = self._generate_with_diffusers(device, dtype)
        figures: dict[str, Any] = {"ssd1b": ours.figures, "diffusers": theirs.figures if theirs else None}
        sentences = []
        if theirs is not None:
            error = _difference(ours, theirs)
            figures |= {"largest": float(error.max()), "mean": float(error.mean())}
            sentences.append(
                f"differs from diffusers' by {error.max():.0f} levels at most, {error.mean():.2f} on average"
            )
        else:
            sentences.append(problem)
        if dtype == "fp32":
            self._reference = self._reference or theirs or ours
            failed = theirs is not None and figures["largest"] > LARGEST_FP32
        else:
            failed = self._differs_from_fp32(ours, theirs, figures, sentences)
        sentences.append(_cost(ours, theirs))
        if failed:
            raise InputError("; ".join(["the difference is too large", *sentences]))
        return "; ".join(sentences), figures

    def _differs_from_fp32(
        self, ours: _Output, theirs: _Output | None, figures: dict[str, Any], sentences: list[str]
    ) -> bool:
        """Whether the image in 16 bits, or the first step's error relative to diffusers', is too far off."""
        reference = self._reference or theirs
        if reference is None:
            return False
        mean = float(_difference(ours, reference).mean())
        ratio = None
        if self._reference is not None:
            figures["from_fp32"] = mean
            sentences.append(f"from fp32 by {mean:.2f} on average")
        if self._reference is not None and theirs is not None:
            error, peers = (float(np.linalg.norm(each.first - reference.first)) for each in (ours, theirs))
            figures["rounding"] = ratio = error / peers if peers else math.inf if error else 1.0
            sentences.append(f"the rounding error of the first step is {ratio:.2f} times diffusers'")
        return mean > LARGEST_MEAN or (ratio is not None and ratio > LARGEST_RATIO)

    def _generate_with_diffusers(self, device: str, dtype: str) -> tuple[_Output | None, str]:
        """Generate an image, or say why there is none."""
        if not self._has_diffusers:
            return None, "diffusers is not installed, so there is nothing to compare with"
        try:
            return self._generate("diffusers", self._model_for_diffusers(), device, dtype), ""
        except (NotRun, InputError, OSError) as error:
            return None, f"diffusers generated no image ({error})"

    def _model_for_diffusers(self) -> Path:
        """Give the model as a folder, converting a single file once."""
        model = self._trial.model
        if model.path.is_dir():
            return model.path
        if self._diffusers_model is None:
            needed = sum(part.size_in_bytes for part in model.checkpoint.parts.values())
            if shutil.disk_usage(self._folder).free < 1.1 * needed:
                raise NotRun(f"converting the file to a folder needs {needed / 1e9:.1f} GB of disk space")
            tensors = {part: read_part(model.checkpoint, part) for part in PARTS}
            save_folder(self._folder / "model", model.info, tensors)
            self._diffusers_model = self._folder / "model"
        return self._diffusers_model

    def _generate(self, engine: str, model: Path, device: str, dtype: str) -> _Output:
        layout = self._trial.model.layout
        out = self._folder / f"{engine}-{device.replace(':', '-')}-{dtype}.npz"
        task = Task(
            engine=engine, model=str(model.resolve()), device=device, dtype=dtype, steps=self._trial.steps,
            size=self._trial.size or min(layout.size, 512), out=str(out),
        )  # fmt: skip
        figures = _run(task, self._trial.seconds)
        with np.load(out) as found:
            return _Output(found["pixels"].astype(int), found["first"], figures)


def _run(task: Task, seconds: float) -> dict[str, Any]:
    command = [sys.executable, "-m", "ssd1b.bench.one_picture", task_text(task)]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=seconds, stdin=subprocess.DEVNULL,
            env={**os.environ, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise NotRun(f"stopped after {seconds / 60:.3g} minutes") from None
    if done.returncode == -getattr(signal, "SIGKILL", 9):
        raise NotRun("the process was killed, probably for lack of memory")
    if done.returncode != 0:
        message = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
        out_of_memory = "out of memory" in message.lower() or message.startswith("MemoryError")
        raise (NotRun if out_of_memory else InputError)(message.removeprefix("ssd1b.errors.InputError: "))
    return json.loads(done.stdout.strip().splitlines()[-1])


def _difference(one: _Output, other: _Output) -> np.ndarray:
    return np.abs(one.pixels - other.pixels)


def _cost(ours: _Output, theirs: _Output | None) -> str:
    """Report time and peak memory of both."""
    texts = []
    for name, output in (("", ours), ("diffusers ", theirs)):
        if output is not None:
            texts.append(f"{name}{output.figures['seconds']:.1f} s")
            texts += [f"{output.figures['memory'] / 1e9:.2f} GB"] if output.figures["memory"] else []
    return ", ".join(texts)
