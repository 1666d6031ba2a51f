"""Measure accuracy over guidance scale and steps, for the curves on the server's page.

    python benchmarks/curves.py mini-ssd-1b src/ssd1b/data/evidence/mini-ssd-1b.json   # 15 minutes

Each value of a setting generates the same captions with the same noise; all other settings are the model's.
The metric is the share of images in which the judge finds everything right, with 95% intervals.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from ssd1b import Loading, evaluate_tabletop

VALUES = {"guidance_scale": (1, 2, 3, 4, 6, 9, 14, 20), "steps": (4, 6, 8, 12, 20, 35)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("out", type=Path)
    parser.add_argument("--captions", type=int, default=96)
    parser.add_argument("--source", default="docs/log/2026-11-28-curves.md")
    given = parser.parse_args()
    curves = []
    for name, values in VALUES.items():
        points = []
        for value in values:
            chosen: dict[str, Any] = {name: value}
            done = evaluate_tabletop([given.model], Loading(offline=True), captions=given.captions, **chosen)
            right = done.facts()["models"][0]["table"]["all"]["right"]
            shown = {each: round(right[each], 3) for each in ("mean", "low", "high")}
            points.append({"value": float(value), **shown})
            print(name, points[-1], flush=True)
        source = f"{given.captions} held-out captions, {given.source}"
        curves.append({
            "setting": name, "metric": "everything right", "source": source, "points": points,
        })  # fmt: skip
        given.out.write_text(json.dumps(curves, indent=1) + "\n")


if __name__ == "__main__":
    main()
