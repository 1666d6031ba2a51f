"""An image with a LoRA that diffusers wrote is diffusers' image."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from diffusers.utils import convert_state_dict_to_diffusers
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict

from adapter_files import attention, delta, random_lora
from adapter_files import write_lora as write_lora_file
from ssd1b.actions.adapters import Output, convert_adapter
from ssd1b.adapters.names import Module
from ssd1b.layouts import MINI_SDXL
from ssd1b.loras import lora_of
from ssd1b.pipeline import Pipeline

from .test_pipeline import PROMPT, write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), MINI_SDXL)


def write_lora(folder: Path, out: Path, **options: object) -> StableDiffusionXLPipeline:
    """Write a LoRA of all networks, as diffusers' training scripts do, and return the trained pipeline.

    diffusers 0.42's own loader takes only 98 of this file's 658 modules of the UNet, with a warning.
    """
    oracle = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    targets = {
        "unet": ["to_q", "to_k", "to_v", "to_out.0", "proj_in", "ff.net.0.proj", "conv1"],
        "text_encoder": ["q_proj", "k_proj", "v_proj", "out_proj"],
        "text_encoder_2": ["q_proj", "fc1"],
    }
    layers, metadata = {}, {}
    torch.manual_seed(1)
    for part, modules in targets.items():
        config = LoraConfig(r=4, lora_alpha=6, target_modules=modules, init_lora_weights=False, **options)
        network = getattr(oracle, part)
        network.add_adapter(config)
        with torch.no_grad():
            for name, parameter in network.named_parameters():
                if "lora_" in name:
                    parameter.mul_(0.3)
        layers[f"{part}_lora_layers"] = convert_state_dict_to_diffusers(get_peft_model_state_dict(network))
        metadata[f"{part}_lora_adapter_metadata"] = network.peft_config["default"].to_dict()
    oracle.save_lora_weights(out, **layers, **metadata)
    return oracle


@pytest.mark.parametrize("options", [{}, {"use_rslora": True}], ids=["plain", "rslora"])
def test_a_lora_of_diffusers(folder: Path, tmp_path: Path, options: dict[str, object]) -> None:
    oracle = write_lora(folder, tmp_path, **options)
    oracle.set_progress_bar_config(disable=True)
    pipeline = Pipeline.load(str(folder), device="cpu", dtype="fp32")
    given = {"num_inference_steps": 3, "guidance_scale": 5.0, "height": 128, "width": 128}

    def theirs() -> torch.Tensor:
        generator = torch.Generator("cpu").manual_seed(5)
        return oracle(PROMPT, generator=generator, output_type="latent", **given).images

    def ours(*strengths: float) -> torch.Tensor:
        path = tmp_path / "pytorch_lora_weights.safetensors"
        loras = [lora_of(path, unet=each, text=each) for each in strengths]
        *_, last = pipeline.steps([pipeline.settings(PROMPT, seed=5, loras=loras)])
        return last.latents

    adapted = theirs()
    scale = adapted.abs().max()
    assert (ours(1.0) - adapted).abs().max() <= 1e-4 * scale
    oracle.set_adapters(["default"], [0.5])
    assert (ours(0.5) - theirs()).abs().max() <= 1e-4 * scale
    oracle.disable_lora()
    plain = theirs()
    assert (ours() - plain).abs().max() <= 1e-4 * scale
    assert (ours(1.0) - plain).abs().max() > 0.01 * scale


def test_diffusers_reads_what_is_converted(folder: Path, tmp_path: Path) -> None:
    layout = MINI_SDXL
    chosen = [
        *attention(layout)[:12],
        *attention(layout, "text_encoder"),
        *attention(layout, "text_encoder_2"),
    ]
    adapter = random_lora(layout, chosen, rank=3, alpha=4.5)
    for number, tensors in enumerate(adapter.values()):
        tensors["alpha"] = torch.tensor(1.5 if number % 3 else 4.5)
    kohya = write_lora_file(tmp_path / "a.safetensors", adapter, layout)
    convert_adapter(str(kohya), Output(path=str(tmp_path / "b.safetensors"), dialect="diffusers"))
    oracle = StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)
    oracle.load_lora_weights(tmp_path, weight_name="b.safetensors")
    found = 0
    for part in ("unet", "text_encoder", "text_encoder_2"):
        for name, layer in getattr(oracle, part).named_modules():
            if hasattr(layer, "get_delta_weight"):
                change = layer.get_delta_weight("default_0")
                # transformers from version 5.6 has no such prefix
                ours = name if part == "unet" else f"text_model.{name.removeprefix('text_model.')}"
                expected = delta(adapter[Module(part, ours)], tuple(change.shape))
                torch.testing.assert_close(change, expected, rtol=1e-5, atol=1e-5)
                found += 1
    assert found == len(chosen)
