"""A trained adapter is the one that is applied from its file; oracles are PEFT's numbers and our merging."""

import pytest
import torch

from ssd1b.adapters.merging import find_changes, merge
from ssd1b.errors import FailedError, InputError
from ssd1b.finetune.layers import adapt, adapted_modules, trained_adapters
from ssd1b.finetune.settings import KINDS, TARGETS, make_settings
from ssd1b.finetune.writing import adapter_tensors, check_names, prove_saving, write_adapter
from ssd1b.inputs import InputFile
from ssd1b.loras import Lora
from ssd1b.models.unet import UNet
from tiny import TINY, inputs


def settings(**given):
    return make_settings(None, {"rank": 3, "alpha": 5.0, "data.path": "x", **given}, size=64)


def adapted(chosen, *, moved=True):
    torch.manual_seed(0)
    unet = UNet(TINY.unet)
    unet.eval()
    adapt(unet, chosen)
    if moved:
        torch.manual_seed(1)
        for each in unet.parameters():
            if each.requires_grad:
                each.data.add_(0.05 * torch.randn_like(each))
    return unet


def plain():
    torch.manual_seed(0)
    return UNet(TINY.unet).eval().requires_grad_(False)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rslora", [False, True])
def test_the_file_is_the_trained_network(tmp_path, kind, rslora):
    chosen = settings(kind=kind, rslora=rslora, targets="all")
    unet = adapted(chosen)
    write_adapter(tmp_path / "a.safetensors", trained_adapters(unet), TINY, "kohya", {})
    merged = plain()
    lora = Lora(file=InputFile.of(tmp_path / "a.safetensors", most=2**24))
    changes = find_changes([lora], TINY)["unet"]
    state = merged.state_dict()
    merged.load_state_dict(
        {name: merge(name, state[name], each) for name, each in changes.items()}, strict=False
    )
    given = inputs(TINY.unet, 8, 8)
    with torch.no_grad():
        ours, theirs, before = unet(*given), merged(*given), plain()(*given)
    assert (ours - theirs).abs().max() <= 1e-5
    assert (ours - before).abs().max() > 1e-3, "the adapter does something"


@pytest.mark.parametrize("kind", KINDS)
def test_an_untrained_adapter_changes_nothing_and_learns(kind):
    unet = adapted(settings(kind=kind), moved=False)
    given = inputs(TINY.unet, 8, 8)
    assert (unet(*given) - plain()(*given)).abs().max() <= 1e-5
    unet(*given).square().mean().backward()
    grads = [each.grad for each in unet.parameters() if each.requires_grad]
    assert any(each is not None and each.abs().max() > 0 for each in grads)
    assert all(each.grad is None for each in unet.parameters() if not each.requires_grad)


def test_diffusers_names_have_the_scale_in_the_product():
    unet = adapted(settings(targets="attention"))
    tensors = adapter_tensors(trained_adapters(unet), TINY, "diffusers")
    module, found = next(iter(trained_adapters(unet).items()))
    name = f"unet.{module.name}"
    product = tensors[f"{name}.lora_B.weight"] @ tensors[f"{name}.lora_A.weight"]
    torch.testing.assert_close(product, 5 / 3 * found.tensors["up"] @ found.tensors["down"])


def test_targets_grow_and_blocks_choose():
    unet = plain()
    counts = [len(adapted_modules(unet, settings(targets=each))) for each in TARGETS]
    assert counts == sorted(set(counts)) and counts[1] == 360, (
        "SSD-1B's attention, feed-forward and projections"
    )
    assert counts[2] > 423
    few = adapted_modules(unet, settings(blocks=("up_blocks.0.attentions.1",)))
    assert few and all(name.startswith("up_blocks.0.attentions.1.") for name in few)
    with pytest.raises(InputError, match=r"up_blocks\.9.*blocks are down_blocks\.1"):
        adapted_modules(unet, settings(blocks=("up_blocks.9",)))


def test_nan_is_never_saved(tmp_path):
    unet = adapted(settings())
    next(each for each in unet.parameters() if each.requires_grad).data.fill_(float("nan"))
    with pytest.raises(FailedError, match="NaN or infinite: not saved"):
        write_adapter(tmp_path / "a.safetensors", trained_adapters(unet), TINY, "kohya", {})
    assert not list(tmp_path.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("kind", "names"), [*((kind, "kohya") for kind in KINDS), ("lora", "diffusers"), ("dora", "diffusers")]
)
def test_saving_is_proven_before_training(tmp_path, kind, names):
    adapters = trained_adapters(adapted(settings(kind=kind), moved=False))
    prove_saving(tmp_path, adapters, TINY, names)
    assert not list(tmp_path.iterdir())


def test_mistakes_are_named(tmp_path):
    with pytest.raises(InputError, match="diffusers has no names for loha"):
        check_names(settings(kind="loha"), "diffusers")
    with pytest.raises(InputError, match="kind"):
        settings(kind="lorra")
    file = tmp_path / "run.toml"
    file.write_text("noise_offset = 0.5\nmethod = 'full'\n[train]\nsteps = 7\n[data]\npath = 'y'\n")
    made = make_settings(str(file), {"train.steps": 9, "data.path": None}, size=64)
    found = (made.noise_offset, made.train.steps, made.train.learning_rate, made.data.path)
    assert found == (0.5, 9, 1e-6, "y")
    file.write_text("rnak = 8\n[data]\npath = 'y'\n")
    with pytest.raises(InputError, match="rnak"):
        make_settings(str(file), {}, size=64)
