"""Networks through torch's compiler: the same up to rounding, after a wait that the disk remembers."""

import os

from torch import nn

from ssd1b.models.vae import VAE
from ssd1b.runtime import cache_folder

_OPTIONS: dict[str, dict[str, bool]] = {
    # A step is some thousand kernels: replayed as one graph, none waits for Python.
    "cuda": {"triton.cudagraphs": True},
    # Weights are packed for oneDNN's kernels as the network is compiled.
    "cpu": {"freezing": True},
}


def compile_network(network: nn.Module) -> None:
    """Have a network compiled when it first runs, and anew for each shape of what it is given.

    torch keeps what it compiled on disk, by the network's code and shapes: the next process waits a fraction.

    Args:
        network: with its weights, where it is to run; of a VAE it is the decoder.
    """
    # Where torch puts it by itself, the next start of the machine empties.
    os.environ.setdefault("TORCHINDUCTOR_CACHE_DIR", str(cache_folder() / "compiled"))
    target = network.decoder if isinstance(network, VAE) else network
    device = next(network.parameters()).device.type
    target.compile(dynamic=False, options=_OPTIONS.get(device, {}))
