"""Outpainting, masks, and generation of the masked area alone."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ssd1b.canvas import Layout, crop_box, filled, lay_out, put_back, read_sides, write_sides
from ssd1b.errors import InputError
from ssd1b.pipeline import Pipeline
from ssd1b.recipe import read_json, write_json, write_parameters
from ssd1b.settings import DEFAULT_OUTPAINT_STRENGTH, GenerationSettings, resolve_settings

PROMPT = "a large red metal sphere on a blue background"


def random_picture(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8))


def spot(width: int, height: int, box: tuple[int, int, int, int]) -> Image.Image:
    mask = Image.new("L", (width, height))
    mask.paste(255, box)
    return mask


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    random_picture(160, 120).save(tmp_path / "picture.png")
    return tmp_path / "picture.png"


@pytest.fixture
def mask(tmp_path: Path) -> Path:
    spot(160, 120, (100, 20, 110, 28)).save(tmp_path / "mask.png")
    return tmp_path / "mask.png"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("mini-ssd-1b", device="cpu", dtype="fp32")


def settings(**given: Any) -> GenerationSettings:
    return resolve_settings("x", family="sdxl", model_defaults={}, preset=None, **({"seed": 7} | given))


def test_sides_have_one_spelling() -> None:
    assert read_sides("right=64, LEFT=8") == (8, 0, 64, 0)
    assert write_sides(read_sides("bottom=16 top=8")) == "top=8,bottom=16"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "must be like left=128,right=64"),
        ("left", "must be like"),
        ("left=-8", "must be like"),
        ("lefft=8", "unknown side 'lefft': did you mean 'left'"),
        ("left=8,left=16", "left is given twice"),
        ("left=12", "left=12: it must be a multiple of 8 from 8 to 2048"),
        ("left=0", "left=0: it must be a multiple of 8"),
        ("left=99999", "from 8 to 2048"),
    ],
)
def test_other_sides_are_refused(text: str, words: str) -> None:
    with pytest.raises(InputError, match=words):
        read_sides(text)


@pytest.mark.parametrize(
    ("bounds", "padding", "size", "shape", "expected"),
    [
        ((100, 100, 110, 120), 0, (400, 300), (64, 64), (95, 100, 115, 120)),
        ((100, 100, 120, 120), 10, (400, 300), (128, 64), (70, 90, 150, 130)),
        ((0, 0, 20, 20), 10, (400, 300), (128, 64), (0, 0, 60, 30)),
        ((390, 100, 400, 140), 0, (400, 300), (64, 64), (360, 100, 400, 140)),
        ((50, 0, 350, 100), 0, (400, 100), (64, 64), (50, -100, 350, 200)),
    ],
    ids=["grown", "padded", "at a corner", "moved inside", "beyond both sides"],
)
def test_the_area_around_a_mask(bounds: Any, padding: int, size: Any, shape: Any, expected: Any) -> None:
    assert crop_box(bounds, padding, size, shape) == expected


def test_an_area_beyond_the_picture_repeats_its_edge_and_is_put_back_inside() -> None:
    whole, mask = random_picture(80, 20), spot(80, 20, (10, 0, 70, 20))
    found = lay_out(whole, mask, Layout(60, 60, mask_area="masked", mask_padding=0))
    assert found.box == (10, -20, 70, 40)
    part = np.asarray(found.picture)
    assert (part[:20] == part[0]).all() and (part[20:40] == np.asarray(whole)[:, 10:70]).all()
    assert found.mask is not None and np.asarray(found.mask)[:20].max() == 0
    after = put_back(Image.new("RGB", (60, 60), "red"), found)
    assert after.getpixel((10, 0)) == after.getpixel((69, 19)) == (255, 0, 0)
    assert after.crop((0, 0, 10, 20)).tobytes() == whole.crop((0, 0, 10, 20)).tobytes()


def test_new_sides_are_changed_in_full_and_the_seam_is_soft() -> None:
    inner = random_picture(64, 64)
    found = lay_out(inner, None, Layout(96, 80, outpaint="left=32,bottom=16"))
    assert found.canvas.size == (96, 80) and found.mask is not None
    assert found.canvas.crop((32, 0, 96, 64)).tobytes() == inner.tobytes()
    levels = np.asarray(found.mask)
    assert (levels[:, :32] == 255).all() and (levels[64:] == 255).all()
    row = levels[10, 32:].astype(int)
    assert 0 < row[5] < row[0] < 255 and row[-1] == 0
    assert (np.diff(row) <= 0).all()
    hard = np.asarray(lay_out(inner, None, Layout(96, 80, outpaint="left=32,bottom=16", mask_blur=0.0)).mask)
    assert (hard[:64, 32:] == 0).all()
    edge = np.asarray(found.canvas)
    assert (edge[:64, :32] == edge[:64, 32:33]).all()
    mirrored = lay_out(inner, None, Layout(96, 64, outpaint="left=32", outpaint_fill="reflect"))
    pixels = np.asarray(mirrored.canvas)
    assert (pixels[:, 31] == pixels[:, 33]).all() and (pixels[:, 0] == pixels[:, 64]).all()


def test_filled_with_the_colours_around() -> None:
    """A plain picture stays plain, a gradient is continued, and what is kept keeps its bits."""
    plain = Image.new("RGB", (37, 23), (10, 200, 90))
    hole = spot(37, 23, (5, 5, 30, 20))
    assert filled(plain, hole).tobytes() == plain.tobytes()
    ramp = np.repeat(np.repeat(np.arange(64, dtype=np.uint8)[None, :, None] * 3, 32, axis=0), 3, axis=2)
    hole = spot(64, 32, (24, 8, 40, 24))
    found = np.asarray(filled(Image.fromarray(ramp), hole)).astype(int)
    kept = np.asarray(hole) == 0
    assert (found[kept] == ramp[kept]).all()
    assert np.abs(found - ramp).max() <= 20 and found[16, 26, 0] < found[16, 37, 0]
    assert filled(plain, Image.new("L", plain.size, 255)).getextrema() == ((128, 128),) * 3


def test_a_blurred_mask_reaches_a_little_farther() -> None:
    whole = random_picture(64, 64)
    found = lay_out(whole, spot(64, 64, (24, 24, 40, 40)), Layout(64, 64, mask_blur=2.0))
    assert found.mask is not None
    levels = np.asarray(found.mask)
    assert 0 < levels[32, 23] < levels[32, 25] < 255 and levels[32, 12] == 0


def test_settings_follow_the_canvas(picture: Path, mask: Path) -> None:
    found = settings(init_image=picture, outpaint="right=64 top=8")
    assert (found.width, found.height, found.outpaint) == (224, 128, "top=8,right=64")
    assert found.strength == DEFAULT_OUTPAINT_STRENGTH
    area = settings(init_image=picture, mask=mask, mask_area="masked")
    assert (area.width, area.height) == (1024, 1024), "the model's, not the picture's"
    for given, words in (
        ({"outpaint": "left=64"}, "outpaint needs init_image"),
        ({"init_image": picture, "mask_blur": 4.0}, r"mask_blur needs mask \(--mask\) or outpaint"),
        ({"init_image": picture, "mask_area": "masked"}, "mask_area masked needs mask"),
        ({"init_image": picture, "outpaint": "left=2048,right=2048"}, "outpaint makes 4256x120"),
        ({"init_image": picture, "outpaint": "left=64", "width": 96}, "leaves 32x1024 of 96x1024"),
        ({"init_image": picture, "mask_change": "whit"}, "did you mean 'white'"),
        ({"init_image": picture, "mask": mask, "mask_content": "latent"}, "unknown mask content 'latent'"),
    ):
        with pytest.raises(InputError, match=words):
            settings(**given)


def test_recipes_and_text(picture: Path, mask: Path, pipeline: Pipeline) -> None:
    chosen = settings(init_image=picture, mask=mask, mask_area="masked", mask_blur=4.0, mask_content="noise",
                      mask_change="black")  # fmt: skip
    recipe = pipeline.recipe(chosen)
    assert read_json(write_json(recipe)) == recipe
    text = write_parameters(recipe)
    for field in ("Mask blur: 4", "Masked content: latent noise", "Inpaint area: Only masked",
                  "Masked area padding: 32", "Mask mode: Inpaint not masked"):  # fmt: skip
        assert field in text


def test_the_masked_area_is_drawn_alone_and_put_back(picture: Path, mask: Path, pipeline: Pipeline) -> None:
    common = {"seed": 1, "steps": 2, "width": 64, "height": 64, "guidance_scale": 1.0, "strength": 0.5}
    chosen = pipeline.settings(
        PROMPT, init_image=picture, mask=mask, mask_area="masked", mask_padding=8, **common
    )
    step = [*pipeline.steps([chosen])][-1]
    assert step.latents.shape == (1, 4, 8, 8)
    image = pipeline.pictures(step.latents, [chosen])[0].image
    before, after, kept = (np.asarray(each) for each in (Image.open(picture), image, Image.open(mask)))
    assert before.shape == after.shape
    assert (before[kept == 0] == after[kept == 0]).all()
    assert (before[kept == 255] != after[kept == 255]).mean() > 0.5


def test_an_inverted_mask_keeps_the_rest(picture: Path, mask: Path, pipeline: Pipeline) -> None:
    (made,) = pipeline.generate(
        PROMPT, seed=1, steps=2, init_image=picture, mask=mask, mask_change="black", guidance_scale=1.0
    )
    before, after, white = (np.asarray(each) for each in (Image.open(picture), made.image, Image.open(mask)))
    assert (before[white == 255] == after[white == 255]).all()
    assert (before[white == 0] != after[white == 0]).mean() > 0.5


def test_outpainting_keeps_the_picture_beyond_the_seam(picture: Path, pipeline: Pipeline) -> None:
    (made,) = pipeline.generate(
        PROMPT, seed=1, steps=2, init_image=picture, outpaint="right=32", mask_blur=2.0, guidance_scale=1.0
    )
    assert made.image.size == (192, 120)
    assert made.image.crop((0, 0, 144, 120)).tobytes() == Image.open(picture).crop((0, 0, 144, 120)).tobytes()


def test_the_content_under_a_mask(picture: Path, mask: Path, pipeline: Pipeline) -> None:
    """What the network sees first: noise on noise, on zeros, on the picture, or on its surroundings."""
    common = {
        "seed": 1,
        "steps": 2,
        "init_image": picture,
        "mask": mask,
        "guidance_scale": 1.0,
        "strength": 0.5,
    }
    seen: dict[str, torch.Tensor] = {}
    for content in ("original", "fill", "noise", "nothing"):
        inputs: list[torch.Tensor] = []
        hook = pipeline.unet.register_forward_pre_hook(
            lambda _, arguments, inputs=inputs: inputs.append(arguments[0].clone())
        )
        try:
            next(iter(pipeline.steps([pipeline.settings(PROMPT, mask_content=content, **common)])))
        finally:
            hook.remove()
        seen[content] = inputs[0]
    cells = (..., slice(2, 4), slice(12, 14))
    outside = seen["original"][..., 8:, :8]
    for content in ("noise", "nothing"):
        assert torch.equal(seen[content][..., 8:, :8], outside)
    assert len({float(each[cells].sum()) for each in seen.values()}) == 4
    # (z + sigma noise) / root with z = noise is (1 + sigma) / sigma times that with z = 0
    ratio = (seen["noise"][cells] / seen["nothing"][cells]).flatten()
    assert ratio.std() < 1e-3 and ratio.mean() > 1
