"""``ssd1b bench``: engines agree on what they compute, and figures are what they are said to be."""

import json
import subprocess
import sys
from importlib.util import find_spec

import pytest

from ssd1b.extras import install
from ssd1b.speed.int8_cpu import int8_is_fast

QUICK = ("--layout", "mini-ssd-1b", "--latent", 8, "--rounds", 2)


@pytest.mark.filterwarnings("ignore")  # of the peers
@pytest.mark.parametrize("part", ["unet", "vae", "text", "picture"])
def test_engines_compute_the_same(run, part):
    done = run(
        "bench", *QUICK, "--part", part, "--peers", "ssd1b-plain,diffusers", "--dtype", "fp32", "--json"
    )
    assert done.code == 0, done.err
    table = json.loads(done.out)
    assert (table["layout"], table["part"], table["latent"]) == ("mini-ssd-1b", part, 8)
    assert table["batch"] == 1
    assert table["reference"] == "diffusers:fp32" and table["threads"] >= 1
    rows = {row["engine"]: row for row in table["rows"]}
    assert [*rows] == ["ssd1b", "ssd1b-plain", "diffusers"]
    for row in rows.values():
        assert 0 < row["low"] <= row["seconds"] <= row["high"]
        assert row["ratio_low"] <= row["ratio"] <= row["ratio_high"]
        assert row["apart"] < (1e-3 if part == "picture" else 1e-4), "a picture has 256 levels"
        if part == "unet":
            assert 0 < row["share"] < 1 and row["gflops"] > 0
    assert rows["ssd1b-plain"]["ratio"] == 1.0, "ratios are to the first peer"


def test_a_table_a_plot_and_lines_of_json(run, tmp_path):
    done = run("bench", *QUICK, "--latent", 16, "--out", "speed")
    assert done.code == 0, done.err
    assert "BY SSD1B" in done.out and "latent 16x16" in done.out
    lines = (tmp_path / "speed/bench.jsonl").read_text().splitlines()
    assert [json.loads(line)["latent"] for line in lines] == [8, 16]
    assert "<svg" in (tmp_path / "speed/bench.svg").read_text()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--peers", "difusers"], ["unknown engine 'difusers'", "did you mean 'diffusers'"]),
        (["--peers", "diffusers:fp8"], ["unknown dtype 'fp8'", "bf16"]),
        (["--layout", "sdlx"], ["unknown layout 'sdlx'", "did you mean 'sdxl'"]),
        (["--part", "clip"], ["unknown part 'clip'", "unet"]),
        (["--latent", "7"], ["latent is 7", "multiple of 8"]),
        (["--rounds", "0"], ["rounds is 0"]),
    ],
)
def test_wrong_calls(run, arguments, words):
    done = run("bench", *arguments)
    assert done.code == 2 and done.out == ""
    assert all(word in done.err for word in words), done.err


def test_a_peer_that_is_not_installed(run, monkeypatch):
    missing = ("openvino", "stable_diffusion_cpp")
    monkeypatch.setattr("ssd1b.extras.find_spec", lambda name: None if name in missing else object())
    done = run("bench", *QUICK, "--peers", "openvino")
    assert done.code == 2
    assert "engine openvino needs openvino, which is not installed: pip install 'ssd1b[openvino]'" in done.err
    done = run("bench", *QUICK, "--peers", "stable-diffusion.cpp-q8")
    assert done.code == 2 and done.err.rstrip().endswith(install(["stable_diffusion_cpp"]))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--part", "unet", "--peers", "stable-diffusion.cpp-q8"], ["does not support part unet", "picture"]),
        (["--part", "picture", "--peers", "openvino"], ["does not support part picture", "unet, vae, text"]),
        (
            ["--part", "picture", "--peers", "stable-diffusion.cpp"],
            ["layout mini-ssd-1b", "sdxl, ssd-1b, vega"],
        ),
    ],
)
def test_what_a_peer_does_not_do_is_told_before_anything_is_computed(run, monkeypatch, arguments, words):
    monkeypatch.setattr("ssd1b.extras.find_spec", lambda name: object())
    monkeypatch.setattr("ssd1b.actions.bench.make_case", lambda *given, **how: pytest.fail("computed"))
    done = run("bench", *QUICK, *arguments)
    assert done.code == 2 and done.out == "" and len(done.err.splitlines()) == 1, done.err
    assert all(word in done.err for word in words), done.err


def test_what_does_not_fit_is_refused_before_it_is_made(run, monkeypatch):
    monkeypatch.setattr("ssd1b.actions.bench.needed_bytes", lambda parameters, choices: 2**60)
    done = run("bench", *QUICK)
    assert done.code == 2 and "1.15e+06 TB for weights alone" in done.err and "name fewer --peers" in done.err


@pytest.mark.skipif(find_spec("openvino") is None or find_spec("nncf") is None, reason="not installed")
def test_openvino_computes_about_the_same_in_32_and_in_8_bits():
    """In a process of its own: OpenVINO traces our networks, which the tests' checks of shapes disturb."""
    peers = ("--peers", "openvino,openvino-int8", "--dtype", "fp32", "--json")
    command = [sys.executable, "-m", "ssd1b", "bench", *map(str, QUICK), "--part", "text", *peers]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {row["engine"]: row for row in json.loads(done.stdout.splitlines()[-1])["rows"]}
    assert rows["openvino"]["apart"] < 1e-4 < rows["openvino-int8"]["apart"] < 0.2


@pytest.mark.skipif(not int8_is_fast(), reason="the processor does not multiply eight bits")
def test_our_eight_bits_are_one_of_the_engines(run):
    done = run("bench", *QUICK, "--peers", "ssd1b-int8,ssd1b-plain", "--dtype", "fp32", "--json")
    assert done.code == 0, done.err
    rows = {row["engine"]: row for row in json.loads(done.out)["rows"]}
    assert rows["ssd1b-plain"]["apart"] < 1e-4 < rows["ssd1b-int8"]["apart"] < 0.1
