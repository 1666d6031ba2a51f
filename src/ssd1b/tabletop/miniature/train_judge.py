"""Training of the judge on renders, some of them reconstructed by an autoencoder."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from torch import Tensor, nn

from ssd1b.evaluate.reconstruction import reconstruct
from ssd1b.models.vae import VAE
from ssd1b.tabletop.judge.judge import (
    CLEAN,
    GRID,
    PICTURE_ANSWERS,
    SOLID_ANSWERS,
    SUBJECT_ANSWERS,
    Answers,
    Judge,
    cell_of,
)
from ssd1b.tabletop.world.degradations import COLORLESS
from ssd1b.tabletop.world.renderer import render_batch
from ssd1b.tabletop.world.scenes import PLAIN, WORLDS, Scene, World, scene
from ssd1b.tabletop.world.subjects import SUBJECTS, subject_scene
from ssd1b.tensors import from_levels
from ssd1b.training.loop import train
from ssd1b.training.precision import computing_in, training_dtype
from ssd1b.training.settings import LoopSettings

SETTINGS = LoopSettings(
    steps=1500, batch_size=64, learning_rate=1e-3, muon_rate=0.02, muon_decay=0.1, decay_steps=1200,
    warmup_steps=20, ema_decay=0.99, checkpoint_steps=250, seed=2,
)  # fmt: skip
FINETUNING = replace(SETTINGS, steps=400, muon_rate=0.01, learning_rate=5e-4, decay_steps=380, seed=3)
"""Settings for finetuning. The seeds are the judge's own: it never sees the miniature's training images."""

RECONSTRUCTED = 0.5
"""Share of images reconstructed by an autoencoder, as generated images are decoded by one. It softens
highlights, by which metal differs from rubber, and removes noise (docs/log)."""

SOFTENED, SHARPENED = 0.4, 0.2
"""Shares of the other images that are softened or sharpened, as other autoencoders might."""

_COARSEST = 0.45

ABSENT = -1
"""Label for no answer, or one that is not visible."""

_PLACE_WEIGHT = 0.5


class JudgedBatch(NamedTuple):
    """Images ``[B, 3, H, W]``, uint8, with the true answers (``truth``)."""

    pixels: Tensor
    truth: dict[str, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Renders:
    """Renders with true answers; the first ones of each batch are reconstructed by ``vae``.

    With ``subjects``, two of three images show a new shape or material.
    """

    vae: VAE
    batch_size: int = SETTINGS.batch_size
    seed: int = SETTINGS.seed
    world: World = PLAIN
    subjects: bool = False

    def __getitem__(self, step: int) -> JudgedBatch:
        """Return the batch of a step; every step has other scenes."""
        first = step * self.batch_size
        scenes = [self._scene(index) for index in range(first, first + self.batch_size)]
        rng = np.random.default_rng((self.seed, step))
        pictures = render_batch(scenes)
        count = round(RECONSTRUCTED * len(scenes))
        pictures[:count] = reconstruct(self.vae, pictures[:count])
        pictures[count:] = [refocused(picture, rng) for picture in pictures[count:]]
        answers = SUBJECT_ANSWERS if self.subjects else SOLID_ANSWERS
        return JudgedBatch(torch.from_numpy(pictures).permute(0, 3, 1, 2), truth(scenes, answers))

    def _scene(self, index: int) -> Scene:
        kinds = [None, *SUBJECTS] if self.subjects else [None]
        subject = kinds[index % len(kinds)]
        if subject is None:
            return scene(self.seed, index, world=self.world)
        return subject_scene(subject, self.seed, index)


def refocused(picture: NDArray[np.uint8], rng: np.random.Generator) -> NDArray[np.uint8]:
    """Soften some images, by downscaling and upscaling, and sharpen others."""
    kind = rng.random()
    if kind >= SOFTENED + SHARPENED:
        return picture
    image = Image.fromarray(picture)
    if kind < SHARPENED:
        sharper = ImageFilter.UnsharpMask(
            radius=rng.uniform(0.7, 2), percent=int(rng.uniform(40, 140)), threshold=0
        )
        return np.array(image.filter(sharper))
    side = round(image.width * rng.uniform(_COARSEST, 1))
    smaller = image.resize((side, side), Image.Resampling.BILINEAR)
    return np.array(smaller.resize(image.size, Image.Resampling.BICUBIC))


def truth(scenes: list[Scene], answers: Mapping[str, tuple[str, ...]] = SOLID_ANSWERS) -> dict[str, Tensor]:
    """Return the true answers; ``ABSENT`` if there is none or it is not visible."""
    place = torch.zeros(len(scenes), 4, GRID, GRID)
    picture = {name: torch.full((len(scenes),), ABSENT) for name in PICTURE_ANSWERS}
    for index, each in enumerate(scenes):
        picture["degradation"][index] = PICTURE_ANSWERS["degradation"].index(each.degradation or CLEAN)
        if each.degradation not in COLORLESS:
            picture["background"][index] = PICTURE_ANSWERS["background"].index(each.background)
        for one in each.solids:
            row, column, right, up = cell_of(one)
            place[index, :, row, column] = torch.tensor([1.0, right, up, one.depth])
    readable = torch.tensor([_readable(each) for each in scenes])
    return {"place": place, "readable": readable, **answers_by_cell(scenes, answers), **picture}


def answers_by_cell(
    scenes: list[Scene], answers: Mapping[str, tuple[str, ...]] = SOLID_ANSWERS
) -> dict[str, Tensor]:
    """Return the true answers in the cells of the solids' middles; ``ABSENT`` elsewhere, or if not visible.

    Args:
        scenes: the scenes.
        answers: ``SOLID_ANSWERS`` or ``SUBJECT_ANSWERS``.

    Returns:
        ``[scenes, GRID, GRID]`` for each question.
    """
    cells = {name: torch.full((len(scenes), GRID, GRID), ABSENT) for name in answers}
    for index, each in enumerate(scenes):
        for one in each.solids if _readable(each) else ():
            row, column, *_ = cell_of(one)
            for name, allowed in answers.items():
                if not (name == "color" and each.degradation in COLORLESS):
                    cells[name][index, row, column] = allowed.index(getattr(one, name))
    return cells


def _readable(scene: Scene) -> bool:
    """Return whether solids are at their usual positions in the image."""
    return scene.degradation != "cropped"


def train_judge(
    out: Path, vae: VAE, *, start: Judge | None = None, settings: LoopSettings = SETTINGS,
    world: str = "plain", resume: bool = False, device: str = "cpu",
) -> Judge:  # fmt: skip
    """Train the judge on renders.

    Args:
        out: folder of the run.
        vae: reconstructs half of the renders, on the CPU; converted to the number format that is fastest
            there.
        start: a judge to finetune, such as ``widened(load_judge())``, which learns the subjects, too; None
            creates a new one.
        settings: of the run.
        world: a key of ``WORLDS``.
        resume: continue the run in ``out``.
        device: to train on.
    """
    torch.manual_seed(settings.seed)
    dtype = training_dtype(device)

    def loss(module: nn.Module, batch: JudgedBatch) -> dict[str, Tensor]:
        pixels = from_levels(batch.pixels.to(device).contiguous(memory_format=torch.channels_last))
        right = {name: tensor.to(device) for name, tensor in batch.truth.items()}
        answers: Answers = computing_in(dtype, module)(pixels.to(dtype))
        readable = right["readable"]
        truth_place, answered = right["place"][readable], answers.place[readable]
        present = truth_place[:, 0] > 0
        presence = (
            F.binary_cross_entropy_with_logits(answered[:, 0], truth_place[:, 0], reduction="sum")
            / present.sum()
        )
        offsets = (answered[:, 1:] - truth_place[:, 1:]).movedim(1, -1)[present].abs().mean()
        terms = {"presence": presence, "place": _PLACE_WEIGHT * offsets}
        for name, logits in (*answers.solid.items(), *answers.picture.items()):
            terms[name] = F.cross_entropy(logits, right[name], ignore_index=ABSENT)
        with torch.no_grad():
            shares = {
                f"{name}_right": (logits.argmax(1) == right[name])[right[name] != ABSENT].float().mean()
                for name, logits in (*answers.solid.items(), *answers.picture.items())
            }
        return {"loss": torch.stack([*terms.values()]).sum(), **terms, **shares}

    vae.to(training_dtype("cpu"))
    model = (start or Judge()).requires_grad_(True).to(device)
    data = Renders(
        vae=vae, batch_size=settings.batch_size, seed=settings.seed, world=WORLDS[world],
        subjects=model.answers is SUBJECT_ANSWERS,
    )  # fmt: skip
    return train(model, data, loss, settings, out, resume=resume, label="judge")  # type: ignore[return-value]
