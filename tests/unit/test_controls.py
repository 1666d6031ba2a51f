"""Controls as settings: written, read, found again, and part of what decides an image."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from option_texts import check_wrong, wrong_texts
from ssd1b.actions.rerun import find_inputs
from ssd1b.command_line import command_line
from ssd1b.controls import Control, control_of, read_control
from ssd1b.errors import InputError, NotFoundError
from ssd1b.inputs import with_tables
from ssd1b.jobs.job import make_job
from ssd1b.lab.axes import make_axis
from ssd1b.lab.sweep import Sweep, definition, parse_definition
from ssd1b.recipe import ModelIdentity, Recipe, read_json, write_json
from ssd1b.settings import GenerationSettings, check_overrides, resolve_settings


def settings(**given: object) -> GenerationSettings:
    return resolve_settings("x", family="sdxl", model_defaults={"seed": 7}, preset=None, **given)


@pytest.mark.parametrize(
    ("end", "fields"),
    [
        ("", {}),
        (":0.5", {"scale": 0.5}),
        (":0.5:0.1", {"scale": 0.5, "start": 0.1}),
        (":0.5:0.1:0.9:canny", {"scale": 0.5, "start": 0.1, "end": 0.9, "preprocess": "canny"}),
        (":canny", {"preprocess": "canny"}),
        (":guess:bgr:2", {"scale": 2, "guess": True, "order": "bgr"}),
        (": 0.5 : Canny ", {"scale": 0.5, "preprocess": "canny"}),
    ],
)
def test_a_network_a_picture_numbers_and_words(here: Path, end: str, fields: dict[str, object]) -> None:
    found = read_control(f"net.safetensors:a.png{end}")
    assert found == control_of("net.safetensors", "a.png", **fields)
    assert (found.model.path, found.picture.path) == (str(here / "net.safetensors"), str(here / "a.png"))
    assert read_control(str(found)) == found


def test_paths_may_have_colons(here: Path) -> None:
    Path("C:").mkdir()
    for name in ("C:/net.safetensors", "a:1"):
        save_file({"x": torch.ones(3)}, name)
        Image.new("RGB", (64, 32)).save("C:/p:0.5.png")
        found = read_control(f"{name}:C:/p:0.5.png:0.3")
        assert (found.scale, found.picture.path) == (0.3, str(here / "C:/p:0.5.png"))
        assert read_control(str(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *wrong_texts("control", "MODEL:PICTURE"),
        ("net.safetensors:a.png:cany", "'cany': did you mean 'canny'"),
        ("mini-contrl:a.png", "unknown control model 'mini-contrl': did you mean 'mini-control'"),
    ],
)
def test_mistakes_are_told_in_one_line(here: Path, text: str, message: str) -> None:
    check_wrong(read_control, text, message)


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"_class_name": "ControlNetModel"}, "rgb"),
        ({"_class_name": "ControlNetModel", "controlnet_conditioning_channel_order": "bgr"}, "bgr"),
        ({"_class_name": "FluxControlNetModel"}, InputError),
        ({"global_pool_conditions": True}, InputError),
        ({"controlnet_conditioning_channel_order": "gbr"}, InputError),
        ({"controlnet_conditioning_channel_order": ["rgb"]}, InputError),
        ({"_class_name": 3}, InputError),
        ([], InputError),
        (None, InputError),
    ],
)
def test_a_folders_configuration_decides_the_order(here: Path, config: object, expected: object) -> None:
    Path("folder").mkdir()
    save_file({"x": torch.ones(3)}, "folder/diffusion_pytorch_model.fp16.safetensors")
    Path("folder/config.json").write_text("{" if config is None else json.dumps(config))
    if expected is InputError:
        with pytest.raises(InputError):
            control_of("folder", "a.png")
    else:
        assert control_of("folder", "a.png").order == expected


def test_a_folder_without_weights(here: Path) -> None:
    Path("folder").mkdir()
    with pytest.raises(NotFoundError, match="in this folder"):
        control_of("folder", "a.png")


def test_a_step_counts_if_it_lies_within_start_and_end(here: Path) -> None:
    control = control_of("net.safetensors", "a.png", start=0.25, end=0.75)
    assert [control.active(step, 4) for step in range(4)] == [False, True, True, False]
    assert [replace(control, start=0.0, end=0.3).active(step, 10) for step in range(4)] == [True] * 3 + [
        False
    ]
    assert not replace(control, scale=0.0).active(1, 4)


def test_the_key_depends_on_contents_and_numbers_but_not_on_paths(here: Path) -> None:
    def key(*controls: object) -> str:
        made = make_job("m", settings(controls=controls), fingerprint="f", tokenizers=(), environment={})
        return made.key

    control = control_of("net.safetensors", "a.png")
    Image.new("RGB", (64, 32), "red").save("same.png")
    assert key(control) == key(control_of("net.safetensors", "same.png")) == key("net.safetensors:a.png")
    others = [
        replace(control, scale=0.5), replace(control, start=0.1), replace(control, end=0.5),
        replace(control, preprocess="canny"), replace(control, guess=True), replace(control, order="bgr"),
        control_of("net.safetensors", "b.png"),
    ]  # fmt: skip
    assert len({key(), key(control), *map(key, others)}) == 9


def test_recipes_and_command_lines_have_controls(here: Path) -> None:
    control = control_of("net.safetensors", "a.png", scale=0.5, preprocess="canny")
    made = Recipe(
        settings=settings(controls=[control], resize_mode="stretch"),
        model=ModelIdentity(name="m", source="s", revision=None, layout="sdxl"), dtype="float32",
        device="cpu", batch_size=1, threads=1, torch_version="2", ssd1b_version="1",
    )  # fmt: skip
    table = json.loads(write_json(made))
    assert read_json(json.dumps(table)).settings.controls == (control,)
    written = command_line("x", table["settings"])
    assert f" --control {here}/net.safetensors:{here}/a.png:0.5:canny" in written
    assert " --resize-mode stretch" in written
    del table["settings"]["controls"]
    assert read_json(json.dumps(table)).settings.controls == ()


def test_files_are_found_in_another_folder(here: Path, tmp_path: Path) -> None:
    found = settings(controls=["net.safetensors:a.png"])
    moved = tmp_path / "moved"
    moved.mkdir()
    for name in ("net.safetensors", "a.png"):
        Path(name).rename(moved / name)
    with pytest.raises(NotFoundError, match="control model net"):
        find_inputs(found, "image.png")
    (control,) = find_inputs(found, "image.png", str(moved)).controls
    assert (control.model.path, control.picture.path) == (
        str(moved / "net.safetensors"),
        str(moved / "a.png"),
    )


def test_axes_set_a_number_of_all_controls(here: Path) -> None:
    grid = Sweep(
        prompts=("x",), model="m", settings={"controls": ("net.safetensors:a.png", "net.safetensors:b.png")},
        axes=(make_axis("control-scale", ["0", "0.5"]), make_axis("control_end", ["0.2-0.6 (+0.4)"])),
    )  # fmt: skip
    grid = replace(grid, settings=check_overrides(grid.settings))
    again = parse_definition(json.loads(json.dumps(definition(grid))))
    for each in (grid, again):
        found = [each.request(places).settings["controls"] for places in each.places]
        assert [(one.scale, one.end) for one, _ in found] == [(0, 0.2), (0, 0.6), (0.5, 0.2), (0.5, 0.6)]
        assert all(one.scale == other.scale for one, other in found)
    none = replace(grid, settings={})
    with pytest.raises(InputError, match="axis control-scale: there is no control: give one with --control"):
        none.request((0, 0, 0))
    high = replace(grid, axes=(make_axis("control-start", ["1"]),))
    with pytest.raises(InputError, match="axis control-start: control: start 1 must be less than end 1"):
        high.request((0, 0))


def test_controls_can_be_an_axis(here: Path) -> None:
    axis = make_axis("control", ["none", "net.safetensors:a.png:0.5 + net.safetensors:b.png"])
    none, two = (each.settings["controls"] for each in axis.values)
    assert none == () and [each.scale for each in two] == [0.5, 1]


def test_tables_are_read_as_controls(here: Path) -> None:
    control = control_of("net.safetensors", "a.png", guess=True)
    table = with_tables({"controls": [control]})
    assert check_overrides(table)["controls"] == (control,)
    with pytest.raises(InputError, match="preprocessor"):
        Control(**{**table["controls"][0], "preprocess": "cany"})


def test_features_are_not_reused_with_controls(here: Path) -> None:
    with pytest.raises(InputError, match="feature_reuse must be 0 with controls"):
        settings(controls=["net.safetensors:a.png"], feature_reuse=0.1)
