"""Control-LoRAs are the ControlNets that they stand for, on SDXL, and through the layer map on others."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from ssd1b.actions.inspect import describe_control, is_control
from ssd1b.adapters.control_loras import is_control_lora, open_control_lora
from ssd1b.controls import control_of
from ssd1b.errors import InputError
from ssd1b.execution import Execution
from ssd1b.layer_map import LayerMap
from ssd1b.layouts import KOALA_700M, SDXL, SSD_1B, ControlNetLayout, UNetLayout, encoder_of
from ssd1b.models.controlnet import ControlNet
from ssd1b.pipeline import Pipeline
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.keymap import to_original
from ssd1b.weights.writing import save_folder
from tiny import DRAWABLE, random_weights, tiny

RANK = 3
HINT = (4, 4, 4, 4)
MODELS = {
    name: replace(tiny(unet), vae=DRAWABLE.vae, size=64)
    for name, unet in {"sdxl": SDXL, "ssd-1b": SSD_1B, "koala-700m": KOALA_700M}.items()
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with models, and a picture."""
    folder = tmp_path_factory.mktemp("control-loras")
    for name, layout in MODELS.items():
        info = ModelInfo(layout=layout, settings={"steps": 2, "guidance_scale": 4.0, "sampler": "euler"})
        save_folder(folder / name, info, random_weights(layout))
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(levels).resize((64, 64), Image.Resampling.NEAREST).save(folder / "a.png")
    return folder


def control_lora(unet: UNetLayout) -> tuple[dict[str, Tensor], dict[str, Tensor], dict[str, Tensor]]:
    """Make the tensors of a file: as they are written, those in full, and the products, by our names."""
    torch.manual_seed(1)
    names = [*ControlNet(ControlNetLayout(encoder=encoder_of(unet), hint=HINT)).state_dict().items()]
    encoder = to_original("unet", [name for name, _ in names if not name.startswith("controlnet_")])
    original = {name: other for name, (other, _) in encoder.items()}
    # The original code numbers every second layer of the hint; the others are activations.
    places = {"conv_in": 0, **{f"blocks.{i}": 2 * (i + 1) for i in range(6)}, "conv_out": 14}
    others = {f"controlnet_cond_embedding.{a}": f"input_hint_block.{b}" for a, b in places.items()}
    others |= {f"controlnet_down_blocks.{i}": f"zero_convs.{i}.0" for i in range(9)}
    others["controlnet_mid_block"] = "middle_block_out.0"
    original |= {f"{a}.{leaf}": f"{b}.{leaf}" for a, b in others.items() for leaf in ("weight", "bias")}
    written, full, products = {"lora_controlnet": torch.zeros(1)}, {}, {}
    for name, tensor in names:
        other = original[name]
        if tensor.ndim == 1 or name.startswith("controlnet_"):
            full[name] = written[other] = torch.randn_like(tensor) * 0.3
            continue
        out, *rest = tensor.shape
        up, down = torch.randn(out, RANK) * 0.2, torch.randn(RANK, *rest) * 0.2
        products[name] = (up @ down.flatten(1)).view_as(tensor)
        stem = other.removesuffix(".weight")
        written[f"{stem}.up"] = up.reshape(out, RANK, *[1] * len(rest[1:]))
        written[f"{stem}.down"] = down
    return written, full, products


@pytest.fixture(scope="module")
def file(folder: Path) -> Path:
    written, _, _ = control_lora(MODELS["sdxl"].unet)
    save_file(written, folder / "control-lora.safetensors")
    return folder / "control-lora.safetensors"


def equivalent(name: str) -> dict[str, Tensor]:
    """Make the ControlNet in full that the file is with a model."""
    _, full, products = control_lora(MODELS["sdxl"].unet)
    base, unet = random_weights(MODELS[name])["unet"], MODELS[name].unet
    layer_map = LayerMap.between(unet, MODELS["sdxl"].unet)
    network = ControlNet(ControlNetLayout(encoder=encoder_of(unet), hint=HINT))
    state = {}
    for key in network.state_dict():
        source = layer_map.keys.get(key, key)
        state[key] = full[source] if source in full else base[key] + products[source]
    return state


def load(folder: Path, name: str, **execution: object) -> Pipeline:
    options = Execution(**execution)
    return Pipeline.load(str(folder / name), device="cpu", dtype="fp32", execution=options)


def latents(pipeline: Pipeline, *controls: object, **given: object) -> Tensor:
    *_, last = pipeline.steps([pipeline.settings("x", seed=5, controls=controls, **given)])
    return last.latents


@pytest.mark.parametrize("name", ["sdxl", "ssd-1b"])
def test_the_same_image_as_with_the_controlnet_in_full(folder: Path, file: Path, name: str) -> None:
    save_file(equivalent(name), folder / f"{name}.safetensors")
    pipeline = load(folder, name)
    given = {"scale": 0.8, "end": 0.5}
    found = latents(pipeline, control_of(file, folder / "a.png", **given))
    expected = latents(pipeline, control_of(folder / f"{name}.safetensors", folder / "a.png", **given))
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()
    assert (found - latents(pipeline)).abs().max() > 0.01 * expected.abs().max()


def test_low_memory(folder: Path, file: Path) -> None:
    control = control_of(file, folder / "a.png")
    found = latents(load(folder, "ssd-1b", memory="low"), control)
    expected = latents(load(folder, "ssd-1b"), control)
    assert (found - expected).norm() / expected.norm() < 0.1


def test_a_server_lists_it_with_the_models_that_it_fits(file: Path) -> None:
    from ssd1b.server.files import control_facts
    from ssd1b.server.routes.native import _control

    models = {name: ModelInfo(layout=layout) for name, layout in MODELS.items()}
    answer = _control("lora", control_facts(file, models))
    assert (answer.kind, answer.error) == ("control_lora", None)
    assert {"sdxl", "ssd-1b"} <= {*answer.models}


def test_it_is_known_by_its_marker(folder: Path, file: Path) -> None:
    assert is_control_lora(file)
    assert not is_control_lora(folder / "sdxl/unet/diffusion_pytorch_model.safetensors")


Tensors = dict[str, Tensor]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("koala-700m", lambda t: None, "it adds to 9 feature maps, the model has 6|its tensors are not"),
        ("sdxl", lambda t: t.pop("input_blocks.4.1.proj_in.up"), "input_blocks.4.1.proj_in.up is missing"),
        ("sdxl", lambda t: t.update({"input_blocks.4.1.proj_in.up": torch.ones(16, 5)}),
         "do not belong together"),
        ("sdxl", lambda t: t.update({"input_blocks.4.1.proj_in.up": torch.ones(17, RANK)}),
         "its tensors are not the model's: down_blocks.1.attentions.0.proj_in.weight"),
        ("sdxl", lambda t: t.update({"x.up": torch.ones(2, 2), "x.down": torch.ones(2, 2)}),
         "1 unknown tensor: x"),
        ("sdxl", lambda t: t.pop("input_hint_block.0.weight"), "conv_in.weight is missing"),
        ("sdxl", lambda t: t.pop("middle_block_out.0.bias"), "1 missing tensor: controlnet_mid_block"),
        ("sdxl", lambda t: t["input_blocks.4.1.proj_in.up"].fill_(torch.nan), "NaN or infinity in 1 tensor"),
    ],
)  # fmt: skip
def test_mistakes_are_told_in_one_line(
    folder: Path, tmp_path: Path, name: str, change: Callable[[Tensors], object], message: str
) -> None:
    written, _, _ = control_lora(MODELS["sdxl"].unet)
    change(written)
    save_file(written, tmp_path / "x.safetensors")
    with pytest.raises(InputError, match=message) as error:
        latents(load(folder, name), control_of(tmp_path / "x.safetensors", folder / "a.png"))
    assert "\n" not in str(error.value)


def test_nothing_of_the_model_is_needed_that_it_does_not_have(folder: Path, file: Path) -> None:
    with pytest.raises(InputError, match="neither in the file nor in the model"):
        open_control_lora(file, MODELS["sdxl"].unet, {})


def test_inspect_says_which_models_it_fits(folder: Path, file: Path) -> None:
    assert is_control(str(file))
    for name, fits in {"sdxl": True, "ssd-1b": True, "koala-700m": False}.items():
        facts = describe_control(str(file), str(folder / name))
        assert facts["kind"] == "control_lora" and facts["like"] is None
        assert ([*facts["models"].values()] == [None]) == fits
