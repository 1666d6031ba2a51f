"""Small networks that enlarge images, in files."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from ssd1b.enlarging import import_spandrel

RADIUS = 5
"""Pixels around a pixel that ``write_compact``'s network reads: five convolutions of 3x3."""


def write_compact(
    path: Path, *, scale: int = 2, channels: int = 3, layers: int = 3, seed: int = 0, exact: bool = False
) -> Path:
    """Write a Real-ESRGAN Compact of random weights; ``exact`` only repeats pixels."""
    import_spandrel()
    from spandrel.architectures.Compact import Compact

    torch.manual_seed(seed)
    network = Compact(
        num_in_ch=channels, num_out_ch=channels, num_feat=8, num_conv=layers, upscale=scale, act_type="prelu"
    )
    tensors = {name: each.clone() for name, each in network.state_dict().items()}
    if exact:
        last = [name for name in tensors if tensors[name].ndim == 4][-1]
        for name in (last, last.replace("weight", "bias")):
            tensors[name].zero_()
    save_file(tensors, path)
    return path
