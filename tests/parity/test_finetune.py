"""A trained adapter in other programs: diffusers with PEFT, and LyCORIS' LoHa, compute our network."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from lycoris.modules.loha import LohaModule
from peft import LoraConfig, inject_adapter_in_model, set_peft_model_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor

from ssd1b.adapters.names import Module, kohya_name
from ssd1b.finetune.inversion import new_vectors, write_embedding
from ssd1b.finetune.layers import Trained, adapt, trained_adapters
from ssd1b.finetune.networks import Networks, prepare
from ssd1b.finetune.settings import FinetuneSettings, make_settings
from ssd1b.finetune.writing import kohya_metadata, write_adapter
from ssd1b.layouts import MINI_SDXL
from ssd1b.model import Model
from ssd1b.models.text import TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder
from tiny import TINY, inputs, worded_weights

from .test_pipeline import write_model


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tmp_path_factory.mktemp("model"), MINI_SDXL)


@pytest.fixture
def oracle(folder: Path) -> Iterator[StableDiffusionXLPipeline]:
    yield StableDiffusionXLPipeline.from_pretrained(folder, local_files_only=True)


def trained(folder: Path, out: Path, names: str, **given: Any) -> tuple[UNet, FinetuneSettings]:
    """A UNet whose adapter is as far from zero as after a training, and its file."""
    settings = make_settings(None, {"rank": 3, "alpha": 4.5, "data.path": "x", **given}, size=64)
    unet: UNet = Model.find(str(folder)).network("unet", dtype=torch.float32, copied=True)
    adapt(unet, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for each in unet.parameters():
            if each.requires_grad:
                each.add_(0.02 * torch.randn_like(each))
    metadata = kohya_metadata(settings, "path/to/base", "sdxl", 4, settings.train.steps)
    write_adapter(out / "a.safetensors", trained_adapters(unet), MINI_SDXL, names, metadata)
    return unet, settings


def assert_same(ours: Callable[..., Tensor], theirs: Any, *, other: Tensor | None = None) -> None:
    latents, timesteps, embeds, pooled, time_ids = given = inputs(MINI_SDXL.unet, 8, 8)
    with torch.no_grad():
        expected = theirs(
            latents, timesteps, encoder_hidden_states=embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        ).sample  # fmt: skip
        found = ours(*given)
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1)
    assert other is None or (found - other).abs().max() > 1e-3, "the adapter changes something"


@pytest.mark.parametrize(("kind", "names"), [("lora", "kohya"), ("lora", "diffusers"), ("dora", "diffusers")])
@pytest.mark.parametrize("rslora", [False, True])
def test_diffusers_and_peft_compute_the_trained_unet(
    folder: Path, oracle: StableDiffusionXLPipeline, tmp_path: Path, kind: str, names: str, rslora: bool
) -> None:
    unet, _ = trained(folder, tmp_path, names, kind=kind, rslora=rslora)
    plain = Model.find(str(folder)).network("unet", dtype=torch.float32)
    with torch.no_grad():
        before = plain(*inputs(MINI_SDXL.unet, 8, 8))
    oracle.load_lora_weights(tmp_path, weight_name="a.safetensors")
    changed = [each for each in oracle.unet.modules() if hasattr(each, "get_delta_weight")]
    assert len(changed) == len(trained_adapters(unet))
    assert_same(unet, oracle.unet, other=before)


@pytest.fixture(scope="module")
def worded(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with CLIP's own vocabulary whose text encoders tell words apart."""
    folder = tmp_path_factory.mktemp("models") / "worded"
    save_folder(folder, ModelInfo(layout=TINY), worded_weights(TINY))
    return folder


def in_training(worded: Path, **given: Any) -> tuple[TextEncoders, Networks, FinetuneSettings]:
    """Text encoders and networks as far from the beginning as after a training."""
    model = Model.find(str(worded))
    settings = make_settings(None, {"data.path": "x", **given}, size=64)
    text = model.text_encoders(lambda part: model.network(part, dtype=torch.float32, copied=True))
    vectors = new_vectors(text, settings) if settings.token else {}
    unet: UNet = model.network("unet", dtype=torch.float32, copied=True)
    networks = Networks(unet, (text.encoder, text.encoder_2), vectors)
    prepare(networks, settings)
    torch.manual_seed(1)
    with torch.no_grad():
        for each in networks.parameters():
            if each.requires_grad:
                each.add_(0.1 * torch.randn_like(each))
    return text, networks, settings


def assert_same_text(
    networks: Networks, text: TextEncoders, oracle: Any, prompt: str, words: Any = ()
) -> None:
    with torch.no_grad():
        ours = networks.encode(text.tokenize([prompt], words), torch.float32)
        embeds, _, pooled, _ = oracle.encode_prompt(prompt, do_classifier_free_guidance=False)
    for mine, theirs in ((ours.embeds, embeds), (ours.pooled, pooled)):
        assert (mine - theirs).abs().max() <= 1e-4 * theirs.abs().max()


def adapters_of(networks: Networks) -> dict[Module, Trained]:
    return {
        module: each
        for part, network in networks.parts.items()
        for module, each in trained_adapters(network, part).items()
    }


@pytest.mark.parametrize("names", ["kohya", "diffusers"])
def test_diffusers_computes_the_trained_text_encoders(worded: Path, tmp_path: Path, names: str) -> None:
    text, networks, _ = in_training(worded, text_encoders=True, rank=3, alpha=4.5)
    adapters = adapters_of(networks)
    write_adapter(tmp_path / "a.safetensors", adapters, TINY, names, {})
    oracle = StableDiffusionXLPipeline.from_pretrained(worded, local_files_only=True)
    before, *_ = oracle.encode_prompt("a red cube", do_classifier_free_guidance=False)
    oracle.load_lora_weights(tmp_path, weight_name="a.safetensors")
    changed = [
        each for part in (oracle.unet, oracle.text_encoder, oracle.text_encoder_2)
        for each in part.modules() if hasattr(each, "get_delta_weight")
    ]  # fmt: skip
    assert len(changed) == len(adapters)
    assert_same_text(networks, text, oracle, "a red cube")
    after, *_ = oracle.encode_prompt("a red cube", do_classifier_free_guidance=False)
    assert (after - before).abs().max() > 1e-2, "the adapter changes something"
    latents, timesteps, embeds, pooled, time_ids = given = inputs(TINY.unet, 8, 8)
    with torch.no_grad():
        expected = oracle.unet(
            latents, timesteps, encoder_hidden_states=embeds,
            added_cond_kwargs={"text_embeds": pooled, "time_ids": time_ids},
        ).sample  # fmt: skip
        assert (networks.unet(*given) - expected).abs().max() <= 1e-4 * expected.abs().max()


def test_peft_computes_text_encoders_trained_with_dora(worded: Path, tmp_path: Path) -> None:
    """diffusers 0.42 with transformers 5 leaves the magnitudes of text encoders at their initial values."""
    text, networks, _ = in_training(worded, text_encoders=True, kind="dora", rank=3, alpha=4.5)
    write_adapter(tmp_path / "a.safetensors", adapters_of(networks), TINY, "diffusers", {})
    oracle = StableDiffusionXLPipeline.from_pretrained(worded, local_files_only=True)
    tensors = load_file(tmp_path / "a.safetensors")
    for part in ("text_encoder", "text_encoder_2"):
        encoder = getattr(oracle, part)
        prefixed = any(name.startswith("text_model.") for name, _ in encoder.named_modules())
        cut = f"{part}." if prefixed else f"{part}.text_model."  # transformers from version 5.6
        state = {
            name.removeprefix(cut): each for name, each in tensors.items() if name.startswith(f"{part}.")
        }
        targets = sorted({name.rpartition(".lora_")[0] for name in state})
        config = LoraConfig(r=3, lora_alpha=3, use_dora=True, target_modules=targets)
        inject_adapter_in_model(config, encoder)
        found = set_peft_model_state_dict(encoder, state)
        assert not found.unexpected_keys
    assert_same_text(networks, text, oracle, "a red cube")


@pytest.mark.parametrize("count", [1, 3])
def test_diffusers_computes_the_trained_word(worded: Path, tmp_path: Path, count: int) -> None:
    text, networks, settings = in_training(
        worded, method="textual-inversion", token="<my-cat>", vectors=count, init_word="cat"
    )
    path = tmp_path / settings.embedding_file
    write_embedding(path, networks.word, {})
    oracle = StableDiffusionXLPipeline.from_pretrained(worded, local_files_only=True)
    for name, encoder, tokenizer in (
        ("clip_l", oracle.text_encoder, oracle.tokenizer),
        ("clip_g", oracle.text_encoder_2, oracle.tokenizer_2),
    ):  # fmt: skip
        oracle.load_textual_inversion(
            load_file(path)[name], token="<my-cat>", text_encoder=encoder, tokenizer=tokenizer
        )
    assert_same_text(networks, text, oracle, "a photo of <my-cat> and a red cube", settings.words)


def test_lycoris_computes_the_trained_unet(
    folder: Path, oracle: StableDiffusionXLPipeline, tmp_path: Path
) -> None:
    unet, _ = trained(folder, tmp_path, "kohya", kind="loha", targets="all")
    tensors = load_file(tmp_path / "a.safetensors")
    for owner in trained_adapters(unet):
        name = kohya_name(owner, MINI_SDXL)
        roles = [tensors.get(f"{name}.{role}") for role in LohaModule.weight_list]
        layer = oracle.unet.get_submodule(owner.name)
        with torch.no_grad():
            adapter = LohaModule.make_module_from_state_dict(name, layer, *roles)
            # Its forward pass uses this; get_diff_weight of version 4.1 multiplies by the scale twice.
            layer.weight.add_(adapter.get_weight(layer.weight.shape))
    assert_same(unet, oracle.unet)


def test_kohyas_metadata_are_text_under_its_own_keys(folder: Path, tmp_path: Path) -> None:
    _, settings = trained(folder, tmp_path, "kohya", kind="lokr")
    with safe_open(tmp_path / "a.safetensors", "pt") as file:
        found = file.metadata()
    assert found["ss_network_module"] == "lycoris.kohya" and found["ss_network_args"] == '{"algo": "lokr"}'
    assert (found["ss_network_dim"], found["ss_network_alpha"]) == ("3", "4.5")
    assert found["ss_sd_model_name"] == "base" and found["ss_base_model_version"] == "sdxl_base_v1-0"
    assert found["ss_unet_lr"] == found["ss_learning_rate"] == str(settings.train.learning_rate)
    assert found["ss_v2"] == "False" and found["ss_max_grad_norm"] == "1.0"
    assert found["ss_gradient_checkpointing"] == "False" and found["ss_lr_warmup_steps"] == "0"
    assert set(found) - {"format"} <= set(KOHYA_KEYS)


KOHYA_KEYS = """
ss_network_module ss_network_dim ss_network_alpha ss_network_args ss_sd_model_name ss_base_model_version ss_v2
ss_learning_rate ss_unet_lr ss_text_encoder_lr ss_optimizer ss_max_train_steps ss_steps ss_lr_warmup_steps
ss_lr_scheduler ss_total_batch_size ss_batch_size_per_device ss_gradient_accumulation_steps
ss_gradient_checkpointing ss_max_grad_norm ss_num_train_images ss_num_reg_images ss_seed ss_min_snr_gamma
ss_debiased_estimation ss_noise_offset ss_prior_loss_weight ss_caption_dropout_rate ss_shuffle_caption
ss_keep_tokens ss_caption_tag_dropout_rate ss_flip_aug ss_zero_terminal_snr ss_resolution
ss_mixed_precision ss_full_fp16
""".split()
"""Of sd-scripts' ``train_network.py``; those of a dataset are in its subsets, too."""
