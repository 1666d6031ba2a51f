"""Reading files of adapters: the tensors of each module by role, in the suffixes of every program.

Only the header and single numbers are read; tensors are read when they are merged. safetensors only.

Sources as in ``names``; LyCORIS ``modules/*.py`` for the names of its tensors.
"""

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ssd1b.adapters.kinds import Numbers, kind_of, rank_of
from ssd1b.errors import InputError
from ssd1b.files import named, reason
from ssd1b.weights.files import (
    FLOATS,
    Header,
    Shape,
    first_few,
    is_finite,
    open_file,
    parse_json,
    read_header,
    read_json,
)
from ssd1b.weights.other_models import other_model_kind

_SUFFIXES: dict[str, str] = {
    "lora_down.weight": "down", "lora_up.weight": "up", "lora_mid.weight": "mid",
    "lora.down.weight": "down", "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down", "lora_linear_layer.up.weight": "up",
    "down.weight": "down", "up.weight": "up",
    "lora_A.weight": "down", "lora_B.weight": "up", "lora_B.bias": "up_bias",
    "lora_A.default.weight": "down", "lora_B.default.weight": "up", "lora_B.default.bias": "up_bias",
    "lora_magnitude_vector": "magnitude", "lora_magnitude_vector.weight": "magnitude",
    "lora_magnitude_vector.default.weight": "magnitude", "dora_scale": "dora",
    **{f"{role}.weight": role for role in ("a1", "a2", "b1", "b2", "bm")},
    **{role: role for role in (
        "alpha", "diff", "diff_b", "w_norm", "b_norm", "set_weight", "on_input", "ia3_l", "oft_blocks",
        "rescale", "hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b", "hada_t1", "hada_t2", "lokr_w1",
        "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2",
    )},
    "weight": "weight",
}  # fmt: skip
"""Roles by the last words of a key, longest first where one ends with another."""

NUMBERS = ("alpha", "on_input")
"""Roles of single numbers."""

_UNSUPPORTED = (
    ("a bundled embedding; see --embedding", re.compile(r"^bundle_emb\.")),
    ("PEFT's OFT, which is not supported", re.compile(r"\.oft_[RS]\b")),
    ("an embedding's LoRA, which is not supported", re.compile(r"lora_embedding_[AB]\b")),
    ("a VeRA's, which is not supported", re.compile(r"\bvera_(lambda_|A$|B$)")),
)

_OTHER_FAMILIES = (
    ("a Flux model", re.compile(r"double_blocks|single_blocks|single_transformer_blocks")),
    ("a Stable Diffusion 3 model", re.compile(r"joint_blocks|^(transformer\.|lora_transformer_)transformer")),
    ("a Stable Cascade model", re.compile(r"lora_prior_unet|effnet_mapper")),
    ("a diffusion transformer", re.compile(r"^(lora_)?transformer[._]|^diffusion_model\.(layers|blocks)\.")),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleWeights:
    """The tensors of an adapter for one module.

    Attributes:
        name: the module's name in the file.
        kind: one of ``kinds.KINDS``.
        keys: key in the file by role.
        shapes: shape by role.
        rank: None for kinds without one.
        numbers: see ``kinds.Numbers``.
    """

    name: str
    kind: str
    keys: Mapping[str, str]
    shapes: Mapping[str, Shape]
    rank: int | None
    numbers: Numbers

    @property
    def label(self) -> str:
        """The kind as people call it; DoRA is named with the kind that it decomposes."""
        return f"{self.kind} with DoRA" if {"dora", "magnitude"} & self.roles else self.kind

    @property
    def roles(self) -> frozenset[str]:
        """The roles of the tensors, and of the numbers."""
        return frozenset(self.keys)


@dataclass(frozen=True, kw_only=True)
class AdapterFile:
    """A file of an adapter, whose tensors are read lazily.

    Attributes:
        path: the file.
        metadata: free-form texts from the header.
        modules: the tensors of each module, by its name in the file.
        unread: the reason for each key that is not part of a module.
    """

    path: Path
    metadata: Mapping[str, str]
    modules: Mapping[str, ModuleWeights]
    unread: Mapping[str, str]

    @property
    def key_count(self) -> int:
        """Number of the file's keys."""
        return len(self.unread) + sum(len(each.keys) for each in self.modules.values())

    @cached_property
    def kinds(self) -> dict[str, int]:
        """Number of modules by ``label``."""
        return dict(Counter(each.label for each in self.modules.values()))

    def tensors(self, module: ModuleWeights, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """Read the tensors of a module in float32, by role; raises as ``stored``."""
        return {role: tensor.to(device).float() for role, tensor in self.stored(module).items()}

    def stored(self, module: ModuleWeights) -> dict[str, Tensor]:
        """Read the tensors of a module in the file's number format, by role.

        Raises:
            InputError: a tensor holds NaN or infinity, or the file has changed.
        """
        roles = {key: role for role, key in module.keys.items() if role not in NUMBERS}
        tensors = {roles[key]: tensor for key, tensor in self.raw(roles).items()}
        for role, tensor in tensors.items():
            if tuple(tensor.shape) != tuple(module.shapes[role]):
                raise InputError(f"{named(self.path)}: changed since it was opened: {module.keys[role]}")
        return tensors

    def raw(self, keys: Iterable[str]) -> dict[str, Tensor]:
        """Read tensors of the file by their keys; raises as ``stored``."""
        tensors: dict[str, Tensor] = {}
        for key in keys:
            try:
                tensors[key] = self._handle.get_tensor(key)
            except SafetensorError as error:
                raise InputError(
                    f"{named(self.path)}: changed since it was opened: {reason(error)}"
                ) from error
            if not is_finite(tensors[key]):
                raise InputError(f"{named(self.path)}: {first_few([key])} holds NaN or infinity")
        return tensors

    @cached_property
    def _handle(self) -> Any:
        return open_file(self.path)


def open_adapter(path: Path, config: Path | None = None) -> AdapterFile:
    """Describe a file of an adapter.

    Args:
        path: the file.
        config: PEFT's ``adapter_config.json`` that belongs to it, see ``loras.lora_of``.

    Raises:
        InputError: it is not safetensors, not an adapter, or one for another family of models.
    """
    file, header = path, read_header(path)
    modules, unread = _modules(file, header, read_json(config) if config else _peft_config(header, file))
    if not modules:
        raise InputError(f"{named(file)}: {_not_an_adapter(header, unread)}")
    for kind, sign in _OTHER_FAMILIES:
        if sum(sign.search(name) is not None for name in modules) > len(modules) / 2:
            raise InputError(f"{named(file)}: an adapter for {kind}; only SDXL's family is supported")
    return AdapterFile(path=file, metadata=header.metadata, modules=modules, unread=unread)


def _not_an_adapter(header: Header, unread: Mapping[str, str]) -> str:
    other = other_model_kind(header.tensors)
    if other is None and any(key.startswith("model.diffusion_model.") for key in header.tensors):
        other = "a checkpoint of a whole model"
    if other and not other.startswith("a LoRA,"):
        return f"not an adapter but {other}"
    if not header.tensors:
        return "not an adapter: it has no tensors"
    key = next(iter(unread), None)
    return "not an adapter" if key is None else f"not an adapter: {first_few([key])}: {unread[key]}"


def _modules(
    file: Path, header: Header, peft: Mapping[str, Any]
) -> tuple[dict[str, ModuleWeights], dict[str, str]]:
    groups: dict[str, dict[str, str]] = {}
    unread: dict[str, str] = {}
    for key, (number_format, _) in header.tensors.items():
        name, role = _split(key, header)
        if role is None:
            unread[key] = next((why for why, sign in _UNSUPPORTED if sign.search(key)), "unknown name")
        elif number_format not in FLOATS and role not in NUMBERS:
            unread[key] = f"in {number_format}, which is not supported"
        elif role in groups.get(name, {}):
            unread[key] = f"a duplicate of {first_few([groups[name][role]])}"
        else:
            groups.setdefault(name, {})[role] = key
    handle = open_file(file)
    modules: dict[str, ModuleWeights] = {}
    for name, keys in groups.items():
        shapes = {role: header.tensors[key][1] for role, key in keys.items()}
        kind = kind_of(frozenset(keys))
        if kind is None or keys.keys() <= {*NUMBERS}:
            why = "without a weight" if keys.keys() <= {*NUMBERS} else "part of a mixture of kinds"
            unread |= dict.fromkeys(keys.values(), why)
            continue
        numbers = _read_numbers(handle, keys, shapes)
        if isinstance(numbers, str):
            unread |= dict.fromkeys(keys.values(), numbers)
            continue
        rank = rank_of(kind, shapes)
        if "alpha" not in numbers:
            numbers |= _peft_alpha(name, rank, peft)
        modules[name] = ModuleWeights(
            name=name, kind=kind, keys=keys, shapes=shapes, rank=rank,
            numbers=numbers | {"scale": numbers["alpha"] / rank if numbers.get("alpha") and rank else 1.0},
        )  # fmt: skip
    return modules, unread


def _split(key: str, header: Header) -> tuple[str, str | None]:
    """Split a key into the module's name and the role; None for an unknown one."""
    words = key.split(".")
    for count in (3, 2, 1):
        role = _SUFFIXES.get(".".join(words[-count:]))
        name = ".".join(words[:-count])
        if role and name and not (role == "weight" and f"{name}.on_input" not in header.tensors):
            return name, role
    return key, None


def _read_numbers(
    handle: Any, keys: Mapping[str, str], shapes: Mapping[str, Shape]
) -> dict[str, float] | str:
    """Read the numbers of a module, or say what is wrong with them."""
    numbers: dict[str, float] = {}
    for role in NUMBERS:
        if role in keys:
            if math.prod(shapes[role]) != 1:
                return f"{role} has the shape {list(shapes[role])}: it must be one number"
            numbers[role] = float(handle.get_tensor(keys[role]).float().reshape(()))
            if not math.isfinite(numbers[role]):
                return f"{role} is {numbers[role]}: it must be a number"
    return numbers


def _peft_config(header: Header, file: Path) -> Mapping[str, Any]:
    """Return the configuration that diffusers writes into the header."""
    text = header.metadata.get("lora_adapter_metadata")
    return {} if text is None else parse_json(text, f"{named(file)}: lora_adapter_metadata")


def _peft_alpha(name: str, rank: int | None, config: Mapping[str, Any]) -> dict[str, float]:
    """Find the alpha of a module in PEFT's configuration, so that alpha / rank is the scale.

    PEFT's patterns are the ends of modules' names. With rsLoRA the scale is alpha / sqrt(rank).
    """
    prefix, _, rest = name.partition(".")
    if prefix in ("unet", "text_encoder", "text_encoder_2") and f"{prefix}.lora_alpha" in config:
        config = {
            key.removeprefix(f"{prefix}."): value
            for key, value in config.items()
            if key.startswith(f"{prefix}.")
        }
        name = rest
    alpha = config.get("lora_alpha", config.get("alpha"))  # LoHa's and LoKr's is called alpha
    patterns = config.get("alpha_pattern")
    for pattern, value in (patterns if isinstance(patterns, dict) else {}).items():
        plain = str(pattern).removeprefix("^")
        if name == plain or name.endswith(f".{plain}"):
            alpha = value
    if isinstance(alpha, bool) or not isinstance(alpha, int | float) or not math.isfinite(alpha) or not rank:
        return {}
    return {"alpha": float(alpha) * (math.sqrt(rank) if config.get("use_rslora") is True else 1.0)}
