"""``ssd1b finetune``: from pictures to an adapter or a model that opens; stopped and resumed on the way."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from picture_files import smooth
from ssd1b.finetune import prior
from ssd1b.finetune import run as running
from ssd1b.finetune.layers import adapt
from ssd1b.finetune.settings import make_settings
from ssd1b.inputs import InputFile
from ssd1b.loras import Lora
from ssd1b.model import Model
from ssd1b.pipeline import Pipeline
from ssd1b.training import loop, task
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder
from tiny import DRAWABLE, inputs, random_weights


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("models") / "model"
    layout = replace(DRAWABLE, size=64)
    save_folder(path, ModelInfo(layout=layout, settings={"steps": 2}), random_weights(layout))
    return path


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        smooth(64, 64, seed=number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


@pytest.fixture(autouse=True)
def quickly(monkeypatch, quick_training):
    monkeypatch.setattr(running, "training_dtype", lambda device: torch.float32)


def call(model, pictures, *more, out="out", steps=3):
    return ["finetune", "--model", model, "--data", pictures, "--out", out, "--steps", steps,
            "--device", "cpu", "--learning-rate", 0.01, "--rank", 2, *more]  # fmt: skip


def test_an_adapter_is_trained_saved_and_applied(run, tmp_path, model, pictures, monkeypatch):
    kept = {}
    trained = running.train

    def watched(*args, **options):
        kept["unet"] = trained(*args, **options)
        return kept["unet"]

    monkeypatch.setattr(running, "train", watched)
    result = run(*call(model, pictures, "--kind", "dora"))
    assert (result.code, result.out.split()) == (0, ["out/adapter.safetensors", "out/README.md"]), result.err
    path = tmp_path / "out/adapter.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2")
    assert metadata["ss_num_train_images"] == "4"
    assert metadata["ss_sd_model_name"] == model.name, "a name, no path"
    assert "| rank | 2 |" in (tmp_path / "out/README.md").read_text()

    lora = Lora(file=InputFile.of(path, most=2**24))
    merged = Model.find(str(model)).with_loras([lora]).network("unet", dtype=torch.float32)
    before = Model.find(str(model)).network("unet", dtype=torch.float32)
    given = inputs(DRAWABLE.unet, 8, 8)
    with torch.no_grad():
        ours = kept["unet"].to(torch.float32)(*given)
        assert (ours - merged(*given)).abs().max() <= 1e-5 * ours.abs().max().clamp(min=1)
        assert (ours - before(*given)).abs().max() > 1e-4

    again = run(*call(model, pictures, "--kind", "dora"))
    assert again.code == 2 and "continue it with --resume" in again.err
    other = run(*call(model, pictures, "--kind", "lora", "--resume"))
    assert other.code == 2 and "a run with other settings" in other.err


def test_unusable_data_leave_no_run(run, tmp_path, model, pictures):
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "empty", tmp_path / "nothing"):
        assert run(*call(model, data)).code == 2
    assert run(*call(model, pictures)).code == 0


def test_a_run_that_was_stopped_resumes_to_the_same_bits(run, tmp_path, model, pictures, monkeypatch):
    assert run(*call(model, pictures, "--no-metadata", out="whole")).code == 0
    update, steps = task.Learner.update, []

    def stopping(self, step, parts):
        steps.append(step)
        if len(steps) == 2:
            loop.stop_requested.set()
        return update(self, step, parts)

    monkeypatch.setattr(task.Learner, "update", stopping)
    stopped = run(*call(model, pictures, "--no-metadata", out="parts"))
    assert stopped.code == 130 and not (tmp_path / "parts/adapter.safetensors").exists()
    resumed = run(*call(model, pictures, "--no-metadata", "--resume", out="parts"))
    assert resumed.code == 0 and steps == [0, 1, 2], resumed.err
    whole, parts = (Path(tmp_path, name, "adapter.safetensors").read_bytes() for name in ("whole", "parts"))
    assert whole == parts


@pytest.mark.parametrize("method", ["lora", "full"])
def test_what_the_model_knew_is_learned_beside(run, tmp_path, model, pictures, method):
    of_class = tmp_path / "class"
    of_class.mkdir()
    for number in range(2):
        smooth(64, 64, seed=10 + number).save(of_class / f"{number}.png")
        (of_class / f"{number}.txt").write_text("a thing")
    (tmp_path / "run.toml").write_text("[train]\nlog_steps = 1\n")
    more = ["--prior", of_class, "--prior-prompt", "a thing", "--prior-prompt", "another", "--method", method]
    result = run(*call(model, pictures, "--file", "run.toml", "--prior-weight", 2, *more))
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    for line in lines:
        assert line["loss"] == pytest.approx(
            line["subject"] + 2 * (line["prior"] + line["preserved"]), rel=1e-4
        )
    assert lines[0]["preserved"] < 1e-9 < lines[-1]["preserved"], "before the first step it is the same model"
    assert json.loads((tmp_path / "out/prior.json").read_text())
    result = run(*call(model, pictures, "--prior", tmp_path / "nothing", out="other"))
    assert result.code == 2 and "nothing" in result.err and result.err.count("\n") == 1


def test_a_whole_model_is_trained_with_validation_and_samples(run, tmp_path, model, pictures):
    (tmp_path / "run.toml").write_text(
        'method = "full"\nsamples = ["a cat"]\n[train]\nvalidation_steps = 1\n'
    )
    result = run(*call(model, pictures, "--file", "run.toml", "--validation", pictures))
    assert result.code == 0, result.err
    lines = [json.loads(line) for line in (tmp_path / "out/log.jsonl").read_text().splitlines()]
    losses = [line["validation_loss"] for line in lines if "validation_loss" in line]
    assert len(losses) == 3 and len(set(losses)) == 3
    for name in ("out/model", "out/model.safetensors"):
        opened = Pipeline.load(str(tmp_path / name), dtype="fp32", device="cpu")
        before = Model.find(str(model)).network("unet", dtype=torch.float32).state_dict()
        assert any(not each.equal(before[key]) for key, each in opened.unet.state_dict().items())


def test_overfitting_is_reported_with_its_step(model, monkeypatch):
    losses = iter([2.0, 1.0, 1.1, 1.2, 1.3, 1.4])
    monkeypatch.setattr(running, "_VALIDATION_BATCHES", 1)
    monkeypatch.setattr(running, "weighted_error", lambda *_: torch.tensor(next(losses)))
    unet = Model.find(str(model)).network("unet")
    objective = running.Objective(text=None, device="cpu", dtype=torch.float32)
    monkeypatch.setattr(running.Objective, "__call__", lambda self, batch: None)
    validate = running.make_loss_validator(objective, {0: None})
    for step in (10, 20, 30, 40):
        validate(unet, step)
    with pytest.warns(UserWarning, match="lowest after step 20"):
        validate(unet, 50)
    validate(unet, 60)


def test_a_dry_run_reports_memory_by_part_and_writes_nothing(run, tmp_path, model):
    adapter = run("finetune", "--model", model, "--dry-run", "--device", "cpu", "--rank", 2)
    whole = run("finetune", "--model", model, "--dry-run", "--device", "cpu", "--method", "full")
    assert adapter.code == whole.code == 0, adapter.err + whole.err
    unet = Model.find(str(model)).network("unet")
    count = sum(each.numel() for each in unet.parameters())
    adapt(unet, make_settings(None, {"rank": 2, "data.path": "x"}, size=64))
    trained = sum(each.numel() for each in unet.parameters() if each.requires_grad)
    assert f"{trained:,} parameters" in adapter.out and f"{count:,} parameters" in whole.out
    assert "optimiser" in adapter.out and "activations" in adapter.out and not list(tmp_path.iterdir())


def test_a_gradient_that_explodes_leaves_no_adapter(run, tmp_path, model, pictures, monkeypatch):
    def broken(predict, example):
        return predict(*example.inputs).mean() * float("nan")

    monkeypatch.setattr(prior, "weighted_error", broken)
    (tmp_path / "run.toml").write_text("train = { max_skipped = 1 }")
    result = run(*call(model, pictures, "--file", "run.toml"))
    assert result.code == 2 and not (tmp_path / "out/adapter.safetensors").exists()


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--kind", "lorra"], "lora"),
        (["--rank", 0], "rank"),
        (["--prior-weight", 2], "prior_weight needs prior"),
        (["--prior-weight", -1, "--prior-prompt", "x"], "prior_weight"),
        (["--block", "up_blocks.9"], "up_blocks.9"),
        (["--names", "diffuser"], "diffusers"),
        (["--names", "diffusers", "--kind", "lokr"], "diffusers has no names for lokr"),
        (["--file", "run.json"], ".toml"),
    ],
)
def test_mistakes_end_in_one_line(run, tmp_path, model, pictures, more, error):
    result = run(*call(model, pictures, *more))
    assert result.code == 2 and error in result.err and result.err.count("\n") == 1, result.err
    assert not (tmp_path / "out/adapter.safetensors").exists()
