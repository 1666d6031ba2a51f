"""Whether solids are where the edges say: the miniatures with and without ``mini-control``, by the judge.

    python benchmarks/control.py --captions 64 --out docs/log/control

Each caption's scene is rendered, and its edges are given with the caption. Without the control the same
captions and seeds are used, so the place is left to chance.
"""

import argparse
import json
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
from PIL import Image

from ssd1b.controls import Control, control_of
from ssd1b.edges import canny
from ssd1b.evaluate.statistics import difference, estimate
from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.judge.evaluation import Case, cases, score
from ssd1b.tabletop.judge.judge import load_judge
from ssd1b.tabletop.judge.placement import in_place
from ssd1b.tabletop.world.renderer import render

SHOWN = 8


def main() -> None:
    """Generate, let the judge read, and write figures and a sheet."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--captions", type=int, default=64)
    parser.add_argument("--models", nargs="+", default=["mini-ssd-1b", "mini-sdxl"])
    parser.add_argument("--control", default="mini-control")
    parser.add_argument("--out", type=Path, required=True)
    given = parser.parse_args()
    chosen, judge, figures = cases(given.captions), load_judge(), {}
    given.out.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory() as folder:
        controls = [_control(given.control, case, Path(folder) / f"{n}.png") for n, case in enumerate(chosen)]
        for name in given.models:
            pipeline = Pipeline.load(name, device="cpu", offline=True, threads="auto")
            pictures = {
                "without": [_draw(pipeline, case, None) for case in chosen],
                "with": [
                    _draw(pipeline, case, control) for case, control in zip(chosen, controls, strict=True)
                ],
            }
            read = {how: judge.read(np.stack(each)) for how, each in pictures.items()}
            values = {
                what: {
                    how: np.array([rate(case.scene, seen) for case, seen in zip(chosen, each, strict=True)])
                    for how, each in read.items()
                }
                for what, rate in {
                    "in place": lambda scene, seen: float(in_place(scene, seen)),
                    "right": lambda scene, seen: score(scene, seen).right,
                }.items()
            }
            figures[name] = {
                what: {
                    **{how: estimate(each)._asdict() for how, each in found.items()},
                    "difference": difference(found["without"], found["with"])._asdict(),
                }
                for what, found in values.items()
            }
            print(name, json.dumps(figures[name], indent=1))
            rows = [[render(case.scene) for case in chosen[:SHOWN]]]
            rows.append([np.repeat(canny(each)[:, :, None], 3, axis=2) for each in rows[0]])
            rows += [each[:SHOWN] for each in pictures.values()]
            sheet = np.concatenate([np.concatenate(row, axis=1) for row in rows])
            Image.fromarray(sheet).save(given.out / f"{name}.png")
    (given.out / "figures.json").write_text(json.dumps(figures, indent=1) + "\n")


def _control(name: str, case: Case, path: Path) -> Control:
    Image.fromarray(render(case.scene)).save(path)
    return control_of(name, path, preprocess="canny")


def _draw(pipeline: Pipeline, case: Case, control: Control | None) -> np.ndarray:
    controls = () if control is None else (control,)
    (picture,) = pipeline.generate(case.caption, seed=case.seed, controls=controls)
    return np.asarray(picture.image)


if __name__ == "__main__":
    main()
