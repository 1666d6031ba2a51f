"""A cache of latents and text embeddings on disk, addressed by content.

Each item is a file named by a digest of everything that decides its content. A changed image or caption has a
new name and is encoded again; equal ones are encoded once. Files are written atomically, so any number of
processes may fill a cache and be interrupted at any time.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from ssd1b.models.text import TextEncoders
from ssd1b.models.vae import VAE
from ssd1b.runtime import dtype_name
from ssd1b.saving import replacing
from ssd1b.training.digests import digest_of_encoder, digest_of_modules, digest_of_tensors

_CHECKSUM = "checksum"
"""Name of a tensor with the digest of the others; safetensors detects truncation, but no flipped bits."""


@dataclass(frozen=True, slots=True)
class Cache:
    """Named tensors by key, in a folder that is created by the first write."""

    folder: Path

    def path(self, key: str) -> Path:
        """Return the file of a key, in a subfolder for its first byte, which keeps folders small."""
        return self.folder / key[:2] / f"{key}.safetensors"

    def read(self, key: str) -> dict[str, Tensor] | None:
        """Read the tensors of a key; None if they are missing or damaged."""
        try:
            tensors = load(self.path(key).read_bytes())
        except (OSError, SafetensorError):
            return None
        checksum = tensors.pop(_CHECKSUM, None)
        return tensors if checksum is not None and checksum.equal(_checksum(tensors)) else None

    def write(self, key: str, tensors: Mapping[str, Tensor]) -> None:
        """Write the tensors of a key.

        This does not sync to disk, which would take longer than encoding; reading detects files that a power
        failure truncated.

        Raises:
            InputError: the disk refused.
        """
        tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        with replacing(self.path(key), durable=False) as aside:
            aside.write_bytes(save({**tensors, _CHECKSUM: _checksum(tensors)}))


def _checksum(tensors: Mapping[str, Tensor]) -> Tensor:
    return torch.tensor(list(digest_of_tensors(tensors)), dtype=torch.uint8)


def latents_cache(folder: Path, vae: VAE, dtype: torch.dtype) -> Cache:
    """Return the cache of a VAE's latents in a number format."""
    return Cache(folder / "latents" / f"{digest_of_encoder(vae)}-{dtype_name(dtype)}")


def masks_cache(folder: Path, cell: int) -> Cache:
    """Return the cache of masks, whose cells have sides of this many pixels."""
    return Cache(folder / "masks" / str(cell))


def controls_cache(folder: Path) -> Cache:
    """Return the cache of control images, at the size of their images."""
    return Cache(folder / "controls")


def texts_cache(folder: Path, text: TextEncoders, dtype: torch.dtype) -> Cache:
    """Return the cache of the embeddings of two text encoders, with their tokenizers, in a number format."""
    pairs = ((text.encoder, text.tokenizer), (text.encoder_2, text.tokenizer_2))
    what = repr([
        (encoder.layout, tokenizer.pad_token_id, sorted(tokenizer.vocabulary.items()))
        for encoder, tokenizer in pairs
    ])  # fmt: skip
    return Cache(folder / "texts" / f"{digest_of_modules([e for e, _ in pairs], what)}-{dtype_name(dtype)}")
