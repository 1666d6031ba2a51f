"""Compilation by torch's compiler, cached on disk; results differ by rounding only."""

import os

from torch import nn

from ssd1b.models.vae import VAE
from ssd1b.runtime import cache_folder

_OPTIONS: dict[str, dict[str, bool]] = {
    # A step launches thousands of kernels: replayed as one graph, none waits for Python.
    "cuda": {"triton.cudagraphs": True},
    # Freezing packs weights for oneDNN's kernels.
    "cpu": {"freezing": True},
}


def compile_network(network: nn.Module) -> None:
    """Compile a network, or a VAE's decoder, when it first runs, and again for each new input shape.

    torch caches compiled code on disk by the network's code and shapes, so later processes wait far less.

    Args:
        network: the network, on its device.
    """
    # torch's default cache folder does not survive a reboot.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    target = network.decoder if isinstance(network, VAE) else network
    device = next(network.parameters()).device.type
    target.compile(dynamic=False, options=_OPTIONS.get(device, {}))
