"""What users get wrong: one line that helps, exit code 2, nothing left behind."""

import errno
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from ssd1b.pipeline import Pipeline

SETTINGS = [
    (["a cube", "--sampler", "eulr"], ["unknown sampler 'eulr'", "did you mean 'euler'"]),
    (["a cube", "--sampler", "DEIS"], ["'DEIS'", "the nearest that is: 'unipc'"]),
    (["a cube", "--schedule", "karas"], ["unknown schedule 'karas'", "did you mean 'karras'"]),
    (["a cube", "--size", "100x64"], ["width is 100", "multiple of 8 from 64 to 4096"]),
    (["a cube", "--size", "4096x4096"], ["size is 4096x4096", "2048x2048"]),
    (["a cube", "--size", "big"], ["size is 'big'", "1024x768"]),
    (["a cube", "--steps", "-5"], ["steps is -5", "from 1 to 1000"]),
    (["a cube", "--steps", "many"], ["--steps", "'many'"]),
    (["a cube", "--guidance", "nan"], ["--guidance", "'nan' is not a number"]),
    (["a cube", "--guidance", "inf"], ["--guidance", "'inf' is not a number"]),
    (["a cube", "--guidance-rescale", "2"], ["guidance_rescale is 2", "from 0 to 1"]),
    (["a cube", "--guidance-interval", "0.8", "0.1"], ["guidance_interval is 0.8 to 0.1"]),
    (["a cube", "--seed", str(2**32)], ["seed is 4294967296", "from 0 to 4294967295", "32 bits"]),
    (["a cube", "--seed", "-2"], ["seed is -2"]),
    (["a cube", "--seed", "9" * 5000], ["--seed", "99...", "not a whole number"]),
    (["a cube", "--size", "٦٤"], ["size is '٦٤'"]),
    (["a cube", "--guidance", "٧"], ["--guidance", "'٧' is not a number"]),
    (["a cube", "--model", ""], ["--model", "empty"]),
    (["a cube", "--preset", " "], ["--preset", "empty"]),
    (["a cube", "--sampler", ""], ["--sampler", "empty"]),
    (["a cube", "--file", ""], ["--file", "empty"]),
    (["a cube", "--out", ""], ["--out", "empty"]),
    (["a cube", "--model", "x" * 10**5], ["--model", "xxx...", "100000 characters"]),
    (["a cube", "--count", "0"], ["count is 0", "from 1 to"]),
    (["a (cube:1000)"], ["attention weight", "1000"]),
    ([" "], ["prompt is empty"]),
    ([], ["no prompt", "--file"]),
    (["--file", "nothing.txt"], ["cannot read nothing.txt", "No such file"]),
    (["a cube", "--preset", "article-detial"], ["unknown preset", "did you mean 'article-detail'"]),
    (["a cube", "--preset", "nothing.toml"], ["cannot read nothing.toml", "No such file"]),
    (["a cube", "--negative-preset", "bassic"], ["unknown negative preset", "did you mean 'basic'"]),
    (["a cube", "--negative", "x", "--negative-preset", "basic"], ["--negative-preset", "not both"]),
]
PLACES = [
    (["a cube", "--format", "gif"], ["unknown image format 'gif'", "png"]),
    (["a cube", "--out", "out/cube.gif"], ["unknown image suffix '.gif'", ".png"]),
    (["a cube", "--out", "out/cube.png", "--format", "webp"], ["'webp'", "'cube.png'"]),
    (["a cube", "--out", "a-file.txt/out"], ["cannot write", "Not a directory"]),
    (["a cube", "--model", "mini-sdlx"], ["unknown model 'mini-sdlx'", "did you mean 'mini-sdxl'"]),
    (["a cube", "--model", "./nothing"], ["./nothing: no such file or folder"]),
    (["a cube", "--model", "nobody/nothing", "--offline"], ["nobody/nothing", "offline"]),
    (["a cube", "--device", "gpu"], ["unknown device 'gpu'", "cuda"]),
    (["a cube", "--threads", "0"], ["threads is 0", "from 1 to", "or auto"]),
    (["a cube", "--threads", "many"], ["'many' is not a whole number", "or auto"]),
    (["a cube", "--threads", "99999"], ["threads is 99999", "or auto"]),
    (["a cube", "--device", "cpu:5"], ["'cpu:5' is not in this machine", "available: cpu"]),
    (["a cube", "--device", "cuda:99"], ["'cuda:99' is not in this machine"]),
    (["a cube", "--dtype", "fp61"], ["unknown dtype 'fp61'", "fp16"]),
]
WORDS = [
    (["generate", "a cube", "--guidence", "5"], ["unknown option '--guidence'", "did you mean '--guidance'"]),
    (["genrate", "a cube"], ["unknown command 'genrate'", "did you mean 'generate'"]),
    (["tabletop", "rendr"], ["unknown command 'rendr'", "did you mean 'render'"]),
    (["--verison"], ["unknown option '--verison'", "did you mean '--version'"]),
    (["rerun"], ["missing argument 'IMAGE'", "ssd1b rerun --help"]),
    (["inspect", "a-file.txt"], ["a-file.txt", "only intact safetensors files are supported"]),
    (["inspect", "nothing.png"], ["nothing.png", "No such file"]),
    (["inspect", "nothing.safetensors"], ["nothing.safetensors", "no such file"]),
    (["inspect", "mini-sdlx"], ["unknown model", "did you mean 'mini-sdxl'"]),
    (["inspect", "nobody/nothing"], ["nobody/nothing", "not in the cache"]),
    (["rerun", "a-file.txt"], ["a-file.txt", "not a readable PNG, JPEG or WebP"]),
    (["rerun", "plain.png"], ["plain.png", "contains no recipe"]),
    (["rerun", "nothing.png"], ["nothing.png", "No such file"]),
    (["tabletop", "render"], ["missing option '--out'"]),
    (["tabletop", "show", "--out", "sheet.gif"], ["sheet.gif", ".png"]),
    (["tabletop", "show", "--model", "nothing"], ["unknown model 'nothing'"]),
    (["tabletop", "examine", "--judge", "nothing.safetensors"], ["nothing.safetensors", "no such judge"]),
    (["tabletop", "render", "--out", "out", "--count", "-1"], ["count is -1"]),
    (["tabletop", "render", "--out", "out", "--seed", "-1"], ["seed is -1"]),
    (["tabletop", "render", "--out", "a-file.txt/out"], ["cannot write"]),
    (["tabletop", "train", "unet", "--out", "out"], ["train 'vae' first"]),
    (["tabletop", "train", "vae", "--out", "out", "--seed", "-1"], ["seed is -1"]),
    (["tabletop", "train", "vae"], ["missing option '--out'"]),
    (["tabletop", "train", "cat", "--out", "out"], ["'cat'", "unet"]),
]

LARGER = "mid = 0\ndown = [[0, 0], [2, 2], [12, 10]]\nup = [[0, 0, 0], [2, 2, 2], [10, 10, 10]]"
WIDER = (
    "mid = 0\ndown = [[0, 0], [2, 2], [4, 4]]\nup = [[0, 0, 0], [2, 1, 1], [4, 4, 10]]\n"
    "channels = [320, 640, 1280]"
)
SSD_1B = "[[stages]]\nstudent = 'ssd-1b'\n"
ADDING = "[[stages]]\nstudent = 'vega'\n" + SSD_1B
MINI = ["--teacher", "mini-sdxl", "--data", "tabletop", "--out", "out"]
DISTILL = [
    ([], "", ["missing option '--teacher'"]),
    (["--teacher", "mini-sdxl", "--student", "vega", "--out", "out"], "", ["missing option '--data'"]),
    (["--teacher", "mini-sdxl", "--student", "vega", "--data", "tabletop"], "", ["missing option '--out'"]),
    (MINI, "", ["missing option '--student'"]),
    ([*MINI, "--student", "vega", "--data", "tabeltop"], "", ["'tabeltop'", "did you mean 'tabletop'"]),
    ([*MINI, "--student", "vega", "--steps", "0"], "", ["steps is 0"]),
    ([*MINI, "--student", "vega", "--teacher", "mini-sdlx"], "", ["did you mean 'mini-sdxl'"]),
    ([*MINI, "--student", "ssd1b"], "", ["unknown layout 'ssd1b'", "did you mean 'ssd-1b'"]),
    ([*MINI, "--student", "sdxl"], "", ["nothing is removed"]),
    ([*MINI, "--student", "nothing.toml"], "", ["cannot read nothing.toml"]),
    ([*MINI, "--student", "stages.toml"], LARGER, ["12 transformer blocks in the student", "has 10"]),
    ([*MINI, "--student", "stages.toml"], WIDER, ["(320, 640, 1280) channels", "(44, 48, 96)"]),
    ([*MINI, "--student", "2%"], "", ["a budget of", "cannot be kept"]),
    ([*MINI, "--student", "200%"], "", ["between 0% and 100%"]),
    ([*MINI, "--student", "50%", "--dry-run", "--data", "tabletop", "--teacher", "sdxl"], "", ["importance"]),
    ([*MINI, "--stages", "nothing.toml"], "", ["cannot read nothing.toml", "No such file"]),
    ([*MINI, "--stages", "ssd1b"], "", ["unknown stages 'ssd1b'", "did you mean 'ssd-1b'"]),
    ([*MINI, "--stages", "stages.toml"], "", ["stages.toml has no stages"]),
    ([*MINI, "--stages", "stages.toml"], "[[stages]]\nstudnt = 'vega'", ["did you mean 'student'"]),
    ([*MINI, "--stages", "stages.toml"], ADDING, ["stage 2 cannot be cut from the student of stage 1"]),
    (
        [*MINI, "--stages", "stages.toml", "--student", "vega"],
        SSD_1B,
        ["student is 'ssd-1b', not 'vega'"],
    ),
]


@pytest.fixture
def refuse(run, tmp_path):
    """Call ``ssd1b`` and hold it to what is promised of wrong calls; gives the line."""
    (tmp_path / "a-file.txt").write_text("a text that is no model and no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")

    def call(*arguments: object) -> str:
        before = sorted(tmp_path.rglob("*"))
        result = run(*arguments)
        assert result.code == 2
        assert result.out == ""
        assert result.err.startswith("error: ") and result.err.endswith("\n")
        assert len(result.err.splitlines()) == 1
        made = [path for path in tmp_path.rglob("*") if path not in before and path.is_file()]
        assert made == []
        return result.err

    return call


@pytest.mark.parametrize(("arguments", "words"), [*SETTINGS, *PLACES])
def test_wrong_generate(refuse, arguments, words):
    line = refuse("generate", "--out", "out", *arguments)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(("arguments", "words"), WORDS)
def test_wrong_call(refuse, arguments, words):
    line = refuse(*arguments)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(("arguments", "file", "words"), DISTILL)
def test_wrong_distillation(refuse, tmp_path, arguments, file, words):
    (tmp_path / "stages.toml").write_text(file)
    line = refuse("distill", *arguments)
    assert all(word in line for word in words), line


def test_a_folder_that_holds_a_distillation_is_gone_on_with_only_if_asked(refuse, tmp_path):
    (tmp_path / "out/stage-1").mkdir(parents=True)
    (tmp_path / "out/distill.json").write_text('{"teachers": []}')
    call = ["distill", *MINI, "--student", "ssd-1b"]
    assert "out already contains a run: continue it with --resume" in refuse(*call)
    assert "the run in out has none" in refuse(*call, "--resume")


def test_a_teacher_of_another_world(refuse, tiny_model):
    line = refuse("distill", *MINI, "--student", "koala-700m", "--teacher", tiny_model)
    assert "the teacher does not generate Tabletop images" in line


@pytest.mark.skipif(os.geteuid() == 0, reason="to the superuser every folder is writable")
def test_folder_without_permission(refuse, tmp_path):
    (tmp_path / "locked").mkdir(mode=0o500)
    assert "Permission denied" in refuse("generate", "a cube", "--out", "locked/pictures")


@pytest.fixture
def locked(tmp_path, monkeypatch):
    """A folder that may not be entered. Python's ``Path.exists`` raises there."""
    folder = tmp_path / "locked"
    folder.mkdir()

    def refusing(function):
        def call(path=".", *args, **kwargs):
            if not isinstance(path, int) and str(folder) in os.path.abspath(os.fsdecode(path)):
                raise PermissionError(errno.EACCES, "Permission denied", str(path))
            return function(path, *args, **kwargs)

        return call

    for name in ("stat", "lstat", "scandir", "listdir", "open"):
        monkeypatch.setattr(os, name, refusing(getattr(os, name)))
    return folder


@pytest.mark.parametrize(
    "arguments",
    [
        ("report", "locked"),
        ("inspect", "locked"),
        ("inspect", "locked/picture.png"),
        ("generate", "x", "--preset", "locked/m.toml"),
        ("generate", "x", "--model", "locked/m.safetensors"),
        ("generate", "x", "--out", "locked/pictures"),
        ("sweep", "x", "--axis", "steps=1,2", "--out", "locked/cells"),
    ],
    ids=" ".join,
)
def test_a_folder_that_may_not_be_entered(refuse, locked, arguments):
    assert "locked" in refuse(*arguments)


@pytest.mark.parametrize("command", ["models", "presets"])
def test_listings_leave_out_folders_that_may_not_be_entered(run, locked, monkeypatch, command):
    monkeypatch.setenv("XDG_CONFIG_HOME", str(locked / "config"))
    monkeypatch.setattr("ssd1b.weights.hub.cache_folder", lambda: locked / "hub")
    done = run(command)
    assert (done.code, done.err) == (0, "")


def _truncated(folder: Path, tiny_model: Path) -> Path:
    whole = next((tiny_model / "unet").glob("*.safetensors")).read_bytes()
    (folder / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    return folder / "cut.safetensors"


def _pickle(folder: Path, tiny_model: Path) -> Path:
    (folder / "evil.safetensors").write_bytes(pickle.dumps({"weight": [1.0]}))
    return folder / "evil.safetensors"


def _with_foreign_config(folder: Path, tiny_model: Path) -> Path:
    model = shutil.copytree(tiny_model, folder / "mixed")
    config = json.loads((model / "unet/config.json").read_text())
    (model / "unet/config.json").write_text(json.dumps(config | {"cross_attention_dim": 2048}))
    return model


def _with_wrong_settings(folder: Path, tiny_model: Path) -> Path:
    model = shutil.copytree(tiny_model, folder / "wrong")
    (model / "ssd1b.json").write_text('{"settings": {"stepz": 3}}')
    return model


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (_truncated, ["cut.safetensors", "damaged"]),
        (_pickle, ["evil.safetensors", "a pickle, which can run code"]),
        (_with_foreign_config, ["contradict each other", "cross_attention_dim is 2048"]),
        (_with_wrong_settings, ["unknown setting 'stepz'"]),
    ],
)
def test_broken_model(refuse, tmp_path, tiny_model, make, words):
    line = refuse("generate", "a cube", "--out", "out", "--model", make(tmp_path, tiny_model))
    assert all(word in line for word in words), line


def test_full_disk(refuse, monkeypatch, tiny_model):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    assert "no space left" in refuse("generate", "a cube", "--out", "out", "--model", tiny_model)


def test_out_of_memory(refuse, monkeypatch, tiny_model):
    monkeypatch.setattr(Pipeline, "steps", lambda *_: torch.empty(2**60, dtype=torch.uint8))
    line = refuse("generate", "a cube", "--out", "out", "--preview", "--model", tiny_model)
    assert "out of memory" in line and "--size" in line


def test_picture_that_is_no_number(refuse, monkeypatch, tiny_model):
    from ssd1b.models.vae import VAE

    monkeypatch.setattr(VAE, "decode", lambda self, latents, tile: latents[:, :3] * float("nan"))
    assert "--dtype" in refuse("generate", "a cube", "--out", "out", "--model", tiny_model)


def test_weights_that_are_no_numbers_are_named_though_they_were_only_mapped(refuse, tmp_path, tiny_model):
    model = shutil.copytree(tiny_model, tmp_path / "broken")
    (file,) = (model / "unet").glob("*.safetensors")
    weights = load_file(file)
    weights["conv_out.bias"][0] = float("nan")
    save_file(weights, file, metadata={"format": "pt"})
    line = refuse("generate", "a cube", "--out", "out", "--dtype", "fp32", "--model", model)
    assert "unet: NaN or infinity in 1 tensor: conv_out.bias" in line


def test_other_errors_are_bugs_and_show_where(run, monkeypatch, tiny_model):
    monkeypatch.setattr(Pipeline, "steps", lambda *_: [][0])
    with pytest.raises(IndexError):
        run("generate", "a cube", "--model", tiny_model)


def test_interrupt_removes_what_is_not_finished(run, monkeypatch, tmp_path, tiny_model):
    """The second picture is interrupted after a step, while its preview is to be seen."""
    drawn = Pipeline.steps

    def interrupted(self, batch):
        for step in drawn(self, batch):
            yield step
            if batch[0].seed == 8:
                assert (tmp_path / "out/ssd1b-preview.png").exists()
                raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "steps", interrupted)
    result = run(
        "generate", "a cube", "--seed", 7, "--count", 3, "--preview", "--out", "out", "--model", tiny_model
    )
    assert (result.code, result.err) == (130, "interrupted\n")
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["7-a-cube.png"]
    assert result.out.splitlines() == ["out/7-a-cube.png"]


def test_an_interrupted_sweep_says_how_to_continue(run, tiny_model, monkeypatch):
    def interrupted(self, batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "steps", interrupted)
    result = run("sweep", "a cube", "--seeds", 2, "--model", tiny_model, "--out", "out")
    assert result.code == 130
    end = "interrupted: what is finished is kept, and the same command continues"
    assert result.err.splitlines()[-1] == end


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_control_c_in_a_process_of_its_own(tmp_path, tiny_model):
    out = tmp_path / "out"
    arguments = ["generate", "a cube", "--model", tiny_model, "--steps", "500", "--out", out, "--preview"]
    with subprocess.Popen(
        [sys.executable, "-m", "ssd1b", *map(str, arguments)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # Started in the background, as some build servers do, a process inherits that Ctrl-C is ignored.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    ) as process:
        while not out.exists() and process.poll() is None:  # the preview comes with the first step
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        printed, complaint = process.communicate()
    assert (process.returncode, printed, complaint) == (130, "", "interrupted\n")
    assert list(out.iterdir()) == []


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_an_interrupt_that_passed_through_exec_ends_with_the_same_code(tmp_path):
    """Dataclasses are made by exec(), wherever a module is being imported when Ctrl-C comes."""
    (tmp_path / "interrupted.py").write_text(
        "import sys\n"
        "from ssd1b.cli import app\n"
        "app.cli.invoke = lambda context: exec('raise KeyboardInterrupt')\n"
        "sys.exit(app.main(['models']))\n"
    )
    done = subprocess.run([sys.executable, "-m", "interrupted"], cwd=tmp_path, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (130, "interrupted\n")


def test_reader_that_leaves_is_no_error():
    read, write = os.pipe()
    os.close(read)
    with os.fdopen(write, "w") as closed:
        done = subprocess.run(
            [sys.executable, "-m", "ssd1b", "--help"], stdout=closed, stderr=subprocess.PIPE, text=True
        )
    assert (done.returncode, done.stderr) == (1, "")


@pytest.mark.parametrize("wrapped", [False, True])
def test_a_compiler_that_fails_is_one_line(run, monkeypatch: pytest.MonkeyPatch, wrapped: bool) -> None:
    from torch._inductor.exc import CppCompileError, InductorError

    output = (
        "a.cpp: In function 'kernel':\na.cpp:3: fatal error: omp.h: No such file\ncompilation terminated."
    )
    error: Exception = CppCompileError(["g++", "a.cpp", "-O3"], output)
    if wrapped:
        error = InductorError(error, None)

    def fail(*arguments: object, **options: object) -> None:
        raise error

    monkeypatch.setattr("ssd1b.actions.steps.make_step_stages", fail)
    result = run("distill", "--teacher", "mini-sdxl", "--steps-method", "lcm", "--dry-run")
    assert (result.code, result.out) == (2, "")
    assert result.err == (
        "error: the C++ compiler of torch.compile failed: 'a.cpp:3: fatal error: omp.h: No such file'\n"
    )
