"""Loading weights into modules: memory-mapped, cast and checked tensor by tensor, without a second copy."""

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ssd1b.errors import InputError
from ssd1b.files import reason
from ssd1b.numerals import counted
from ssd1b.weights.checkpoint import Checkpoint, Part
from ssd1b.weights.files import Shape, first_few, is_finite, open_file
from ssd1b.weights.stored import StoredTensor

_WINDOWS = 32
"""Number of mappings used in turn to read a network, since pages stay resident as long as their mapping."""

_PIECE = 2**17
"""Numbers cast at a time: half a megabyte in float32, which fits into a core's cache."""


def load_component(
    module: nn.Module,
    checkpoint: Checkpoint,
    part: str,
    *,
    dtype: torch.dtype,
    device: torch.device | str = "cpu",
    copied: bool = False,
) -> None:
    """Load weights into a module that was built on the meta device.

    On the CPU, in the file's own number format, the weights stay in the mapped file, which must not be
    overwritten in place while they are used; otherwise they are copied one tensor at a time.

    Args:
        module: its parameters are replaced, and may be on the meta device.
        checkpoint: the model.
        part: the network, one of ``keymap.PARTS``.
        dtype: number format to run in.
        device: target device.
        copied: copy every tensor, since the pages of a mapped file stay in memory as long as any of its
            tensors is used.

    Raises:
        InputError: there is no such network, or tensors are missing, unknown, of another shape or not finite.
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
    names: Collection[str] | None = None,
) -> dict[str, Tensor]:
    """Read the tensors of one network, by our names.

    Args:
        checkpoint: the model.
        part: the network.
        dtype: number format to convert to; None keeps the file's, and then nothing is copied on the CPU.
        device: target device.
        copied: see ``load_component``.
        names: only these; None is all of them.

    Raises:
        InputError: copied tensors contain NaN or infinity, or overflow in ``dtype``; or the file was removed
            or changed. Tensors that stay in the mapped file are not checked, which would read all of it; if
            an image turns out to be NaN, ``broken_tensors`` checks them.
    """
    tensors: dict[str, Tensor] = {}
    broken, overflowing = [], []
    window = max(checkpoint.parts[part].size_in_bytes // _WINDOWS, 2**20)
    handle, file, read = None, None, 0
    for name, stored in checkpoint.parts[part].tensors.items():
        if names is not None and name not in names:
            continue
        if handle is None or file != stored.file or read > window:
            handle, file, read = open_file(stored.file), stored.file, 0
        source = _read(handle, stored)
        tensor = cast_weight(source.to(device), dtype or source.dtype)  # move first, since a GPU casts faster
        if copied and tensor is source:
            tensor = source.clone()
        if tensor is not source or stored.computed:
            read += source.nbytes  # otherwise the mapping stays in use
            if not is_finite(tensor):
                (overflowing if is_finite(source.float()) else broken).append(name)
        tensors[name] = tensor
    where = f"{checkpoint.path}: {part}"
    if broken:
        raise InputError(f"{where}: NaN or infinity in {counted(len(broken), 'tensor')}: {first_few(broken)}")
    if overflowing:
        raise InputError(
            f"{where}: {counted(len(overflowing), 'tensor')} too large for {dtype}: {first_few(overflowing)}"
            "; use bfloat16"
        )
    return tensors


def broken_tensors(module: nn.Module) -> list[str]:
    """List the weights of a module that contain NaN or infinity."""
    return [name for name, tensor in module.state_dict().items() if not is_finite(tensor)]


def _read(handle: Any, stored: StoredTensor) -> Tensor:
    """Read one tensor in the file's number format, or in float32 if it has a scale or something is added.

    The result is a view of the mapped file if possible.
    """
    try:
        tensor = handle.get_tensor(stored.name)
        if stored.scale is not None:
            scale = handle.get_tensor(stored.scale).float()
            by_row = scale.reshape(-1, *[1] * (tensor.ndim - 1)) if scale.numel() > 1 else scale.reshape(())
            tensor = tensor.float() * by_row
        tensor = stored.transform.read(tensor)
        if stored.added is not None:
            other = open_file(stored.added.file)
            up, down = (other.get_tensor(name).float() for name in (stored.added.up, stored.added.down))
            tensor = tensor.float() + (up.flatten(1) @ down.flatten(1)).view(stored.added.shape)
    except SafetensorError as error:
        raise InputError(f"{stored.file}: changed since it was opened: {reason(error)}") from error
    if tuple(tensor.shape) != stored.shape or tensor.dtype != stored.read_dtype:
        raise InputError(f"{stored.file}: changed since it was opened: {stored.name} is another tensor")
    return tensor


def cast_weight(tensor: Tensor, dtype: torch.dtype) -> Tensor:
    """Convert to a number format, without a copy if it is the same.

    For float16 to bfloat16, as from most published files on most CPUs, torch has no vectorized code; going
    through pieces of float32 that fit into the cache takes half the time.
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
        wanted: expected shapes by name.
        part: the network on disk.
        where: its name in errors.

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
        problems.append(f"{counted(len(missing), 'missing tensor')}: {first_few(missing)}{hint}")
    if unknown:
        problems.append(f"{counted(len(unknown), 'unknown tensor')}: {first_few(unknown)}")
    if misshaped:
        shapes = first_few(
            f"{name} {list(given[name])} instead of {list(wanted[name])}" for name in misshaped
        )
        problems.append(f"{counted(len(misshaped), 'tensor')} of another shape: {shapes}")
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}")
