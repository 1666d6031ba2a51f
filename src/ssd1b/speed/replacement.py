"""Replacement of a network's layers by faster ones that compute the same."""

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ssd1b.models.attention import GEGLU
from ssd1b.speed.folding import FoldedUpsample


def replace_layers(
    network: nn.Module, replacement: Callable[[nn.Module], nn.Module | None], keep: tuple[str, ...] = ()
) -> None:
    """Replace layers in place, one after the other, so that memory holds few of both.

    Args:
        network: the network, with its weights.
        replacement: makes the new layer; None keeps a layer and descends into its children.
        keep: names of layers that stay.
    """
    for name, child in list(network.named_children()):
        if name in keep or (isinstance(network, FoldedUpsample) and name == "conv"):
            continue  # a folded upsampling uses its ``conv`` only for rare sizes
        new = replacement(child)
        if new is None:
            replace_layers(child, replacement, keep)
        else:
            setattr(network, name, new.eval())


def replace_modules(network: nn.Module, other: nn.Module) -> None:
    """Make a network compute what another one of its class computes, which is not to be used any more."""
    names = ("_modules", "_parameters", "_buffers", "_compiled_call_impl")
    vars(network).update({name: vars(other)[name] for name in names if name in vars(other)})


def kernels_work(
    geglu: Callable[[Any], nn.Module],
    linear: Callable[[Any], nn.Module],
    conv: Callable[[Any], nn.Module],
    dtype: torch.dtype,
) -> bool:
    """Check that private operators of torch exist, and compute what the layers that they replace compute."""
    x = torch.linspace(-1, 2, 128, dtype=dtype).view(2, 4, 4, 4)
    with torch.random.fork_rng(devices=[]):  # loading must not disturb the caller's random state
        layers = [(geglu, GEGLU(4, 4)), (linear, nn.Linear(4, 4)), (conv, nn.Conv2d(4, 4, 3, padding=1))]
    try:
        for replacement, layer in layers:
            exact = layer.to(dtype).requires_grad_(False)
            fast = replacement(exact)
            for inputs in (x, x[:1]):  # the second shape makes convolutions repack their weights
                if not torch.allclose(fast(inputs), exact(inputs), rtol=0.05, atol=0.05):
                    return False
    except (AttributeError, RuntimeError):
        return False
    return True
