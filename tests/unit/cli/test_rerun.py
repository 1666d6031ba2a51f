"""``ssd1b rerun``: the same picture, and the truth about whether it is."""

import re
import shutil
from dataclasses import replace

from PIL import Image, PngImagePlugin

from ssd1b.images import Picture, read_recipe, save_picture


def test_draws_the_same_picture(run, tmp_path, picture_of, image_at):
    original = picture_of("png")
    result = run("rerun", original, "--trust-recipe")
    assert result.code == 0, result.err
    assert result.out == "pictures/7-a-red-cube.png\n"
    assert result.err == "bit-equal: every pixel is the same\n"
    again = tmp_path / "pictures/7-a-red-cube.png"
    assert image_at(again).tobytes() == image_at(original).tobytes()
    assert read_recipe(again) == read_recipe(original)


def test_says_how_far_other_pixels_are(run, tmp_path, picture_of, image_at):
    image = image_at(picture_of("png"))
    red, green, blue = image.getpixel((5, 5))
    image.putpixel((5, 5), (red, green - 3 if green > 127 else green + 3, blue))
    save_picture(Picture(image=image, recipe=read_recipe(picture_of("png"))), tmp_path / "changed.png")
    assert (
        run("rerun", "changed.png", "--trust-recipe").err
        == "not bit-equal: pixels differ by up to 3 of 255 levels\n"
    )


def test_says_when_the_size_is_another(run, tmp_path, picture_of, image_at):
    image = image_at(picture_of("png")).resize((32, 48))
    save_picture(Picture(image=image, recipe=read_recipe(picture_of("png"))), tmp_path / "small.png")
    assert (
        run("rerun", "small.png", "--trust-recipe").err
        == "not bit-equal: 32x48 in the file, 64x64 by its recipe\n"
    )


def test_says_what_is_not_as_it_was(run, tmp_path, picture_of, tiny_model, image_at):
    """A device that is not here is replaced; dtype and model stay the recipe's."""
    image, recipe = image_at(picture_of("png")), read_recipe(picture_of("png"))
    old = replace(recipe, torch_version="2.0", device="warp", batch_size=4, threads=recipe.threads + 1)
    save_picture(Picture(image=image, recipe=old), tmp_path / "old.png")
    result = run("rerun", "old.png", "--device", "cpu", "--trust-recipe")
    lines = result.err.splitlines()
    assert lines[0] == "bit-equal: every pixel is the same"
    assert lines[1] == (
        f"generated under other circumstances: device warp, now cpu, threads {recipe.threads + 1}, now "
        f"{recipe.threads}, batch size 4, now 1, torch version 2.0, now {recipe.torch_version}"
    )
    assert run("rerun", "old.png", "--trust-recipe").code == 0


def test_another_model_can_be_named(run, tmp_path, picture_of, tiny_model, image_at):
    """The folder of the recipe may be gone, or on another machine."""
    recipe = read_recipe(picture_of("png"))
    moved = replace(recipe, model=replace(recipe.model, source="/gone/tiny"))
    save_picture(Picture(image=image_at(picture_of("png")), recipe=moved), tmp_path / "moved.png")
    gone = run("rerun", "moved.png", "--trust-recipe")
    assert (gone.code, gone.err) == (2, "error: /gone/tiny: no such file or folder\n")
    result = run("rerun", "moved.png", "--model", tiny_model)
    assert result.err.splitlines() == [
        "bit-equal: every pixel is the same",
        f"generated under other circumstances: model source /gone/tiny, now {tiny_model}",
    ]


def test_lossy_formats_cannot_be_compared(run, picture_of):
    result = run("rerun", picture_of("jpeg"), "--out", "again.webp", "--trust-recipe")
    assert result.code == 0
    assert result.out == "again.webp\n"
    assert result.err.startswith("only PNG stores exact pixels")


def test_automatic1111s_text_draws_what_is_known(run, tmp_path, tiny_model):
    chunks = PngImagePlugin.PngInfo()
    text = "a cone\nNegative prompt: fog\nSteps: 3, Sampler: Euler a, CFG scale: 4, Seed: 11, Size: 64x72"
    text += ", Tiling: True"
    chunks.add_text("parameters", text)
    Image.new("RGB", (64, 72)).save(tmp_path / "foreign.png", pnginfo=chunks)
    result = run("rerun", "foreign.png", "--model", tiny_model)
    assert result.code == 0
    first, second = result.err.splitlines()
    assert first.startswith("warning: no recipe in the file, only AUTOMATIC1111's text")
    assert second.startswith("warning: not reproduced: Tiling, noise from a GPU")
    settings = read_recipe(tmp_path / result.out.strip()).settings
    assert (settings.prompt, settings.negative_prompt, settings.seed) == ("a cone", "fog", 11)
    assert (settings.steps, settings.sampler, settings.guidance_scale) == (3, "euler_ancestral", 4.0)
    assert (settings.width, settings.height) == (64, 72)


def test_pixels_that_are_damaged_are_told_before_drawing(run, tmp_path, picture_of):
    whole = picture_of("png").read_bytes()
    (tmp_path / "cut.png").write_bytes(whole[: len(whole) - 200])
    result = run("rerun", "cut.png", "--trust-recipe")
    assert result.code == 2
    assert result.err.startswith("error: cut.png: its pixels are damaged")
    assert not (tmp_path / "pictures").exists()


def test_a_copy_under_another_name_is_the_same_picture(run, tmp_path, picture_of):
    shutil.copy(picture_of("png"), tmp_path / "renamed.png")
    assert run("rerun", "renamed.png", "--out", "renamed.png", "--trust-recipe").out == "renamed-2.png\n"


def test_what_the_model_was_said_to_predict_is_in_the_recipe_and_said_again(
    run, tmp_path, tiny_model, image_at
):
    options = ("--model", tiny_model, "--seed", 3, "--dtype", "fp32")
    assert run("generate", "a red cube", *options, "--out", "e.png").code == 0
    assert run("generate", "a red cube", *options, "--prediction", "v", "--out", "v.png").code == 0
    assert image_at(tmp_path / "e.png").tobytes() != image_at(tmp_path / "v.png").tobytes()
    assert read_recipe(tmp_path / "v.png").model.prediction == "v"
    assert re.search(r"model prediction +v\n", run("inspect", "v.png").out)
    again = run("rerun", "v.png", "--model", tiny_model, "--out", "again.png")
    assert again.err.startswith("bit-equal"), again.err
    wrong = run("generate", "a red cube", "--prediction", "velocity")
    assert (wrong.code, wrong.err) == (2, "error: unknown prediction 'velocity': allowed: epsilon, v\n")
