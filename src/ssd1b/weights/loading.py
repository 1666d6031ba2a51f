"""From files into modules: memory-mapped, cast tensor by tensor, checked, assigned; never two copies."""

from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ssd1b.errors import InputError
from ssd1b.weights.checkpoint import Checkpoint, Part
from ssd1b.weights.files import Shape, first_few, is_finite, open_file
from ssd1b.weights.stored import StoredTensor

_WINDOWS = 32
"""Mappings that a network is read through: pages that were read stay resident until their mapping goes."""

_PIECE = 2**17
"""Numbers that are cast at a time: half a megabyte in float32, which fits a core's cache."""


def load_component(
    module: nn.Module,
    checkpoint: Checkpoint,
    part: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    copied: bool = False,
) -> None:
    """Give a module, built on the meta device, its weights.

    On the CPU and in the file's own number format the weights stay in the mapped file, which must then not be
    overwritten in place while they are used; otherwise they are copied, one tensor at a time.

    Args:
        module: its parameters may be on the meta device; they are replaced.
        checkpoint: where from.
        part: which network, one of ``keymap.PARTS``.
        dtype: number format to run in.
        device: where to.
        copied: take every tensor out of the mapped file, whose pages would stay in memory for as long as
            one of them is used.

    Raises:
        InputError: no such network; tensors that are missing, unknown, misshaped or not finite.
    """
    wanted = {name: tuple(parameter.shape) for name, parameter in module.state_dict().items()}
    check_tensors(wanted, checkpoint.part(part), f"{checkpoint.path}: {part}")
    tensors = read_part(checkpoint, part, dtype=dtype, device=device, copied=copied)
    module.load_state_dict(tensors, assign=True)


def read_part(
    checkpoint: Checkpoint,
    part: str,
    *,
    dtype: torch.dtype | None = None,
    device: torch.device | str = "cpu",
    copied: bool = False,
) -> dict[str, Tensor]:
    """Read the tensors of one network, by our names.

    Args:
        checkpoint: where from.
        part: which network.
        dtype: number format to get; None keeps the file's, and then nothing is copied on the CPU.
        device: where to.
        copied: see ``load_component``.

    Raises:
        InputError: some that were copied hold NaN or infinity, or overflow in ``dtype``; or the file has gone
            or changed. Tensors that stay in the mapped file are not looked at, which would read it all:
            ``broken_tensors`` does, when a picture turns out to be no numbers.
    """
    tensors: dict[str, Tensor] = {}
    broken, overflown = [], []
    window = max(checkpoint.parts[part].size_in_bytes // _WINDOWS, 2**20)
    handle, file, read = None, None, 0
    for name, stored in checkpoint.parts[part].tensors.items():
        if handle is None or file != stored.file or read > window:
            handle, file, read = open_file(stored.file), stored.file, 0
        source = _read(handle, stored)
        tensor = _cast(source.to(device), dtype or source.dtype)  # in this order: a GPU casts faster
        if copied and tensor is source:
            tensor = source.clone()
        if tensor is not source:
            read += source.nbytes  # else the mapping has to stay
            if not is_finite(tensor):
                (overflown if is_finite(source.float()) else broken).append(name)
        tensors[name] = tensor
    where = f"{checkpoint.path}: {part}"
    if broken:
        raise InputError(f"{where}: {len(broken)} tensors hold NaN or infinity: {first_few(broken)}")
    if overflown:
        raise InputError(
            f"{where}: {len(overflown)} tensors overflow in {dtype}: {first_few(overflown)}; "
            "bfloat16 holds them"
        )
    return tensors


def broken_tensors(module: nn.Module) -> list[str]:
    """Names of the weights of a module that hold NaN or infinity."""
    return [name for name, tensor in module.state_dict().items() if not is_finite(tensor)]


def _read(handle: Any, stored: StoredTensor) -> Tensor:
    """Read one of our tensors, in the file's number format, or in float32 where it has a scale.

    It is a view of the mapped file where number format and transform allow.
    """
    try:
        tensor = handle.get_tensor(stored.name)
        if stored.scale is not None:
            scale = handle.get_tensor(stored.scale).float()
            by_row = scale.reshape(-1, *[1] * (tensor.ndim - 1)) if scale.numel() > 1 else scale.reshape(())
            tensor = tensor.float() * by_row
        tensor = stored.transform.read(tensor)
    except SafetensorError as error:
        raise InputError(f"{stored.file}: changed since it was opened: {error}") from error
    if tuple(tensor.shape) != stored.shape or tensor.dtype != stored.read_dtype:
        raise InputError(f"{stored.file}: changed since it was opened: {stored.name} is another tensor")
    return tensor


def _cast(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Change the number format, without a copy if it is that already.

    Between float16 and bfloat16, the way from most published files to most processors, torch has no vector
    code for the CPU; through pieces of float32 that stay in the cache it takes half the time.
    """
    if tensor.device.type != "cpu" or {tensor.dtype, dtype} != {torch.float16, torch.bfloat16}:
        return tensor.to(dtype)
    result = torch.empty(tensor.shape, dtype=dtype)
    for target, source in zip(result.view(-1).split(_PIECE), tensor.reshape(-1).split(_PIECE), strict=True):
        target.copy_(source.float())
    return result


def check_tensors(wanted: Mapping[str, Shape], part: Part, where: str) -> None:
    """Compare names and shapes with those of a module, before anything is read.

    Args:
        wanted: shapes by name.
        part: the network on disk.
        where: names it in the error.

    Raises:
        InputError: tensors are missing, unknown, or have another shape.
    """
    given = {name: tensor.shape for name, tensor in part.tensors.items()}
    missing, unknown = [[n for n in a if n not in b] for a, b in ((wanted, given), (given, wanted))]
    misshaped = [name for name, shape in wanted.items() if name in given and given[name] != shape]
    problems = []
    if missing:
        near = get_close_matches(missing[0], unknown, n=1, cutoff=0.8)
        hint = f" (is {near[0]} meant for the first?)" if near else ""
        problems.append(f"{len(missing)} tensors are missing: {first_few(missing)}{hint}")
    if unknown:
        problems.append(f"{len(unknown)} are unknown: {first_few(unknown)}")
    if misshaped:
        shapes = first_few(
            f"{name} {list(given[name])} instead of {list(wanted[name])}" for name in misshaped
        )
        problems.append(f"{len(misshaped)} have another shape: {shapes}")
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}")
