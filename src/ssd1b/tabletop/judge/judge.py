"""The judge: a detector that reads solids, background and degradation from an image of Tabletop.

As in CenterNet (Zhou et al. 2019, 1904.07850), each cell of a grid predicts whether the middle of a solid
lies in it, and which solid. The judge never sees a caption.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from ssd1b.errors import InputError, NotFoundError
from ssd1b.tabletop.world.degradations import DEGRADATIONS
from ssd1b.tabletop.world.renderer import in_picture
from ssd1b.tabletop.world.scenes import COLORS, MATERIALS, NEW_MATERIALS, SIZES, Solid, relation
from ssd1b.tabletop.world.shapes import NEW_SHAPES, SHAPES
from ssd1b.tabletop.world.views import SIZE
from ssd1b.tensors import Pixels, from_levels
from ssd1b.weights.files import open_file

GRID = 16
"""Number of cells along each side."""

CLEAN = "none"
"""The answer for no degradation."""

SOLID_ANSWERS: Mapping[str, tuple[str, ...]] = {
    "shape": tuple(SHAPES),
    "color": tuple(COLORS),
    "size": tuple(SIZES),
    "material": MATERIALS,
}
"""Questions about each solid, with the possible answers."""

SUBJECT_ANSWERS: Mapping[str, tuple[str, ...]] = {
    **SOLID_ANSWERS,
    "shape": (*SHAPES, *NEW_SHAPES),
    "material": (*MATERIALS, *NEW_MATERIALS),
}
"""The answers of a judge that also knows the subjects of ``subjects.py``."""

PICTURE_ANSWERS: Mapping[str, tuple[str, ...]] = {
    "background": tuple(COLORS),
    "degradation": (CLEAN, *DEGRADATIONS),
}
"""Questions about the whole image, with the possible answers."""

_PLACE = ("presence", "right", "up", "depth")
_CHANNELS = (32, 64, 96, 128)
FEATURES = 128
_MAX_SOLIDS = 4  # per image; no world shows more than three
_WEIGHTS = Path(__file__).parents[2] / "data" / "judge" / "judge.safetensors"


class Seen(NamedTuple):
    """A solid that the judge detected.

    Attributes:
        answers: to each question of ``SOLID_ANSWERS``.
        chances: probability of each answer.
        x: position to the right in the image, -1 to 1.
        up: position upwards in the image, -1 to 1.
        depth: distance away from the viewer in world units.
    """

    answers: dict[str, str]
    chances: dict[str, float]
    x: float
    up: float
    depth: float


Pairs: TypeAlias = Sequence[tuple[Solid, Seen | None]]
"""Each wanted solid with the detected one paired with it, if any."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The judge's reading of one image.

    Attributes:
        solids: in order of falling probability of presence.
        background: a key of ``COLORS``.
        degradation: a key of ``DEGRADATIONS`` or None.
        chances: probabilities of background and degradation, by the names of ``PICTURE_ANSWERS``.
        features: ``[FEATURES]``, for distances between sets of images.
    """

    solids: tuple[Seen, ...]
    background: str
    degradation: str | None
    chances: dict[str, float]
    features: NDArray[np.float32]


class Answers(NamedTuple):
    """The network's output; answers are logits.

    Attributes:
        place: ``[B, 4, GRID, GRID]``: the logit of presence, the offset of a solid's middle from the cell's
            to the right and up, in cells, and its depth.
        solid: ``[B, answers, GRID, GRID]`` for each question of ``SOLID_ANSWERS``.
        picture: ``[B, answers]`` for each name of ``PICTURE_ANSWERS``.
        features: ``[B, FEATURES]``.
    """

    place: Tensor
    solid: dict[str, Tensor]
    picture: dict[str, Tensor]
    features: Tensor


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.GroupNorm(8, channels), nn.GroupNorm(8, channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv2(F.silu(self.norm2(self.conv1(F.silu(self.norm1(x))))))


class Judge(nn.Module):
    """The judge's network, for images of ``SIZE`` x ``SIZE``.

    Args:
        answers: to the questions about each solid, ``SOLID_ANSWERS`` or ``SUBJECT_ANSWERS``.
    """

    def __init__(self, answers: Mapping[str, tuple[str, ...]] = SOLID_ANSWERS) -> None:
        super().__init__()
        self.answers = answers
        halvings = zip((3, *_CHANNELS[:-1]), _CHANNELS, strict=True)
        self.down = nn.ModuleList(
            nn.Conv2d(before, after, 4, stride=2, padding=1) for before, after in halvings
        )
        self.blocks = nn.ModuleList(
            nn.Sequential(*(_Residual(channels) for _ in range(depth)))
            for channels, depth in zip(_CHANNELS, (1, 1, 2, 2), strict=True)
        )
        self.context = nn.Conv2d(_CHANNELS[-1], _CHANNELS[-2], 1)
        self.refine = _Residual(_CHANNELS[-2])
        self.norm = nn.GroupNorm(8, _CHANNELS[-2])
        self.cell_conv_out = nn.Conv2d(_CHANNELS[-2], len(_PLACE) + sum(map(len, answers.values())), 1)
        self.picture_conv_out = nn.Linear(FEATURES, sum(map(len, PICTURE_ANSWERS.values())))

    def forward(self, pixels: Pixels) -> Answers:
        """Return the answers for pixels from -1 to 1."""
        x, levels = pixels, []
        for down, blocks in zip(self.down, self.blocks, strict=True):
            x = blocks(down(x))
            levels.append(x)
        features = F.silu(x).mean(dim=(2, 3))
        cells = levels[-2] + F.interpolate(self.context(x), scale_factor=2.0)
        cells = self.cell_conv_out(F.silu(self.norm(self.refine(cells)))).float()
        place, *solid = cells.split([len(_PLACE), *map(len, self.answers.values())], dim=1)
        picture = self.picture_conv_out(features).float().split([*map(len, PICTURE_ANSWERS.values())], dim=1)
        return Answers(
            place,
            dict(zip(self.answers, solid, strict=True)),
            dict(zip(PICTURE_ANSWERS, picture, strict=True)),
            features.float(),
        )

    @torch.inference_mode()
    def read(self, pictures: NDArray[np.uint8], batch_size: int = 64) -> list[Reading]:
        """Read images, ``[images, SIZE, SIZE, 3]``.

        Raises:
            ValueError: the images have another size.
        """
        if pictures.shape[1:] != (SIZE, SIZE, 3):
            raise ValueError(f"the judge reads images of {SIZE} x {SIZE} pixels, got {pictures.shape[1:]}")
        read = []
        for start in range(0, len(pictures), batch_size):
            batch = torch.tensor(pictures[start : start + batch_size]).permute(0, 3, 1, 2)
            read += readings(self(from_levels(batch)), self.answers)
        return read


def widened(judge: Judge) -> Judge:
    """Return a copy of a judge with ``SUBJECT_ANSWERS``; it learns the new answers by a training."""
    wide = Judge(SUBJECT_ANSWERS)
    state = judge.state_dict()
    sizes = [len(_PLACE), *map(len, judge.answers.values())]
    for name in ("cell_conv_out.weight", "cell_conv_out.bias"):
        place, *parts = state[name].split(sizes)
        padded = [
            F.pad(part, [0] * 2 * (part.ndim - 1) + [0, len(answers) - len(part)])
            for part, answers in zip(parts, SUBJECT_ANSWERS.values(), strict=True)
        ]
        state[name] = torch.cat([place, *padded])
    wide.load_state_dict(state)
    return wide


def load_judge(path: Path | None = None) -> Judge:
    """Load a judge that ``ssd1b tabletop train judge`` wrote; None loads the shipped one.

    Raises:
        InputError: there is no such file, or it holds no judge.
    """
    path = path or _WEIGHTS
    if not path.exists():
        raise NotFoundError(f"{path}: no such judge; train one with 'ssd1b tabletop train judge --out RUN'")
    handle = open_file(path)
    state = {name: handle.get_tensor(name).float() for name in handle.keys()}
    outputs = len(state.get("cell_conv_out.bias", ()))
    knows_subjects = outputs == len(_PLACE) + sum(map(len, SUBJECT_ANSWERS.values()))
    judge = Judge(SUBJECT_ANSWERS if knows_subjects else SOLID_ANSWERS)
    try:
        judge.load_state_dict(state)
    except RuntimeError as error:
        raise InputError(f"{path}: holds no judge of this version") from error
    return judge.requires_grad_(False).eval()


def cell_of(solid: Solid) -> tuple[int, int, float, float]:
    """Return the cell (row, column) of a solid's middle, and the offset right and up, in cells."""
    u, v = in_picture(solid)
    across, down = (u + 1) / 2 * GRID, (1 - v) / 2 * GRID
    row, column = (min(max(math.floor(value), 0), GRID - 1) for value in (down, across))
    return row, column, across - column - 0.5, row + 0.5 - down


def relation_is_right(pairs: Pairs) -> bool:
    """Return whether two detected solids have the relation of the wanted ones."""
    (first, one), (second, other) = pairs
    if one is None or other is None:
        return False
    stands = {
        "left": one.x < other.x,
        "right": one.x > other.x,
        "front": one.depth < other.depth,
        "behind": one.depth > other.depth,
        "above": one.up > other.up,
        "below": one.up < other.up,
    }
    return stands[relation(first, second)]


def readings(answers: Answers, names: Mapping[str, tuple[str, ...]] = SOLID_ANSWERS) -> list[Reading]:
    """Convert the network's output for a batch to readings; ``names`` are the judge's answers."""
    return [_reading(answers, names, index) for index in range(len(answers.place))]


def _reading(answers: Answers, names: Mapping[str, tuple[str, ...]], index: int) -> Reading:
    presence = answers.place[index, 0].sigmoid()
    # Solids are local maxima of presence.
    peaks = (presence == F.max_pool2d(presence[None], 3, stride=1, padding=1)[0]) & (presence > 0.5)
    cells = peaks.nonzero()[presence[peaks].argsort(descending=True)][:_MAX_SOLIDS]
    solids = []
    for row, column in cells.tolist():
        chances = {name: logits[index, :, row, column].softmax(0) for name, logits in answers.solid.items()}
        _, right, up, depth = answers.place[index, :, row, column].tolist()
        solids.append(
            Seen(
                {name: names[name][int(chance.argmax())] for name, chance in chances.items()},
                {name: float(chance.max()) for name, chance in chances.items()},
                x=(column + 0.5 + right) / GRID * 2 - 1,
                up=1 - (row + 0.5 - up) / GRID * 2,
                depth=depth,
            )
        )
    chances = {name: logits[index].softmax(0) for name, logits in answers.picture.items()}
    said = {name: PICTURE_ANSWERS[name][int(chance.argmax())] for name, chance in chances.items()}
    return Reading(
        solids=tuple(solids),
        background=said["background"],
        degradation=None if said["degradation"] == CLEAN else said["degradation"],
        chances={name: float(chance.max()) for name, chance in chances.items()},
        features=answers.features[index].numpy(),
    )
