"""Train the judge on renders alone."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd1b.tabletop.degradations import COLORLESS
from ssd1b.tabletop.judge import CLEAN, GRID, PICTURE_ANSWERS, SOLID_ANSWERS, Answers, Judge, cell_of
from ssd1b.tabletop.renderer import render
from ssd1b.tabletop.scenes import Scene, scene
from ssd1b.training.loop import Batch, LoopSettings, train
from ssd1b.training.precision import computing_in, training_dtype

SETTINGS = LoopSettings(
    steps=1500, batch_size=64, learning_rate=1e-3, muon_rate=0.02, muon_decay=0.1, decay_steps=1200,
    warmup_steps=20, ema_decay=0.99, checkpoint_steps=250,
)  # fmt: skip
SEED = 2
"""Of the judge's own stream: it never saw the pictures that the miniature learned from."""

_ABSENT = -1
_PLACE_WEIGHT = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Renders:
    """Renders with what stands in each cell."""

    batch_size: int = SETTINGS.batch_size
    seed: int = SEED

    def __getitem__(self, step: int) -> Batch:
        """A batch that no other step has."""
        scenes = [scene(self.seed, step * self.batch_size + index) for index in range(self.batch_size)]
        pictures = np.stack([render(each) for each in scenes])
        return {"pixels": torch.from_numpy(pictures).permute(0, 3, 1, 2), **truth(scenes)}


def truth(scenes: list[Scene]) -> dict[str, Tensor]:
    """The right answers; ``_ABSENT`` where there is none, or none that could be seen."""
    count = len(scenes)
    place = torch.zeros(count, 4, GRID, GRID)
    solid = {name: torch.full((count, GRID, GRID), _ABSENT) for name in SOLID_ANSWERS}
    picture = {name: torch.full((count,), _ABSENT) for name in PICTURE_ANSWERS}
    readable = torch.tensor([each.degradation != "cropped" for each in scenes])
    for index, each in enumerate(scenes):
        colorless = each.degradation in COLORLESS
        picture["degradation"][index] = PICTURE_ANSWERS["degradation"].index(each.degradation or CLEAN)
        if not colorless:
            picture["background"][index] = PICTURE_ANSWERS["background"].index(each.background)
        if not readable[index]:
            continue
        for one in each.solids:
            row, column, right, up = cell_of(one)
            place[index, :, row, column] = torch.tensor([1.0, right, up, one.depth])
            for name, answers in SOLID_ANSWERS.items():
                if not (name == "color" and colorless):
                    solid[name][index, row, column] = answers.index(getattr(one, name))
    return {"place": place, "readable": readable, **solid, **picture}


def train_judge(
    out: Path, *, settings: LoopSettings = SETTINGS, resume: bool = False, device: str = "cpu"
) -> Judge:
    """Train the judge."""
    torch.manual_seed(settings.seed)
    dtype = training_dtype(device)

    def loss(module: nn.Module, batch: Batch) -> dict[str, Tensor]:
        batch = {name: tensor.to(device) for name, tensor in batch.items()}
        pixels = batch["pixels"].contiguous(memory_format=torch.channels_last).float() / 127.5 - 1.0
        answers: Answers = computing_in(dtype, module)(pixels.to(dtype))
        readable = batch["readable"]
        told, said = batch["place"][readable], answers.place[readable]
        present = told[:, 0] > 0
        presence = F.binary_cross_entropy_with_logits(said[:, 0], told[:, 0], reduction="sum") / present.sum()
        offsets = (said[:, 1:] - told[:, 1:]).movedim(1, -1)[present].abs().mean()
        terms = {"presence": presence, "place": _PLACE_WEIGHT * offsets}
        for name, logits in (*answers.solid.items(), *answers.picture.items()):
            terms[name] = F.cross_entropy(logits, batch[name], ignore_index=_ABSENT)
        with torch.no_grad():
            right = {
                f"{name}_right": (logits.argmax(1) == batch[name])[batch[name] != _ABSENT].float().mean()
                for name, logits in (*answers.solid.items(), *answers.picture.items())
            }
        return {"loss": torch.stack([*terms.values()]).sum(), **terms, **right}

    model = Judge().to(device)
    return train(
        model, Renders(batch_size=settings.batch_size), loss, settings, out, resume=resume, label="judge"
    )  # type: ignore[return-value]
