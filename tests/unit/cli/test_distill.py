"""``ssd1b distill``: from a teacher's folder to a student that opens, stopped and gone on with on the way."""

import json
import os
import shutil
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from safetensors.torch import load_file

from picture_files import smooth
from ssd1b.distill import run as running
from ssd1b.distill.plan import plan
from ssd1b.distill.stages import Stage
from ssd1b.distill.teacher import find_teacher
from ssd1b.distill.train import student_of
from ssd1b.errors import InputError
from ssd1b.layouts import SDXL, VAELayout
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.models.vision import IMAGE_ENCODER
from ssd1b.pipeline import Pipeline
from ssd1b.training.processes import Group
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.loading import read_part
from ssd1b.weights.opening import open_checkpoint
from ssd1b.weights.writing import save_folder
from tiny import tiny
from training_fakes import stages_toml
from waiting import wait_for

TEACHER = replace(
    tiny(SDXL),
    vae=VAELayout(channels=(8, 8, 8, 8), layers_per_block=1, norm_groups=4, scaling_factor=0.5),
    size=128,
)

ALONE = Group("cpu", step_minutes=1.0, wait_minutes=1.0)

STAGES = """
[train]
learning_rate = 1e-3
log_steps = 1
[[stages]]
student = { mid = 0, down = [[0, 0], [2, 2], [6, 6]], up = [[0, 0, 0], [2, 1, 1], [4, 4, 10]] }
[[stages]]
student = "ssd-1b"
features = "block"
"""

pytestmark = pytest.mark.usefixtures("quick_training")


@pytest.fixture(scope="module")
def teacher(tmp_path_factory):
    """SDXL's blocks, CLIP's vocabulary, random weights."""
    path = tmp_path_factory.mktemp("models") / "teacher"
    torch.manual_seed(0)
    networks = {
        "unet": UNet(TEACHER.unet),
        "vae": VAE(TEACHER.vae),
        "text_encoder": TextEncoder(TEACHER.text_encoder),
        "text_encoder_2": TextEncoder(TEACHER.text_encoder_2),
    }
    info = ModelInfo(layout=TEACHER, settings={"steps": 2, "guidance_scale": 3.0}, world="tabletop")
    parts = {part: network.state_dict() for part, network in networks.items()}
    save_folder(path, info, parts, dtype=torch.float16)
    return path


def test_a_student_is_made_in_stages_and_opens_in_both_formats(run, tmp_path, teacher, monkeypatch):
    Path(tmp_path, "stages.toml").write_text(STAGES)
    before = {path: path.read_bytes() for path in teacher.rglob("*") if path.is_file()}
    call = ["distill", "--teacher", teacher, "--student", "ssd-1b", "--data", "tabletop", "--out", "out",
            "--stages", "stages.toml", "--steps", 2, "--batch-size", 2, "--device", "cpu"]  # fmt: skip
    trained = []

    def stopped(out, *rest, **options):
        trained.append(out.name)
        if trained == ["stage-1", "stage-2"]:
            raise KeyboardInterrupt
        return distilled(out, *rest, **options)

    distilled = running.distill
    monkeypatch.setattr(running, "distill", stopped)
    assert run(*call).code == 130
    first = tmp_path / "out/stage-1/student.safetensors"
    assert first.exists() and not (tmp_path / "out/model").exists()
    refused = run(*call)
    assert refused.code == 2 and "already contains a run: continue it with --resume" in refused.err
    other = run(*call, "--resume", "--seed", 5)
    assert other.code == 2 and "stages.1.train.seed is 5, the run in" in other.err

    result = run(*call, "--resume")
    assert (result.code, result.out.split()) == (0, ["out/model", "out/model.safetensors"]), result.err
    assert trained == ["stage-1", "stage-2", "stage-2"], "a finished stage is not run again"

    # The configuration is the student's, not the teacher's.
    config = json.loads((tmp_path / "out/model/unet/config.json").read_text())
    assert config["reverse_transformer_layers_per_block"] == [[4, 4, 10], [2, 1, 1], 1]
    assert config["mid_block_type"] == "UNetMidBlock2D"
    student = load_file(tmp_path / "out/stage-2/student.safetensors")
    for model in ("out/model", "out/model.safetensors"):
        pipeline = Pipeline.load(str(tmp_path / model), dtype="fp32", device="cpu")
        assert pipeline.info.family == "ssd-1b" and pipeline.info.defaults["guidance_scale"] == 3.0
        for name, tensor in pipeline.unet.state_dict().items():
            assert tensor.equal(student[name].half().float())
    for part in ("vae", "text_encoder", "text_encoder_2"):
        ours, theirs = (read_part(open_checkpoint(Path(each)), part) for each in ("out/model", teacher))
        assert ours.keys() == theirs.keys() and all(ours[name].equal(theirs[name]) for name in ours)

    # Teacher and student were two networks, and the teacher is what it was.
    assert open_checkpoint(teacher).unet.transformer_blocks == 70
    assert all(path.read_bytes() == content for path, content in before.items())
    told = json.loads((tmp_path / "out/distill.json").read_text())
    assert told["ssd1b_version"] and told["stages"][1]["kept"]["up_blocks.0.attentions.0"] == [0, 1, 2, 6]
    names = [set(json.loads(line)) for line in _logs(tmp_path)]
    assert any("feature/down_blocks.2.attentions.1" in each for each in names)


def _logs(folder):
    return [line for path in folder.glob("out/stage-*/log.jsonl") for line in path.read_text().splitlines()]


def test_each_stage_begins_with_what_the_one_before_learned(tmp_path, teacher, monkeypatch):
    """The second stage's student is cut out of the first one's averaged weights."""
    found = find_teacher(str(teacher), offline=True)
    planned = plan(TEACHER.unet, [Stage(student="ssd-1b"), Stage(student="vega")])
    given = []

    def learned(out, teacher, student, layers, *rest, **options):
        given.append(
            (teacher.layout, {name: tensor.clone() for name, tensor in student.state_dict().items()})
        )
        with torch.no_grad():
            for parameter in student.parameters():
                parameter += 1
        return student

    monkeypatch.setattr(running, "distill", learned)
    monkeypatch.setattr(running, "write_model", lambda out, *_, **__: running.StudentFiles(out, None))
    running.run(tmp_path, planned, {None: found}, lambda vae, text, settings: {}, ALONE, device="cpu")
    (of_first, first), (of_second, second) = given
    assert of_first == of_second == TEACHER.unet, "every stage learns from the full teacher"
    for key, source in planned[1].cut.keys.items():
        assert second[key].equal(first[source] + 1)


def test_parts_that_processes_cannot_share_are_refused_before_data_are_read(tmp_path, teacher):
    found = find_teacher(str(teacher), offline=True)
    planned = plan(TEACHER.unet, [Stage(student="ssd-1b")])
    three = Group("cpu", step_minutes=1.0, wait_minutes=1.0)
    three.count = 3

    def read(*given):
        raise AssertionError("data were read")

    with pytest.raises(InputError, match="3 processes cannot share 1 micro_batches evenly"):
        running.run(tmp_path, planned, {None: found}, read, three, device="cpu")


def test_a_miniature_brings_its_tokenizers_and_image_encoder_and_has_no_single_file(tmp_path):
    found = find_teacher("mini-sdxl", offline=True)
    (planned,) = plan(found.layout.unet, [Stage(student="mini-ssd-1b")])
    made = running.write_model(tmp_path, student_of(found.network("unet"), planned.cut), found)
    assert made == (tmp_path / "model", None, None)
    theirs = found.path
    for name in (f"{IMAGE_ENCODER}/model.safetensors", "tokenizer/vocab.json", "ssd1b.json"):
        assert (made.folder / name).read_bytes() == (theirs / name).read_bytes()
    checkpoint = open_checkpoint(made.folder)
    assert checkpoint.name == "mini-ssd-1b" and checkpoint.size == 128


def test_a_folder_of_captioned_pictures_will_do(run, tmp_path, teacher):
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(4):
        smooth(192, 128, seed=number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"cloud number {number}")
    call = ["distill", "--teacher", teacher, "--student", "vega", "--out", "out", "--steps", 1,
            "--batch-size", 2, "--device", "cpu", "--data"]  # fmt: skip
    (tmp_path / "nothing").mkdir()
    refused = run(*call, tmp_path / "nothing")
    assert refused.code == 2 and "contains no images" in refused.err
    result = run(*call, folder)  # what was never begun does not stand in the way
    assert result.code == 0, result.err
    found = json.loads((tmp_path / "out/data.json").read_text())
    assert sum(found["buckets"].values()) == 4 and not found["unusable"]
    assert len([*(tmp_path / "out/encoded").rglob("*.safetensors")]) >= 8, "latents and captions"
    assert Pipeline.load(str(tmp_path / "out/model"), device="cpu").info.family == "vega"


STEPS = 8
SHARED = stages_toml("vega", STEPS).replace("[[stages]]", f"validation_steps = {STEPS}\n[[stages]]")
SHARED += 'captions = ["a cloud", "two clouds"]\n'


@pytest.fixture(scope="module")
def together(tmp_path_factory, teacher):
    """A folder with a distillation by two processes of one machine, in "together"."""
    folder = tmp_path_factory.mktemp("shared")
    Path(folder, "stages.toml").write_text(SHARED)
    _clouds(folder / "pictures", 4)
    code, out, err = _ended(
        _torchrun(folder, teacher, "--standalone", "--nproc-per-node=2", out=["together"])
    )
    assert code == 0, err[-3000:]
    assert out == ["together/model", "together/model.safetensors"], "only the first process prints"
    return folder


def _torchrun(folder, teacher, *options, out):
    distill = ["-m", "ssd1b", "distill", "--teacher", teacher, "--stages", "stages.toml",
               "--data", "pictures", "--device", "cpu", "--cache", "cache", "--out"]  # fmt: skip
    command = [sys.executable, "-m", "torch.distributed.run", *options, *map(str, distill), *out]
    return subprocess.Popen(
        command, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "TORCH_COMPILE_DISABLE": "1"},
    )  # fmt: skip


def _ended(process):
    out, err = process.communicate(timeout=300)
    return process.returncode, out.split(), err


def test_two_processes_distill_what_one_does_and_one_of_them_writes(run, together, teacher, image_at):
    alone = run("distill", "--teacher", teacher, "--stages", together / "stages.toml", "--data",
                together / "pictures", "--device", "cpu", "--out", together / "alone")  # fmt: skip
    assert alone.code == 0, alone.err
    one, other = (load_file(together / out / "stage-1/student.safetensors") for out in ("alone", "together"))
    for name, tensor in one.items():
        torch.testing.assert_close(other[name], tensor, rtol=0, atol=1e-4)
    lines = Path(together, "together/stage-1/log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines] == [0, STEPS, STEPS], "one process writes"
    sheets = [
        image_at(together / out / f"stage-1/pictures/drawn-{STEPS:08}.png") for out in ("alone", "together")
    ]
    assert sheets[0].size == (256, 128), "both captions, side by side"
    assert np.abs(np.subtract(*(np.asarray(sheet, np.int16) for sheet in sheets))).mean() < 2


@pytest.mark.enable_socket
def test_two_machines_distill_what_two_processes_of_one_do_although_one_ends(together, teacher):
    """Two agents of torchrun on this machine are all that two machines are, but for the disk."""
    place = f"127.0.0.1:{_free_port()}"
    dynamic = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={place}"]
    agents = [_torchrun(together, teacher, *dynamic, out=["apart"]) for _ in range(2)]
    wait_for(lambda: (together / "apart/stage-1/checkpoints/step-00000002.safetensors").exists(), seconds=200)
    workers = [psutil.Process(agent.pid).children()[0] for agent in agents]
    victim = next(each for each in workers if each.environ()["RANK"] == "1")
    victim.kill()
    survivors = [_ended(agent) for agent in agents]
    assert all(code != 0 for code, *_ in survivors)
    lines = [line for *_, err in survivors for line in err.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and "another process of this training ended or does not answer" in lines[0]
    assert not (together / "apart/model").exists()

    static = ["--nnodes=2", "--nproc-per-node=1", "--master-addr=127.0.0.1", f"--master-port={_free_port()}"]
    agents = [
        _torchrun(together, teacher, *static, f"--node-rank={rank}", out=["apart", "--resume"])
        for rank in range(2)
    ]
    (code, out, err), (other_code, other_out, _) = map(_ended, agents)
    assert (code, other_code) == (0, 0), err[-3000:]
    assert (out, other_out) == (["apart/model", "apart/model.safetensors"], []), (
        "only the first process prints"
    )
    one, other = (Path(together, out, "stage-1/student.safetensors") for out in ("together", "apart"))
    assert one.read_bytes() == other.read_bytes()


def _free_port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        return server.getsockname()[1]


def _clouds(folder, count):
    folder.mkdir()
    for number in range(count):
        smooth(128, 128, seed=number).save(folder / f"{number}.png")
        (folder / f"{number}.txt").write_text(f"cloud number {number}")


def test_a_validation_without_captions_is_refused(run, tmp_path, teacher):
    Path(tmp_path, "stages.toml").write_text(SHARED.replace("captions", "# captions"))
    refused = run(
        "distill", "--teacher", teacher, "--stages", "stages.toml", "--data", "tabletop", "--out", "o"
    )
    assert refused.code == 2 and "validation_steps needs captions" in refused.err


def test_a_budget_is_filled_by_what_is_measured_on_data(run, tmp_path, teacher, monkeypatch):
    monkeypatch.setattr(running, "EXAMPLES", 1)
    monkeypatch.setattr(running, "EXAMPLE_SIZE", 1)
    result = run("distill", "--teacher", teacher, "--student", "60%", "--data", "tabletop", "--device", "cpu",
                 "--dry-run", "--out", "plan")  # fmt: skip
    assert result.code == 0, result.err
    (line,) = [line for line in result.out.splitlines() if line.startswith("stage 1")]
    share = float(line.split("%")[0].split()[-1])
    assert 55 < share <= 60
    assert "from a forward pass in" in result.out
    # Progress has lines of its own if it takes long.
    assert [line for line in result.err.splitlines() if line.endswith("...")] == [
        "measuring the importance of the teacher's blocks on tabletop ...",
        "measuring the speed of cpu ...",
        "estimating the memory of stage 1 of 1 ...",
    ]
    assert (tmp_path / "plan/layers.png").read_bytes().startswith(b"\x89PNG")
    table = (tmp_path / "plan/layers.tsv").read_text().splitlines()
    assert table[:2] == ["STUDENT\tTEACHER", "conv_in.weight\tconv_in.weight"]
    assert not (tmp_path / "plan/distill.json").exists()


def test_tabletop_is_for_teachers_that_declare_it(run, tmp_path, teacher):
    shutil.copytree(teacher, tmp_path / "other")
    (tmp_path / "other/ssd1b.json").write_text('{"settings": {}}')
    call = ["distill", "--teacher", "other", "--student", "60%", "--data", "tabletop", "--out", "out"]
    for more in ([], ["--dry-run"]):
        refused = run(*call, *more)
        assert refused.code == 2 and "the teacher does not generate Tabletop images" in refused.err


def test_the_teacher_of_a_stage_must_be_there(run, tmp_path):
    (tmp_path / "stages.toml").write_text('[[stages]]\nstudent = "mini-ssd-1b"\nteacher = "no-such-model"\n')
    result = run("distill", "--teacher", "mini-sdxl", "--stages", "stages.toml", "--dry-run")
    assert result.code == 2 and "no-such-model" in result.err


def test_a_dry_run_at_full_size_needs_no_weights(run):
    result = run("distill", "--teacher", "sdxl", "--student", "ssd-1b", "--dry-run", "--device", "cpu")
    assert result.code == 0, result.err
    lines = {line.split("  ")[0]: line for line in result.out.splitlines()}
    assert "2,567,463,684" in lines["teacher"] and "3,381" in lines["teacher"]
    assert all(
        word in lines["stage 1"] for word in ("36 blocks, 1 resnet", "1,331,334,404", "51.9 %", "2,104")
    )
    assert lines["up_blocks.0.attentions.1"].split()[1:] == ["0-9", "0-2", "6"]
    assert "weights are not on disk" in result.out and "matrix product" in result.out
