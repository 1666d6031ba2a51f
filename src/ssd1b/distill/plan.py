"""The plan of a distillation: each stage's layout and layer maps, before anything is trained."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ssd1b.distill.importance import BLOCKS, fit_layout
from ssd1b.distill.stages import IMPORTANCE, Depths, Stage, read_depths, share_of
from ssd1b.errors import InputError, unknown
from ssd1b.layer_map import (
    BLOCK_RULES,
    BlockRule,
    LayerMap,
    explicit,
    most_important,
    parameters,
    transformers,
    within_remaining,
)
from ssd1b.layouts import NAMED, Level, UNetLayout
from ssd1b.weights.configs import unet_config


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedStage:
    """A stage with its layer maps.

    Attributes:
        stage: its settings.
        cut: the map from this stage's student to that of the stage before, at first to the teacher.
        layers: the map from this stage's student to the teacher, with which features are compared.
    """

    stage: Stage
    cut: LayerMap
    layers: LayerMap


def with_target(stages: Sequence[Stage], student: str | None, teacher: UNetLayout) -> list[Stage]:
    """Make ``student`` the student of the last stage.

    Raises:
        InputError: the last stage has another student, no student is given, or an earlier stage has none.
    """
    *earlier, last = stages
    for number, stage in enumerate(earlier, 1):
        if stage.student is None:
            raise InputError(f"stage {number} has no student: only the last stage may leave it out")
    if last.student is None and student is None:
        raise InputError("missing option '--student': the last stage has no student")
    if last.student is None or student is None:
        return [*earlier, replace(last, student=last.student or student)]
    both = [each if share_of(each) else student_layout(each, teacher) for each in (last.student, student)]
    if both[0] != both[1]:
        raise InputError(
            f"the last stage's student is {last.student!r}, not {student!r}: leave one of them out"
        )
    return list(stages)


def plan(
    teacher: UNetLayout, stages: Sequence[Stage], measure: Callable[[], Mapping[str, float]] | None = None
) -> list[PlannedStage]:
    """Plan what each stage removes.

    Args:
        teacher: layout of the larger UNet.
        stages: in order, each with its student.
        measure: measures the importance of each of the teacher's blocks; called only if a stage needs it and
            nothing else is wrong.

    Raises:
        InputError: a layout does not exist or is not a part of the one it is cut from, a budget cannot be
            kept, there is nothing to remove, or diffusers has no configuration for the final layout.
    """
    needs_importance = any(
        stage.keep == IMPORTANCE or share_of(stage.student) is not None for stage in stages
    )
    if not needs_importance:
        return _planned(teacher, stages, {})
    if measure is None:
        raise InputError("measuring importance needs the teacher's weights, and --data")
    names = (
        f"{name}.{BLOCKS}.{block}" for name, depth in transformers(teacher).items() for block in range(depth)
    )
    _planned(teacher, stages, dict.fromkeys(names, 1.0))
    return _planned(teacher, stages, measure())


def _planned(
    teacher: UNetLayout, stages: Sequence[Stage], importance: Mapping[str, float]
) -> list[PlannedStage]:
    identity = LayerMap.between(teacher, teacher)
    planned: list[PlannedStage] = []
    for number, stage in enumerate(stages, 1):
        before = planned[-1].layers if planned else identity
        try:
            cut = _cut(before, stage, importance)
        except InputError as error:
            source = f"the student of stage {number - 1}" if planned else "the teacher"
            raise InputError(f"stage {number} cannot be cut from {source}: {error}") from None
        planned.append(PlannedStage(stage=stage, cut=cut, layers=cut.through(before)))
    if not planned[-1].layers.removed:
        raise InputError("nothing is removed: the student has all layers of the teacher")
    unet_config(planned[-1].layers.student, 1)
    return planned


def student_layout(student: str | Depths, teacher: UNetLayout) -> UNetLayout:
    """Return the layout of a topology at the teacher's widths.

    Args:
        student: a name, a layout file (TOML, as ``Depths``), or depths.
        teacher: gives everything else.

    Raises:
        InputError: there is no such name or file, the number of levels differs, or the depths are invalid.
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
        raise InputError(f"invalid depths: {error}") from None
    return replace(teacher, levels=levels, mid=None if student.mid == "none" else student.mid)


def _cut(before: LayerMap, stage: Stage, importance: Mapping[str, float]) -> LayerMap:
    assert stage.student is not None
    share = share_of(stage.student)
    if share is None:
        layout = student_layout(stage.student, before.teacher)
        rule = within_remaining(before, _choice(stage, before.teacher, importance))
        return LayerMap.between(layout, before.student, rule)
    left = {ours: importance[theirs] for ours, theirs in before.modules.items() if f".{BLOCKS}." in ours}
    # The share refers to the first teacher's parameters.
    share_of_rest = share * parameters(before.teacher) / parameters(before.student)
    if share_of_rest >= 1:
        raise InputError(f"earlier stages already leave no more than {share:.0%} of the parameters")
    layout, kept = fit_layout(before.student, left, share_of_rest)
    return LayerMap.between(layout, before.student, explicit(kept))


def _choice(stage: Stage, teacher: UNetLayout, importance: Mapping[str, float]) -> BlockRule:
    rule = most_important(importance) if stage.keep == IMPORTANCE else BLOCK_RULES[stage.keep or "inferred"]
    for name in stage.blocks:
        if name not in (known := transformers(teacher)):
            raise unknown("transformer", name, known)
    return explicit(stage.blocks, otherwise=rule)
