"""Plot the learning curves of the miniature's UNet over all its trainings.

    python benchmarks/learning.py docs/log/miniature-unet.jsonl:96 docs/log/miniature-unet-2.jsonl:48 \
        --out docs/log/miniature-learning.png

Each log is given with its batch size, in the order of the trainings.
"""

import argparse
import json
from pathlib import Path

from matplotlib.figure import Figure

from ssd1b.tabletop.judge.judge import SOLID_ANSWERS

QUESTIONS = tuple(SOLID_ANSWERS)


def curve(logs: list[tuple[Path, int]]) -> tuple[list[dict[str, float]], list[float]]:
    """Join all logs' rows with the thousands of images seen, and give the start of each training."""
    rows, starts, seen = [], [], 0.0
    for path, batch_size in logs:
        starts.append(seen)
        log = [json.loads(line) for line in path.read_text().splitlines()]
        rows += [{**row, "pictures": seen + row["step"] * batch_size / 1000} for row in log]
        seen = rows[-1]["pictures"]
    return rows, starts


def plot(rows: list[dict[str, float]], starts: list[float]) -> Figure:
    figure = Figure(figsize=(11, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    left.plot([row["pictures"] for row in rows], [row["noise_mse"] for row in rows])
    left.set(title="error in the noise", ylim=(0.04, 0.2), ylabel="mean square")
    probed = [row for row in rows if QUESTIONS[0] in row]
    for name in QUESTIONS:
        right.plot([row["pictures"] for row in probed], [row[name] for row in probed], label=name)
    right.set(title="solids and positions, predicted from features", ylabel="cross-entropy", ylim=(0, None))
    right.legend()
    for axes in (left, right):
        axes.set_xlabel("thousands of images seen")
        for start in starts[1:]:
            axes.axvline(start, color="gray", linewidth=0.7, linestyle=":")
    if probed:
        right.set_xlim(probed[0]["pictures"], probed[-1]["pictures"])
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("logs", nargs="+", metavar="LOG:BATCH_SIZE")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    pairs = [each.rpartition(":") for each in options.logs]
    rows, starts = curve([(Path(path), int(batch_size)) for path, _, batch_size in pairs])
    plot(rows, starts).savefig(options.out, dpi=80)


if __name__ == "__main__":
    main()
