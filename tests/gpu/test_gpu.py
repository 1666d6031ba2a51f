"""Images on a GPU: equal to the CPU's within rounding, with every execution option.

DEVICE is a constant so that the tests' own code can be checked on a CPU.
"""

import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec

import numpy as np
import pytest
import torch

from ssd1b.errors import InputError
from ssd1b.execution import DEFAULT, Execution
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import UNetInputs
from ssd1b.pipeline import Pipeline
from ssd1b.speed import torchao_quant
from ssd1b.speed.backends import prepare
from ssd1b.speed.graphs import SWITCH, RecordedForward
from ssd1b.speed.torchao_quant import QUANTIZATIONS, Quantization, check_quantization
from tiny import LAYOUTS, inputs

DEVICE = "cuda"
PROMPTS = ("a large red metal sphere on a blue background", "a small green cube on a white background")

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(DEVICE == "cuda" and not torch.cuda.is_available(), reason="needs a CUDA GPU"),
    pytest.mark.filterwarnings("ignore"),  # torch's notes on TF32, torchao's on its own modules
]


@pytest.fixture(autouse=True)
def exact_float32() -> Iterator[None]:
    """Compute float32 products without TF32."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("highest")
    torch.backends.cudnn.allow_tf32 = False
    yield
    torch.set_float32_matmul_precision(before[0])
    torch.backends.cudnn.allow_tf32 = before[1]


def load(device: str = DEVICE, dtype: str = "fp32", execution: Execution = DEFAULT) -> Pipeline:
    return Pipeline.load("mini-ssd-1b", device=device, dtype=dtype, offline=True, execution=execution)


def pixels(pipeline: Pipeline, **overrides: object) -> np.ndarray:
    (picture,) = pipeline.generate(PROMPTS[0], seed=1, steps=6, **overrides)
    return np.asarray(picture.image).astype(int)


def relative_error(output: torch.Tensor, expected: torch.Tensor) -> float:
    return float((output.float() - expected.float()).norm() / expected.float().norm())


def unet_on_device(dtype: torch.dtype) -> tuple[UNet, UNetInputs]:
    torch.manual_seed(0)
    unet = UNet(LAYOUTS["ssd-1b"]).eval().requires_grad_(False).to(DEVICE, dtype)
    return unet, inputs(LAYOUTS["ssd-1b"], 16, 16).to(DEVICE, dtype)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"negative_prompt": "blurry", "guidance_rescale": 0.7},
        {"guidance_scale": 1.0},
        {"width": 192},
        {"sampler": "euler_ancestral"},
    ],
    ids=["default", "negative", "no guidance", "wide", "stochastic"],
)
def test_an_image_equals_the_cpus(overrides: dict[str, object]) -> None:
    difference = np.abs(pixels(load(), **overrides) - pixels(load("cpu"), **overrides))
    assert difference.max() <= 2, "of 255 levels"


@pytest.mark.parametrize("dtype", ["fp16", "bf16"])
def test_sixteen_bits_give_nearly_the_same_image(dtype: str) -> None:
    assert np.abs(pixels(load(dtype=dtype)) - pixels(load("cpu"))).mean() < 12, "of 255 levels"


def test_a_prepared_unet_predicts_the_same() -> None:
    unet, given = unet_on_device(torch.float32)
    with torch.inference_mode():
        expected = unet(*given)
        prepare(unet)
        assert relative_error(unet(*given), expected) < 1e-4


@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_a_recorded_step_predicts_the_same(dtype: torch.dtype) -> None:
    unet, given = unet_on_device(dtype)
    plain, _ = unet_on_device(dtype)
    prepare(unet)
    assert isinstance(unet.forward, RecordedForward)
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    with torch.inference_mode():
        for call in range(4):
            changed = given._replace(latents=given.latents + call, timesteps=given.timesteps / (1 + call))
            assert relative_error(unet(*changed), plain(*changed)) < tolerance
    assert unet.forward._works and [*unet.forward._found.values()] != [None]


@pytest.mark.skipif(DEVICE != "cuda", reason="CUDA graphs")
def test_images_of_several_sizes_with_recorded_steps_equal_those_without(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    recorded = load()
    monkeypatch.setenv(SWITCH, "0")
    plain = load()
    for overrides in ({}, {"width": 192}, {"guidance_interval": (0.2, 0.8)}, {}):
        assert np.abs(pixels(recorded, **overrides) - pixels(plain, **overrides)).max() <= 2, "of 255 levels"
    assert recorded.unet.forward._works


# Compilation cannot trace the runtime type checks of the tests, so it runs in a separate process.
COMPILED = """
import sys
import torch
from ssd1b.execution import Execution
from ssd1b.pipeline import Pipeline
def pixels(**options):
    pipeline = Pipeline.load("mini-ssd-1b", device=sys.argv[1], dtype="fp32", offline=True, **options)
    (picture,) = pipeline.generate("a large red metal sphere", seed=1, steps=4)
    return torch.tensor(bytearray(picture.image.tobytes())).float()
difference = (pixels(execution=Execution(compiled=True)) - pixels()).abs()
assert difference.mean() < 1, difference.mean()
"""


def test_a_compiled_model_generates_the_same_image() -> None:
    command = [sys.executable, "-c", COMPILED, DEVICE]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("name", QUANTIZATIONS)
def test_a_quantized_unet_predicts_nearly_the_same(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    try:
        check_quantization(name, torch.device(DEVICE), torch.bfloat16)
    except InputError as error:
        pytest.skip(str(error))
    schemes = {each: Quantization(QUANTIZATIONS[each].config, smallest=2**10) for each in QUANTIZATIONS}
    monkeypatch.setattr(torchao_quant, "QUANTIZATIONS", schemes)
    unet, given = unet_on_device(torch.bfloat16)
    with torch.inference_mode():
        expected = unet(*given)
        prepare(unet, quantized=name)
        assert 1e-4 < relative_error(unet(*given), expected) < 0.1


def test_weight_only_int8_gives_nearly_the_same_image() -> None:
    difference = np.abs(pixels(load(execution=Execution(quantized="int8-weights"))) - pixels(load()))
    assert 0 < difference.mean() < 6, "of 255 levels"


def test_low_memory_gives_nearly_the_same_image() -> None:
    low = load(execution=Execution(memory="low"))
    assert 0 < np.abs(pixels(low) - pixels(load())).mean() < 6, "of 255 levels"
    assert low.recipe(low.settings(PROMPTS[0], seed=1)).device == DEVICE


def test_an_image_does_not_depend_on_its_batch() -> None:
    pipeline = load()
    batch = [pipeline.settings(prompt, seed=seed, steps=6) for seed, prompt in enumerate(PROMPTS, start=1)]
    together = np.asarray(pipeline.draw(batch)[0].image).astype(int)
    assert np.abs(together - pixels(pipeline)).max() <= 2, "of 255 levels"
