"""The shipped miniature: it draws what it is told, and the same picture every time."""

import hashlib
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rounds import rounds
from ssd1b.evaluate.clip_score import ClipScore
from ssd1b.evaluate.drawing import timed
from ssd1b.jobs.captions import draw_captions
from ssd1b.jobs.executor import Inline
from ssd1b.model import Model
from ssd1b.pipeline import Pipeline
from ssd1b.tabletop.judge.judge import load_judge

PROMPTS = (
    "a large red metal sphere on a blue background",
    "a large green rubber cube on a white background",
    "a large yellow metal cone on a purple background",
    "a large black rubber torus on a pink background",
)
SEEDS = range(rounds(2, 4))
DATA = Path(str(files("ssd1b"))) / "data"


@pytest.fixture(scope="module", params=["mini-sdxl", "mini-ssd-1b"])
def miniature(request: pytest.FixtureRequest) -> Pipeline:
    return Pipeline.load(request.param, device="cpu", dtype="fp32")


@pytest.fixture(scope="module")
def drawn(miniature: Pipeline) -> np.ndarray:
    """Images of each prompt with each seed."""
    model = Model.find(miniature.identity.name, offline=True)
    tasks = [(prompt, seed) for prompt in PROMPTS for seed in SEEDS]
    found = draw_captions(model, Inline(lambda name: timed(miniature)), tasks, batch_size=8)
    return np.stack([np.asarray(each.image) for each in found]).reshape(len(PROMPTS), len(SEEDS), 128, 128, 3)


def test_each_picture_is_nearest_to_its_own_prompt(miniature: Pipeline, drawn: np.ndarray) -> None:
    images = [Image.fromarray(image) for image in drawn[:, SEEDS.index(1)]]
    scores = ClipScore.load(DATA / miniature.identity.name, miniature.text)(images, PROMPTS)
    assert scores.argmax(dim=1).tolist() == [0, 1, 2, 3]


def test_the_background_has_the_colour_that_was_asked_for(drawn: np.ndarray) -> None:
    red, green, blue = np.median(drawn[0, SEEDS.index(1)].astype(int)[:16].reshape(-1, 3), axis=0)
    assert blue > red + 40 and blue > green + 40


def test_the_judge_reads_what_was_asked_for(drawn: np.ndarray) -> None:
    """Of four captions with all seeds; chance would be 17 % of shapes and 8 % of colours."""
    prompts = [prompt for prompt in PROMPTS for _ in SEEDS]
    right = []
    for prompt, seen in zip(prompts, load_judge().read(drawn.reshape(-1, 128, 128, 3)), strict=True):
        _, size, color, _, shape, _, _, background, _ = prompt.split()
        found = {"shape": "", "color": "", "size": "", **(seen.solids[0].answers if seen.solids else {})}
        wanted = {"shape": shape, "color": color, "size": size, "background": background}
        read = {**found, "background": seen.background}
        right.append([read[name] == value for name, value in wanted.items()])
    shapes, colors, sizes, backgrounds = np.mean(right, axis=0)
    assert shapes >= 0.75 and colors >= 0.75 and sizes >= 0.75 and backgrounds >= 0.9


def test_weights_fit_the_package() -> None:
    size = sum(path.stat().st_size for path in DATA.rglob("*.safetensors"))
    assert size <= 60 * 2**20


def test_diffusers_draws_the_same_picture(miniature: Pipeline) -> None:
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    oracle = StableDiffusionXLPipeline.from_pretrained(
        DATA / miniature.identity.name, torch_dtype=torch.float32
    )
    oracle.set_progress_bar_config(disable=True)
    assert isinstance(oracle.scheduler, EulerDiscreteScheduler)
    generator = torch.Generator("cpu").manual_seed(1)
    theirs = oracle(
        PROMPTS[0], generator=generator, num_inference_steps=10, guidance_scale=5.0, height=128, width=128
    ).images[0]
    ours = miniature.generate(PROMPTS[0], seed=1, steps=10, guidance_scale=5.0, sampler="euler")[0].image
    assert np.abs(np.array(ours).astype(int) - np.array(theirs).astype(int)).max() <= 1


def test_a_fixed_recipe_gives_a_fixed_picture(miniature: Pipeline) -> None:
    """Bit-equal in one process; across machines to the rounding of their kernels."""
    first, second = (np.array(miniature.generate(PROMPTS[0], seed=1, steps=8)[0].image) for _ in range(2))
    assert hashlib.sha256(first.tobytes()).digest() == hashlib.sha256(second.tobytes()).digest()
    golden = np.array(np.load(Path(__file__).parent / f"{miniature.identity.name}.npy"))
    assert np.abs(first.astype(int) - golden.astype(int)).max() <= 3
