"""A model on disk, found by name and read network by network."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssd1b.adapters.merging import Changes, find_changes, merge
from ssd1b.errors import InputError
from ssd1b.few_steps import Recognised, recognise_model
from ssd1b.files import expand_path
from ssd1b.layouts import ModelLayout
from ssd1b.loras import Lora
from ssd1b.models.text import TextEncoder, TextEncoders
from ssd1b.models.tokenizer import CLIPTokenizer
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.recipe import MAX_NETWORK_BYTES, ModelIdentity, NetworkFile
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.weights import hub
from ssd1b.weights.checkpoint import SETTINGS_FILE, Checkpoint, Layout, ModelInfo
from ssd1b.weights.files import is_finite, json_text, read_json
from ssd1b.weights.loading import cast_weight, load_component, read_part
from ssd1b.weights.opening import open_checkpoint, with_network
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
        networks: files with networks that replace the model's own.
        loras: adapters that are merged into the weights.
    """

    name: str
    path: Path
    commit: str | None = None
    half: bool = False
    prediction: str | None = None
    networks: tuple[NetworkFile, ...] = ()
    loras: tuple[Lora, ...] = ()

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
        networks: Iterable[NetworkFile] = (),
    ) -> "Model":
        """Find a model, downloading it if it is not on disk.

        Args:
            name: a built-in name, an alias, a hub id, optionally with ``@revision``, a folder, or a file.
            offline: never use the network.
            half: see ``Model``.
            prediction: see ``Model``.
            token: send the user's token to the hub. False for a name from an untrusted file.
            paths: allow ``name`` to be a path. False for a name from an untrusted file.
            networks: see ``Model``. Only files with the recorded content are taken.

        Raises:
            InputError: there is no such model, or it cannot be downloaded; or a file of a network is missing
                or has changed.
        """
        found = hub.resolve(name, offline=offline, half=half, token=token, paths=paths)
        replaced = tuple(networks)
        for each in replaced:
            each.file.verified(most=MAX_NETWORK_BYTES)
        return cls(
            name=name, path=found.path, commit=found.commit, half=half, prediction=prediction,
            networks=replaced,
        )  # fmt: skip

    def with_loras(self, loras: Iterable[Lora]) -> "Model":
        """Return the same model with other adapters; files that are open stay so."""
        found = replace(self, loras=tuple(loras))
        for name in ("checkpoint", "info", "tokenizers"):
            if name in self.__dict__:
                found.__dict__[name] = self.__dict__[name]
        return found

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Description of the files, which may contain a single network only.

        Raises:
            InputError: see ``opening.open_checkpoint``.
        """
        found = open_checkpoint(self.path, half=self.half, prediction=self.prediction)
        for each in self.networks:
            found = with_network(found, each.network, Path(each.file.path), prediction=self.prediction)
        return found

    @cached_property
    def info(self) -> ModelInfo:
        """Everything but the weights: layout, family, noise schedule, recommended settings.

        A published few-step model whose files recommend nothing gets its kind's settings.

        Raises:
            InputError: networks are missing or do not fit together.
        """
        info = self.checkpoint.info
        return (
            info if info.settings or not self.few_steps else replace(info, settings=self.few_steps.settings)
        )

    @property
    def few_steps(self) -> Recognised | None:
        """The kind of few-step model that this is, by its weights or its name; None for others."""
        unet = self.checkpoint.unet
        return recognise_model(self.source, embeds_guidance=bool(unet and unet.guidance_embed_dim))

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
        """The model's entry in recipes, which have adapters among the settings."""
        return ModelIdentity(
            name=Path(self.source).name, source=self.source, revision=self.commit,
            layout=self.layout.name, prediction=self.prediction, networks=self.networks,
        )  # fmt: skip

    def digest(self, file_digest: Callable[[Path], str]) -> str:
        """Hash everything that decides what it computes: its files, ``networks``, and ``prediction``.

        The world that a model declares does not affect its images. Adapters are among the settings.

        Args:
            file_digest: returns the hash of a file's content, possibly cached.
        """
        inside = self.path.rglob("*") if self.path.is_dir() else [self.path]
        files = sorted(file for file in inside if file.is_file())
        digest = hashlib.sha256()
        for file in files:
            found = _without_world(file) if file.name == SETTINGS_FILE else None
            digest.update(f"{file.relative_to(self.path)} {found or file_digest(file)}\n".encode())
        for each in sorted(self.networks, key=lambda each: each.network):
            digest.update(f"{each.network} {each.file.sha256}\n".encode())
        if self.prediction is not None:
            digest.update(f"prediction {self.prediction}\n".encode())
        return digest.hexdigest()

    def version(self, part: str) -> list[tuple[str, int, int]]:
        """Identify the weights of one network without reading them, as the cache key of what is derived.

        Returns:
            Path, size and mtime of each file, and the hash of the adapters that change the network, if any.
        """
        files = sorted({stored.file for stored in self.checkpoint.part(part).tensors.values()})
        stamps = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in files]
        if not self.changes[part]:
            return stamps
        merged = [
            (each.file.sha256, each.unet if part == "unet" else each.text, *filter(None, [each.config]))
            for each in self.loras
        ]
        return [*stamps, (hashlib.sha256(repr(merged).encode()).hexdigest(), 0, 0)]

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
        adapters are merged here, before anything is packed, quantized or converted.

        Args:
            part: one of ``keymap.PARTS``.
            device: target device.
            dtype: number format to compute in; None keeps the files' own, see ``Part.dtype``.
            copied: see ``load_component``.

        Raises:
            InputError: there is no such network, its weights are damaged, or an adapter does not fit.
        """
        stored = self.checkpoint.part(part)
        network = empty_network(part, stored.layout)  # no memory is allocated before the files are checked
        load_component(
            network, self.checkpoint, part, dtype=dtype or stored.dtype, device=device, copied=copied
        )
        network.requires_grad_(False).eval()
        if changed := self.changes[part]:
            load_tensors(network, self.tensors(part, changed, device=device, dtype=dtype or stored.dtype))
        return network

    @cached_property
    def changes(self) -> dict[str, Changes]:
        """The changes that the adapters make to the tensors of each network, by ``keymap.PARTS``.

        Raises:
            InputError: a file has changed, is no adapter, or does not fit the model.
        """
        unchanged: dict[str, Changes] = {part: {} for part in NETWORKS}
        return unchanged | find_changes(self.loras, self.layout) if self.loras else unchanged

    def tensors(
        self, part: str, names: Collection[str], *, device: torch.device | str, dtype: torch.dtype
    ) -> Iterator[tuple[str, Tensor]]:
        """Read tensors of a network one by one, with the adapters merged in float32 and rounded once.

        Args:
            part: one of ``keymap.PARTS``.
            names: names of the tensors.
            device: target device.
            dtype: number format of the result.

        Yields:
            Name and tensor, which stays in the mapped file if nothing changes it and the formats agree.

        Raises:
            InputError: an adapter holds NaN or infinity, or a sum overflows in ``dtype``.
        """
        changes = self.changes[part]
        for name, stored in read_part(self.checkpoint, part, names=names).items():
            tensor = stored.to(device)  # first, since a GPU computes faster
            if name not in changes:
                yield name, cast_weight(tensor, dtype)
                continue
            merged = merge(name, tensor, changes[name]).to(dtype)
            if not is_finite(merged):
                raise InputError(f"{self.name}: {name} overflows in {dtype} with adapters; use bfloat16")
            yield name, merged

    def text_encoders(self, load: Callable[[str], Any]) -> TextEncoders:
        """Return both text encoders with their tokenizers.

        Args:
            load: returns a network by its part, such as ``network`` or a backend's method.
        """
        first, second = self.tokenizers
        encoder, encoder_2 = load("text_encoder"), load("text_encoder_2")
        return TextEncoders(encoder=encoder, encoder_2=encoder_2, tokenizer=first, tokenizer_2=second)


_BYTES_AT_ONCE = 2**28
"""Bytes of tensors that are loaded into a network at once."""


def load_tensors(network: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy tensors into a network, also into a fused, packed or quantized one, by their published names."""
    pending: dict[str, Tensor] = {}
    with torch.no_grad():
        for name, tensor in tensors:
            pending[name] = tensor
            if sum(each.nbytes for each in pending.values()) > _BYTES_AT_ONCE:
                network.load_state_dict(pending, strict=False)
                pending = {}
        network.load_state_dict(pending, strict=False)


def _without_world(file: Path) -> str | None:
    """SHA-256 of a model's own settings without the world; None if they declare none."""
    content = read_json(file)
    if "world" not in content:
        return None
    del content["world"]
    return hashlib.sha256(json_text(content).encode()).hexdigest()
