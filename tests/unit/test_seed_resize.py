"""The noise of another size in the middle: AUTOMATIC1111's definition, keys, recipes and its text."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from landscape import settings
from ssd1b.diffusion.noise import centred, noise_source, slerp
from ssd1b.errors import InputError
from ssd1b.pipeline import Pipeline
from ssd1b.recipe import read_json, read_parameters, write_json, write_parameters

CPU = torch.device("cpu")
PROMPT = "a red cube on a white background"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("mini-ssd-1b", device="cpu", dtype="fp32")


def noise(seed: int, height: int, width: int) -> torch.Tensor:
    return noise_source([seed], height, width, CPU)()


@pytest.mark.parametrize("size", [(8, 12), (4, 12), (5, 7), (8, 20), (13, 17), (11, 5), (1, 40)])
def test_noise_is_put_where_automatic1111_puts_it(size: tuple[int, int]) -> None:
    """Cell by cell: half of the difference, rounded down, is left over or cut at the start."""
    ground, other = noise(3, 8, 12), noise(3, *size)
    expected = ground.numpy().copy()
    sides = list(zip((8, 12), size, strict=True))
    offsets = [int(np.floor((side - given) / 2)) for side, given in sides]
    counts = [
        given + 2 * min(offset, 0) for (_, given), offset in zip(sides, offsets, strict=True)
    ]  # ``w = noise_shape[2] if dx >= 0 else noise_shape[2] + 2 * dx``
    for row in range(counts[0]):
        for column in range(counts[1]):
            into = [max(offset, 0) + each for offset, each in zip(offsets, (row, column), strict=True)]
            out = [max(-offset, 0) + each for offset, each in zip(offsets, (row, column), strict=True)]
            expected[0, :, into[0], into[1]] = other[0, :, out[0], out[1]].numpy()
    found = centred(other, ground)
    assert np.array_equal(found.numpy(), expected)
    assert torch.equal(ground, noise(3, 8, 12)), "the ground is not changed"
    if size == (8, 12):
        assert torch.equal(found, other)


def test_it_is_turned_to_the_variation_before_it_is_placed(pipeline: Pipeline) -> None:
    given = {"seed_resize_width": 64, "seed_resize_height": 128}
    common = {"width": 128, "height": 64, "seed": 3}
    plain = pipeline.settings(PROMPT, **common)
    varied = {"variation_strength": 0.3, "variation_seed": 9}
    batch = [
        plain,
        replace(plain, **given),
        replace(plain, **varied),
        replace(plain, **varied, **given),
        replace(plain, seed=4, seed_resize_width=256, seed_resize_height=256),
    ]
    found = pipeline._chosen(noise_source([each.seed for each in batch], 8, 16, CPU)(), batch)
    own, share = noise(3, 8, 16), torch.tensor([0.3])
    expected = [
        own,
        centred(noise(3, 16, 8), own),
        slerp(own, noise(9, 8, 16), share),
        centred(slerp(noise(3, 16, 8), noise(9, 16, 8), share), own),
        centred(noise(4, 32, 32), noise(4, 8, 16)),
    ]
    assert torch.equal(found, torch.cat(expected))
    same = replace(plain, seed_resize_width=128, seed_resize_height=64)
    assert torch.equal(pipeline._chosen(own, [same]), own)


def test_the_images_of_a_batch_are_what_they_are_alone(pipeline: Pipeline) -> None:
    common = {"width": 64, "height": 64, "seed": 3, "steps": 2}
    plain = pipeline.settings(PROMPT, **common)
    batch = [plain, replace(plain, seed_resize_width=128, seed_resize_height=96)]
    together = [*pipeline.steps(batch)][-1].latents
    for each, found in zip(batch, together, strict=True):
        torch.testing.assert_close([*pipeline.steps([each])][-1].latents[0], found, atol=2e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.05


def test_recipes_and_automatic1111s_text_give_it_back(pipeline: Pipeline) -> None:
    recipe = pipeline.recipe(
        settings(seed_resize_width=768, seed_resize_height=512, variation_strength=0.2, variation_seed=5)
    )
    assert read_json(write_json(recipe)) == recipe
    written = write_parameters(recipe)
    assert "Variation seed strength: 0.2, Seed resize from: 768x512, " in written
    text = read_parameters(written)
    found = settings(**text.settings())
    assert found == replace(recipe.settings, schedule=found.schedule) and text.unreproduced() == []
    odd = read_parameters(written.replace("768x512", "771x519")).settings()
    assert (odd["seed_resize_width"], odd["seed_resize_height"]) == (768, 512), "in whole latent cells"
    off = read_parameters(written.replace("768x512", "0x0")).settings()
    assert not {"seed_resize_width", "seed_resize_height"} & off.keys()
    with pytest.raises(InputError, match="Seed resize from is 'wide': it must be like 1024x768"):
        read_parameters(written.replace("768x512", "wide")).settings()
    older = json.loads(write_json(pipeline.recipe(settings())))
    for name in ("seed_resize_width", "seed_resize_height"):
        del older["settings"][name]
    assert read_json(json.dumps(older)) == pipeline.recipe(settings())


def test_one_side_alone_is_refused() -> None:
    with pytest.raises(InputError, match="seed_resize_width needs seed_resize_height, the other side"):
        settings(seed_resize_width=512)
    with pytest.raises(InputError, match="seed_resize_height is 20: it must be a multiple of 8"):
        settings(seed_resize_width=512, seed_resize_height=20)
