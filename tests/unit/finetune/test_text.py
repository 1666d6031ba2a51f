"""Text encoders that learn beside the UNet: gradients, files, rates, captions left out, kept prompts."""

from dataclasses import replace

import pytest
import torch

from ssd1b.adapters.matching import match
from ssd1b.adapters.reading import open_adapter
from ssd1b.errors import InputError
from ssd1b.finetune.layers import adapted_modules, trained_adapters
from ssd1b.finetune.networks import Networks, prepare
from ssd1b.finetune.prior import Preservation, loss_terms
from ssd1b.finetune.settings import KINDS, TEXT_TARGETS, make_settings
from ssd1b.finetune.writing import write_adapter
from ssd1b.inputs import InputFile
from ssd1b.loras import Lora
from ssd1b.model import Model
from ssd1b.models.text import TextEncoder
from ssd1b.training.batches import LatentBatch
from ssd1b.training.gradient_checkpointing import checkpoint_gradients
from ssd1b.training.objective import Objective
from ssd1b.training.optimizers import Optimizers
from ssd1b.training.precision import convert_frozen
from tiny import DRAWABLE

CAPTIONS = ["a red cube", "a green ball"]
OBJECTIVE = Objective(text=None, device="cpu", dtype=torch.float32)


def settings(**given):
    adapter = {} if "method" in given else {"rank": 3, "alpha": 5.0}
    return make_settings(None, {**adapter, "data.path": "x", "text_encoders": True, **given}, size=64)


def opened(worded_model):
    """The model's encoders with tokenizers, and its networks."""
    model = Model.find(str(worded_model))
    text = model.text_encoders(lambda part: model.network(part, dtype=torch.float32, copied=True))
    unet = model.network("unet", dtype=torch.float32, copied=True)
    return text, Networks(unet, (text.encoder, text.encoder_2), {})


def move(networks, amount=0.05):
    torch.manual_seed(1)
    for each in networks.parameters():
        if each.requires_grad:
            each.data.add_(amount * torch.randn_like(each))


def batch(text, *, has_caption=(True, True), seed=1):
    torch.manual_seed(seed)
    return LatentBatch(
        latents=torch.randn(2, 4, 8, 8),
        text=text.tokenize(CAPTIONS),
        time_ids=torch.tensor([[64.0, 64, 0, 0, 64, 64]] * 2),
        has_caption=torch.tensor(has_caption),
    )


def loss_of(networks, given, dtype=torch.float32):
    torch.manual_seed(2)
    return loss_terms(OBJECTIVE, networks.unet, networks.encoded(given, dtype), None, 1.0)["loss"]


def gradients(networks, part):
    return {name: each.grad for name, each in networks.parts[part].named_parameters() if each.requires_grad}


@pytest.mark.parametrize("kind", KINDS)
def test_the_file_gives_the_trained_encoders(worded_model, tmp_path, kind):
    text, networks = opened(worded_model)
    tokens = text.tokenize(CAPTIONS)
    before = text.encode(tokens)
    prepare(networks, settings(kind=kind))
    move(networks)
    adapters = {
        module: each for part in networks.parts
        for module, each in trained_adapters(networks.parts[part], part).items()
    }  # fmt: skip
    path = tmp_path / "a.safetensors"
    write_adapter(path, adapters, DRAWABLE, "kohya", {})
    assert not match(open_adapter(path), DRAWABLE).unmatched

    lora = Lora(file=InputFile.of(path, most=2**24))
    model = Model.find(str(worded_model)).with_loras([lora])
    merged = model.text_encoders(lambda part: model.network(part, dtype=torch.float32)).encode(tokens)
    ours = networks.encode(tokens, torch.float32)
    for trained, applied, plain in zip(ours, merged, before, strict=True):
        assert (trained - applied).abs().max() <= 1e-5 * applied.abs().max()
        assert (trained - plain).abs().max() > 1e-2


@pytest.mark.parametrize("kind", ["lora", "loha"])
def test_adapters_of_both_encoders_learn_and_nothing_else_does(worded_model, kind):
    text, networks = opened(worded_model)
    prepare(networks, settings(kind=kind))
    move(networks)
    loss_of(networks, batch(text)).backward()
    for part in ("text_encoder", "text_encoder_2"):
        found = gradients(networks, part)
        assert found and all("adapter" in name or "parametrizations" in name for name in found)
        assert all(each is not None and each.abs().max() > 0 for each in found.values()), part
    assert all(each.grad is None for each in networks.parameters() if not each.requires_grad)


def test_an_image_without_its_caption_teaches_the_encoders_nothing(worded_model):
    text, networks = opened(worded_model)
    prepare(networks, settings())
    move(networks)
    loss_of(networks, batch(text, has_caption=(False, False))).backward()
    for part in ("text_encoder", "text_encoder_2"):
        assert all(each is None or not each.any() for each in gradients(networks, part).values())
    assert any(each.any() for each in gradients(networks, "unet").values() if each is not None)
    networks.zero_grad()
    both = loss_of(networks, batch(text, has_caption=(True, False)))
    only = networks.encoded(batch(text), torch.float32)
    embeds, pooled = (part * torch.tensor([1.0, 0])[(...,) + (None,) * (part.ndim - 1)] for part in only.text)
    torch.manual_seed(2)
    zeros = replace_text(only, embeds, pooled)
    torch.testing.assert_close(both, loss_terms(OBJECTIVE, networks.unet, zeros, None, 1.0)["loss"])


def replace_text(given, embeds, pooled):
    return given._replace(text=type(given.text)(embeds, pooled))


def test_encoding_is_that_of_images_to_the_bit_and_embeddings_pass(worded_model):
    text, networks = opened(worded_model)
    given = batch(text)
    encoded = networks.encoded(given, torch.float32)
    for ours, theirs in zip(encoded.text, text.encode(given.text), strict=True):
        assert ours.equal(theirs)
    alone = Networks(networks.unet, None, {})
    assert alone.encoded(encoded, torch.float32) is encoded
    assert list(alone.parts) == ["unet"] and alone.text_encoders(text) is text


def test_16_bits_compute_nearly_the_same(worded_model):
    text, networks = opened(worded_model)
    prepare(networks, settings())
    move(networks)
    tokens = text.tokenize(CAPTIONS)
    exact = networks.encode(tokens, torch.float32)
    convert_frozen(networks, torch.bfloat16)
    rough = networks.encode(tokens, torch.bfloat16)
    drawn = networks.text_encoders(text).encode(tokens)  # as in a validation, without rounding the adapters
    for ours, expected, plain in zip(rough, exact, drawn, strict=True):
        assert ours.dtype == plain.dtype == torch.bfloat16
        assert (ours.float() - expected).abs().max() < 0.05 * expected.abs().max()
        assert ours.equal(plain)


def test_modules_are_those_of_other_trainers_but_for_a_layer_without_effect(worded_model):
    _, networks = opened(worded_model)
    layers = DRAWABLE.text_encoder.layers
    for part, used in (("text_encoder", layers - 1), ("text_encoder_2", DRAWABLE.text_encoder_2.layers)):
        for targets, ends in TEXT_TARGETS.items():
            found = adapted_modules(networks.parts[part], settings(targets=targets), part)
            assert len(found) == used * len(ends), (part, targets)
            assert all(name.startswith("text_model.encoder.layers.") for name in found)
    limited = settings(blocks=("up_blocks.0",))
    assert len(adapted_modules(networks.parts["text_encoder_2"], limited, "text_encoder_2")) == used * 6


def test_text_encoders_have_a_rate_of_their_own(worded_model):
    _, networks = opened(worded_model)
    chosen = settings(**{"train.text_rate": 0.25, "train.learning_rate": 0.5, "train.weight_decay": 0.0})
    prepare(networks, chosen)
    before = {name: each.detach().clone() for name, each in networks.named_parameters() if each.requires_grad}
    for each in networks.parameters():
        if each.requires_grad:
            each.grad = torch.ones_like(each)
    Optimizers(networks, chosen.train).step(1.0)  # Adam's first step has the length of its rate
    steps = {name: (dict(networks.named_parameters())[name] - each).abs() for name, each in before.items()}
    for name, each in steps.items():
        torch.testing.assert_close(each, torch.full_like(each, 0.5 if name.startswith("unet") else 0.25))
    with pytest.raises(InputError, match="text_rate is for text encoders: this training has none"):
        Optimizers(networks.unet, chosen.train)


def test_the_states_of_both_rates_are_restored(worded_model):
    _, networks = opened(worded_model)
    chosen = settings(**{"train.text_rate": 0.25})
    prepare(networks, chosen)
    first, second = (Optimizers(networks, chosen.train) for _ in range(2))
    for each in networks.parameters():
        if each.requires_grad:
            each.grad = torch.randn_like(each)
    first.step(1.0)
    second.load(first.state())
    assert first.state().keys() == second.state().keys()
    assert all(each.equal(second.state()[name]) for name, each in first.state().items())
    assert any(name.startswith("text_encoder_2.") for name in first.state())


def test_layers_are_recomputed_with_the_same_gradients(worded_model):
    text, networks = opened(worded_model)
    prepare(networks, settings())
    move(networks)
    loss_of(networks, batch(text)).backward()
    expected = {part: gradients(networks, part) for part in networks.parts}
    networks.zero_grad(set_to_none=True)
    checkpoint_gradients(networks)
    runs = []
    layer = networks.text_encoder_2.text_model.encoder["layers"][0].self_attn
    layer.register_forward_hook(lambda *_: runs.append(1))
    loss_of(networks, batch(text)).backward()
    assert len(runs) == 2
    for part, found in expected.items():
        again = gradients(networks, part)
        assert all(each.equal(again[name]) for name, each in found.items()), part


def test_kept_prompts_go_through_the_encoders_in_training(worded_model):
    text, networks = opened(worded_model)
    kept = text.tokenize(["a cube", "a ball", "a cone"])
    prompts = text.encode(kept)
    before = networks.unet
    prepare(networks, settings())

    def encode(drawn):
        return networks.encode([type(each)(*(part[drawn] for part in each)) for each in kept], torch.float32)

    def preserved():
        torch.manual_seed(3)
        given = networks.encoded(batch(text), torch.float32)
        kept_now = Preservation(type(prompts)(*(each.clone() for each in prompts)), before, encode)
        return loss_terms(OBJECTIVE, networks.unet, given, kept_now, 1.0)["preserved"]

    assert preserved() < 1e-10, "before the first step it is the same model"
    torch.manual_seed(1)
    for each in networks.text_encoder_2.parameters():
        if each.requires_grad:
            each.data.add_(0.2 * torch.randn_like(each))
    moved = preserved()
    assert moved > 1e-6, "a change of the text encoders alone is noticed"
    moved.backward()
    assert any(each.any() for each in gradients(networks, "text_encoder_2").values() if each is not None)


def test_full_trains_all_of_every_network(worded_model):
    _, networks = opened(worded_model)
    prepare(networks, settings(method="full"))
    assert all(each.requires_grad for each in networks.parameters())
    assert isinstance(networks.text_encoder, TextEncoder)


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"data.cache_captions": True}, "cache_captions is for frozen text encoders"),
        ({"method": "full", "train.fsdp": True}, "fsdp shards the UNet only: leave out text_encoders"),
        ({"train.text_rate": 2.0}, "text_rate"),
    ],
)
def test_settings_that_contradict_text_encoders_in_training_are_mistakes(given, error):
    with pytest.raises(InputError, match=error):
        settings(**given)


def test_captions_are_cached_only_for_frozen_encoders():
    assert not settings().data.cache_captions and settings(text_encoders=False).data.cache_captions
    assert settings().learns_text and not settings(text_encoders=False).learns_text
    assert replace(settings(text_encoders=False), rank=4).data.cache_captions
