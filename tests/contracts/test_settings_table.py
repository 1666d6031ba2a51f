"""One table of settings: each of its lines is found everywhere, and a new one is, too, at once."""

import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest
from PIL import Image

import ssd1b
from ssd1b.batching import SHARED
from ssd1b.cli.generate import command
from ssd1b.command_line import command_line
from ssd1b.inputs import InputFile
from ssd1b.lab.axes import AXES, make_axis
from ssd1b.recipe import Parameters
from ssd1b.settings import OPTIONS, SETTINGS, GenerationSettings, check_overrides, resolve_settings

SOURCE = Path(ssd1b.__file__).parent
HIRES = resolve_settings(
    "x", family="sdxl", model_defaults={"seed": 7}, preset=None, hires_width=1024, hires_steps=5,
    hires_guidance_scale=3.0, hires_prompt="y", hires_negative_prompt="z",
    seed_resize_width=512, seed_resize_height=512,
)  # fmt: skip
SETTLED = resolve_settings("x", family="sdxl", model_defaults={"seed": 7}, preset=None)


def test_every_setting_but_the_prompt_is_a_line_of_the_table() -> None:
    assert [*SETTINGS] == [name for name in GenerationSettings.__dataclass_fields__ if name != "prompt"]
    assert all(not each.flags or each.help or name.endswith("height") for name, each in SETTINGS.items())


@pytest.fixture(autouse=True)
def pictures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The files that the examples of axes name."""
    monkeypatch.chdir(tmp_path)
    for name in ("sketch.png", "photo.jpg", "sky.png"):
        Image.new("RGB", (64, 64), "white").save(name)


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_one_of_the_command_line_and_of_command_lines_that_are_written(name: str) -> None:
    flags = [flag for parameter in command.params for flag in parameter.opts]
    for setting in OPTIONS[name]:
        assert setting.flags[0] == f"--{name}" and {*setting.flags} <= {*flags}
        picture = asdict(InputFile.of("sketch.png", most=10**6))
        lora = {"file": {"sha256": "0" * 64, "path": "/a.safetensors"}, "unet": 0.5, "text": 1.0}
        others = {
            "negative_prompt": "y", "schedule": "karras", "timesteps": "999,499", "gamma": 0.5,
            "init_image": picture, "mask": picture,
        }  # fmt: skip
        hires = {**_chosen(HIRES), "hires_scale": 2.0, "hires_sampler": "ddim", "hires_schedule": "karras"}
        chosen = {"strength": 0.5, "mask_blur": 4.0, "outpaint": "left=64", "loras": [lora]}
        chosen["embeddings"] = [{"file": lora["file"], "word": "x", "vectors": 2}]
        chosen["prompt_editing"] = "on"
        chosen["controls"] = [{"model": picture, "picture": picture}]
        chosen["image_prompts"] = [{"adapter": picture, "picture": picture, "encoder": picture}]
        written = command_line("x", {**hires, **others, **chosen})
        assert f" --{name} " in written


def _chosen(settings: GenerationSettings) -> dict[str, object]:
    return {name: value for name, value in asdict(settings).items() if value is not None}


@pytest.mark.parametrize("name", OPTIONS)
def test_every_option_is_an_axis_with_an_example(name: str) -> None:
    setting = OPTIONS[name][0]
    names = {"sampler": "Euler", "schedule": "karras", "negative": "x"}
    axis = make_axis(name, (setting.example or names[name]).split(","))
    assert {*axis.values[0].settings} == {each.name for each in OPTIONS[name]}
    for other in (*setting.flags[1:], *setting.aliases):
        assert make_axis(other.removeprefix("--"), [axis.values[0].label]).name == name
    assert [*AXES].count(name) == 1


@pytest.mark.parametrize("name", SETTINGS)
def test_every_setting_can_be_overridden_and_says_whether_a_batch_shares_it(name: str) -> None:
    value = getattr(SETTLED, name)
    assert check_overrides({name: value}) == {name: value}
    assert (name in SHARED) != SETTINGS[name].per_picture


def test_automatic1111s_names_are_read() -> None:
    values = {"CFG scale": "7", "Denoising strength": "0.5", "Steps": "3", "Sampler": "Euler", "Seed": "5",
              "Schedule type": "Karras", "Size": "64x128", "Variation seed": "3",
              "Variation seed strength": "0.5", "Seed resize from": "64x64", "Hires upscale": "2",
              "Hires resize": "128x256",
              "Hires upscaler": "Lanczos", "Hires steps": "2", "Hires sampler": "DDIM",
              "Hires schedule type": "Karras", "Hires CFG Scale": "3", "Hires prompt": "y",
              "Hires negative prompt": "z"}  # fmt: skip
    assert {*values} == {each.a1111 for each in SETTINGS.values()} - {None}
    parameters = Parameters(prompt="x", negative_prompt=None, values=values)
    read = parameters.settings(InputFile.of("sketch.png", most=10**6))
    named = {name for name, each in SETTINGS.items() if each.a1111}
    assert {*read} == named | {"negative_prompt", "init_image", "strength_steps"}
    assert {*parameters.settings()} == named - {"strength"} | {"negative_prompt"}


LINE = """
    eta: Annotated[float, Range(0, 1), Setting(
        default=0.0, before=0.0, flags=("--eta",), metavar="SHARE", example="0,0.5", a1111="Eta", sdapi="eta",
        help="0 to 1: share of the noise that DDIM adds again.",
    )]
"""
"""The example of docs/adr/0010-one-table-of-settings.md."""

PROOF = r"""
import json
from dataclasses import asdict, replace
from pathlib import Path

from ssd1b.batching import SHARED
from ssd1b.cli.generate import command
from ssd1b.command_line import command_line
from ssd1b.errors import InputError
from ssd1b.lab.axes import AXES, parse_axis
from ssd1b.presets import load_preset
from ssd1b.recipe import ModelIdentity, Parameters, Recipe, read_json, write_json
from ssd1b.settings import check_overrides, resolve_settings

settings = resolve_settings("x", family="sdxl", model_defaults={}, preset=None, seed=1)
assert settings.eta == 0.0
settings = replace(settings, eta=0.5)
(option,) = (each for each in command.params if each.name == "eta")
assert option.opts == ["--eta"] and "DDIM" in option.help
assert command.make_context("generate", ["x", "--eta", "0.25"]).params["eta"] == 0.25
assert "eta" in AXES
assert [value.settings for value in parse_axis("eta=0,0.5").values] == [{"eta": 0}, {"eta": 0.5}]
assert "--eta 0.5" in command_line("x", asdict(settings))
assert "eta" in SHARED
Path("crisp.toml").write_text("[settings]\neta = 1")
assert load_preset("crisp.toml").settings == {"eta": 1}
try:
    check_overrides({"eta": 2})
except InputError as error:
    assert str(error) == "eta is 2: it must be a number from 0 to 1", error
assert Parameters(prompt="x", negative_prompt=None, values={"Eta": "0.5"}).settings()["eta"] == 0.5
recipe = Recipe(
    settings=settings, model=ModelIdentity(name="m", source="s", revision=None, layout="sdxl"),
    dtype="float32", device="cpu", batch_size=1, threads=1, torch_version="2", ssd1b_version="1",
)
table = json.loads(write_json(recipe))
assert read_json(json.dumps(table)).settings.eta == 0.5
del table["settings"]["eta"]
assert read_json(json.dumps(table)).settings.eta == 0.0
"""


def test_a_new_line_of_the_table_is_found_everywhere(tmp_path: Path) -> None:
    package = tmp_path / "ssd1b"
    package.mkdir()
    for path in SOURCE.iterdir():
        if path.name not in ("settings.py", "__pycache__"):
            (package / path.name).symlink_to(path)
    text = (SOURCE / "settings.py").read_text(encoding="utf-8")
    before, place, after = text.partition("    original_size: Extent\n")
    assert place
    (package / "settings.py").write_text(f"{before}{LINE.strip(chr(10))}\n\n{place}{after}", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, "-c", PROOF], cwd=tmp_path, capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert LINE.strip() in (Path(__file__).parents[2] / "docs/adr/0010-one-table-of-settings.md").read_text()
