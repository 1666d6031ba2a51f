"""``ssd1b sweep``: what it draws, what it knows already, and what it refuses."""

import shutil
from contextlib import closing

import pytest

from ssd1b.jobs.store import Store
from ssd1b.pipeline import Pipeline

PROMPT = "a large red metal sphere on a blue background"


def test_a_sweep_is_drawn_once_and_a_longer_axis_draws_only_what_is_new(run, tiny_model, tmp_path):
    def sweep(*axes):
        return run(
            "sweep", "a cube", "--model", tiny_model, *axes, "--steps", 2, "--seeds", 2, "--out", "cells"
        )

    first = sweep("--axis", "guidance=2,5")
    assert first.code == 0, first.err
    assert first.out == "4 images in cells\n" and first.err.startswith("4 cells, 0 of them known\n")
    assert len([*(tmp_path / "cells/pictures").rglob("*.png")]) == 4
    again = sweep("--axis", "guidance=2,5")
    assert (again.code, again.out) == (0, first.out) and "4 cells, 4 of them known" in again.err
    one, *_ = (tmp_path / "cells/pictures").rglob("*.png")
    one.unlink()
    again = sweep("--axis", "guidance=2,5")
    assert again.out == first.out and "4 cells, 3 of them known\n1 were generated before, but" in again.err
    assert one.exists()
    longer = sweep("--axis", "guidance=2,5,9")
    assert longer.out == "6 images in cells\n" and "6 cells, 4 of them known" in longer.err


def test_failed_cells_are_an_exit_code_in_every_run(run, tiny_model, monkeypatch):
    def failing(self, batch, *rest):
        raise ArithmeticError("out of numbers")

    call = ("sweep", "a cube", "--model", tiny_model, "--axis", "seed=1,2", "--steps", 1, "--out", "cells")
    with monkeypatch.context() as broken:
        broken.setattr(Pipeline, "draw", failing)
        done = run(*call)
    assert (done.code, done.out) == (1, "0 images in cells\n")
    for again in (done, run(*call)):
        assert again.code == 1
        assert again.err.endswith("2 failed: out of numbers\n2 of 2 images failed: --retry tries again\n")
    assert run(*call, "--retry").code == 0


def test_cells_are_measured_and_by_the_judge_where_there_is_truth(run, tmp_path):
    done = run("sweep", PROMPT, "a sphere", "--steps", 2, "--out", "cells")
    assert done.code == 0, done.err
    with closing(Store(tmp_path / "cells")) as store:
        (sweep,) = store.sweeps()
        full, part = [member.outcome.metrics for member in store.members(sweep)]
    assert {"sharpness", "contrast", "colourfulness", "saturation", "clipping", "clip"} <= {*full} & {*part}
    assert "right" in full and "shape" in full
    assert "right" not in part, "a prompt that says less than the picture shows has no single truth"


def test_combinations_that_are_the_same_image_are_generated_once_and_reported_each(run, tiny_model):
    options = ("--model", tiny_model, "--axis", "sampler=Euler,euler", "--out", "cells")
    done = run("sweep", "a cube", *options, "--steps", 2)
    assert done.code == 0, done.err
    done = run("report", "cells")
    assert done.code == 0, done.err


def test_a_dry_run_draws_nothing(run, tiny_model, tmp_path):
    done = run(
        "sweep", "a cube", "--model", tiny_model, "--axis", "steps=1-10", "--out", "cells", "--dry-run"
    )
    assert (done.code, done.out, done.err) == (0, "", "10 cells, 0 of them known\n")
    assert not [*tmp_path.iterdir()]


def test_the_folder_is_checked_before_a_cluster_is_started(run, tiny_model, tmp_path, monkeypatch):
    monkeypatch.setattr("ssd1b.actions.cluster.connected", None)
    (tmp_path / "file").touch()
    for call in ("sweep", "tune", "guide"):
        options = () if call == "guide" else ("--axis", "guidance=3,4")
        done = run(
            call,
            *(["a cube"] * (call == "sweep")),
            *options,
            "--model",
            tiny_model,
            "--out",
            "file/out",
            "--ray",
            "local",
        )
        assert done.code == 2 and len(done.err.splitlines()) == 1 and "file/out: Not a directory" in done.err


def test_a_model_that_changes_while_it_is_loaded_draws_nothing(run, tiny_model, tmp_path, monkeypatch):
    shutil.copytree(tiny_model, tmp_path / "model")
    load = Pipeline.load

    def changing(*arguments, **options):
        pipeline = load(*arguments, **options)
        (tmp_path / "model" / "more.json").write_text("{}")
        return pipeline

    monkeypatch.setattr(Pipeline, "load", changing)
    done = run("sweep", "a cube", "--model", "model", "--steps", 1, "--out", "cells")
    assert done.code == 2 and "the files of 'model' are not those that this run began with" in done.err
    assert not (tmp_path / "cells").exists()


def test_axes_and_prompts_from_files(run, tiny_model, tmp_path):
    (tmp_path / "axes.toml").write_text('[axes]\nsteps = "1, 2"\nsampler = ["Euler", "DDIM"]\nseed = 3\n')
    (tmp_path / "prompts.txt").write_text("a cube\na cone\n")
    done = run(
        "sweep", "--file", "prompts.txt", "--axes", "axes.toml", "--model", tiny_model, "--out", "cells",
        "--dry-run",
    )  # fmt: skip
    assert (done.code, done.err) == (0, "8 cells, 0 of them known\n")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no prompt"]),
        (["a cube", "--axis", "guidence=2"], ["unknown axis 'guidence'", "did you mean 'guidance'"]),
        (["a cube", "--axis", "guidance"], ["no values", "guidance=2,5,9"]),
        (["a cube", "--axis", "steps="], ["axis steps has no values"]),
        (["a cube", "--axis", "steps=10-5 (+1)"], ["never gets from 10 to 5"]),
        (["a cube", "--axis", "seed=1-5000"], ["5000 values", "1000"]),
        (
            ["a cube", "a cone", "--axis", "seed=1-1000", "--axis", "steps=1-1000"],
            ["2000000 combinations", "days"],
        ),
        (["a cube", "--axis", "steps=0"], ["axis steps", "steps is 0"]),
        (["a cube", "--axis", "sampler=eulr"], ["did you mean 'euler'"]),
        (["a cube", "--axis", "words=sphere,cone"], ["'sphere' is not in the prompt 'a cube'"]),
        (["a cube", "--axis", "steps=1", "--axis", "steps=2"], ["axis steps is given twice"]),
        (["a cube", "--axis", "model=mini-sdlx"], ["unknown model 'mini-sdlx'"]),
        (["a cube", "--seeds", "0"], ["seeds is 0"]),
        (["a cube", "--axes", "nothing.toml"], ["nothing.toml"]),
        (["a cube", "--axes", "other.toml"], ["other.toml must hold a table [axes]"]),
    ],
)
def test_wrong_calls(run, tmp_path, arguments, words):
    (tmp_path / "other.toml").write_text("a = 1\n")
    done = run("sweep", *arguments, "--out", "cells")
    assert not (tmp_path / "cells").exists(), "what is refused leaves nothing"
    assert done.code == 2 and done.out == ""
    assert len(done.err.splitlines()) == 1 and all(word in done.err for word in words), done.err
