"""A model on disk, found by name and read network by network."""

import hashlib
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssd1b.adapters.merging import Changes, find_changes, merge
from ssd1b.errors import InputError
from ssd1b.few_steps import Recognised, metadata_of, recognise_model
from ssd1b.files import expand_path
from ssd1b.layouts import ModelLayout
from ssd1b.loras import Lora, lora_of
from ssd1b.models.text import TextEncoder, TextEncoders
from ssd1b.models.tokenizer import CLIPTokenizer
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.recipe import ModelIdentity, NetworkFile
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.weights import hub
from ssd1b.weights.checkpoint import SETTINGS_FILE, Checkpoint, Layout, ModelInfo
from ssd1b.weights.files import json_text, read_json
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
        own: adapters that belong to the model, see ``hub.LORAS``; those of ``loras`` come on top.
        loras: adapters that are merged into the weights.
    """

    name: str
    path: Path
    commit: str | None = None
    half: bool = False
    prediction: str | None = None
    networks: tuple[NetworkFile, ...] = ()
    own: tuple[Lora, ...] = ()
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
        is_lora = name in hub.LORAS and found.path == hub.BUILT_IN[name]  # and not a path of that name
        replaced = tuple(networks)
        for each in replaced:
            for file, most in each.files.items():
                file.verified(most=most)
        return cls(
            name=name, path=found.path, commit=found.commit, half=half, prediction=prediction,
            networks=replaced, own=(lora_of(hub.LORAS[name]),) if is_lora else (),
        )  # fmt: skip

    def with_loras(self, loras: Iterable[Lora]) -> "Model":
        """Return the same model with other adapters; files that are open stay so."""
        found = replace(self, loras=tuple(loras))
        for name in ("checkpoint", "info", "tokenizers"):
            if name in self.__dict__:
                found.__dict__[name] = self.__dict__[name]
        return found

    def with_zero_snr(self) -> "Model":
        """Return the same model with a schedule that ends in pure noise (2305.08891, algorithm 1).

        Raises:
            InputError: it predicts the noise, from which nothing is learned where nothing else is left.
        """
        if self.info.noise_schedule.prediction_type != "v_prediction":
            raise InputError(
                f"zero_terminal_snr needs a model that predicts v; {self.name} predicts the noise: if that "
                "is wrong, --prediction v"
            )
        scheduler = {**self.info.scheduler, "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
        found = self.with_loras(self.loras)
        found.__dict__["info"] = replace(self.info, scheduler=scheduler)
        return found

    @cached_property
    def checkpoint(self) -> Checkpoint:
        """Description of the files, which may contain a single network only.

        Raises:
            InputError: see ``opening.open_checkpoint``.
        """
        found = open_checkpoint(self.path, half=self.half, prediction=self.prediction)
        for each in self.networks:
            found = with_network(
                found, each.network, Path(each.file.path), prediction=self.prediction,
                config=None if each.config is None else Path(each.config.path),
            )  # fmt: skip
        return found

    @cached_property
    def info(self) -> ModelInfo:
        """Everything but the weights: layout, family, noise schedule, recommended settings.

        A few-step model whose files recommend nothing, or whose UNet comes from elsewhere, gets the settings
        that its UNet was made for.

        Raises:
            InputError: networks are missing or do not fit together.
        """
        info = self.checkpoint.info
        found = self.few_steps
        if found is None:
            return info
        keeps = info.settings and not self.own and self._other_unet is None
        return replace(info, few_steps=found.kind.name, settings=info.settings if keeps else found.settings)

    @cached_property
    def few_steps(self) -> Recognised | None:
        """The kind of few-step model that this is, by its UNet's weights, files or name; None for others."""
        unet, stored = self.checkpoint.unet, self.checkpoint.parts.get("unet")
        files = sorted({str(each.file) for each in stored.tensors.values()}) if stored else []
        name = self.source if self.own else self._other_unet or self.source
        return recognise_model(
            name, embeds_guidance=bool(unet and unet.guidance_embed_dim),
            few_steps=self.checkpoint.few_steps, settings=self.checkpoint.settings,
            metadata=metadata_of(files[0]) if files else {},
        )  # fmt: skip

    @property
    def _other_unet(self) -> str | None:
        """Path of the UNet that replaces the model's own, if one does."""
        return next((each.file.path for each in self.networks if each.network == "unet"), None)

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
        for lora in self.own:
            digest.update(f"lora {lora.file.sha256}\n".encode())
        for each in sorted(self.networks, key=lambda each: each.network):
            digest.update(f"{each.network} {' '.join(file.sha256 for file in each.files)}\n".encode())
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
            for each in (*self.own, *self.loras)
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
        """The changes that all adapters make to the tensors of each network, by ``keymap.PARTS``.

        Raises:
            InputError: a file has changed, is no adapter, or does not fit the model.
        """
        unchanged: dict[str, Changes] = {part: {} for part in NETWORKS}
        merged = (*self.own, *self.loras)
        return unchanged | find_changes(merged, self.layout) if merged else unchanged

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
            Name and tensor, those of a module's layers one after the other. A tensor stays in the mapped file
            if nothing changes it and the formats agree.

        Raises:
            InputError: an adapter holds NaN or infinity, or a sum overflows in ``dtype``.
        """
        changes = self.changes[part]
        stored = read_part(self.checkpoint, part, names=names)
        for name in sorted(stored, key=_owner):
            tensor = stored.pop(name).to(device)  # first, since a GPU computes faster
            if name in changes:
                yield name, merge(name, tensor, changes[name], dtype)
            else:
                yield name, cast_weight(tensor, dtype)

    def text_encoders(self, load: Callable[[str], Any]) -> TextEncoders:
        """Return both text encoders with their tokenizers.

        Args:
            load: returns a network by its part, such as ``network`` or a backend's method.
        """
        first, second = self.tokenizers
        encoder, encoder_2 = load("text_encoder"), load("text_encoder_2")
        return TextEncoders(encoder=encoder, encoder_2=encoder_2, tokenizer=first, tokenizer_2=second)


def load_tensors(network: nn.Module, tensors: Iterable[tuple[str, Tensor]]) -> None:
    """Copy tensors into a network, also into a fused, packed or quantized one, by their published names.

    They are loaded module by module, so that each is prepared while the cache has it, and memory holds few.

    Args:
        network: the network.
        tensors: by name, in the order of ``Model.tensors``.
    """
    with torch.no_grad():
        for owner, group in groupby(tensors, key=lambda each: _owner(each[0])):
            state = {name.removeprefix(f"{owner}."): tensor for name, tensor in group}
            network.get_submodule(owner).load_state_dict(state, strict=False)


def _owner(name: str) -> str:
    """Name the module of a tensor's layer. One that fuses its layers needs all of their tensors at once."""
    return ".".join(name.split(".")[:-2])


def _without_world(file: Path) -> str | None:
    """SHA-256 of a model's own settings without the world; None if they declare none."""
    content = read_json(file)
    if "world" not in content:
        return None
    del content["world"]
    return hashlib.sha256(json_text(content).encode()).hexdigest()
