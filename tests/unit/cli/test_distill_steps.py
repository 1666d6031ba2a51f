"""``ssd1b distill --steps-method``: a larger model teaches a smaller one to need few steps."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from ssd1b.distill.steps import run as running
from ssd1b.evaluate.cost import unet_macs
from ssd1b.layouts import KOALA_700M, SDXL_MINI, SSD_1B, SSD_1B_MINI, ModelLayout, VAELayout
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.pipeline import Pipeline
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder
from tiny import tiny

AUTOENCODER = VAELayout(channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4, scaling_factor=0.5)

pytestmark = pytest.mark.usefixtures("quick_training")


def model(path: Path, layout: ModelLayout, settings: dict[str, object]) -> Path:
    """A model with random weights."""
    layout = replace(layout, vae=AUTOENCODER, size=128)
    torch.manual_seed(0)
    networks = {
        "unet": UNet(layout.unet), "vae": VAE(layout.vae), "text_encoder": TextEncoder(layout.text_encoder),
        "text_encoder_2": TextEncoder(layout.text_encoder_2),
    }  # fmt: skip
    info = ModelInfo(layout=layout, settings=settings, world="tabletop")
    save_folder(path, info, {part: each.state_dict() for part, each in networks.items()}, dtype=torch.float16)
    return path


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """A teacher with SSD-1B's blocks, and a student with KOALA-700M's."""
    folder = tmp_path_factory.mktemp("models")
    settings = {"steps": 20, "guidance_scale": 3.0, "sampler": "unipc"}
    return [
        model(folder / name, tiny(layout), settings)
        for name, layout in (("big", SSD_1B), ("small", KOALA_700M))
    ]


STAGES = """
[train]
batch_size = 2
log_steps = 1
steps = 2
[[stages]]
method = "lcm"
[[stages]]
method = "dmd"
inference_steps = 2
critic_updates = 2
critic = "student"
"""


def test_a_larger_teacher_teaches_in_stages_and_the_student_says_how_it_is_used(
    run, tmp_path, models, monkeypatch
):
    teacher, student = models
    Path(tmp_path, "turbo.toml").write_text(STAGES)
    call = ["distill", "--teacher", teacher, "--student", student, "--data", "tabletop", "--out", "out",
            "--stages", "turbo.toml", "--device", "cpu"]  # fmt: skip
    trained, train = [], running._train

    def stopped(folder, *rest, **options):
        trained.append(folder.name)
        if trained == ["stage-1", "stage-2"]:
            raise KeyboardInterrupt
        train(folder, *rest, **options)

    monkeypatch.setattr(running, "_train", stopped)
    assert run(*call).code == 130
    other = run(*call, "--resume", "--inference-steps", 3)
    assert other.code == 2 and "other stages" in other.err
    result = run(*call, "--resume")
    assert (result.code, result.out.split()) == (0, ["out/model", "out/model.safetensors"]), result.err
    assert trained == ["stage-1", "stage-2", "stage-2"], "a finished stage is not run again"

    pipeline = Pipeline.load(str(tmp_path / "out/model"), dtype="fp32", device="cpu")
    assert pipeline.info.family == "koala-700m" and not pipeline.layout.unet.guidance_embed_dim
    settings = pipeline.settings("a cube", seed=1)
    assert (settings.sampler, settings.schedule, settings.steps) == ("lcm", "trailing", 2)
    assert settings.guidance_scale == 1.0
    config = json.loads((tmp_path / "out/distill.json").read_text())
    assert [each["guidance"] for each in config["stages"]] == [3.0, 3.0], "the teacher's recommendation"


def test_a_range_of_guidance_becomes_an_input_of_the_student(run, tmp_path, models):
    _, student = models
    Path(tmp_path, "turbo.toml").write_text(
        '[[stages]]\nmethod = "tcd"\nguidance = [2, 6]\ntrain = { steps = 2, batch_size = 2 }\n'
    )
    result = run("distill", "--teacher", student, "--data", "tabletop", "--out", "out",
                 "--stages", "turbo.toml", "--device", "cpu")  # fmt: skip
    assert result.code == 0, result.err
    pipeline = Pipeline.load(str(tmp_path / "out/model"), dtype="fp32", device="cpu")
    assert pipeline.layout.unet.guidance_embed_dim == 256
    assert pipeline.unet.time_embedding.cond_proj.weight.any(), "it was trained"
    settings = pipeline.settings("a cube", seed=1, width=64, height=64)
    assert (settings.guidance_scale, settings.timesteps) == (4.0, "999,759,499,259")
    ends = [[step.latents for step in pipeline.steps([replace(settings, guidance_scale=scale)])][-1]
            for scale in (2.0, 6.0)]  # fmt: skip
    assert not ends[0].equal(ends[1])


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--steps-method", "lmc"], "unknown method 'lmc': did you mean 'lcm'?"),
        (["--inference-steps", 4], "--inference-steps needs --steps-method"),
        (["--steps-method", "lcm", "--inference-steps", 51], "inference_steps is 51: it must be"),
        (["--steps-method", "lcm", "--student", "mini-sdxl", "--ray", "local"], "on one machine"),
        (["--steps-method", "lcm", "--stages", "ssd-1b", "--student", "no-such"], "no-such"),
        (["--steps-method", "lcm", "--student", "ssd-1b"], "the models have other autoencoders"),
    ],
)
def test_wrong_calls_are_refused_in_one_line(run, tmp_path, options, problem):
    result = run(
        "distill", "--teacher", "mini-ssd-1b", "--data", "tabletop", "--out", "out", "--dry-run", *options
    )
    if "--ray" in options:
        result = run("distill", "--teacher", "mini-ssd-1b", "--data", "tabletop", "--out", "out", *options)
    assert result.code == 2 and problem in result.err
    assert len(result.err.strip().splitlines()) == 1
    assert not Path(tmp_path, "out").exists()


def test_a_dry_run_says_what_each_stage_costs(run):
    result = run("distill", "--teacher", "mini-sdxl", "--student", "mini-ssd-1b", "--steps-method", "lcm",
                 "--dry-run", "--device", "cpu")  # fmt: skip
    assert result.code == 0, result.err
    assert "mini-sdxl (15," in result.out and "teaches mini-ssd-1b (7,952,588)" in result.out
    row = next(line for line in result.out.splitlines() if line.startswith("stage 1"))
    assert row.split()[2:7] == ["lcm", "4", "teacher", "2000", "16"]
    # Two passes of the teacher, one of the average, and three for the student's forward and backward pass.
    teacher, student = (unet_macs(each, 16, 16) for each in (SDXL_MINI, SSD_1B_MINI))
    assert row.split()[7] == f"{(2 * teacher + 4 * student) / 1e9:,.4g}"
    for what in ("trained weights", "optimisers", "teacher's weights", "total"):
        assert what in result.out
