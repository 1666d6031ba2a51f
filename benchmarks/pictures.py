"""Measure generation from pictures on Tabletop, where the right answer is known.

    python benchmarks/pictures.py run docs/log/pictures --captions 100
    python benchmarks/pictures.py plot docs/log/pictures

Each caption's scene is rendered, and one solid is to get another colour, as the prompt says. The mask is the
solid's own pixels with a margin. All arms of a caption have the same noise. ``right`` is 1 if the judge finds
everything as the new caption says. The run adds a line for each image, all arms of a caption before the next,
so that it can be stopped, and continues where it was.

What decides was fixed before looking: whether a mask changes what was asked more often than the picture at
the same strength ("mask 0.8" against "picture 0.8"), and whether the hires fix is right more often than a
large size at once ("lanczos 0.6" against "256"). All other rows describe; "mask 0.3" and "mask 0.5" were
added after the others had been looked at.
"""

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from ssd1b import Pipeline
from ssd1b.evaluate.statistics import difference, estimate
from ssd1b.tabletop.judge.evaluation import Case, cases, score
from ssd1b.tabletop.judge.judge import load_judge
from ssd1b.tabletop.world.captions import full_caption
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import COLORS, Scene

MARGIN = 9
"""Side in pixels of the square by which the solid's pixels are widened."""

EDITS: dict[str, dict[str, Any]] = {
    **{f"mask {strength}": {"mask": True, "strength": strength} for strength in (0.3, 0.5, 0.8)},
    "mask 0.8, fill": {"mask": True, "strength": 0.8, "mask_content": "fill"},
    "mask 1.0": {"mask": True, "strength": 1.0},
    "mask 0.8, masked area": {"mask": True, "strength": 0.8, "mask_area": "masked"},
    **{f"picture {strength}": {"strength": strength} for strength in (0.3, 0.5, 0.8)},
}
"""Arms that start from the picture."""

HIRES: dict[str, dict[str, Any]] = {
    "128": {},
    "256": {"width": 256, "height": 256},
    **{
        f"{name} {strength}": {"hires_scale": 2.0, "hires_upscaler": name, "hires_strength": strength}
        for name in ("lanczos", "latent")
        for strength in (0.3, 0.6)
    },
}
"""Arms from text; images of 256 x 256 are reduced for the judge, which reads 128 x 128."""


def recoloured(scene: Scene, index: int) -> Scene:
    """Give the first solid a colour that nothing else in the scene has."""
    taken = {scene.background, *(solid.color for solid in scene.solids)}
    free = [color for color in COLORS if color not in taken]
    first = replace(scene.solids[0], color=free[index % len(free)])
    return replace(scene, solids=(first, *scene.solids[1:]))


def psnr(first: NDArray[np.uint8], second: NDArray[np.uint8], where: NDArray[np.bool_]) -> float:
    """Compute the PSNR in dB of the pixels in ``where``; 99 if they are equal."""
    error = float(np.mean((first[where].astype(float) - second[where]) ** 2))
    return 99.0 if error == 0 else 10 * float(np.log10(255**2 / error))


def arms(index: int, case: Case, folder: Path) -> Iterator[tuple[str, str, Scene, dict[str, Any]]]:
    """Give the experiment, arm, wanted scene and settings of each image of a caption."""
    wanted = recoloured(case.scene, index)
    before, after = render(case.scene), render(wanted)
    changed = Image.fromarray(((before != after).any(axis=2) * 255).astype(np.uint8))
    Image.fromarray(before).save(folder / "picture.png")
    changed.filter(ImageFilter.MaxFilter(MARGIN)).save(folder / "mask.png")
    for name, given in EDITS.items():
        mask = {"mask": folder / "mask.png"} if given.get("mask") else {}
        yield "edit", name, wanted, {**given, **mask, "init_image": folder / "picture.png"}
    for name, given in HIRES.items():
        yield "hires", name, case.scene, given


def run(out: Path, captions: int, hires: int) -> None:
    """Generate what is missing, and add its lines."""
    file = out / "images.jsonl"
    known = {
        (row["caption"], row["arm"])
        for row in map(json.loads, file.read_text().splitlines() if file.exists() else [])
    }
    pipeline, judge = Pipeline.load("mini-ssd-1b", device="cpu", dtype="fp32"), load_judge()
    for index, case in enumerate(cases(captions)):
        for experiment, arm, wanted, given in arms(index, case, out):
            if (index, arm) in known or (experiment == "hires" and index >= hires):
                continue
            (made,) = pipeline.generate(full_caption(wanted), seed=case.seed, **given)
            small = made.image.resize((128, 128), Image.Resampling.BOX)
            pixels = np.asarray(small)
            row = {"caption": index, "experiment": experiment, "arm": arm}
            row |= {"right": score(wanted, judge.read(pixels[None])[0]).right}
            if experiment == "edit":
                before, inside = render(case.scene), np.asarray(Image.open(out / "mask.png")) > 0
                row |= {
                    "outside": round(psnr(before, pixels, ~inside), 2),
                    "bits": bool((before[~inside] == pixels[~inside]).all()),
                    "truth": round(psnr(render(wanted), pixels, inside), 2),
                }
            with file.open("a") as lines:
                lines.write(json.dumps(row) + "\n")
    for name in ("picture.png", "mask.png"):
        (out / name).unlink()


def plot(out: Path) -> None:
    """Print the table of complete captions, and draw it."""
    from matplotlib.figure import Figure

    table: dict[tuple[str, str], dict[int, dict[str, Any]]] = defaultdict(dict)
    for row in map(json.loads, (out / "images.jsonl").read_text().splitlines()):
        table[row["experiment"], row["arm"]][row["caption"]] = row
    figure = Figure(figsize=(9, 3.6), layout="constrained")
    for panel, (experiment, names, first) in enumerate(
        (("edit", EDITS, "picture 0.8"), ("hires", HIRES, "256"))
    ):
        shared = sorted(set.intersection(*(set(table[experiment, name]) for name in names)))
        axes = figure.add_subplot(1, 2, panel + 1)
        for place, name in enumerate(names):
            rows = [table[experiment, name][caption] for caption in shared]
            right = estimate([row["right"] for row in rows])
            rival = difference(
                [table[experiment, first][caption]["right"] for caption in shared],
                [row["right"] for row in rows],
            )
            numbers = [
                estimate([row[key] for row in rows]).mean for key in ("outside", "truth") if key in rows[0]
            ]
            bits = f"{sum(row['bits'] for row in rows)}/{len(rows)}" if "bits" in rows[0] else ""
            print(
                f"| {name} | {right.mean:.2f} [{right.low:.2f}, {right.high:.2f}] | {rival.mean:+.2f} "
                f"[{rival.low:+.2f}, {rival.high:+.2f}] | "
                + " | ".join([*(f"{each:.1f}" for each in numbers), bits])
            )
            axes.errorbar(
                right.mean, place, xerr=[[right.mean - right.low], [right.high - right.mean]], fmt="o",
                color="#c4501b", capsize=3,
            )  # fmt: skip
        axes.set_yticks(range(len(names)), names)
        axes.invert_yaxis()
        axes.set_xlim(0, 1)
        axes.set_xlabel(f"everything right, {len(shared)} captions, 95% intervals")
        axes.set_title(
            {"edit": "one solid gets another colour", "hires": "256 x 256"}[experiment], fontsize=10
        )
    figure.savefig(out / "pictures.png", dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("what", choices=("run", "plot"))
    parser.add_argument("out", type=Path)
    parser.add_argument("--captions", type=int, default=100)
    parser.add_argument("--hires", type=int, default=40, help="captions of the second experiment")
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    if given.what == "run":
        run(given.out, given.captions, given.hires)
    else:
        plot(given.out)


if __name__ == "__main__":
    main()
