"""``ssd1b finetune --method controlnet``: a network that adds nothing at first, learns, and is used."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from picture_files import smooth
from ssd1b.finetune import run as running
from ssd1b.finetune import validation
from ssd1b.layouts import ControlNetLayout, encoder_of
from ssd1b.models.controlnet import ControlNet
from ssd1b.training import loop, task
from tiny import DRAWABLE

FILE = "controlnet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def model(worded_model):
    return worded_model


@pytest.fixture
def pictures(tmp_path):
    """Images with shapes, whose edges say something, each with a control image beside it."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        image = smooth(64, 64, seed=number)
        image.paste("white", (8 * number, 8, 40, 48))
        image.save(folder / f"{number}.png")
        smooth(64, 64, seed=9 + number).save(folder / f"{number}.control.png")
        (folder / f"{number}.txt").write_text(f"picture {number}")
    return folder


@pytest.fixture(autouse=True)
def quickly(monkeypatch, quick_training):
    monkeypatch.setattr(running, "training_dtype", lambda device: torch.float32)


def call(model, pictures, *more, out="out", steps=3, controls="edges"):
    return ["finetune", "--method", "controlnet", "--model", model, "--data", pictures, "--out", out,
            "--controls", controls, "--steps", steps, "--device", "cpu", "--learning-rate", 0.01,
            *more]  # fmt: skip


def watch_networks(monkeypatch, change=lambda networks: None):
    """Keep the networks of each training, as they are before it."""
    kept, trained = [], running.train

    def watched(networks, *args, **options):
        change(networks)
        before = {name: each.clone() for name, each in networks.state_dict().items()}
        kept.append((before, trained(networks, *args, **options)))
        return kept[-1][1]

    monkeypatch.setattr(running, "train", watched)
    return kept


def test_a_controlnet_starts_as_nothing_and_learns_alone(run, tmp_path, model, pictures, monkeypatch):
    kept, outputs = watch_networks(monkeypatch), []
    predict = ControlNet.forward

    def watched(self, *given):
        outputs.append(predict(self, *given))
        return outputs[-1]

    monkeypatch.setattr(ControlNet, "forward", watched)
    result = run(*call(model, pictures))
    assert (result.code, result.out.split()) == (0, ["out/controlnet", "out/README.md"]), result.err
    assert not any(each.any() for each in (*outputs[0].skips, outputs[0].middle)), "nothing is added before"
    assert any(each.any() for each in outputs[-1].skips)
    ((before, networks),) = kept
    after = networks.state_dict()
    changed = {name for name, each in before.items() if not each.equal(after[name])}
    assert changed and all(name.startswith("controlnet.") for name in changed)
    reads = [name for name in changed if ".controlnet_cond_embedding." in name]
    zeros = [name for name in changed if ".controlnet_down_blocks." in name]
    blocks = [name for name in changed if ".transformer_blocks." in name]
    assert len(reads) == 16 and len(zeros) == 12 and blocks, "it learns everywhere after the first step"
    copied = [name for name in before if f"unet.{name.removeprefix('controlnet.')}" in before]
    assert len(copied) > 100
    assert all(before[name].equal(before[f"unet.{name.removeprefix('controlnet.')}"]) for name in copied)

    file = load_file(tmp_path / "out" / FILE)
    assert all(file[name].equal(each) for name, each in networks.controlnet.state_dict().items())
    about = (tmp_path / "out/README.md").read_text()
    assert f'ssd1b generate "..." --control controlnet:photo.png:canny --model {model}' in about

    told = run("inspect", "out/controlnet", "--model", model)
    assert told.code == 0, told.err
    assert "follows Canny edges" in told.out and "yes" in told.out and "steps" in told.out
    metadata = json.loads(run("inspect", f"out/{FILE}", "--model", model, "--json").out)["metadata"]
    assert (metadata["images"], metadata["steps"], metadata["base file"]) == ("4", "3", model.name)

    drawn = []
    for control in ([], ["--control", f"out/controlnet:{pictures}/1.png:canny"]):
        out = f"drawn-{len(drawn)}"
        done = run("generate", "a cube", "--model", model, "--seed", 1, "--out", out, *control)
        assert done.code == 0, done.err
        drawn.append(next((tmp_path / out).iterdir()).read_bytes())
    assert drawn[0] != drawn[1]

    again = run(*call(model, pictures, controls="beside", out="out"), "--resume")
    assert again.code == 2 and "data.controls is 'beside', the run in out has 'edges'" in again.err
    # Training goes on from a ControlNet, whose layout is its own.
    further = run(*call(model, pictures, "--init-control", "out/controlnet", out="further", steps=1))
    assert further.code == 0, further.err
    assert all(kept[1][0][f"controlnet.{name}"].equal(each) for name, each in file.items())


def test_a_run_that_was_stopped_resumes_to_the_same_bits(run, tmp_path, model, pictures, monkeypatch):
    (tmp_path / "run.toml").write_text("[train]\nema_decay = 0.5\nmicro_batches = 2\n")
    more = ["--file", "run.toml", "--batch-size", 2, "--flip", "--caption-dropout", 0.5, "--no-metadata"]
    assert run(*call(model, pictures, *more, out="whole", controls="beside")).code == 0
    update, steps = task.Learner.update, []

    def stopping(self, step, parts):
        steps.append(step)
        if len(steps) == 2:
            loop.stop_requested.set()
        return update(self, step, parts)

    monkeypatch.setattr(task.Learner, "update", stopping)
    assert run(*call(model, pictures, *more, out="parts", controls="beside")).code == 130
    assert not (tmp_path / "parts/controlnet").exists()
    assert run(*call(model, pictures, *more, "--resume", out="parts", controls="beside")).code == 0
    whole, parts = (Path(tmp_path, name, FILE).read_bytes() for name in ("whole", "parts"))
    assert whole == parts and steps == [0, 1, 2]
    held = load_file(tmp_path / "parts/checkpoints/step-00000003.safetensors")
    weights = [name for name in held if name.startswith("model.weights.")]
    assert weights and all(name.startswith("model.weights.controlnet.") for name in weights)


def test_samples_follow_their_pictures_and_the_best_network_is_kept(
    run, tmp_path, model, pictures, monkeypatch
):
    drawn, losses = [], iter([9.0, 3.0, 1.0, 2.0])
    watch = validation.make_sample_validator

    def watched(*args, **options):
        validate = watch(*args, **options)

        def draw(unet, step):
            drawn.append(validate(unet, step)["drawn"])
            return {"drawn": drawn[-1]}

        return draw

    monkeypatch.setattr(validation, "make_sample_validator", watched)
    monkeypatch.setattr(validation, "_BATCHES", 1)
    measured = validation.weighted_error
    monkeypatch.setattr(
        validation, "weighted_error", lambda *given: 0 * measured(*given) + next(losses)
    )  # computed, but with another result
    (tmp_path / "run.toml").write_text("[train]\nvalidation_steps = 1\n")
    samples = ["--sample", "a cube", "--sample-control", pictures / "1.png", "--sample", "a cone",
               "--sample-control", pictures / "3.png"]  # fmt: skip
    more = ["--file", "run.toml", "--validation", pictures, *samples]
    result = run(*call(model, pictures, *more))
    assert result.out.split() == ["out/controlnet", "out/best.safetensors", "out/README.md"], result.err
    assert len(drawn) == 4 and drawn[0].shape == (3, 64, 128)
    assert not drawn[1].equal(drawn[3]), "they are those of the network as it is then"
    assert "`best.safetensors` is of step 2" in (tmp_path / "out/README.md").read_text()
    assert run("inspect", "out/best.safetensors", "--model", model).code == 0
    assert any(
        not each.equal(load_file(tmp_path / "out" / FILE)[name])
        for name, each in load_file(tmp_path / "out/best.safetensors").items()
    )
    # Without edges, what the network reads is the picture itself.
    losses = iter([9.0, 3.0])
    more = [*more[2:], "--validation-steps", 1]
    assert run(*call(model, pictures, *more, controls="beside", out="beside", steps=1)).code == 0
    assert not drawn[5].equal(drawn[1])


@pytest.mark.parametrize("more", [[], ["--gradient-checkpointing", "--int8-base"]])
def test_it_learns_in_16_bits_too(run, tmp_path, model, pictures, monkeypatch, more):
    monkeypatch.setattr(running, "training_dtype", lambda device: torch.bfloat16)
    kept = watch_networks(monkeypatch)
    result = run(*call(model, pictures, *more, "--sample", "a cube", "--sample-control", pictures / "1.png"))
    assert result.code == 0, result.err
    ((before, networks),) = kept
    after = networks.controlnet.state_dict()
    assert {each.dtype for each in networks.controlnet.parameters()} == {torch.float32}
    frozen = {each.dtype for each in networks.unet.parameters() if each.is_floating_point()}
    assert frozen == {torch.bfloat16}
    still = [name for name, each in after.items() if each.equal(before[f"controlnet.{name}"])]
    assert not still


def test_a_dry_run_counts_the_memory_and_writes_nothing(run, tmp_path, model):
    result = run("finetune", "--method", "controlnet", "--model", model, "--dry-run", "--device", "cpu")
    assert result.code == 0, result.err
    with torch.device("meta"):
        network = ControlNet(ControlNetLayout(encoder=encoder_of(DRAWABLE.unet)))
    count = sum(each.numel() for each in network.parameters())
    assert f"a ControlNet, {count:,} parameters" in result.out
    assert "frozen weights" in result.out and "activations" in result.out and not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("more", "error"),
    [
        (["--rank", 2], "rank is for method lora, got controlnet"),
        (["--controls", "edge"], "controls is 'edge': it must be beside, edges or a folder of controls"),
        (["--sample", "a cube", "--sample-control", "x.png"], "x.png"),
        (["--init-control", "nothing"], "unknown control model 'nothing'"),
        (["--init-control", "mini-control"], "its levels have"),
    ],
)
def test_mistakes_end_in_one_line(run, tmp_path, model, pictures, more, error):
    result = run(*call(model, pictures, *more))
    assert result.code == 2 and error in result.err and result.err.count("\n") == 1, result.err
    assert not (tmp_path / "out/controlnet").exists()


def test_controls_are_needed_for_every_image(run, tmp_path, model, pictures):
    without = [each for each in call(model, pictures) if each not in ("--controls", "edges")]
    result = run(*without)
    assert result.code == 2 and "needs controls (--controls): beside, edges or a folder" in result.err
    (pictures / "2.control.png").unlink()
    result = run(*call(model, pictures, controls="beside"))
    assert result.code == 2 and "control: missing (1: 2.png)" in result.err
    held_out = tmp_path / "held out"
    held_out.mkdir()
    smooth(64, 64, seed=7).save(held_out / "x.png")
    (held_out / "x.txt").write_text("x")
    result = run(*call(model, pictures, "--validation", held_out, controls=str(pictures)))
    assert result.code == 2 and "control: missing (1: x.png)" in result.err, "its own are beside it"


def test_what_is_not_finite_is_not_written(run, tmp_path, model, pictures, monkeypatch):
    real = running.Results.write

    def broken(self, settings, networks, data):
        with torch.no_grad():
            networks.controlnet.controlnet_mid_block.weight[0] = np.nan
        return real(self, settings, networks, data)

    monkeypatch.setattr(running.Results, "write", broken)
    result = run(*call(model, pictures, steps=1))
    assert result.code != 0 and "controlnet_mid_block.weight is NaN or infinite: not saved" in result.err
    assert not (tmp_path / "out/controlnet").exists()
