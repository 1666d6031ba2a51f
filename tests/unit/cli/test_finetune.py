"""``ssd1b finetune``: from pictures to an adapter or a model that opens; stopped and resumed on the way."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from picture_files import smooth
from ssd1b.finetune import int8_base, prior, validation
from ssd1b.finetune import run as running
from ssd1b.finetune.layers import adapt
from ssd1b.finetune.networks import Networks
from ssd1b.finetune.settings import make_settings
from ssd1b.inputs import InputFile
from ssd1b.loras import Lora
from ssd1b.model import Model
from ssd1b.models.text import Conditioning
from ssd1b.pipeline import Pipeline
from ssd1b.training import loop, task
from ssd1b.training.batches import LatentBatch
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.opening import open_single_file
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
    rank = [] if {"--method", "--file"} & {*more} else ["--rank", 2]
    return ["finetune", "--model", model, "--data", pictures, "--out", out, "--steps", steps,
            "--device", "cpu", "--learning-rate", 0.01, *rank, *more]  # fmt: skip


def test_an_adapter_is_trained_saved_and_applied(run, tmp_path, model, pictures, monkeypatch):
    kept = {}
    trained = running.train

    def watched(*args, **options):
        networks = trained(*args, **options)
        kept["unet"] = networks.unet
        return networks

    monkeypatch.setattr(running, "train", watched)
    result = run(*call(model, pictures, "--kind", "dora"))
    assert (result.code, result.out.split()) == (0, ["out/adapter.safetensors", "out/README.md"]), result.err
    path = tmp_path / "out/adapter.safetensors"
    with safe_open(path, "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_network_dim"], metadata["ss_network_alpha"]) == ("2", "2")
    assert metadata["ss_num_train_images"] == "4"
    assert metadata["ss_sd_model_name"] == model.name, "a name, no path"
    about = (tmp_path / "out/README.md").read_text()
    assert "| rank | 2 |" in about and "| alpha | 2 |" in about and "| rslora | false |" in about
    assert "| blocks |" not in about and "None" not in about and "vectors" not in about

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
    assert other.code == 2 and "kind is 'lora', the run in out has 'dora'" in other.err, "what differs"
    longer = run(*call(model, pictures, "--kind", "dora", "--resume", steps=4))
    assert longer.code == 2 and "train.steps is 4, the run in out has 3" in longer.err

    # A run continues with the data that it began with.
    (pictures / "0.txt").write_text("another caption")
    edited = run(*call(model, pictures, "--kind", "dora", "--resume"))
    assert edited.code == 2 and "captions changed; restore" in edited.err and edited.err.count("\n") == 1
    smooth(64, 64, seed=9).save(pictures / "9.png")
    (pictures / "9.txt").write_text("picture 9")
    more = run(*call(model, pictures, "--kind", "dora", "--resume"))
    assert more.code == 2 and "4 usable images then, 5 now" in more.err
    assert json.loads((tmp_path / "out/data.json").read_text())["read_as"]["images"] == 4


def test_unusable_data_leave_no_run(run, tmp_path, model, pictures):
    (tmp_path / "empty").mkdir()
    for data in (tmp_path / "empty", tmp_path / "nothing"):
        assert run(*call(model, data)).code == 2
    assert run(*call(model, pictures)).code == 0


WORD = ["--method", "textual-inversion", "--token", "my-cat", "--template", "subject"]


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


def test_a_base_in_int8_gives_a_plain_file_and_resumes_to_the_same_bits(
    run, tmp_path, worded_model, pictures, monkeypatch
):
    monkeypatch.setattr(int8_base, "SMALLEST", 256)
    more = ["--int8-base", "--text-encoders", "--no-metadata", "--prior-prompt", "a cat",
            "--validation", pictures, "--validation-steps", 1, "--sample", "a dog"]  # fmt: skip
    assert run(*call(worded_model, pictures, *more, out="whole")).code == 0
    update, steps = task.Learner.update, []

    def stopping(self, step, parts):
        steps.append(step)
        held = [each.dtype for each in self.model.parameters()]
        assert held.count(torch.int8) > 100
        if len(steps) == 2:
            loop.stop_requested.set()
        return update(self, step, parts)

    monkeypatch.setattr(task.Learner, "update", stopping)
    assert run(*call(worded_model, pictures, *more, out="parts")).code == 130
    assert run(*call(worded_model, pictures, *more, "--resume", out="parts")).code == 0
    paths = [tmp_path / name / "adapter.safetensors" for name in ("whole", "parts")]
    assert paths[0].read_bytes() == paths[1].read_bytes() and steps == [0, 1, 2]

    lora = Lora(file=InputFile.of(paths[0], most=2**24))
    changed = Model.find(str(worded_model)).with_loras([lora]).network("unet", dtype=torch.float32)
    before = Model.find(str(worded_model)).network("unet", dtype=torch.float32)
    given = inputs(DRAWABLE.unet, 8, 8)
    with torch.no_grad():
        assert (changed(*given) - before(*given)).abs().max() > 1e-4, "it changes the published weights"

    refused = run(*call(worded_model, pictures, "--int8-base", "--method", "full", out="full"))
    assert refused.code == 2 and "int8_base is for method lora or textual-inversion or" in refused.err
    assert not (tmp_path / "full").exists()


def test_text_encoders_are_trained_saved_and_applied(run, tmp_path, worded_model, pictures, monkeypatch):
    kept = {}
    trained = running.train

    def watched(*args, **options):
        kept["networks"] = trained(*args, **options)
        return kept["networks"]

    monkeypatch.setattr(running, "train", watched)
    (tmp_path / "run.toml").write_text('samples = ["a cat"]\n[train]\nvalidation_steps = 1\n')
    more = ["--text-encoders", "--text-rate", 0.02, "--validation", pictures, "--file", "run.toml"]
    result = run(*call(worded_model, pictures, *more))
    assert result.code == 0, result.err
    path = tmp_path / "out/adapter.safetensors"
    with safe_open(path, "pt") as file:
        prefixes = {name.split("_text_model")[0].split("_down_blocks")[0] for name in file.keys()}
        assert {"lora_te1", "lora_te2"} < prefixes
        metadata = file.metadata()
    assert (metadata["ss_unet_lr"], metadata["ss_text_encoder_lr"]) == ("0.01", "0.02")
    assert "both text encoders" in (tmp_path / "out/README.md").read_text()
    losses = [
        line["validation_loss"]
        for line in map(json.loads, (tmp_path / "out/log.jsonl").read_text().splitlines())
        if "validation_loss" in line
    ]
    assert len(losses) == len(set(losses)) == 4, "before the first step, too"

    before, after = Model.find(str(worded_model)), Model.find(str(worded_model))
    after = after.with_loras([Lora(file=InputFile.of(path, most=2**24))])
    plain, merged = (
        model.text_encoders(partial(model.network, dtype=torch.float32)) for model in (before, after)
    )
    tokens = plain.tokenize(["picture 1"])
    ours = kept["networks"].encode(tokens, torch.float32)
    for mine, applied, old in zip(ours, merged.encode(tokens), plain.encode(tokens), strict=True):
        assert (mine - applied).abs().max() <= 1e-5 * applied.abs().max()
        assert (mine - old).abs().max() > 1e-4

    other = run(*call(worded_model, pictures, *more[2:4], "--resume"))
    assert other.code == 2 and other.err.count("\n") == 1


def test_a_word_is_learned_saved_and_used(run, tmp_path, worded_model, pictures):
    for caption in pictures.glob("*.txt"):
        caption.unlink()
    (tmp_path / "run.toml").write_text('samples = ["a my-cat"]\n[train]\nvalidation_steps = 1\n')
    more = ["--vectors", 2, "--init-word", "cat", "--file", "run.toml"]
    result = run(*call(worded_model, pictures, *WORD, *more))
    assert (result.code, result.out.split()) == (0, ["out/my-cat.safetensors", "out/README.md"]), result.err
    path = tmp_path / "out/my-cat.safetensors"
    with safe_open(path, "pt") as file:
        shapes = {name: tuple(file.get_tensor(name).shape) for name in file.keys()}
        assert file.metadata()["modelspec.trigger_phrase"] == "my-cat"
    widths = DRAWABLE.text_encoder.hidden_size, DRAWABLE.text_encoder_2.hidden_size
    assert shapes == {"clip_l": (2, widths[0]), "clip_g": (2, widths[1])}
    assert '--embedding "my-cat.safetensors:my-cat"' in (tmp_path / "out/README.md").read_text()
    drawn = run("generate", "a my-cat", "--model", worded_model, "--embedding", path, "--out", "drawn")
    assert drawn.code == 0, drawn.err
    again = run(*call(worded_model, pictures, *WORD, *more))
    assert again.code == 2 and "continue it with --resume" in again.err


def test_a_word_that_no_caption_has_is_a_mistake(run, tmp_path, worded_model, pictures):
    result = run(*call(worded_model, pictures, *WORD[:4]))
    assert result.code == 2 and "no caption has the word 'my-cat'" in result.err
    assert result.err.count("\n") == 1 and not (tmp_path / "out/my-cat.safetensors").exists()
    for caption in pictures.glob("*.txt"):
        caption.write_text(f"{caption.read_text()} of my-cat")
    assert run(*call(worded_model, pictures, *WORD[:4])).code == 0


def test_a_missing_file_and_a_hard_crop_are_told(run, tmp_path, model, pictures, monkeypatch):
    monkeypatch.setattr("ssd1b.distill.run.VOCABULARY_SIZE", 1)
    smooth(320, 64, seed=8).save(pictures / "0.png")
    with pytest.warns(UserWarning, match=r"1 image with more than half cropped \(0\.png\): no bucket"):
        result = run(*call(model, pictures, "--method", "full", steps=1))
    assert result.code == 0 and not (tmp_path / "out/model.safetensors").exists(), result.err
    assert "no model.safetensors: single files have no place for" in result.err


def test_a_whole_model_has_its_text_encoders(run, tmp_path, worded_model, pictures):
    result = run(*call(worded_model, pictures, "--method", "full", "--text-encoders", "--prior-prompt", "a"))
    assert result.code == 0, result.err
    for name in ("out/model", "out/model.safetensors"):
        after, before = (Model.find(str(each)) for each in (tmp_path / name, worded_model))
        for part in ("unet", "text_encoder", "text_encoder_2"):
            old, new = (each.network(part, dtype=torch.float32).state_dict() for each in (before, after))
            assert any(not each.equal(old[key]) for key, each in new.items()), part


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
    assert "no model.safetensors" not in result.err
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
    assert len(losses) == 4 and len(set(losses)) == 4
    for name in ("out/model", "out/model.safetensors"):
        opened = Pipeline.load(str(tmp_path / name), dtype="fp32", device="cpu")
        before = Model.find(str(model)).network("unet", dtype=torch.float32).state_dict()
        assert any(not each.equal(before[key]) for key, each in opened.unet.state_dict().items())


def test_overfitting_is_reported_and_the_best_model_kept_also_after_resuming(model, tmp_path, monkeypatch):
    losses = iter([2.0, 1.0, 1.1, 1.2, float("nan"), 1.3, 0.9])
    monkeypatch.setattr(validation, "_BATCHES", 1)
    monkeypatch.setattr(validation, "weighted_error", lambda *_: torch.tensor(next(losses)))
    networks = Networks(Model.find(str(model)).network("unet"), None, {})
    objective = running.Objective(text=None, device="cpu", dtype=torch.float32)
    monkeypatch.setattr(running.Objective, "__call__", lambda self, batch: None)
    zeros = torch.zeros(1)
    batch = LatentBatch(zeros, Conditioning(torch.zeros(1, 77, 40), torch.zeros(1, 12)), zeros, zeros.bool())
    log, kept = tmp_path / "log.jsonl", []
    group = running.join_processes("cpu", [make_settings(None, {"data.path": "x"}, size=64).train])

    def begin():
        return validation.make_loss_validator(
            objective, {0: batch}, log, group, lambda networks, step: kept.append(step)
        )

    validate = begin()
    rows = [{"step": step, **validate(networks, step)} for step in (10, 20, 30)]
    log.write_text("".join(json.dumps(row) + "\n" for row in [*rows, {"step": 30, "loss": 1.0}]))
    validate = begin()
    validate(networks, 40)
    with pytest.warns(UserWarning, match=r"lowest after step 20 .*best\.safetensors is that of step 20"):
        validate(networks, 50)
    assert math.isnan(validation.losses_in(log)[30]) is False and kept == [10, 20]
    validate(networks, 60)
    validate(networks, 70)
    assert kept == [10, 20, 70]


def test_the_best_model_is_that_of_its_step(run, tmp_path, model, pictures, monkeypatch):
    (tmp_path / "run.toml").write_text("[train]\nvalidation_steps = 1\ncheckpoint_steps = 2\n")
    losses = iter([0.5, 3.0, 1.0, 2.0, 4.0, 1.0, 2.0, 3.0])
    monkeypatch.setattr(validation, "_BATCHES", 1)
    monkeypatch.setattr(validation, "weighted_error", lambda *_: torch.tensor(next(losses)))
    given = ["--file", "run.toml", "--validation", pictures]
    result = run(*call(model, pictures, *given))
    assert result.out.split() == ["out/adapter.safetensors", "out/best.safetensors", "out/README.md"]
    step, best, last = (
        load_file(tmp_path / "out" / name)
        for name in ("checkpoints/step-00000002.safetensors", "best.safetensors", "adapter.safetensors")
    )
    there = [each for name, each in step.items() if name.startswith("model.weights.")]
    assert all(any(each.equal(other) for other in there) for name, each in best.items() if ".lora_" in name)
    assert any(not best[name].equal(last[name]) for name in last)
    with safe_open(tmp_path / "out/best.safetensors", "pt") as file:
        assert file.metadata()["ss_steps"] == "2"
    about = (tmp_path / "out/README.md").read_text()
    assert "`best.safetensors` is of step 2" in about, "nothing is learned before the first step"
    assert "was 0.5 before the training and 2 after it" in about

    whole = run(*call(model, pictures, *given, "--method", "full", out="whole"))
    assert whole.code == 0 and "whole/best.safetensors" in whole.out
    part = open_single_file(tmp_path / "whole/best.safetensors").parts["unet"]
    assert part.layout == DRAWABLE.unet, "it is a UNet for --unet"


def test_options_reach_the_run_and_its_length_is_printed(run, tmp_path, model, pictures):
    other = tmp_path / "other"
    other.mkdir()
    smooth(64, 64, seed=9).save(other / "x.png")
    (other / "x.txt").write_text("a, b, c\nd, e")
    options = [
        "--preset", "onetrainer-lora", "--epochs", 1.5, "--batch-size", 2, "--data", f"{other}:4",
        "--size", 64,
        "--trigger", "sks", "--caption-lines", "--shuffle-captions", "--keep-tokens", 1, "--tag-dropout", 0.5,
        "--caption-dropout", 0.25, "--flip", "--noise-offset", 0.05, "--weighting", "min-snr", "--min-snr", 4,
        "--optimizer", "adafactor", "--gradient-checkpointing", "--rank", 2,
    ]  # fmt: skip
    result = run(
        "finetune", "--model", model, "--data", pictures, "--out", "out", "--device", "cpu", *options
    )
    assert result.code == 0, result.err
    assert "training on 5 images (8 with repeats): 6 steps of 2, 1.5 passes" in result.err
    settings = json.loads((tmp_path / "out/finetune.json").read_text())["settings"]
    assert (settings["alpha"], settings["rank"], settings["train"]["learning_rate"]) == (1.0, 2, 3e-4)
    assert (settings["noise_offset"], settings["weighting"], settings["min_snr"]) == (0.05, "min-snr", 4)
    data, train = settings["data"], settings["train"]
    assert [each["repeats"] for each in data["sources"]] == [1, 4] and data["path"] is None
    assert (data["trigger"], data["caption_lines"], data["shuffle_captions"], data["flip"]) == (
        "sks", True, True, True,
    )  # fmt: skip
    assert (data["keep_tokens"], data["tag_dropout"], data["caption_dropout"]) == (1, 0.5, 0.25)
    assert (train["optimizer"], train["gradient_checkpointing"]) == ("adafactor", True)
    with safe_open(tmp_path / "out/adapter.safetensors", "pt") as file:
        metadata = file.metadata()
    assert (metadata["ss_num_train_images"], metadata["ss_max_train_steps"]) == ("8", "6")
    assert (metadata["ss_shuffle_caption"], metadata["ss_keep_tokens"]) == ("True", "1")
    about = (tmp_path / "out/README.md").read_text()
    assert 'ssd1b generate "sks, ..."' in about and "on 5 images for 6 steps of 2" in about
    dry = run(
        "finetune", "--model", model, "--data", f"{other}:4", "--dry-run", "--epochs", 2, "--device", "cpu"
    )
    assert dry.code == 0 and "time on cpu" in dry.out, dry.err
    assert "data: 1 image (4 with repeats): 8 steps of 1, 2 passes" in dry.out and not list(
        other.glob("*.json")
    )


def test_zero_terminal_snr_is_declared_by_the_model_that_was_trained_so(run, tmp_path, model, pictures):
    options = ["--method", "full", "--zero-terminal-snr", "--prediction", "v", "--weighting", "debiased"]
    result = run(*call(model, pictures, *options, steps=1))
    assert result.code == 0, result.err
    for name in ("out/model", "out/model.safetensors"):
        schedule = Model.find(str(tmp_path / name)).info.noise_schedule
        assert schedule.prediction_type == "v_prediction" and schedule.rescale_betas_zero_snr
        assert schedule.alphas_cumprod[-1] == 0
    assert not Model.find(str(model)).info.noise_schedule.rescale_betas_zero_snr


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
    text = run("finetune", "--model", model, "--dry-run", "--device", "cpu", "--rank", 2, "--text-encoders")
    word = run("finetune", "--model", model, "--dry-run", "--device", "cpu", *WORD, "--vectors", 3)
    assert text.code == word.code == 0, text.err + word.err
    widths = DRAWABLE.text_encoder.hidden_size + DRAWABLE.text_encoder_2.hidden_size
    assert f"3 vectors for each text encoder, {3 * widths:,} parameters" in word.out
    encoders = [Model.find(str(model)).network(part) for part in ("text_encoder", "text_encoder_2")]
    total = count + sum(each.numel() for encoder in encoders for each in encoder.parameters())
    assert f"{total:,} in the UNet and both text encoders" in text.out


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--data", "nosuch"], "nosuch: no such folder"),
        (["--masks", "nosuch"], "masks is 'nosuch'"),
        (["--zero-terminal-snr"], "zero_terminal_snr needs a model that predicts v"),
        (WORD[:4], "no caption has the word 'my-cat'"),
        (["--validation", "nosuch"], "nosuch: no such folder"),
    ],
)
def test_a_dry_run_checks_what_the_run_does(run, model, pictures, more, error):
    data = [] if "--data" in more else ["--data", pictures]
    result = run("finetune", "--model", model, "--dry-run", "--device", "cpu", *data, *more)
    assert result.code == 2 and error in result.err and result.err.count("\n") == 1, result.err


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
        (["--method", "ful"], "error: unknown method 'ful': did you mean 'full'?"),
        (["--rank", 0], "rank"),
        (["--prior-weight", 2], "prior_weight needs prior"),
        (["--prior-weight", -1, "--prior-prompt", "x"], "prior_weight"),
        (["--block", "up_blocks.9"], "up_blocks.9"),
        (["--names", "diffuser"], "diffusers"),
        (["--names", "diffusers", "--kind", "lokr"], "diffusers has no names for lokr"),
        (["--file", "run.json"], ".toml"),
        (["--text-rate", 0.1], "text_rate needs text_encoders"),
        (["--token", "my-cat"], "token is for method textual-inversion"),
        ([*WORD, "--text-encoders"], "text_encoders is for method lora or full, got textual-inversion"),
        (["--names", "diffusers", "--method", "full"], "names (--names) is for method lora, got full"),
        ([*WORD, "--init-word", "red cube"], "'red cube' has 2 tokens"),
        ([*WORD, "--template", "stile"], "style"),
        ([*WORD, "--token", "Best"], "would name the file Best.safetensors"),
        (["--preset", "kohya"], "kohya-lora"),
        (["--masks", "alpha"], "masks is 'alpha', but no image has one"),
        (["--keep-tokens", 1], "keep_tokens needs"),
        (["--data", "pictures:x"], "--data pictures: 'x' is not a whole number"),
        (["--data", "pictures:2:3"], "it must be DATA:REPEATS"),
        (["--data", "pictures:0"], "repeats"),
        (["--epochs", 2], "give train.steps or epochs, not both"),
        (["--noise-offset", 2], "noise_offset"),
        (["--weighting", "snr"], "min-snr"),
        (["--zero-terminal-snr"], "zero_terminal_snr needs a model that predicts v"),
    ],
)
def test_mistakes_end_in_one_line(run, tmp_path, model, pictures, more, error):
    result = run(*call(model, pictures, *more))
    assert result.code == 2 and error in result.err and result.err.count("\n") == 1, result.err
    made = {path.name for path in (tmp_path / "out").glob("[!.]*")}
    assert not made & {"adapter.safetensors", "finetune.json", "data.json", "encoded"}, "no half a run"
