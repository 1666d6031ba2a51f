"""The stages of a distillation as data: what is cut, what is compared, how long it is trained.

[train]                          # of every stage: fields of LoopSettings
batch_size = 32

[[stages]]                       # each begins where the one before ended
student = "75%"                  # of the teacher's parameters, filled by importance

[[stages]]
student = "ssd-1b"               # or a layout file, or { mid = 0, down = [...], up = [...] }
keep = "inferred"                # or "first", "importance"
blocks = { "down_blocks.2.attentions.0" = [0, 1, 2, 6] }
features = "layer"               # or "block", "self-attention", "none"
teacher = "path/to/another"      # of the same layout as the first
weights = { task = 1.0, output = 0.5, features = 0.5, normalised = false }
train = { steps = 5000, validation_steps = 500 }
captions = ["a lighthouse at dusk"]   # drawn at each validation
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ssd1b.distill.features import LEVELS
from ssd1b.distill.layer_map import CHOICES
from ssd1b.distill.losses import Weights
from ssd1b.errors import InputError, NotFoundError, prefix_errors, shown, unknown
from ssd1b.files import expand_path
from ssd1b.numerals import number
from ssd1b.table_files import read_table
from ssd1b.training.settings import LoopSettings
from ssd1b.validation import Items, OneOf, Range, Text, parse, validated

TRAIN = LoopSettings(
    steps=10_000, batch_size=16, learning_rate=1e-4, betas=(0.9, 0.999), warmup_share=0.05,
    decay_steps=2_000, decay_share=0.2, ema_decay=0.9995, checkpoint_steps=500,
)  # fmt: skip
"""The vendor's rate, batch and warm-up (``distill_sdxl.py``); it has neither decay nor averaging."""

USUAL = Weights()

MOST_STAGES = 100

Depth = Annotated[int, Range(0, 100)]
Levels = Items(1, 8)
Blocks = Annotated[tuple[Depth, ...], Items(0, 100)]

IMPORTANCE = "importance"
RULES = (*CHOICES, IMPORTANCE)
"""What chooses the blocks that stay."""

_SHIPPED = Path(__file__).parent.parent / "data" / "stages"


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """A topology: by level, finest first, as in ``layouts.Level``; also what a layout file holds.

    Attributes:
        mid: depth in the middle block, 0 for a single resnet, "none" for no middle block.
        down: on the way down; up: on the way up, in the order of execution.
        channels: widths of the levels; None = the teacher's.
    """

    mid: Depth | Literal["none"]
    down: Annotated[tuple[Annotated[tuple[Depth, ...], Items(1, 16)], ...], Levels]
    up: Annotated[tuple[Annotated[tuple[Depth, ...], Items(1, 16)], ...], Levels]
    channels: Annotated[tuple[Annotated[int, Range(1, 65_536)], ...], Levels] | None = None

    def __post_init__(self) -> None:
        """Check what no field can say by itself."""
        if not len(self.down) == len(self.up) == len(self.channels or self.down):
            raise InputError("down, up and channels must speak of the same number of levels")


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage: cut, then train.

    Attributes:
        student: what it ends with: a name, a layout file, a share as "50%", or depths. None is what the
            distillation is to end with.
        keep: the rule that chooses which blocks stay, one of ``RULES``; None is "inferred", or "importance"
            for a share.
        blocks: those that stay, by the transformer, both in the teacher's counting; the rule chooses for the
            others.
        features: which are compared, a key of ``LEVELS``.
        weights: of the terms of the loss.
        teacher: a model; None is the distillation's.
        train: the loop's settings.
        captions: of the pictures that the student draws every ``train.validation_steps``.
    """

    student: Text | Depths | None = None
    keep: Annotated[str, OneOf("choice of blocks", RULES)] | None = None
    blocks: Mapping[str, Blocks] = field(default_factory=dict)
    features: Annotated[str, OneOf("level of features", LEVELS)] = "layer"
    weights: Weights = USUAL
    teacher: Text | None = None
    train: LoopSettings = TRAIN
    captions: Annotated[tuple[Text, ...], Items(0, 100)] = ()

    def __post_init__(self) -> None:
        """Check what no field can say by itself."""
        if self.train.validation_steps is not None and not self.captions:
            raise InputError("validation_steps needs captions: what is to be drawn")
        if share_of(self.student) is not None and (self.blocks or self.keep not in (None, IMPORTANCE)):
            raise InputError(
                "of a share of the parameters, importance chooses the blocks: leave keep and blocks out"
            )


def share_of(student: str | Depths | None) -> float | None:
    """The share that "50%" says; None for whatever is no budget."""
    if not isinstance(student, str) or not student.endswith("%"):
        return None
    try:
        share = number(student[:-1]) / 100
    except InputError:
        share = 0.0
    if not 0 < share < 1:
        raise InputError(f"a share of the parameters must lie between 0% and 100%, got {shown(student)}")
    return share


def read_stages(name: str) -> list[Stage]:
    """Read stages that come with the package, by name, or a TOML file.

    Raises:
        InputError: there are no such stages, or what the file says is not allowed.
    """
    shipped = {path.stem: path for path in _SHIPPED.glob("*.toml")}
    path = shipped.get(name) or Path(expand_path(name))
    if path.suffix.lower() != ".toml":
        raise unknown("stages", name, [*shipped, "a .toml file"], NotFoundError)
    table: dict[str, Any] = read_table(path)
    for key in table:
        if key not in ("train", "stages"):
            raise unknown(f"key in {path}", key, ("train", "stages"))
    stages = table.get("stages")
    if not isinstance(stages, list) or not stages:
        raise InputError(f"{path} holds no stages: each is a table [[stages]]")
    if len(stages) > MOST_STAGES:
        raise InputError(f"{path} holds {len(stages)} stages: allowed are {MOST_STAGES}")
    common = _trained(TRAIN, table.get("train", {}), f"train of {path}")
    return [_stage(each, common, f"stage {number} of {path}") for number, each in enumerate(stages, 1)]


def read_depths(path: Path) -> Depths:
    """Read a layout file.

    Raises:
        InputError: it cannot be read or is no layout.
    """
    return parse(Depths, read_table(path), str(path))


def retimed(stages: list[Stage], steps: int) -> list[Stage]:
    """Share out another number of steps in all, in the proportion of the stages' own.

    Raises:
        InputError: a stage's warm-up or decay, given as a number of steps, no longer fits.
    """
    before = sum(stage.train.steps for stage in stages)
    shares = [max(1, steps * stage.train.steps // before) for stage in stages]
    return [
        replace(stage, train=fitting(replace(stage.train, steps=share), f"stage {number} of {steps} steps"))
        for number, (stage, share) in enumerate(zip(stages, shares, strict=True), 1)
    ]


def _stage(table: Any, common: LoopSettings, where: str) -> Stage:
    if isinstance(table, Mapping):
        train = _trained(common, table.get("train", {}), f"train of {where}")
        table = {**table, "train": fitting(train, where)}
    return parse(Stage, table, where)


def _trained(settings: LoopSettings, table: Any, where: str) -> LoopSettings:
    """The settings with a table's changes; a number of steps takes the place of a share, and the reverse."""
    if not isinstance(table, Mapping):
        raise InputError(f"{where} is {shown(table)}: it must be a table")
    changes = dict(table)
    for steps, share in (("warmup_steps", "warmup_share"), ("decay_steps", "decay_share")):
        if steps in changes and share in changes:
            raise InputError(f"{where} has both {steps} and {share}: leave one of them out")
        if steps in changes:
            changes[share] = None
    with prefix_errors(where):
        return replace(settings, **changes)


def fitting(settings: LoopSettings, where: str) -> LoopSettings:
    """Give the settings back if warm-up and decay have room in their steps."""
    for name in ("warmup", "decay"):
        if (number := getattr(settings, f"{name}_steps")) > settings.steps:
            raise InputError(
                f"{name}_steps is {number} in {where}, which has {settings.steps} steps: "
                f"a share of them is asked for by {name}_share, as 0.05"
            )
    return settings
