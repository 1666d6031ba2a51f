"""What a distillation will do, worked out before anything is trained: each stage's layout and layer maps."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssd1b.distill.importance import BLOCKS, fitted
from ssd1b.distill.layer_map import (
    CHOICES,
    Choice,
    LayerMap,
    among,
    explicit,
    most_important,
    parameters,
    transformers,
)
from ssd1b.distill.stages import IMPORTANCE, Depths, Stage, read_depths, share_of
from ssd1b.errors import InputError, unknown
from ssd1b.layouts import NAMED, Level, UNetLayout
from ssd1b.weights.configs import unet_config


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage with what is cut in it.

    Attributes:
        stage: as it was asked for.
        cut: from the student of the stage before (at first the teacher) to this one's.
        layers: from the teacher to this stage's student: whose features are compared with whose.
    """

    stage: Stage
    cut: LayerMap
    layers: LayerMap


def with_target(stages: Sequence[Stage], student: str | None, teacher: UNetLayout) -> list[Stage]:
    """Let the last stage end with ``student``.

    Raises:
        InputError: the last stage says something else, nothing says it, or a stage before says nothing.
    """
    *earlier, last = stages
    for number, stage in enumerate(earlier, 1):
        if stage.student is None:
            raise InputError(
                f"stage {number} does not say what it ends with: only the last one may leave it out"
            )
    if last.student is None and student is None:
        raise InputError("missing option '--student': no stage says what the last one ends with")
    if last.student is None or student is None:
        return [*earlier, replace(last, student=last.student or student)]
    both = [each if share_of(each) else arranged(each, teacher) for each in (last.student, student)]
    if both[0] != both[1]:
        raise InputError(
            f"the last stage ends with {last.student!r}, not with {student!r}: leave one of them out"
        )
    return list(stages)


def plan(
    teacher: UNetLayout, stages: Sequence[Stage], measure: Callable[[], Mapping[str, float]] | None = None
) -> list[PlannedStage]:
    """Work out what each stage removes.

    Args:
        teacher: layout of the larger UNet.
        stages: in order, each with its student.
        measure: gives the importance of each of the teacher's blocks; called if a stage asks for it, when
            nothing else is wrong any more.

    Raises:
        InputError: a layout that does not exist or is no part of what it is cut from, a budget that cannot be
            kept, nothing to remove, or an end that no configuration of diffusers describes.
    """
    asked = any(stage.keep == IMPORTANCE or share_of(stage.student) is not None for stage in stages)
    if not asked:
        return _planned(teacher, stages, {})
    if measure is None:
        raise InputError("importance is measured on data: this needs the teacher's weights, and --data")
    names = (
        f"{name}.{BLOCKS}.{block}" for name, depth in transformers(teacher).items() for block in range(depth)
    )
    _planned(teacher, stages, dict.fromkeys(names, 1.0))
    return _planned(teacher, stages, measure())


def _planned(
    teacher: UNetLayout, stages: Sequence[Stage], importance: Mapping[str, float]
) -> list[PlannedStage]:
    whole = LayerMap.between(teacher, teacher)
    planned: list[PlannedStage] = []
    for number, stage in enumerate(stages, 1):
        before = planned[-1].layers if planned else whole
        try:
            cut = _cut(before, stage, importance)
        except InputError as error:
            source = f"the student of stage {number - 1}" if planned else "the teacher"
            raise InputError(f"stage {number} is to be cut out of {source}: {error}") from None
        planned.append(PlannedStage(stage=stage, cut=cut, layers=cut.through(before)))
    if not planned[-1].layers.removed:
        raise InputError("nothing is removed: the student has all that the teacher has")
    unet_config(planned[-1].layers.student, 1)
    return planned


def arranged(student: str | Depths, teacher: UNetLayout) -> UNetLayout:
    """A topology at the teacher's widths.

    Args:
        student: a name, a layout file (TOML, as ``Depths``), or depths.
        teacher: everything else is taken from it.

    Raises:
        InputError: no such name or file, another number of levels, or depths that make no layout.
    """
    if isinstance(student, str):
        if student in NAMED:
            layout = NAMED[student]
            student = Depths(
                mid="none" if layout.mid is None else layout.mid,
                down=tuple(level.down for level in layout.levels),
                up=tuple(level.up for level in layout.levels),
            )
        elif student.lower().endswith(".toml"):
            student = read_depths(Path(student))
        else:
            raise unknown("layout", student, [*NAMED, "a .toml file", "a share as '50%'"])
    if len(student.down) != len(teacher.levels):
        raise InputError(f"the student has {len(student.down)} levels, the teacher {len(teacher.levels)}")
    widths = student.channels or tuple(level.channels for level in teacher.levels)
    try:
        levels = tuple(
            Level(channels=channels, down=down, up=up)
            for channels, down, up in zip(widths, student.down, student.up, strict=True)
        )
    except ValueError as error:
        raise InputError(f"depths that make no layout: {error}") from None
    return replace(teacher, levels=levels, mid=None if student.mid == "none" else student.mid)


def _cut(before: LayerMap, stage: Stage, importance: Mapping[str, float]) -> LayerMap:
    assert stage.student is not None
    share = share_of(stage.student)
    if share is None:
        layout = arranged(stage.student, before.teacher)
        choice = among(before, _choice(stage, before.teacher, importance))
        return LayerMap.between(layout, before.student, choice)
    left = {ours: importance[theirs] for ours, theirs in before.modules.items() if f".{BLOCKS}." in ours}
    # The share is of the first teacher, whatever earlier stages have left of it.
    of_what_is_left = share * parameters(before.teacher) / parameters(before.student)
    if of_what_is_left >= 1:
        raise InputError(f"{share:.0%} of the parameters are no less than earlier stages have left")
    layout, kept = fitted(before.student, left, of_what_is_left)
    return LayerMap.between(layout, before.student, explicit(kept))


def _choice(stage: Stage, teacher: UNetLayout, importance: Mapping[str, float]) -> Choice:
    rule = most_important(importance) if stage.keep == IMPORTANCE else CHOICES[stage.keep or "inferred"]
    for name in stage.blocks:
        if name not in (known := transformers(teacher)):
            raise unknown("transformer", name, known)
    return explicit(stage.blocks, otherwise=rule)
