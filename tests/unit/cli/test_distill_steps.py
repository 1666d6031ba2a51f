"""``ssd1b distill --steps-method``: a larger model teaches a smaller one to need few steps."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from ssd1b.distill.steps import run as running
from ssd1b.distill.steps.cost import memory, step_macs
from ssd1b.distill.steps.lora import lora_parameters, start_from, with_lora
from ssd1b.distill.steps.stages import StepStage
from ssd1b.errors import InputError
from ssd1b.evaluate.cost import unet_macs
from ssd1b.few_steps import recognise_file
from ssd1b.layouts import KOALA_700M, SDXL_MINI, SSD_1B, SSD_1B_MINI, VEGA, ModelLayout, VAELayout
from ssd1b.loras import read_lora
from ssd1b.model import Model
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.pipeline import Pipeline
from ssd1b.training.trained import load_trained_tensors, trained_parameters
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder
from tiny import inputs, tiny

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
    assert other.code == 2 and "stages.2.inference_steps is 3, the run in" in other.err
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


COMBINED = """
[train]
batch_size = 2
[[stages]]
student = { mid = 0, down = [[0, 0], [2, 2], [2, 2]], up = [[0, 0, 0], [2, 1, 1], [2, 2, 2]] }
train = { steps = 3 }
[[stages]]
train = { steps = 1 }
[[stages]]
method = "lcm"
train = { steps = 2 }
"""


def test_stages_that_cut_come_before_those_with_methods_in_one_run(run, tmp_path, models, monkeypatch):
    teacher, _ = models
    Path(tmp_path, "all.toml").write_text(COMBINED)
    call = ["distill", "--teacher", teacher, "--student", "vega", "--stages", "all.toml", "--device", "cpu"]
    planned = run(*call, "--dry-run", "--steps", 60, "--out", "plan", "--inference-steps", 3)
    assert planned.code == 0, planned.err
    first, layers, second = planned.out.partition("plan/layers.png\nplan/layers.tsv\n")
    assert layers and re.findall(r"^stage \d .* (\d+) +2 +\S+ \w+$", first, re.MULTILINE) == ["30", "10"]
    assert "teaches the cut student" in second and re.search(r"stage 1 +lcm +3 +teacher +20 ", second)

    trained, train = [], running._train

    def stopped(folder, *rest, **options):
        trained.append(folder.name)
        if len(trained) == 1:
            raise KeyboardInterrupt
        train(folder, *rest, **options)

    monkeypatch.setattr(running, "_train", stopped)
    call += ["--data", "tabletop", "--out", "out"]
    assert run(*call).code == 130
    again = run(*call)
    assert again.code == 2 and "out/cut already contains a run: continue it with --resume" in again.err
    result = run(*call, "--resume")
    assert (result.code, result.out.split()) == (0, ["out/model", "out/model.safetensors"]), result.err
    made = Model.find(str(tmp_path / "out/model"))
    assert made.layout.unet.levels == replace(tiny(VEGA), vae=AUTOENCODER).unet.levels
    assert made.few_steps is not None and made.few_steps.kind.name == "LCM student"
    cut = load_file(tmp_path / "out/cut/model/unet/diffusion_pytorch_model.safetensors")
    few = load_file(tmp_path / "out/model/unet/diffusion_pytorch_model.safetensors")
    assert cut.keys() == few.keys() and not cut["conv_in.weight"].equal(few["conv_in.weight"])
    config = json.loads((tmp_path / "out/distill.json").read_text())
    assert config["student"]["model"] == "out/cut/model"


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


LORA_STAGES = """
[train]
batch_size = 2
steps = 2
learning_rate = 0.01
[[stages]]
method = "lcm"
[[stages]]
method = "progressive"
learns_from = "before"
inference_steps = 2
starts = "student"
"""


def test_a_lora_is_trained_over_the_stages_and_makes_the_model_of_the_student(run, tmp_path, models):
    _, student = models
    Path(tmp_path, "turbo.toml").write_text(LORA_STAGES)
    result = run("distill", "--teacher", student, "--data", "tabletop", "--out", "out", "--rank", 3,
                 "--stages", "turbo.toml", "--device", "cpu")  # fmt: skip
    written = ["out/model", "out/model.safetensors", "out/lora.safetensors"]
    assert (result.code, result.out.split()) == (0, written), result.err

    before = Model.find(str(student))
    after = before.with_loras([read_lora(str(tmp_path / "out/lora.safetensors"))])
    made = Model.find(str(tmp_path / "out/model"))
    assert made.info.settings["sampler"] == "ddim" and made.info.settings["steps"] == 2
    kept = Path(tmp_path, "out/lora.safetensors").rename(tmp_path / "out/mine.safetensors")
    for few in (made.few_steps, Model.find(str(tmp_path / "out/model.safetensors")).few_steps,
                recognise_file(str(kept))):  # fmt: skip
        assert few is not None and few.kind.name == "progressive student" and few.steps == (2, 2)
    kept.rename(tmp_path / "out/lora.safetensors")
    shapes = {name: tuple(each.shape) for name, each in before.network("unet").state_dict().items()}
    layers = {name for name, shape in shapes.items() if len(shape) > 1}
    assert after.changes["unet"].keys() == layers, "every linear and convolution layer"
    assert after.changes["text_encoder"] == {}

    merged, published = after.network("unet", dtype=torch.float32), made.network("unet", dtype=torch.float32)
    for name, tensor in merged.state_dict().items():
        assert torch.allclose(tensor, published.state_dict()[name], atol=2e-3), "float16 rounds the model"
    trained = with_lora(before.network("unet", dtype=torch.float32), 3, seed=0)
    assert lora_parameters(before.layout.unet, 3) == sum(
        map(torch.numel, trained_parameters(trained).values())
    )
    load_trained_tensors(trained, load_file(tmp_path / "out/stage-2/student.safetensors"))
    given = inputs(before.layout.unet, 16, 16)
    expected, changed, unchanged = (
        unet(*given) for unet in (trained.eval(), merged, before.network("unet", dtype=torch.float32))
    )
    assert (changed - expected).abs().max() < 0.05 * (expected - unchanged).abs().max()

    again = with_lora(before.network("unet", dtype=torch.float32), 3, seed=1).eval()
    start_from(again, tmp_path / "out/lora.safetensors", before.layout)
    assert torch.allclose(again(*given), changed, atol=1e-4), "a training can start from the file"
    other = with_lora(before.network("unet", dtype=torch.float32), 2, seed=1)
    with pytest.raises(InputError, match=r"lora\.safetensors: .* is not what is trained, the UNet's LoRA"):
        start_from(other, tmp_path / "out/lora.safetensors", before.layout)


@pytest.mark.parametrize(
    ("options", "problem"),
    [
        (["--steps-method", "lmc"], "unknown method 'lmc': did you mean 'lcm'?"),
        (["--inference-steps", 4], "--inference-steps needs --steps-method"),
        (["--rank", 4], "--rank needs --steps-method"),
        (["--steps-method", "lcm", "--rank", 0], "rank is 0: it must be"),
        (["--steps-method", "lcm", "--inference-steps", 51], "inference_steps is 51: it must be"),
        (["--steps-method", "lcm", "--student", "mini-sdxl", "--ray", "local"], "on one machine"),
        (["--steps-method", "lcm", "--stages", "ssd-1b", "--student", "no-such"], "no-such"),
        (["--steps-method", "lcm", "--student", "ssd-1b"], "the models have other autoencoders"),
        (
            ["--steps-method", "lcm", "--student", "mini-sdxl", "--rank", 4],
            "mini-sdxl cannot learn from mini-ssd-1b: it is larger",
        ),
        (["--steps-method", "guidance", "--inference-steps", 4], "inference_steps has no effect"),
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


def test_a_lora_needs_less_memory_and_a_cheaper_backward_pass():
    whole, lora = (StepStage(method="lcm", rank=rank) for rank in (None, 8))
    layout = SSD_1B_MINI
    needs = [memory(each, layout, layout, 16, torch.bfloat16, "cpu") for each in (whole, lora)]
    for what in ("trained weights", "gradients", "optimisers", "averaged weights", "rounded weights"):
        share = lora_parameters(layout, 8) / 7_952_588
        assert needs[1][what] == pytest.approx(share * needs[0][what], rel=1e-6), what
    assert needs[1]["frozen weights"] == 2 * 7_952_588 and "frozen weights" not in needs[0]
    # Two passes of the teacher, one of the average, one forward, and two backward or one.
    assert [
        step_macs(each, 100, 100) for each in (replace(whole, guidance=4.0), replace(lora, guidance=4.0))
    ] == [600, 500]


def test_drawing_its_own_images_costs_the_student_a_pass_for_each_step():
    stages = [
        StepStage(method="progressive", guidance=4.0, teacher_steps=3, starts=starts)
        for starts in ("images", "noise", "student")
    ]
    assert [step_macs(each, 1000, 10) for each in stages] == [6030, 4 * 6030, 4 * 6040]
