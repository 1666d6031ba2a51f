"""The hires fix and variation seeds: sizes, steps, keys, recipes, AUTOMATIC1111's text."""

import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from landscape import settings
from ssd1b.diffusion.noise import noise_source, slerp
from ssd1b.diffusion.upscaling import covering, cut, enlarge_latents
from ssd1b.errors import InputError
from ssd1b.inputs import InputFile, with_tables
from ssd1b.jobs.job import Job, make_job
from ssd1b.pipeline import Pipeline
from ssd1b.recipe import read_json, read_parameters, write_json, write_parameters
from ssd1b.settings import DEFAULT_HIRES_STRENGTH, GenerationSettings, numbered, resolve_settings
from ssd1b.upscalers import DEFAULT_UPSCALER, UPSCALERS, resolve_upscaler
from upscaler_files import write_compact

PROMPT = "a large red metal sphere on a blue background"


@pytest.fixture(scope="module")
def pipeline() -> Pipeline:
    return Pipeline.load("mini-ssd-1b", device="cpu", dtype="fp32")


@pytest.mark.parametrize(
    ("given", "size"),
    [
        ({}, (512, 384)),
        ({"hires_scale": 2.0}, (1024, 768)),
        ({"hires_scale": 1.3}, (664, 496)),
        ({"hires_width": 768, "hires_height": 768}, (768, 768)),
        ({"hires_width": 1024}, (1024, 768)),
        ({"hires_height": 512}, (680, 512)),
    ],
)
def test_the_final_size(given: dict[str, Any], size: tuple[int, int]) -> None:
    found = settings(**given)
    assert found.final_size == size
    assert found.passes[-1].settings.final_size == size


def test_the_second_pass_runs_all_its_steps_and_has_settings_of_its_own() -> None:
    found = settings(
        steps=20, hires_scale=2, hires_strength=0.4, hires_steps=12, hires_sampler="DPM++ 2M Karras",
        hires_prompt="y", hires_guidance_scale=3.0,
    )  # fmt: skip
    (first, start), (second, again) = found.passes
    assert (first.steps, first.prompt, start) == (20, "x", (20, 20, True))
    assert again == (30, 12, False), "the last 12 of 30, as AUTOMATIC1111 and ComfyUI count"
    assert (second.sampler, second.schedule, second.prompt) == ("dpmpp_2m", "karras", "y")
    assert (second.guidance_scale, second.seed, second.original_size) == (3.0, 7, (768, 1024))
    assert found.total_steps == 32
    assert settings(hires_scale=2).hires_strength == DEFAULT_HIRES_STRENGTH
    kept = settings(hires_scale=2, original_size=(100, 100)).passes[1].settings
    assert (kept.original_size, kept.target_size) == ((100, 100), (768, 1024))


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"hires_steps": 5}, r"hires_steps needs hires_scale \(--hires-scale\) or --hires-size"),
        ({"hires_scale": 2, "hires_width": 512}, "not both"),
        ({"hires_scale": 16}, "makes 8192x6144: a side must be from 64 to 4096"),
        ({"hires_scale": 6}, "size after the hires fix is 3072x2304: at most 4194304 pixels"),
        ({"hires_scale": 0.5}, "hires_scale is 0.5: it must be a number from 1 to 16"),
        ({"hires_width": 100}, "multiple of 8"),
        ({"hires_scale": 2, "hires_strength": 0.0}, "the second pass would not start"),
        ({"hires_scale": 2, "hires_strength": 1e-9}, "second pass: strength is 1e-09: 25 steps would be"),
        ({"hires_scale": 2, "hires_upscaler": "latent-bicubicc"}, "did you mean 'latent-bicubic'"),
        ({"hires_scale": 2, "hires_prompt": " "}, "prompt is empty"),
        ({"variation_strength": 1.5}, "variation_strength is 1.5: it must be a number from 0 to 1"),
    ],
)
def test_errors_are_one_line(given: dict[str, Any], words: str) -> None:
    with pytest.raises(InputError, match=words) as error:
        settings(**given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("cells", "wanted", "expected"),
    [((48, 64), (96, 128), (96, 128)), ((48, 64), (96, 96), (96, 128)), ((48, 64), (128, 128), (128, 170)),
     ((64, 48), (64, 64), (85, 64)), ((3, 7), (5, 5), (5, 11))],
)  # fmt: skip
def test_a_size_of_the_same_shape_covers_the_wanted_one(
    cells: tuple[int, int], wanted: tuple[int, int], expected: tuple[int, int]
) -> None:
    assert covering(cells, wanted) == expected


@pytest.mark.parametrize("name", [name for name, each in UPSCALERS.items() if each.latent])
def test_latents_are_enlarged_and_cut(name: str) -> None:
    latents = torch.linspace(-1, 1, 6).expand(2, 4, 4, 6)
    found = enlarge_latents(latents, (8, 12), UPSCALERS[name])
    assert found.shape == (2, 4, 8, 12)
    assert found.mean().abs() < 1e-5 and found[..., -1].mean() > 0.7
    assert torch.equal(cut(found, (8, 8)), found[..., 2:10])


def test_names_of_upscalers_are_automatic1111s() -> None:
    for name, each in UPSCALERS.items():
        assert resolve_upscaler(name) == resolve_upscaler(each.a1111 or name) == name
    assert resolve_upscaler("latent (NEAREST-exact)") == "latent-nearest-exact"


def test_variations_turn_the_noise_along_the_arc() -> None:
    low, high = (noise_source([seed], 16, 24, torch.device("cpu"))() for seed in (1, 2))
    for share in (0.0, 0.25, 1.0):
        found = slerp(low, high, torch.tensor([share]))
        for channel in range(4):
            for column in range(24):
                first, second = low[0, channel, :, column].double(), high[0, channel, :, column].double()
                angle = math.acos(float(first @ second / first.norm() / second.norm()))
                weights = [math.sin(each * angle) / math.sin(angle) for each in (1 - share, share)]
                expected = weights[0] * first + weights[1] * second
                assert (found[0, channel, :, column] - expected).abs().max() < 1e-5
    assert torch.equal(slerp(low, high, torch.tensor([0.0])), low)
    torch.testing.assert_close(slerp(low, low, torch.tensor([0.3])), low)
    mixed = slerp(low.repeat(2, 1, 1, 1), high.repeat(2, 1, 1, 1), torch.tensor([0.0, 1.0]))
    assert torch.equal(mixed[0], low[0]) and not torch.equal(mixed[1], low[0])


def test_several_variations_have_one_seed() -> None:
    plain, varied = settings(), settings(variation_strength=0.1, variation_seed=2**32 - 1)
    assert (numbered(plain, 2).seed, numbered(plain, 2).variation_seed) == (9, 0)
    assert (numbered(varied, 2).seed, numbered(varied, 2).variation_seed) == (7, 1)
    assert settings(variation_strength=0.1, variation_seed=-1).variation_seed >= 0
    assert settings(variation_seed=5) == plain, "without strength it has no effect"


def _job(pipeline: Pipeline, found: GenerationSettings) -> Job:
    tokenizers = (pipeline.text.tokenizer, pipeline.text.tokenizer_2)
    return make_job("m", found, fingerprint="f", tokenizers=tokenizers, environment={})


def _key(pipeline: Pipeline, found: GenerationSettings) -> str:
    return _job(pipeline, found).key


def test_keys_depend_on_both_and_are_unchanged_without(pipeline: Pipeline) -> None:
    assert _key(pipeline, resolve_settings("x", family="sdxl", model_defaults={}, preset=None, seed=7)) == (
        "e3c4e9bb3d946abd3c36b59cb3494fa0189e1974868525da27eb2da45887fadc"
    )
    others = [{}, {"hires_scale": 2}, {"hires_scale": 2, "hires_strength": 0.6}, {"variation_strength": 0.1}]
    assert len({_key(pipeline, settings(**each)) for each in others}) == len(others)
    job = _job(pipeline, settings(hires_scale=2, steps=10))
    assert job.cost == (10 * 2 * 512 * 384 * (1 + 4))


@pytest.mark.parametrize(
    "given",
    [
        {"variation_strength": 0.15, "variation_seed": 99},
        {"hires_scale": 1.5, "hires_upscaler": "latent-bicubic", "hires_strength": 0.55},
        {"hires_width": 768, "hires_height": 512, "hires_steps": 9, "hires_sampler": "ddim"},
        {"hires_scale": 2.0, "hires_schedule": "karras", "hires_guidance_scale": 3.5,
         "hires_prompt": "a, b: c",
         "hires_negative_prompt": "z"},
    ],
)  # fmt: skip
def test_recipes_and_automatic1111s_text_give_the_settings_back(
    pipeline: Pipeline, given: dict[str, Any]
) -> None:
    recipe = pipeline.recipe(settings(**given))
    assert read_json(write_json(recipe)) == recipe
    text = read_parameters(write_parameters(recipe))
    found = settings(**text.settings())
    assert found == replace(recipe.settings, schedule=found.schedule)
    assert text.unreproduced() == []


def test_a_network_is_an_upscaler(pipeline: Pipeline, tmp_path: Path) -> None:
    """It is identified by its content, in keys, recipes and tables."""
    path = write_compact(tmp_path / "2x-tiny.safetensors")
    found = settings(hires_scale=1.5, hires_upscaler=str(path))
    assert found.hires_upscaler == InputFile.of(path, most=10**6)
    assert settings(**with_tables({"hires_scale": 1.5, "hires_upscaler": found.hires_upscaler})) == found
    recipe = pipeline.recipe(found)
    assert read_json(write_json(recipe)) == recipe
    assert "Hires upscaler: 2x-tiny," in write_parameters(recipe)
    assert found.passes[1].settings.hires_upscaler is None
    moved = path.rename(tmp_path / "other.safetensors")
    assert _key(pipeline, settings(hires_scale=1.5, hires_upscaler=str(moved))) == _key(pipeline, found)
    write_compact(path, seed=1)
    assert _key(pipeline, settings(hires_scale=1.5, hires_upscaler=str(path))) != _key(pipeline, found)
    with pytest.raises(InputError, match=r"x\.safetensors"):
        settings(hires_scale=1.5, hires_upscaler="x.safetensors")


def test_recipes_of_earlier_versions_have_one_pass(pipeline: Pipeline) -> None:
    recipe = pipeline.recipe(settings())
    older = json.loads(write_json(recipe))
    for name in [*older["settings"]]:
        if name.startswith(("hires_", "variation_")):
            del older["settings"][name]
    assert read_json(json.dumps(older)) == recipe


A1111 = """a lighthouse
Negative prompt: blurry
Steps: 30, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 5, Size: 832x1216, Model: x, \
Denoising strength: 0.35, RNG: CPU, Hires Module 1: Use same choices, Hires upscale: 1.5, Hires steps: 15, \
Hires upscaler: 4x-UltraSharp, Version: v1.10.1"""


def test_an_image_of_automatic1111_is_read() -> None:
    text = read_parameters(A1111)
    found = settings(**text.settings())
    assert found.final_size == (1248, 1824)
    assert found.passes[1].start == (42, 15, False), "int(15 / 0.35), as in setup_img2img_steps"
    assert found.hires_upscaler == DEFAULT_UPSCALER
    left = text.unreproduced()
    assert left[0] == "Hires Module 1" and left[-1].startswith(
        "the upscaler '4x-UltraSharp' (here it is lanczos"
    )
    sized = read_parameters(
        A1111.replace("Hires upscale: 1.5", "Hires resize: 1250x0").replace("4x-UltraSharp", "Latent")
    )
    assert settings(**sized.settings()).final_size == (1248, 1824)
    assert {"hires_width", "hires_height"} <= sized.settings().keys(), "a command line has both"
    assert settings(**sized.settings()).hires_upscaler == "latent"
    same = read_parameters(A1111.replace("Hires steps: 15", "Hires sampler: Use same sampler"))
    assert settings(**same.settings()).hires_sampler is None
    with pytest.raises(InputError, match="Hires resize is '0x0'"):
        read_parameters(A1111.replace("Hires upscale: 1.5", "Hires resize: 0x0")).settings()


def test_two_passes_are_one_run(pipeline: Pipeline) -> None:
    """Steps are numbered through, the second pass has its size, and starts from the first one's image."""
    common = {"seed": 3, "steps": 3, "width": 64, "height": 64, "guidance_scale": 1.0}
    chosen = pipeline.settings(PROMPT, hires_scale=1.5, hires_steps=2, hires_upscaler="latent", **common)
    steps = [*pipeline.steps([chosen])]
    assert [step.index for step in steps] == [*range(5)]
    assert [step.latents.shape[-1] for step in steps] == [8, 8, 8, 12, 12]
    alone = [*pipeline.steps([pipeline.settings(PROMPT, **common)])]
    assert torch.equal(steps[2].latents, alone[-1].latents)
    assert pipeline.pictures(steps[-1].latents, [chosen])[0].image.size == (96, 96)


def test_a_batch_of_hires_and_variations_is_what_its_images_are_alone(pipeline: Pipeline) -> None:
    common = {
        "steps": 2, "width": 64, "height": 64, "seed": 3, "hires_width": 96, "hires_height": 64,
        "hires_upscaler": "latent-bicubic",
    }  # fmt: skip
    batch = [
        pipeline.settings(PROMPT, variation_strength=share, variation_seed=8, **common)
        for share in (0.0, 0.4)
    ]
    together = [*pipeline.steps(batch)][-1].latents
    assert together.shape == (2, 4, 8, 12)
    for chosen, found in zip(batch, together, strict=True):
        torch.testing.assert_close([*pipeline.steps([chosen])][-1].latents[0], found, atol=2e-4, rtol=1e-4)
    assert (together[0] - together[1]).abs().max() > 0.05
