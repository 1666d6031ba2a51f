"""Image prompts as settings: written, read, found again, and part of what decides an image."""

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
from ssd1b.errors import InputError, NotFoundError
from ssd1b.image_prompts import ImagePrompt, find_encoder, image_prompt_of, read_image_prompt
from ssd1b.jobs.job import make_job
from ssd1b.lab.axes import make_axis
from ssd1b.lab.sweep import Sweep, definition, parse_definition
from ssd1b.recipe import ModelIdentity, Recipe, read_json, write_json
from ssd1b.settings import GenerationSettings, check_overrides, resolve_settings


def settings(**given: object) -> GenerationSettings:
    return resolve_settings("x", family="sdxl", model_defaults={"seed": 7}, preset=None, **given)


@pytest.mark.parametrize(
    ("end", "encoder", "fields"),
    [
        ("", None, {}),
        (":0.5", None, {"scale": 0.5}),
        (":vit.safetensors", "vit.safetensors", {}),
        (":image_encoder:0.5:0.1", "image_encoder", {"scale": 0.5, "start": 0.1}),
        (":vit.safetensors:0.5:0.1:0.9:style", "vit.safetensors",
         {"scale": 0.5, "start": 0.1, "end": 0.9, "layers": ("style",)}),
        (":Style: layout :2", None, {"scale": 2, "layers": ("style", "layout")}),
        (":up_blocks.0.attentions.1", None, {"layers": ("up_blocks.0.attentions.1",)}),
    ],
)  # fmt: skip
def test_an_adapter_a_picture_an_encoder_numbers_and_words(
    here: Path, end: str, encoder: str | None, fields: dict[str, object]
) -> None:
    found = read_image_prompt(f"net.safetensors:a.png{end}")
    assert found == image_prompt_of("net.safetensors", "a.png", encoder, **fields)
    assert found.encoder.path == str(
        here / ("vit.safetensors" if encoder == "vit.safetensors" else "image_encoder/model.safetensors")
    )
    assert read_image_prompt(str(found)) == found


def test_paths_may_have_colons(here: Path) -> None:
    Path("C:").mkdir()
    save_file({"x": torch.ones(3)}, "C:/net.safetensors")
    save_file({"x": torch.ones(3)}, "C:/e:1")
    Image.new("RGB", (64, 32)).save("C:/p:0.5.png")
    found = read_image_prompt("C:/net.safetensors:C:/p:0.5.png:C:/e:1:0.3")
    assert (found.scale, found.encoder.path) == (0.3, str(here / "C:/e:1"))
    assert read_image_prompt(str(found)) == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        *wrong_texts("ip-adapter", "FILE:PICTURE"),
        ("net.safetensors:a.png:stile", "'stile': did you mean 'style'"),
        ("net.safetensors:a.png:no.safetensors:0.5", "no.safetensors: no such file"),
    ],
)
def test_mistakes_are_told_in_one_line(here: Path, text: str, message: str) -> None:
    check_wrong(read_image_prompt, text, message)


def test_the_encoder_is_that_of_the_published_folders(tmp_path: Path) -> None:
    for name in ("sdxl_models", "models"):
        (tmp_path / name / "image_encoder").mkdir(parents=True)
        (tmp_path / name / "image_encoder/model.safetensors").write_bytes(b"")
    found = {
        name: find_encoder(tmp_path / "sdxl_models" / f"{name}.safetensors").resolve().parts[-3]
        for name in ("ip-adapter_sdxl", "ip-adapter_sdxl_vit-h", "ip-adapter-plus_sdxl_vit-h")
    }
    assert [*found.values()] == ["sdxl_models", "models", "models"]
    with pytest.raises(NotFoundError, match="as FILE:PICTURE:ENCODER"):
        find_encoder(tmp_path / "elsewhere/deep/net.safetensors")
    with pytest.raises(NotFoundError, match="in this folder"):
        save_file({"x": torch.ones(3)}, tmp_path / "net.safetensors")
        Image.new("RGB", (64, 32)).save(tmp_path / "a.png")
        image_prompt_of(tmp_path / "net.safetensors", tmp_path / "a.png", tmp_path)


def test_a_part_of_the_unet_is_all_blocks_below_its_name(here: Path) -> None:
    prompt = image_prompt_of("net.safetensors", "a.png", layers=("style", "down_blocks.1.attentions.0"))
    block = "{}.transformer_blocks.0"
    for name, counts in {
        "up_blocks.0.attentions.1": True, "up_blocks.0.attentions.0": False,
        "up_blocks.0.attentions.10": False, "down_blocks.1.attentions.0": True,
        "mid_block.attentions.0": False,
    }.items():  # fmt: skip
        assert prompt.counts_in(block.format(name)) == counts
    assert replace(prompt, layers=()).counts_in(block.format("mid_block.attentions.0"))
    with pytest.raises(InputError, match="unknown part of the UNet 'up_block'"):
        replace(prompt, layers=("up_block",))


def test_the_key_depends_on_contents_and_numbers_but_not_on_paths(here: Path) -> None:
    def key(*prompts: object) -> str:
        given = {"image_prompts": prompts} if prompts else {}
        return make_job("m", settings(**given), fingerprint="f", tokenizers=(), environment={}).key

    prompt = image_prompt_of("net.safetensors", "a.png")
    Image.new("RGB", (64, 32), "red").save("same.png")
    assert key(prompt) == key("net.safetensors:same.png")
    others = [
        replace(prompt, scale=0.5), replace(prompt, start=0.1), replace(prompt, end=0.5),
        replace(prompt, layers=("style",)), image_prompt_of("net.safetensors", "b.png"),
        image_prompt_of("net.safetensors", "a.png", "vit.safetensors"),
        image_prompt_of("vit.safetensors", "a.png"),
    ]  # fmt: skip
    assert len({key(), key(prompt), *map(key, others)}) == 9


def test_recipes_and_command_lines_have_image_prompts(here: Path) -> None:
    prompt = image_prompt_of("net.safetensors", "a.png", scale=0.5, layers=("style",))
    made = Recipe(
        settings=settings(image_prompts=[prompt]),
        model=ModelIdentity(name="m", source="s", revision=None, layout="sdxl"), dtype="float32",
        device="cpu", batch_size=1, threads=1, torch_version="2", ssd1b_version="1",
    )  # fmt: skip
    table = json.loads(write_json(made))
    assert read_json(json.dumps(table)).settings.image_prompts == (prompt,)
    written = command_line("x", table["settings"])
    encoder = f"{here}/image_encoder/model.safetensors"
    assert f" --ip-adapter {here}/net.safetensors:{here}/a.png:{encoder}:0.5:style" in written
    del table["settings"]["image_prompts"]
    assert read_json(json.dumps(table)).settings.image_prompts == ()


def test_files_are_found_in_another_folder(here: Path) -> None:
    found = settings(image_prompts=["net.safetensors:a.png"])
    moved = here / "moved"
    moved.mkdir()
    for name in ("net.safetensors", "a.png", "image_encoder/model.safetensors"):
        Path(name).rename(moved / Path(name).name)
    with pytest.raises(NotFoundError, match="ip-adapter adapter net"):
        find_inputs(found, "image.png")
    (prompt,) = find_inputs(found, "image.png", str(moved)).image_prompts
    paths = [each.path for each in (prompt.adapter, prompt.picture, prompt.encoder)]
    assert paths == [str(moved / name) for name in ("net.safetensors", "a.png", "model.safetensors")]


def test_axes_set_a_number_of_all_image_prompts(here: Path) -> None:
    grid = Sweep(
        prompts=("x",), model="m", settings={"image_prompts": ("net.safetensors:a.png",)},
        axes=(make_axis("ip-adapter-scale", ["0", "0.5"]), make_axis("ip_adapter_end", ["0.2", "0.6"])),
    )  # fmt: skip
    grid = replace(grid, settings=check_overrides(grid.settings))
    again = parse_definition(json.loads(json.dumps(definition(grid))))
    for each in (grid, again):
        found: list[tuple[ImagePrompt, ...]] = [
            each.request(places).settings["image_prompts"] for places in each.places
        ]
        assert [(one.scale, one.end) for (one,) in found] == [(0, 0.2), (0, 0.6), (0.5, 0.2), (0.5, 0.6)]
    with pytest.raises(InputError, match="there is no ip-adapter: give one with --ip-adapter"):
        replace(grid, settings={}).request((0, 0, 0))
