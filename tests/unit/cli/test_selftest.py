"""``ssd1b selftest``: what it finds on whole, foreign and damaged models, and what it does not give away."""

import json
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from ssd1b.bench import selftest
from ssd1b.bench.contract import PARAMETERS
from ssd1b.layouts import NAMED, UNETS, model_layout
from ssd1b.models.text import TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.weights.hub import BUILT_IN

FAST = ["--dtype", "fp32", "--size", "64", "--steps", "1", "--device", "cpu"]


@pytest.mark.parametrize("name", NAMED)
def test_published_counts_are_those_of_the_layouts(name):
    layout = model_layout(name)
    with torch.device("meta"):
        networks = {
            "unet": UNet(layout.unet),
            "vae": VAE(layout.vae),
            "text_encoder": TextEncoder(layout.text_encoder),
            "text_encoder_2": TextEncoder(layout.text_encoder_2),
        }
    counts = {part: sum(each.numel() for each in network.parameters()) for part, network in networks.items()}
    assert PARAMETERS[name] == counts
    assert PARAMETERS.keys() == NAMED.keys() > UNETS.keys()


@pytest.mark.parametrize("name", BUILT_IN)
def test_the_miniatures_pass_beside_diffusers(run, name):
    done = run("selftest", name, *FAST)
    assert done.code == 0, done.out
    *lines, last = done.out.splitlines()
    assert last == "PASS: 9 checks"
    assert f"selftest of {name}, by ssd1b" == lines[0]
    unet = next(line for line in lines if line.startswith("pass     unet"))
    assert (
        f"{PARAMETERS[BUILT_IN[name].name]['unet']:,} parameters" in unet
        and "as published; all are finite" in unet
    )
    assert "from diffusers' " in lines[-1] and " GB, diffusers " in lines[-1]
    assert done.err.splitlines()[0] == "files ..."


@pytest.fixture
def drawn(monkeypatch):
    """No processes: pictures are noise; ``far`` moves them, and their first latents, by engine and format."""
    far: dict[tuple[str, str], tuple[float, float]] = {}

    def draw(task, seconds):
        noise = np.random.default_rng(0)
        levels, first = far.get((task.engine, task.dtype), (0, 0))
        pixels = noise.integers(40, 200, (task.size, task.size, 3)) + levels
        np.savez(task.out, pixels=pixels, first=noise.normal(size=(4, 8, 8)) + first)
        return {"loading": 1.0, "seconds": 2.0, "memory": 10**9}

    monkeypatch.setattr(selftest, "_run", draw)
    return far


def results(done) -> dict[str, str]:
    return {check["name"]: check["result"] for check in json.loads(done.out)["checks"]}


def test_a_folder_is_tested_in_every_format_that_is_here(run, tiny_model, drawn):
    done = run("selftest", tiny_model, "--json", "--device", "cpu")
    report = json.loads(done.out)
    assert (done.code, report["verdict"], report["model"]) == (0, "PASS: 10 checks", tiny_model.name)
    assert list(results(done))[-2:] == ["picture cpu fp32", "picture cpu bf16"]
    unet = next(check for check in report["checks"] if check["name"] == "unet")
    assert unet["figures"]["published"] is None and unet["figures"]["parameters"] > 1000
    assert "torch" in report["machine"]["libraries"]


def test_the_verdict_says_that_nothing_was_compared(run, tiny_model, drawn, monkeypatch):
    monkeypatch.setattr(selftest, "find_spec", lambda name: None)
    done = run("selftest", tiny_model, "--json", "--device", "cpu", "--dtype", "fp32")
    verdict = json.loads(done.out)["verdict"]
    assert verdict == "PASS: 9 checks; not compared with diffusers: picture cpu fp32"


def test_a_single_file_is_tested_too(run, tiny_model, drawn, tmp_path):
    from ssd1b.weights.keymap import PARTS
    from ssd1b.weights.loading import read_part
    from ssd1b.weights.opening import open_checkpoint
    from ssd1b.weights.writing import save_single_file

    checkpoint = open_checkpoint(tiny_model)
    save_single_file(
        tmp_path / "one.safetensors", checkpoint.info, {part: read_part(checkpoint, part) for part in PARTS}
    )
    done = run("selftest", "one.safetensors", "--json", *FAST)
    assert done.code == 0, done.out
    assert set(results(done).values()) == {"pass"}


@pytest.mark.parametrize(
    ("far", "failed"),
    [
        ({("ssd1b", "fp32"): (2, 0)}, []),
        ({("ssd1b", "fp32"): (3, 0)}, ["picture cpu fp32"]),
        ({("ssd1b", "bf16"): (12, 0.2), ("diffusers", "bf16"): (3, 0.11)}, []),
        ({("ssd1b", "bf16"): (13, 0.2), ("diffusers", "bf16"): (3, 0.11)}, ["picture cpu bf16"]),
        ({("ssd1b", "bf16"): (1, 0.2), ("diffusers", "bf16"): (3, 0.09)}, ["picture cpu bf16"]),
    ],
)
def test_a_picture_that_is_another_fails(run, tiny_model, drawn, far, failed):
    drawn |= far
    done = run("selftest", tiny_model, "--json", "--device", "cpu")
    assert [name for name, result in results(done).items() if result == "FAIL"] == failed
    assert done.code == (1 if failed else 0)


@pytest.fixture
def copy(tiny_model, tmp_path):
    """A copy of a model in a folder that must not be named."""
    return Path(shutil.copytree(tiny_model, tmp_path / "mysecretplace" / "model"))


def change(file: Path, name: str, tensor: torch.Tensor | None) -> None:
    tensors = {key: value.clone() for key, value in load_file(file).items()}
    if tensor is None:
        del tensors[name]
    else:
        tensors[name] = tensor
    save_file(tensors, file, metadata={"format": "pt"})


def nan(copy: Path) -> None:
    file = copy / "vae/diffusion_pytorch_model.safetensors"
    change(file, "post_quant_conv.bias", torch.full((4,), float("nan")))


def missing(copy: Path) -> None:
    change(copy / "unet/diffusion_pytorch_model.safetensors", "conv_out.bias", None)


def another_vocabulary(copy: Path) -> None:
    text = (copy / "tokenizer/vocab.json").read_text()
    (copy / "tokenizer/vocab.json").write_text(text.replace('"!":0,', '"!":1,').replace('"!": 0,', '"!": 1,'))


def no_weights(copy: Path) -> None:
    (copy / "text_encoder/model.safetensors").unlink()


def cut(copy: Path) -> None:
    file = copy / "unet/diffusion_pytorch_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


@pytest.mark.parametrize(
    ("damage", "check", "message"),
    [
        (nan, "vae", "NaN or infinity in 1 tensor: post_quant_conv.bias"),
        (missing, "unet", "1 missing tensor: conv_out.bias"),
        (another_vocabulary, "tokenizer", "1 of CLIP's tokens are missing or have other ids: !"),
        (no_weights, "files", "text_encoder"),
        (cut, "files", "damaged"),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_what_is_damaged_is_named_without_saying_where_it_lies(run, copy, drawn, damage, check, message):
    damage(copy)
    done = run("selftest", copy, *FAST)
    assert done.code == 1
    assert any(line.startswith(f"FAIL     {check}: ") and message in line for line in done.out.splitlines())
    assert done.out.splitlines()[-1].startswith("FAIL: 1 of ")
    assert "mysecretplace" not in done.out + done.err
    assert "Traceback" not in done.err


def test_what_goes_wrong_in_a_process_is_the_result_of_its_check(run, tiny_model, monkeypatch):
    def no_process(command, **_):
        if '"ssd1b"' in command[-1]:
            return subprocess.CompletedProcess(command, -9, "", "")
        raise subprocess.TimeoutExpired(command, 60)

    monkeypatch.setattr(subprocess, "run", no_process)
    done = run("selftest", tiny_model, "--json", *FAST)
    assert results(done)["picture cpu fp32"] == "not run"
    assert "killed, probably for lack of memory" in done.out
    assert json.loads(done.out)["verdict"] == "PASS: 8 checks; not run: picture cpu fp32"


def test_without_diffusers_our_own_picture_is_what_others_are_held_to(run, tiny_model, drawn, monkeypatch):
    monkeypatch.setattr(selftest, "find_spec", lambda name: None)
    drawn["ssd1b", "bf16"] = 30, 0
    done = run("selftest", tiny_model, "--device", "cpu")
    assert "diffusers is not installed" in done.out
    failed = "FAIL: 1 of 10 checks: picture cpu bf16"
    assert done.out.splitlines()[-1] == f"{failed}; not compared with diffusers: picture cpu fp32"


def test_a_name_that_promises_another_layout(run, drawn, monkeypatch, tiny_model):
    monkeypatch.setitem(BUILT_IN, "mini-sdxl", BUILT_IN["mini-ssd-1b"])
    done = run("selftest", "mini-sdxl", *FAST)
    assert "FAIL     files: the layout is mini-ssd-1b, but mini-sdxl was expected" in done.out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing.safetensors"], "no such file"),
        (["mini-sdxll"], "did you mean 'mini-sdxl'"),
        (["mini-sdxl", "--steps", "0"], "steps is 0"),
        (["mini-sdxl", "--size", "65"], "size is 65"),
        (["mini-sdxl", "--minutes", "nan"], "'nan' is not a number"),
        (["mini-sdxl", "--minutes", "0"], "minutes is 0"),
        (["mini-sdxl", "--device", "tpu"], "unknown device"),
        (["mini-sdxl", "--dtype", "fp12"], "unknown dtype"),
    ],
)
def test_wrong_input_is_an_error_and_no_verdict(run, arguments, message):
    done = run("selftest", *arguments)
    assert (done.code, done.out) == (2, "")
    assert message in done.err and len(done.err.splitlines()) == 1


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/joe/models/x.safetensors: bad", "MODEL: bad"),
        ("cannot read /home/joe/models: no", "cannot read ..: no"),
        ("File /usr/lib/python3/x.py is 3/4 of a m/s", "File PATH is 3/4 of a m/s"),
        ("401 for hf_abcDEF123", "401 for hf_..."),
        ("two\nlines \x1b[31m", "two lines \\x1b[31m"),
    ],
)
def test_texts_lose_what_is_private(text, shown):
    assert selftest.without_paths(text, Path("/home/joe/models/x.safetensors")) == shown
