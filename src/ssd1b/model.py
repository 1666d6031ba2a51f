"""A model on disk, found by name and read network by network."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssd1b.files import expand_path
from ssd1b.layouts import ModelLayout
from ssd1b.models.text import TextEncoder, TextEncoders
from ssd1b.models.tokenizer import CLIPTokenizer
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.recipe import ModelIdentity
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.weights import hub
from ssd1b.weights.checkpoint import SETTINGS_FILE, Checkpoint, Layout, ModelInfo
from ssd1b.weights.files import json_text, read_json
from ssd1b.weights.loading import load_component
from ssd1b.weights.opening import open_checkpoint
from ssd1b.weights.vocabulary import load_tokenizers

NETWORKS: dict[str, Callable[[Any], nn.Module]] = {
    "unet": UNet,
    "vae": VAE,
    "text_encoder": TextEncoder,
    "text_encoder_2": TextEncoder,
}
"""The class of each of ``keymap.PARTS``, built from its layout."""


def empty_network(part: str, layout: Layout) -> nn.Module:
    """Build a network on the meta device: names and shapes without memory."""
    with torch.device("meta"):
        return NETWORKS[part](layout)


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model on disk, whose files are opened lazily.

    Attributes:
        name: the name given to ``find``.
        path: the folder or file.
        commit: the hub's commit; None for a model that is not from the hub.
        half: prefer a folder's fp16 files, for running in 16 bits.
        prediction: what the UNet predicts, "epsilon" or "v"; None takes it from the files.
    """

    name: str
    path: Path
    commit: str | None = None
    half: bool = False
    prediction: str | None = None

    @classmethod
    def find(
        cls,
        name: str = DEFAULT_MODEL,
        *,
        offline: bool = False,
        half: bool = False,
        prediction: str | None = None,
        token: bool = True,
        paths: bool = True,
    ) -> "Model":
        """Find a model, downloading it if it is not on disk.

        Args:
            name: a built-in name, an alias, a hub id, optionally with ``@revision``, a folder, or a file.
            offline: never use the network.
            half: see ``Model``.
            prediction: see ``Model``.
            token: send the user's token to the hub. False for a name from an untrusted file.
            paths: allow ``name`` to be a path. False for a name from an untrusted file.

        Raises:
            InputError: there is no such model, or it cannot be downloaded.
        """
        found = hub.resolve(name, offline=offline, half=half, token=token, paths=paths)
        return cls(name=name, path=found.path, commit=found.commit, half=half, prediction=prediction)

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Description of the files, which may contain a single network only.

        Raises:
            InputError: see ``opening.open_checkpoint``.
        """
        return open_checkpoint(self.path, half=self.half, prediction=self.prediction)

    @cached_property
    def info(self) -> ModelInfo:
        """Everything but the weights: layout, family, noise schedule, recommended settings.

        Raises:
            InputError: networks are missing or do not fit together.
        """
        return self.checkpoint.info

    @property
    def layout(self) -> ModelLayout:
        """The layouts of all networks; raises as ``info``."""
        return self.info.layout

    @cached_property
    def tokenizers(self) -> tuple[CLIPTokenizer, CLIPTokenizer]:
        """The tokenizers of both text encoders: the model's own, or CLIP's; raises as ``info``."""
        return load_tokenizers(self.info)

    @property
    def is_local(self) -> bool:
        """Whether the name is a path."""
        return self.path == Path(expand_path(self.name))

    @property
    def source(self) -> str:
        """The model's absolute path, or its name without the revision."""
        return str(self.path.resolve()) if self.is_local else self.name.partition("@")[0]

    @property
    def identity(self) -> ModelIdentity:
        """The model's entry in recipes. Adapters belong here, each with its source, hash and scale."""
        return ModelIdentity(
            name=Path(self.source).name, source=self.source, revision=self.commit,
            layout=self.layout.name, prediction=self.prediction,
        )  # fmt: skip

    def digest(self, file_digest: Callable[[Path], str]) -> str:
        """Hash everything that decides what the model computes: all its files, and ``prediction``.

        The world that a model declares does not affect its images. Adapters belong here, too.

        Args:
            file_digest: returns the hash of a file's content, possibly cached.
        """
        inside = self.path.rglob("*") if self.path.is_dir() else [self.path]
        files = sorted(file for file in inside if file.is_file())
        digest = hashlib.sha256()
        for file in files:
            found = _without_world(file) if file.name == SETTINGS_FILE else None
            digest.update(f"{file.relative_to(self.path)} {found or file_digest(file)}\n".encode())
        if self.prediction is not None:
            digest.update(f"prediction {self.prediction}\n".encode())
        return digest.hexdigest()

    def version(self, part: str) -> list[tuple[str, int, int]]:
        """Identify the weights of one network without reading them: path, size and mtime of each file.

        This is the cache key of everything derived from them. Adapters belong here, too.
        """
        files = sorted({stored.file for stored in self.checkpoint.part(part).tensors.values()})
        return [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]

    def network(
        self,
        part: str,
        *,
        device: torch.device | str = "cpu",
        dtype: torch.dtype | None = None,
        copied: bool = False,
    ) -> Any:
        """Read one network: its weights as published, frozen, in evaluation mode.

        All networks are created here: for training, inference, offloading, quantization and conversion. So
        this is where a LoRA should be merged: after ``load_component``, into the weights that it read,
        before anything is packed, quantized or converted.

        Args:
            part: one of ``keymap.PARTS``.
            device: target device.
            dtype: number format to compute in; None keeps the files' own, see ``Part.dtype``.
            copied: see ``load_component``.

        Raises:
            InputError: there is no such network, or its weights are damaged.
        """
        stored = self.checkpoint.part(part)
        network = empty_network(part, stored.layout)  # no memory is allocated before the files are checked
        load_component(
            network, self.checkpoint, part, dtype=dtype or stored.dtype, device=device, copied=copied
        )
        return network.requires_grad_(False).eval()

    def text_encoders(self, load: Callable[[str], Any]) -> TextEncoders:
        """Return both text encoders with their tokenizers.

        Args:
            load: returns a network by its part, such as ``network`` or a backend's method.
        """
        first, second = self.tokenizers
        encoder, encoder_2 = load("text_encoder"), load("text_encoder_2")
        return TextEncoders(encoder=encoder, encoder_2=encoder_2, tokenizer=first, tokenizer_2=second)


def _without_world(file: Path) -> str | None:
    """SHA-256 of a model's own settings without the world; None if they declare none."""
    content = read_json(file)
    if "world" not in content:
        return None
    del content["world"]
    return hashlib.sha256(json_text(content).encode()).hexdigest()
