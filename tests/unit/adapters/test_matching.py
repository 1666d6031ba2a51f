"""Every key of a file of every program finds its module, or a reason is given."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from adapter_files import (
    NAMES,
    UNET_ONLY,
    WITH_ALPHA,
    attention,
    delta,
    random_lora,
    write_lora,
    written,
)
from ssd1b.adapters.matching import carried_share, match
from ssd1b.adapters.merging import find_changes, merge
from ssd1b.adapters.names import PARTS, Module, dictionary, modules, shapes
from ssd1b.adapters.reading import open_adapter
from ssd1b.errors import ConflictError, InputError
from ssd1b.layer_map import LayerMap
from ssd1b.layouts import SDXL, SSD_1B, VEGA, ModelLayout, UNetLayout, model_layout
from ssd1b.loras import lora_of, read_lora
from tiny import TINY, tiny

LARGE = tiny(SDXL)


def everything(layout: ModelLayout, parts: tuple[str, ...] = PARTS) -> list[Module]:
    """All modules that have a matrix or a kernel and are not an embedding."""
    return [
        Module(part, name)
        for part in parts
        for name in modules(part, layout)
        if len(shapes(part, layout)[f"{name}.weight"]) > 1 and "_embedding" not in name
    ]


@pytest.mark.parametrize("dialect", NAMES)
def test_every_key_of_every_dialect_is_matched(dialect: str, tmp_path: Path) -> None:
    parts = ("unet",) if dialect in UNET_ONLY else PARTS
    chosen = everything(TINY, parts)
    if dialect in ("diffusers old", "diffusers 0.2x"):
        chosen = [module for part in parts for module in attention(TINY, part)]
    adapter = random_lora(TINY, chosen, alpha=3.0 if dialect in WITH_ALPHA else None)
    path = write_lora(tmp_path / "a.safetensors", adapter, TINY, dialect)
    found = match(open_adapter(path), TINY)
    assert found.unmatched == {} and found.through is None
    assert found.matched_keys == len(written(adapter, TINY, dialect))
    assert found.targets.keys() == set(chosen)
    changes = find_changes([lora_of(path, unet=0.5, text=2.0)], TINY)
    for module in chosen:
        name = f"{module.name}.weight"
        weight = torch.randn(shapes(module.part, TINY)[name])
        strength = 0.5 if module.part == "unet" else 2.0
        expected = weight + strength * delta(adapter[module], weight.shape)
        torch.testing.assert_close(merge(name, weight, changes[module.part][name]), expected)


def test_names_are_those_of_the_published_models() -> None:
    layout = model_layout("sdxl")
    table = dictionary(layout)
    for name, module in {
        "lora_unet_input_blocks_4_1_transformer_blocks_0_attn1_to_out_0":
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
        "lora_unet_output_blocks_2_2_conv": "up_blocks.0.upsamplers.0.conv",
        "lora_unet_middle_block_1_proj_in": "mid_block.attentions.0.proj_in",
        "lora_unet_label_emb_0_0": "add_embedding.linear_1",
        "lora_unet_input_blocks_0_0": "conv_in",
        "lora_unet_out_2": "conv_out",
        "lora_unet_up_blocks_0_upsamplers_0_conv": "up_blocks.0.upsamplers.0.conv",
        "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1.processor.to_out_lora":
            "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_out.0",
    }.items():  # fmt: skip
        assert table[name] == [Module("unet", module)]
    counts = {
        name: sum(
            "attentions" in each and ".norm" not in each for each in modules("unet", model_layout(name))
        )
        for name in ("sdxl", "ssd-1b", "vega")
    }
    assert counts == {"sdxl": 722, "ssd-1b": 360, "vega": 170}


def test_an_adapter_for_sdxl_goes_through_the_layer_map(tmp_path: Path) -> None:
    adapter = random_lora(LARGE, everything(LARGE))
    path = write_lora(tmp_path / "a.safetensors", adapter, LARGE)
    found = match(open_adapter(path), TINY)
    assert found.through == "sdxl"
    layer_map = LayerMap.between(TINY.unet, LARGE.unet)
    changes = find_changes([lora_of(path)], TINY)
    for module in everything(TINY):
        source = module
        if module.part == "unet":
            source = Module("unet", layer_map.keys[f"{module.name}.weight"].removesuffix(".weight"))
        weight = torch.zeros(shapes(module.part, TINY)[f"{module.name}.weight"])
        merged = merge("weight", weight, changes[module.part][f"{module.name}.weight"])
        torch.testing.assert_close(merged, delta(adapter[source], weight.shape))
    tenth = Module("unet", "down_blocks.2.attentions.0.transformer_blocks.3.attn1.to_q")
    assert found.targets[tenth].name.endswith("input_blocks_7_1_transformer_blocks_6_attn1_to_q")
    reasons = {*found.unmatched.values()}
    assert reasons == {"its block is removed in ssd-1b"}
    unet = [module for module in adapter if module.part == "unet"]
    kept = {Module("unet", layer_map.keys[f"{name}.weight"].removesuffix(".weight"))
            for _, name in everything(TINY, ("unet",))}  # fmt: skip
    energy = {module: float(delta(adapter[module], (len(adapter[module]["up"]), -1)).square().sum())
              for module in unet}  # fmt: skip
    share = sum(energy[module] for module in kept) / sum(energy.values())
    assert carried_share(found) == pytest.approx(share, rel=1e-5)


def test_an_adapter_for_the_model_itself_is_carried_as_a_whole(tmp_path: Path) -> None:
    path = write_lora(tmp_path / "a.safetensors", random_lora(TINY, attention(TINY)), TINY)
    found = match(open_adapter(path), TINY)
    assert found.through is None and carried_share(found) == 1


@pytest.mark.parametrize(
    ("of", "on", "through"),
    [(SSD_1B, SDXL, "ssd-1b"), (VEGA, SDXL, "vega"), (VEGA, SSD_1B, "vega"), (SSD_1B, VEGA, "ssd-1b")],
)
def test_an_adapter_for_a_student_goes_through_the_layer_maps(
    of: UNetLayout, on: UNetLayout, through: str, tmp_path: Path
) -> None:
    source, target = tiny(of), tiny(on)
    path = write_lora(tmp_path / "a.safetensors", random_lora(source, attention(source)), source)
    found = match(open_adapter(path), target)
    theirs, ours = (LayerMap.between(each.unet, LARGE.unet).keys for each in (source, target))
    shared = {theirs[f"{module.name}.weight"]: module for module in attention(source)}
    origins = {
        module: shared[place] for module in attention(target)
        if (place := ours[f"{module.name}.weight"]) in shared
    }  # fmt: skip
    assert found.through == through and found.origins == origins
    assert found.removed.keys() == {*shared.values()} - {*origins.values()}
    by_name = match(open_adapter(path), target, by_name=True)
    assert by_name.through is None and by_name.origins == {each: each for each in by_name.targets}


def test_reasons(tmp_path: Path) -> None:
    (query, key, value, out, *_) = attention(TINY)
    adapter = random_lora(TINY, [query, key, value, out])
    adapter[key]["down"] = adapter[key]["down"][:, :5]
    adapter[value]["diff_b"] = torch.zeros(16)
    path = tmp_path / "a.safetensors"
    tensors = written(adapter, TINY)
    tensors |= {"lora_unet_middle_block_7.alpha": torch.ones(()), "x.lora_up.weight": torch.ones(2, 2),
                "bundle_emb.cat.clip_l": torch.ones(2, 2), "y": torch.ones(2)}  # fmt: skip
    save_file(tensors, path)
    found = match(open_adapter(path), TINY)
    assert found.targets.keys() == {query, out}
    reasons = {*found.unmatched.values()}
    assert reasons == {
        "LoRA of up [16, 2], down [2, 5] does not fit [16, 16]", "its module has no bias",
        "without a weight", "unknown name", "a bundled embedding; see --embedding",
    } or reasons == {
        "LoRA of down [2, 5], up [16, 2] does not fit [16, 16]", "its module has no bias",
        "without a weight", "unknown name", "a bundled embedding; see --embedding",
    }  # fmt: skip
    assert len(found.unmatched) + found.matched_keys == len(tensors)


def test_peft_alphas_in_the_header(tmp_path: Path) -> None:
    modules = attention(TINY)
    adapter = random_lora(TINY, modules, alpha=None, rank=4)
    config = {"r": 4, "lora_alpha": 8, "alpha_pattern": {f"^{modules[0].name}": 2}, "use_rslora": False}
    header = {f"unet.{name}": value for name, value in config.items()}
    path = write_lora(tmp_path / "a.safetensors", adapter, TINY, "diffusers", lora_adapter_metadata=header)
    found = match(open_adapter(path), TINY)
    assert [found.targets[module].numbers["scale"] for module in modules[:2]] == [0.5, 2.0]
    header["unet.use_rslora"] = True
    path = write_lora(tmp_path / "a.safetensors", adapter, TINY, "diffusers", lora_adapter_metadata=header)
    found = match(open_adapter(path), TINY)
    assert [found.targets[module].numbers["scale"] for module in modules[:2]] == [1.0, 4.0]


def test_pefts_folder(tmp_path: Path) -> None:
    adapter = random_lora(TINY, attention(TINY), alpha=None, rank=4)
    path = write_lora(tmp_path / "adapter_model.safetensors", adapter, TINY, "PEFT")
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 8}')
    for given in (tmp_path, path):
        lora = lora_of(given)
        assert lora.config is not None and lora.name == tmp_path.name and lora == read_lora(str(lora))
        changes = find_changes([lora], TINY)["unet"]
        assert {change.weights.numbers["scale"] for each in changes.values() for change in each} == {2.0}
    assert lora_of(path).file == lora.file
    (tmp_path / "adapter_config.json").write_text('{"r": 4, "lora_alpha": 4}')
    assert lora_of(path) != lora
    with pytest.raises(ConflictError, match=r"adapter_config\.json has changed"):
        find_changes([lora], TINY)


def test_a_file_with_two_spellings_changes_a_module_once(tmp_path: Path) -> None:
    adapter = random_lora(TINY, attention(TINY))
    path = tmp_path / "a.safetensors"
    both = written(adapter, TINY) | written(adapter, TINY, "kohya with diffusers' names")
    save_file({name: tensor.clone() for name, tensor in both.items()}, path)
    changes = find_changes([lora_of(path)], TINY)
    assert {len(each) for each in changes["unet"].values()} == {1}


KEY = "lora_unet_input_blocks_4_1_transformer_blocks_0_attn2_to_k"

HOSTILE = {
    "a checkpoint": (
        {"model.diffusion_model.input_blocks.0.0.weight": (4, 4)}, "not an adapter but a checkpoint"
    ),
    "a ControlNet": ({"control_model.input_blocks.0.0.weight": (4, 4)}, "not an adapter but a ControlNet"),
    "an embedding": ({"clip_l": (2, 16), "clip_g": (2, 24)}, "not an adapter but an embedding"),
    "nothing": ({}, "not an adapter: it has no tensors"),
    "a wrong shape": (
        {"x.alpha": (2,), "x.lora_up.weight": (4, 2), "x.lora_down.weight": (2, 4)},
        r"not an adapter: x\.alpha: alpha has the shape \[2\]: it must be one number",
    ),
    "something": ({"x": (2,)}, "not an adapter: x: unknown name"),
    "Stable Diffusion 1": (
        {f"{KEY}.lora_down.weight": (2, 768), f"{KEY}.lora_up.weight": (16, 2)},
        "for a Stable Diffusion 1 model: it takes text of 768 channels, and this model's has 40",
    ),
    "Flux": (
        {"lora_unet_double_blocks_0_img_attn_qkv.lora_up.weight": (2, 2)},
        "an adapter for a Flux model; only SDXL's family is supported",
    ),
    "Stable Diffusion 3": (
        {"transformer.transformer_blocks.0.attn.to_q.lora_A.weight": (2, 2)},
        "an adapter for a Stable Diffusion 3 model",
    ),
    "other shapes": (
        {f"{KEY}.lora_down.weight": (2, 40), f"{KEY}.lora_up.weight": (17, 2)},
        r"it fits no module of this model: .*does not fit \[16, 40\]",
    ),
    "half a pair": ({f"{KEY}.lora_down.weight": (2, 40)}, r"LoRA of down \[2, 40\] does not fit \[16, 40\]"),
    "an alpha of several numbers": (
        {f"{KEY}.lora_down.weight": (2, 40), f"{KEY}.lora_up.weight": (16, 2), f"{KEY}.alpha": (2,)},
        r"alpha has the shape \[2\]",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE)
def test_files_that_are_no_adapter_of_the_family(name: str, tmp_path: Path) -> None:
    tensors, message = HOSTILE[name]
    path = tmp_path / "a.safetensors"
    save_file({key: torch.ones(shape) for key, shape in tensors.items()}, path)
    with pytest.raises(InputError, match=message) as error:
        find_changes([lora_of(path)], TINY)
    assert "\n" not in str(error.value)


def test_damaged_files(tmp_path: Path) -> None:
    adapter = random_lora(TINY, attention(TINY))
    path = write_lora(tmp_path / "a.safetensors", adapter, TINY)
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(InputError, match="damaged safetensors"):
        find_changes([lora_of(path)], TINY)
    path.write_bytes(b"PK\x03\x04...")
    with pytest.raises(InputError, match="pickle"):
        find_changes([lora_of(path)], TINY)
    module = attention(TINY)[0]
    adapter[module]["up"][0, 0] = torch.nan
    lora = lora_of(write_lora(path, adapter, TINY))
    name = f"{module.name}.weight"
    changes = find_changes([lora], TINY)["unet"][name]
    with pytest.raises(InputError, match=r"a\.safetensors: .*lora_up\.weight holds NaN or infinity"):
        merge(name, torch.zeros(16, 16), changes)
    write_lora(path, random_lora(TINY, attention(TINY), seed=7), TINY)
    with pytest.raises(InputError, match="has changed"):
        find_changes([lora], TINY)


def test_a_lora_of_an_own_student_is_matched_to_itself(tmp_path: Path) -> None:
    level = replace(TINY.unet.levels[2], down=(3, 2))
    own = replace(TINY, unet=replace(TINY.unet, levels=(*TINY.unet.levels[:2], level)))
    path = write_lora(tmp_path / "a.safetensors", random_lora(own, everything(own)), own)
    found = match(open_adapter(path), own)
    assert found.through is None and found.unmatched == {}
    assert SSD_1B.levels[2].down == (4, 4)
