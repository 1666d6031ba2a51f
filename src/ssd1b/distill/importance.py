"""The importance of transformer blocks, and layouts that keep the most important ones."""

from collections.abc import Generator, Iterable, Mapping, Sized
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ssd1b.errors import InputError
from ssd1b.layer_map import parameters, shapes, transformers
from ssd1b.layouts import Level, UNetLayout
from ssd1b.models.attention import TransformerBlock
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import UNetInputs
from ssd1b.progress import progress_bar

BLOCKS = "transformer_blocks"
_MIDDLE = "mid_block.attentions.0"


@torch.inference_mode()
def block_importance(unet: UNet, examples: Iterable[UNetInputs]) -> dict[str, float]:
    """Measure the mean squared change of the output without each block, relative to its mean square.

    This is the criterion of LAPTOP-Diff (2404.11098, section 3.2). The changes of several blocks nearly add
    up, so blocks can be measured one at a time.

    Args:
        unet: the teacher.
        examples: noised latents with their conditioning, on the network's device.

    Returns:
        The importance of each block by its name, as ``mid_block.attentions.0.transformer_blocks.3``.

    Raises:
        InputError: there are no examples.
    """
    names = [name for name, module in unet.named_modules() if isinstance(module, TransformerBlock)]
    sums, count = dict.fromkeys(names, 0.0), 0
    for inputs in examples:
        count += 1
        expected = unet(*inputs).float()
        for name in progress_bar(names, label="importance", unit="block"):
            with _skipped(unet.get_submodule(name)):
                change = unet(*inputs).float() - expected
            sums[name] += float(change.square().mean() / expected.square().mean())
    if not count:
        raise InputError("importance cannot be measured: there are no examples")
    return {name: total / count for name, total in sums.items()}


def fit_layout(
    teacher: UNetLayout, importance: Mapping[str, float], share: float
) -> tuple[UNetLayout, dict[str, tuple[int, ...]]]:
    """Find a layout with at most a share of the teacher's parameters.

    Blocks are removed in the order of their importance per parameter until the rest fits. Every transformer
    keeps at least one block, but the middle block, as in SSD-1B, may lose all of them and its second resnet.

    diffusers' configuration has one number for the depths of the middle block and of the first transformer
    before it. Every depth that both can have, and a middle block without any, is tried; the layout that keeps
    the most importance wins.

    Args:
        teacher: layout of the larger UNet.
        importance: of each of its blocks, see ``block_importance``.
        share: of the parameters, above 0 and below 1.

    Returns:
        The layout, and the kept blocks of each transformer.

    Raises:
        InputError: removing transformer blocks cannot make the teacher so small.
    """
    if not 0 < share < 1:
        raise InputError(f"the share of parameters must lie between 0 and 1, got {share:g}")
    # A middle block without transformer blocks also loses its second resnet.
    whole, without_middle = parameters(teacher), parameters(replace(teacher, mid=teacher.mid and 0))
    budget = share * whole
    cost = _block_parameters(teacher)
    ranked = {
        name: sorted(range(depth), key=lambda block, name=name: -importance[f"{name}.{BLOCKS}.{block}"])
        for name, depth in transformers(teacher).items()
    }

    def shortened(depths: Mapping[str, int]) -> tuple[dict[str, list[int]], int]:
        """Return the kept blocks and the size, if these depths are fixed and others are shortened."""
        kept = {name: blocks[: depths.get(name)] for name, blocks in ranked.items()}
        left = without_middle if depths.get(_MIDDLE) == 0 else whole
        left -= sum(cost[name] * (len(ranked[name]) - len(each)) for name, each in kept.items() if each)
        spare = [(name, block) for name in kept if name not in depths for block in kept[name][1:]]
        for name, block in sorted(
            spare, key=lambda each: importance[f"{each[0]}.{BLOCKS}.{each[1]}"] / cost[each[0]]
        ):
            if left <= budget:
                break
            kept[name].remove(block)
            left -= cost[name]
        return kept, left

    found = [shortened(depths) for depths in _middles(teacher)]
    least = min(size for _, size in found)
    if least > budget:
        raise InputError(
            f"a budget of {budget:,.0f} parameters cannot be kept: "
            f"with the fewest possible transformer blocks, {least:,} are left"
        )

    def worth(kept: Mapping[str, list[int]]) -> float:
        return sum(
            importance[f"{name}.{BLOCKS}.{block}"] for name, blocks in kept.items() for block in blocks
        )

    best = max((kept for kept, size in found if size <= budget), key=worth)
    return _with_depths(teacher, best), {name: tuple(sorted(kept)) for name, kept in best.items() if kept}


def _middles(layout: UNetLayout) -> list[dict[str, int]]:
    """Return the possible depths of the middle block, with the depth of the transformer before it."""
    depths = transformers(layout)
    if _MIDDLE not in depths:
        return [{}]
    before = f"down_blocks.{len(layout.levels) - 1}.attentions.0"
    tied = [name for name in (_MIDDLE, before) if name in depths]
    alike = range(1, min(depths[name] for name in tied) + 1)
    return [{_MIDDLE: 0}, *(dict.fromkeys(tied, depth) for depth in alike)]


@contextmanager
def _skipped(block: nn.Module) -> Generator[None, None, None]:
    def instead(module: nn.Module, given: Any, output: Tensor) -> Tensor:
        return given[0]

    handle = block.register_forward_hook(instead)
    try:
        yield
    finally:
        handle.remove()


def _block_parameters(layout: UNetLayout) -> dict[str, int]:
    """Return the number of parameters of one block of each transformer, by the transformer's name."""
    return {
        name: sum(
            shape.numel() for key, shape in shapes(layout).items() if key.startswith(f"{name}.{BLOCKS}.0.")
        )
        for name in transformers(layout)
    }


def _with_depths(layout: UNetLayout, kept: Mapping[str, Sized]) -> UNetLayout:
    """Return the layout with the depths of the kept blocks."""
    depths = {name: len(blocks) for name, blocks in kept.items()}
    last = len(layout.levels) - 1

    def changed(index: int, level: Level) -> Level:
        return replace(
            level,
            down=_each(level.down, f"down_blocks.{index}", depths),
            up=_each(level.up, f"up_blocks.{last - index}", depths),
        )

    levels = tuple(changed(index, level) for index, level in enumerate(layout.levels))
    return replace(layout, levels=levels, mid=depths.get(_MIDDLE, layout.mid))


def _each(before: tuple[int, ...], block: str, depths: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(depths.get(f"{block}.attentions.{index}", depth) for index, depth in enumerate(before))
