"""What named tensors are known by: a digest in which every bit of them counts."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest_of_tensors(tensors: Mapping[str, Tensor], said: str = "") -> bytes:
    """Digest names, number formats, shapes and bytes, 20 bytes long.

    Args:
        tensors: on any device.
        said: a text that is to be counted with them.
    """
    state = hashlib.blake2b(said.encode(), digest_size=20)
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.digest()
