"""Plot the README's speed figure from recorded measurements.

    python benchmarks/plot.py --out docs/pictures/speed.svg

Each panel shows one run, in which engines took turns on the same weights and noise.
"""

import argparse
import json
from pathlib import Path
from typing import Any, NamedTuple

from matplotlib.figure import Figure

from ssd1b.evaluate.plots import svg
from ssd1b.saving import replacing

SPEED = Path(__file__).parent.parent / "docs" / "log" / "speed"
NAMES = {
    "ssd1b": "ssd1b",
    "ssd1b-compiled": "ssd1b --compile",
    "ssd1b-fp8": "ssd1b --compile --quantize fp8",
    "ssd1b-int8": "ssd1b --quantize int8",
    "diffusers": "diffusers",
    "diffusers-compiled": "diffusers, compiled",
    "openvino": "OpenVINO",
    "openvino-int8": "OpenVINO, int8",
    "stable-diffusion.cpp-q8": "stable-diffusion.cpp, q8_0",
}
OURS, PEERS = "#c4501b", "#9aa3ab"


class Panel(NamedTuple):
    title: str
    file: str
    part: str
    latent: int
    engine: str


PANELS = (
    Panel("H200: 1024x1024, 30 steps", "picture-h200.jsonl", "picture", 128, "ssd1b-compiled"),
    Panel("Two Zen 4 cores: a step at 512x512", "zen4.jsonl", "unet", 64, "openvino"),
    Panel("Two Zen 4 cores: 512x512, 2 steps", "zen4.jsonl", "picture", 64, "stable-diffusion.cpp-q8"),
)
"""Each panel shows its file's run that includes ``engine``."""


def rows(panel: Panel) -> list[dict[str, Any]]:
    tables = map(json.loads, (SPEED / panel.file).read_text().splitlines())
    (table,) = (
        table
        for table in tables
        if (table["part"], table["latent"]) == (panel.part, panel.latent)
        and panel.engine in [row["engine"] for row in table["rows"]]
    )
    return sorted(table["rows"], key=lambda row: -row["seconds"])


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, required=True)
    out = parser.parse_args().out
    figure = Figure(figsize=(13.5, 2.4), layout="constrained")
    for panel, axes in zip(PANELS, figure.subplots(1, len(PANELS)), strict=True):
        found = rows(panel)
        names = [NAMES[row["engine"]] for row in found]
        seconds = [row["seconds"] for row in found]
        colors = [OURS if row["engine"].startswith("ssd1b") else PEERS for row in found]
        bars = axes.barh(names, seconds, color=colors)
        axes.bar_label(bars, [f"{each:.3g} s" for each in seconds], padding=3, fontsize=9)
        axes.set_xlim(right=max(seconds) * 1.18)
        axes.set_title(panel.title, fontsize=10, loc="left")
        axes.set_xticks([])
        axes.spines[["top", "right", "bottom"]].set_visible(False)
    with replacing(out) as aside:
        aside.write_text(svg(figure), encoding="utf-8")


if __name__ == "__main__":
    main()
