"""Writing files of adapters in the spelling of other programs.

Sources as in ``names``; for the numbers in diffusers' headers ``loaders/lora_base.py`` and PEFT's
``LoraConfig``, whose patterns are regular expressions for the end of a module's name.
"""

import json
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ssd1b.adapters.kinds import kind_of, rank_of
from ssd1b.adapters.names import PARTS, Module, comfyui_name, diffusers_name, kohya_name
from ssd1b.errors import InputError, unknown
from ssd1b.layouts import ModelLayout
from ssd1b.weights.files import is_finite


class Piece(NamedTuple):
    """The tensors of one module in an adapter file.

    Attributes:
        tensors: by role, in the number format to be written; see ``kinds.KINDS``.
        numbers: single numbers by role: "alpha", "on_input".
    """

    tensors: Mapping[str, Tensor]
    numbers: Mapping[str, float]

    @property
    def rank(self) -> int | None:
        """The rank; None for kinds without one."""
        shapes = {role: tuple(tensor.shape) for role, tensor in self.tensors.items()}
        kind = kind_of(frozenset(self.tensors) | frozenset(self.numbers))
        return None if kind is None else rank_of(kind, shapes)

    def to(self, dtype: torch.dtype) -> "Piece":
        """Return it in another number format.

        Raises:
            InputError: a number overflows.
        """
        tensors = {role: tensor.to(dtype) for role, tensor in self.tensors.items()}
        for role, tensor in tensors.items():
            if not is_finite(tensor):
                format = str(dtype).removeprefix("torch.")
                raise InputError(f"a number of {role} overflows in {format}: take bf16 or fp32")
        return Piece(tensors, self.numbers)


Pieces = Mapping[Module, Piece]
"""An adapter, by the modules of a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Dialect:
    """How a program spells an adapter.

    Attributes:
        name: returns a module's name.
        suffixes: what follows the name, by role; a role that is missing stands for itself.
        roles: the roles that the program reads; None for all.
        alpha_in_header: the numbers are in the file's metadata, as PEFT's configuration.
    """

    name: Callable[[Module, ModelLayout], str]
    suffixes: Mapping[str, str]
    roles: frozenset[str] | None = None
    alpha_in_header: bool = False


_LYCORIS = MappingProxyType({
    "down": "lora_down.weight", "up": "lora_up.weight", "mid": "lora_mid.weight", "dora": "dora_scale",
    **{role: f"{role}.weight" for role in ("a1", "a2", "b1", "b2", "bm")},
})  # fmt: skip

DIALECTS: Mapping[str, Dialect] = MappingProxyType({
    "kohya": Dialect(name=kohya_name, suffixes=_LYCORIS),
    "comfyui": Dialect(name=comfyui_name, suffixes=_LYCORIS),
    "diffusers": Dialect(
        name=lambda module, layout: diffusers_name(module),
        suffixes=MappingProxyType({
            "down": "lora_A.weight", "up": "lora_B.weight", "up_bias": "lora_B.bias",
            "magnitude": "lora_magnitude_vector",
        }),
        roles=frozenset({"down", "up", "up_bias", "magnitude"}),
        alpha_in_header=True,
    ),
})  # fmt: skip
"""The spellings that files are written in. AUTOMATIC1111, Forge, ComfyUI and diffusers read kohya's."""

PEFT_HEADER = "lora_adapter_metadata"


def spelled(pieces: Pieces, layout: ModelLayout, dialect: str) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Write an adapter's tensors by their keys in a file.

    Args:
        pieces: the adapter.
        layout: the layout of the model that it is for.
        dialect: one of ``DIALECTS``.

    Returns:
        The tensors, and what belongs into the file's metadata.

    Raises:
        InputError: the dialect is unknown, or has no spelling for a kind of adapter.
    """
    if dialect not in DIALECTS:
        raise unknown("dialect", dialect, DIALECTS)
    target = DIALECTS[dialect]
    found: dict[str, Tensor] = {}
    for module, piece in pieces.items():
        name = target.name(module, layout)
        translate = _to_peft if target.alpha_in_header else _to_lycoris
        for role, tensor in translate(piece).items():
            if target.roles is not None and role not in target.roles:
                kind = kind_of(frozenset(piece.tensors) | frozenset(piece.numbers))
                raise InputError(
                    f"{dialect} cannot read {name}: {kind} with {role}; write kohya's or comfyui's spelling, "
                    "or a LoRA by its rank (ssd1b lora resize)"
                )
            # A copy, since two modules may have the same tensor, which the format does not allow.
            found[f"{name}.{target.suffixes.get(role, role)}"] = tensor.clone().contiguous()
    return found, {PEFT_HEADER: json.dumps(_peft_config(pieces))} if target.alpha_in_header else {}


def _to_lycoris(piece: Piece) -> dict[str, Tensor]:
    """Translate PEFT's magnitudes and biases into those of kohya's scripts and LyCORIS."""
    tensors = dict(piece.tensors)
    if "magnitude" in tensors:  # for each output: [out, 1], or [out, 1, 1, 1] of a convolution
        magnitude = tensors.pop("magnitude")
        dimensions = max(2, tensors["down"].ndim if "down" in tensors else magnitude.ndim)
        tensors["dora"] = magnitude.reshape(-1, *[1] * (dimensions - 1))
    if "up_bias" in tensors:
        rank = piece.rank or 1
        bias = tensors.pop("up_bias")
        tensors["diff_b"] = (bias.float() * (piece.numbers.get("alpha", rank) / rank)).to(bias.dtype)
    return tensors | {role: torch.tensor(value) for role, value in piece.numbers.items()}


def _to_peft(piece: Piece) -> dict[str, Tensor]:
    """Translate magnitudes for each output into PEFT's; the others, for each input, it cannot express."""
    tensors = dict(piece.tensors)
    dora, up = tensors.get("dora"), tensors.get("up")
    if dora is not None and up is not None and dora.shape[0] == up.shape[0] == dora.numel():
        shape = (-1,) if up.ndim == 2 else (1, -1, *[1] * (up.ndim - 2))
        tensors["magnitude"] = tensors.pop("dora").reshape(shape)
    return tensors | {role: torch.tensor(value) for role, value in piece.numbers.items() if role != "alpha"}


def _peft_config(pieces: Pieces) -> dict[str, Any]:
    """Write the ranks and alphas as PEFT's configuration of each network, as diffusers saves it."""
    found: dict[str, Any] = {}
    for part in PARTS:
        own = {module.name: piece for module, piece in pieces.items() if module.part == part}
        if not own:
            continue
        ranks = {name: piece.rank or 1 for name, piece in own.items()}
        alphas = {name: piece.numbers.get("alpha", ranks[name]) for name, piece in own.items()}
        rank, alpha = _commonest(ranks.values()), _commonest(alphas.values())
        found |= {
            f"{part}.{key}": value
            for key, value in {
                "peft_type": "LORA", "r": rank, "lora_alpha": _plain(alpha),
                "target_modules": sorted(map(_ending, own)),
                "rank_pattern": {_ending(n): r for n, r in ranks.items() if r != rank},
                "alpha_pattern": {_ending(n): _plain(a) for n, a in alphas.items() if a != alpha},
                "use_dora": any({"dora", "magnitude"} & piece.tensors.keys() for piece in own.values()),
                "lora_bias": any("up_bias" in piece.tensors for piece in own.values()),
            }.items()
        }  # fmt: skip
    return found


def _commonest(values: Iterable[int | float]) -> Any:
    return Counter(values).most_common(1)[0][0]


def _plain(value: int | float) -> int | float:
    return int(value) if value == int(value) else value


def _ending(name: str) -> str:
    """Return the end of a module's name by which PEFT finds it; newer transformers have no ``text_model``."""
    return name.removeprefix("text_model.")
