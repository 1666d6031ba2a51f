"""Merging some rows at a time gives what merging a whole tensor at once gives."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssd1b.adapters import merging
from ssd1b.adapters.kinds import weight_change
from ssd1b.adapters.merging import Change, find_changes, merge
from ssd1b.adapters.names import shapes
from ssd1b.errors import InputError
from ssd1b.loras import lora_of
from ssd1b.speed.int8_cpu import _quantize_by_row
from tiny import TINY

NAME = "down_blocks.1.attentions.0.transformer_blocks.0.ff.net.0.proj"
LINEAR = shapes("unet", TINY)[f"{NAME}.weight"]
RANK = 3

KINDS = {
    "LoRA": {"lora_up.weight": (LINEAR[0], RANK), "lora_down.weight": (RANK, LINEAR[1])},
    "DoRA": {
        "lora_up.weight": (LINEAR[0], RANK),
        "lora_down.weight": (RANK, LINEAR[1]),
        "dora_scale": (1, LINEAR[1]),
    },
    "LoHa": {
        "hada_w1_a": (LINEAR[0], RANK), "hada_w1_b": (RANK, LINEAR[1]),
        "hada_w2_a": (LINEAR[0], RANK), "hada_w2_b": (RANK, LINEAR[1]),
    },
    "difference": {"diff": LINEAR},
    "replacement": {"set_weight": LINEAR},
    "OFT": {"oft_blocks": (LINEAR[0] // 4, 4, 4)},
}  # fmt: skip


def changes_of(folder: Path, *kinds: str) -> list[Change]:
    """Changes of one linear layer by files of these kinds, with different strengths."""
    loras = []
    for seed, kind in enumerate(kinds):
        generator = torch.Generator().manual_seed(seed)
        tensors = {
            f"lycoris_{NAME.replace('.', '_')}.{role}": 0.1 * torch.randn(shape, generator=generator)
            for role, shape in KINDS[kind].items()
        }
        tensors[f"lycoris_{NAME.replace('.', '_')}.alpha"] = torch.tensor(2.0)
        path = folder / f"{seed}.safetensors"
        save_file(tensors, path)
        loras.append(lora_of(path, unet=0.7 - seed))
    return list(find_changes(loras, TINY)["unet"][f"{NAME}.weight"])


def at_once(weight: Tensor, changes: list[Change], dtype: torch.dtype) -> Tensor:
    """The sum of the original and all changes in float32, rounded once."""
    original = weight.float()
    total = original.clone()
    for each in changes:
        tensors, numbers = each.adapter.tensors(each.weights), each.weights.numbers
        total.add_(weight_change(each.weights.kind, original, tensors, numbers), alpha=each.strength)
    return total.to(dtype)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "kinds", [*((kind,) for kind in KINDS), ("LoRA", "LoRA"), ("LoHa", "difference", "LoRA"), ("LoRA", "OFT")]
)
def test_blocks_of_rows_give_what_the_whole_tensor_gives(
    kinds: tuple[str, ...], dtype: torch.dtype, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight = torch.randn(LINEAR, generator=torch.Generator().manual_seed(9)).to(torch.float16)
    changes = changes_of(tmp_path, *kinds)
    monkeypatch.setattr(merging, "_BLOCK", 3 * LINEAR[1])
    blocks = len(list(merging._blocks(f"{NAME}.weight", weight, changes)))
    assert blocks == (1 if {"DoRA", "OFT"} & {*kinds} else -(-LINEAR[0] // 3))
    merged = merge(f"{NAME}.weight", weight, changes, dtype)
    assert merged.dtype == dtype and not torch.equal(merged, weight.to(dtype))
    # Some processors multiply a few rows by another kernel than many, which adds in another order.
    whole = at_once(weight, changes, dtype)
    torch.testing.assert_close(merged, whole, rtol=max(1e-6, torch.finfo(dtype).eps), atol=1e-6)
    assert torch.equal(merged, merge(f"{NAME}.weight", weight, changes, dtype)), "the same bits every time"


def test_a_sum_that_overflows_is_reported_in_any_block(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    changes = changes_of(tmp_path, "LoRA")
    monkeypatch.setattr(merging, "_BLOCK", 1)
    weight = torch.zeros(LINEAR)
    weight[-1, -1] = 1e6
    assert merge(f"{NAME}.weight", weight, changes, torch.bfloat16).isfinite().all()
    with pytest.raises(InputError, match=r"0\.safetensors: .*overflows in torch\.float16 with it; use bf"):
        merge(f"{NAME}.weight", weight, changes, torch.float16)
    weight[-1, -1] = torch.inf
    with pytest.raises(InputError, match="becomes NaN or infinite with it"):
        merge(f"{NAME}.weight", weight, changes, torch.bfloat16)


@pytest.mark.parametrize("shape", [(7, 300_000), (5, 3, 3, 3)])
def test_int8_by_blocks_of_rows_has_the_bits_of_the_whole(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    weight[1] = 0
    scales = weight.flatten(1).abs().amax(dim=1).clamp(min=torch.finfo(torch.float32).tiny) / 127
    by_row = scales.view(-1, *[1] * (weight.ndim - 1))
    values, found = _quantize_by_row(weight)
    assert torch.equal(found, scales)
    assert torch.equal(values, (weight / by_row).round().to(torch.int8))
