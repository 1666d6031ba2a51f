"""A plot of teacher and student, block by block."""

from collections.abc import Iterator, Sequence
from io import BytesIO
from typing import TYPE_CHECKING, NamedTuple

from ssd1b.distill.plan import PlannedStage
from ssd1b.layer_map import transformers
from ssd1b.layouts import UNetLayout

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_KEPT = "#4a7fb5"
_REMOVED = ("#f2a65a", "#d1495b", "#8d6a9f", "#66a182", "#8c8c8c")
"""Colours of the stages, repeated from the sixth on."""

_GAP = 0.6


class _Column(NamedTuple):
    """A resnet with the blocks of its transformer above it."""

    resnet: str
    transformer: str
    depth: int
    at: float


def plot_layers(planned: Sequence[PlannedStage]) -> bytes:
    """Plot the teacher above the student, as PNG; removed blocks have the colour of their stage.

    A square is a transformer block, the bar below it the resnet before. Blocks have the teacher's numbers.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    teacher, student = planned[0].layers.teacher, planned[-1].layers.student
    last = planned[-1].layers
    gone = {name: number for number, each in reversed([*enumerate(planned)]) for name in _gone(each, teacher)}
    figure = Figure(figsize=(13, 9), layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, sharey=True)
    columns = _columns(teacher)
    for column in columns:
        _draw(above, column, range(column.depth), gone)
    places = {column.resnet: column for column in columns}
    for column in _columns(student):
        # At the position of the teacher's column, so that gaps show.
        source = places[last.modules[column.resnet]]
        blocks = last.kept.get(source.transformer, [])
        _draw(below, source, blocks, {})
    for axes, layout, name in ((above, teacher, "teacher"), (below, student, "student")):
        axes.set_title(f"{name}: {layout.transformer_blocks} transformer blocks", loc="left")
        axes.set(xlim=(-0.7, columns[-1].at + 0.7), yticks=[])
        axes.set_ylim(-1.6, max(transformers(teacher).values(), default=0))
        axes.spines[["top", "left", "right"]].set_visible(False)
    middles, labels = zip(*_groups(columns), strict=True)
    below.set_xticks(middles, labels)
    patches = [Patch(color=_KEPT, label="kept")] + [
        Patch(color=_colour(number), label=f"removed in stage {number + 1}")
        for number in sorted({*gone.values()})
    ]
    above.legend(handles=patches, loc="upper left")
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=100)
    return buffer.getvalue()


def _draw(axes: "Axes", column: _Column, blocks: Sequence[int], gone: dict[str, int]) -> None:
    from matplotlib.patches import Rectangle

    def box(bottom: float, height: float, name: str) -> None:
        colour = _colour(gone[name]) if name in gone else _KEPT
        axes.add_patch(Rectangle((column.at - 0.4, bottom), 0.8, height, facecolor=colour, edgecolor="white"))

    box(-0.6, 0.5, column.resnet)
    for row, block in enumerate(blocks):
        box(float(row), 0.95, f"{column.transformer}.transformer_blocks.{block}")
        axes.text(column.at, row + 0.45, str(block), ha="center", va="center", color="white", fontsize=8)


def _columns(layout: UNetLayout) -> list[_Column]:
    found, at = [], 0.0
    for block, depths in _blocks(layout):
        for position, depth in enumerate(depths):
            found.append(_Column(f"{block}.resnets.{position}", f"{block}.attentions.{position}", depth, at))
            at += 1
        at += _GAP
    return found


def _blocks(layout: UNetLayout) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Yield each block's name with its depths; the middle's second resnet has no transformer."""
    for index, level in enumerate(layout.levels):
        yield f"down_blocks.{index}", level.down
    if layout.mid is not None:
        yield "mid_block", (layout.mid, 0) if layout.mid else (0,)
    for index, level in enumerate(reversed(layout.levels)):
        yield f"up_blocks.{index}", level.up


def _groups(columns: Sequence[_Column]) -> Iterator[tuple[float, str]]:
    """Yield the centre of each block's columns, and its name."""
    names = list(dict.fromkeys(column.resnet.split(".resnets")[0] for column in columns))
    for name in names:
        places = [column.at for column in columns if column.resnet.startswith(f"{name}.")]
        yield sum(places) / len(places), name


def _gone(planned: PlannedStage, teacher: UNetLayout) -> Iterator[str]:
    """Yield what a stage has removed; for whole transformers, their blocks."""
    depths = transformers(teacher)
    for name in planned.layers.removed:
        if name in depths:
            yield from (f"{name}.transformer_blocks.{block}" for block in range(depths[name]))
        else:
            yield name


def _colour(stage: int) -> str:
    return _REMOVED[stage % len(_REMOVED)]
