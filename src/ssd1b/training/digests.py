"""Digests of named tensors, in which every bit counts."""

import hashlib
from collections.abc import Mapping

import torch
from torch import Tensor


def digest_of_tensors(tensors: Mapping[str, Tensor], text: str = "") -> bytes:
    """Return the digest of names, number formats, shapes and bytes, 20 bytes long.

    Args:
        tensors: on any device.
        text: is included in the digest.
    """
    state = hashlib.blake2b(text.encode(), digest_size=20)
    for name, tensor in sorted(tensors.items()):
        state.update(f"{name} {tensor.dtype} {tuple(tensor.shape)};".encode())
        state.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return state.digest()
