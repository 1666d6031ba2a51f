"""Plots of the judge's examination. matplotlib is optional and imported late."""

from collections.abc import Mapping
from io import BytesIO
from typing import TYPE_CHECKING

from ssd1b.tabletop.judge.examination import ANSWERS, UNSEEN, Examination

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def confusion_plot(examination: Examination) -> bytes:
    """Plot the confusion of answers, in percent of the images of each true answer, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 10), layout="constrained")
    for axes, (question, answers) in zip(figure.subplots(2, 3).flat, ANSWERS.items(), strict=True):
        counts = examination.confusion(question)
        shares = 100 * counts / counts.sum(axis=1, keepdims=True).clip(min=1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=100)
        said = (*answers, UNSEEN)
        axes.set_xticks(range(len(said)), said, rotation=90)
        axes.set_yticks(range(len(answers)), answers)
        axes.set(title=question, xlabel="read as", ylabel="true")
        for row, column in zip(*shares.round(1).nonzero(), strict=True):
            value = shares[row, column]
            color = "white" if value > 50 else "black"
            axes.text(column, row, f"{value:.3g}", ha="center", va="center", fontsize=7, color=color)
    return _png(figure)


def calibration_plot(examinations: Mapping[str, Examination]) -> bytes:
    """Plot the share of right answers against their probability, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(15, 9), layout="constrained")
    for axes, question in zip(figure.subplots(2, 3).flat, ANSWERS, strict=True):
        axes.axline((0, 0), slope=1, color="gray", linewidth=1)
        for name, examination in examinations.items():
            chances, right, _ = zip(*examination.calibration(question), strict=True)
            axes.plot(chances, right, marker="o", label=name)
        least = min(axes.get_xlim()[0], axes.get_ylim()[0], 0.9)
        axes.set(xlim=(least, 1.005), ylim=(least, 1.005), title=question)
        axes.set(xlabel="probability given", ylabel="share right")
        axes.legend()
    return _png(figure)


def _png(figure: "Figure") -> bytes:
    buffer = BytesIO()
    figure.savefig(buffer, format="png", dpi=80)
    return buffer.getvalue()
