"""The stages of a distillation: layers to keep, features to compare, training; and their TOML files.

[train]                          # defaults of all stages: fields of LoopSettings
batch_size = 32

[[stages]]                       # each starts from the student of the one before
student = "75%"                  # of the teacher's parameters, chosen by importance

[[stages]]
student = "ssd-1b"               # or a layout file, or { mid = 0, down = [...], up = [...] }
keep = "inferred"                # or "first", "importance"
blocks = { "down_blocks.2.attentions.0" = [0, 1, 2, 6] }
features = "layer"               # or "block", "self-attention", "none"
teacher = "path/to/another"      # of the same layout as the first
weights = { task = 1.0, output = 0.5, features = 0.5, normalised = false }
train = { steps = 5000, validation_steps = 500 }
captions = ["a lighthouse at dusk"]   # generated at each validation

Stages with a method, which distill steps, come after these; see ``steps.stages``.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ssd1b.distill.features import LEVELS
from ssd1b.distill.losses import Weights
from ssd1b.distill.stage_files import read_stage_tables
from ssd1b.errors import InputError, NotFoundError, prefix_errors, shown, unknown
from ssd1b.files import expand_path
from ssd1b.layer_map import BLOCK_RULES
from ssd1b.numerals import number
from ssd1b.table_files import read_table
from ssd1b.training.settings import LoopSettings
from ssd1b.validation import Items, OneOf, Range, Text, parse, validated

TRAIN = LoopSettings(
    steps=10_000, batch_size=16, learning_rate=1e-4, betas=(0.9, 0.999), warmup_share=0.05,
    decay_steps=2_000, decay_share=0.2, ema_decay=0.9995, checkpoint_steps=500,
)  # fmt: skip
"""Rate, batch size and warm-up are those of the vendor's ``distill_sdxl.py``, without decay or averaging."""

DEFAULT_WEIGHTS = Weights()

MAX_STAGES = 100

Depth = Annotated[int, Range(0, 100)]
Levels = Items(1, 8)
Blocks = Annotated[tuple[Depth, ...], Items(0, 100)]

IMPORTANCE = "importance"
RULES = (*BLOCK_RULES, IMPORTANCE)
"""Rules that choose the blocks to keep."""

_SHIPPED = Path(__file__).parent.parent / "data" / "stages"


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Depths:
    """The depths of a UNet by level, finest first, as in ``layouts.Level``; the format of a layout file.

    Attributes:
        mid: depth of the middle block; 0 for a single resnet, "none" for no middle block.
        down: depths on the way down.
        up: depths on the way up, in the order of execution.
        channels: widths of the levels; None takes the teacher's.
    """

    mid: Depth | Literal["none"]
    down: Annotated[tuple[Annotated[tuple[Depth, ...], Items(1, 16)], ...], Levels]
    up: Annotated[tuple[Annotated[tuple[Depth, ...], Items(1, 16)], ...], Levels]
    channels: Annotated[tuple[Annotated[int, Range(1, 65_536)], ...], Levels] | None = None

    def __post_init__(self) -> None:
        """Check combinations of fields."""
        if not len(self.down) == len(self.up) == len(self.channels or self.down):
            raise InputError("down, up and channels must have the same number of levels")


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a distillation: remove layers, then train.

    Attributes:
        student: the stage's student: a name, a layout file, a share as "50%", or depths. None, in the last
            stage, is the distillation's.
        keep: the rule that chooses the blocks to keep, one of ``RULES``; None is "inferred", or "importance"
            for a share.
        blocks: blocks to keep by transformer, numbered as in the teacher; the rule chooses for other
            transformers.
        features: features to compare, a key of ``LEVELS``.
        weights: weights of the loss's terms.
        teacher: a model; None is the distillation's.
        train: settings of the training loop.
        captions: prompts of the images that the student generates every ``train.validation_steps``.
    """

    student: Text | Depths | None = None
    keep: Annotated[str, OneOf("block rule", RULES)] | None = None
    blocks: Mapping[str, Blocks] = field(default_factory=dict)
    features: Annotated[str, OneOf("level of features", LEVELS)] = "layer"
    weights: Weights = DEFAULT_WEIGHTS
    teacher: Text | None = None
    train: LoopSettings = TRAIN
    captions: Annotated[tuple[Text, ...], Items(0, 100)] = ()

    def __post_init__(self) -> None:
        """Check combinations of fields."""
        if self.train.validation_steps is not None and not self.captions:
            raise InputError("validation_steps needs captions to generate")
        if share_of(self.student) is not None and (self.blocks or self.keep not in (None, IMPORTANCE)):
            raise InputError(
                "with a share of the parameters, importance chooses the blocks: leave keep and blocks out"
            )


def share_of(student: str | Depths | None) -> float | None:
    """Return the share of a text such as "50%"; None for any other student."""
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
    """Read the stages that cut layers: shipped ones by name, or those of a TOML file before its first method.

    Raises:
        InputError: there are no such stages, or the file is invalid.
    """
    shipped = {path.stem: path for path in _SHIPPED.glob("*.toml")}
    path = shipped.get(name) or Path(expand_path(name))
    if path.suffix.lower() != ".toml":
        raise unknown("stages", name, [*shipped, "a .toml file"], NotFoundError)
    tables = read_stage_tables(path)
    if not (stages := tables.cut):
        raise InputError(f"{path} has no stages that cut layers: each is a table [[stages]] without method")
    if len(stages) > MAX_STAGES:
        raise InputError(f"{path} has {len(stages)} stages: allowed are {MAX_STAGES}")
    common = with_changes(TRAIN, tables.train, f"train of {path}")
    return [_stage(each, common, f"stage {number} of {path}") for number, each in enumerate(stages, 1)]


def read_depths(path: Path) -> Depths:
    """Read a layout file.

    Raises:
        InputError: it cannot be read or is not a layout.
    """
    return parse(Depths, read_table(path), str(path))


def with_total_steps(stages: list[Stage], steps: int) -> list[Stage]:
    """Distribute a total number of steps in proportion to the stages' own.

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
        train = with_changes(common, table.get("train", {}), f"train of {where}")
        table = {**table, "train": fitting(train, where)}
    return parse(Stage, table, where)


def with_changes(settings: LoopSettings, table: Any, where: str) -> LoopSettings:
    """Return the settings with a table's changes; a number of steps replaces a share, and vice versa."""
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
    """Return the settings if warm-up and decay fit into their steps."""
    for name in ("warmup", "decay"):
        if (number := getattr(settings, f"{name}_steps")) > settings.steps:
            raise InputError(
                f"{name}_steps is {number} in {where}, which has {settings.steps} steps: "
                f"set a share with {name}_share, as 0.05"
            )
    return settings
