"""Digests of named tensors, in which every bit counts."""

import hashlib
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor, nn

from ssd1b.models.vae import VAE


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


def digest_of_modules(modules: Iterable[nn.Module], text: str) -> str:
    """Return the digest of modules' state dicts and of a text, 16 hexadecimal digits long."""
    state = hashlib.blake2b(text.encode(), digest_size=8)
    for module in modules:
        state.update(digest_of_tensors(module.state_dict()))
    return state.hexdigest()


def digest_of_encoder(vae: VAE) -> str:
    """Return the digest of everything that decides a VAE's latents."""
    return digest_of_modules((vae.encoder, vae.quant_conv), repr(vae.layout))
