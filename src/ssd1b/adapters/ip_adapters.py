"""Reading of IP-Adapters for SDXL's family, and which of their layers belong to which of a model's.

A file numbers the cross-attentions of its UNet 1, 3, 5 ... in the order down, up, middle. In a model from
which blocks were removed the same numbers belong to other blocks: SSD-1B's seventeenth is SDXL's
twenty-first. So they are given the names of the UNet that the file is for, and carried by the layer map.

Source: tencent-ailab/IP-Adapter ``ip_adapter/``; diffusers ``loaders/unet.py`` for the order.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path

from ssd1b.adapters.matching import larger_layouts
from ssd1b.errors import InputError, prefix_errors
from ssd1b.layer_map import transformers
from ssd1b.layouts import IPAdapterLayout, ResamplerLayout, UNetLayout
from ssd1b.models.ip_adapter import HEAD_DIM
from ssd1b.numerals import counted
from ssd1b.weights.checkpoint import Checkpoint, Part
from ssd1b.weights.controls import MisfitError
from ssd1b.weights.detect import Shapes, detect_shape
from ssd1b.weights.files import Header, first_few, read_header
from ssd1b.weights.keymap import count
from ssd1b.weights.other_models import other_model_kind
from ssd1b.weights.stored import StoredTensor, add_tensor

IP_ADAPTER = "ip_adapter"
"""Name of the only part of a checkpoint."""

_KEY = re.compile(r"ip_adapter\.(\d{1,4})\.(to_[kv]_ip\.weight)")
_PROJECTION = "image_proj."

_KINDS = (
    ("FaceID, which needs a network for faces", re.compile(r"perceiver_resampler|proj\.2\.weight|to_q_lora")),
    ("one for full faces, which exists for Stable Diffusion 1 only", re.compile(r"image_proj\.proj\.3\.")),
)
"""Kinds that are not supported, by a name in the file."""


def open_ip_adapter(path: Path, unet: UNetLayout) -> Checkpoint:
    """Describe an IP-Adapter, with those of its layers that a UNet has; nothing is loaded.

    Args:
        path: a safetensors file.
        unet: the UNet that it is used with.

    Returns:
        A checkpoint whose only part is ``IP_ADAPTER``, under the names of ``models.ip_adapter.IPAdapter``.

    Raises:
        MisfitError: it is for UNets of another width, or with other blocks.
        InputError: it is not safetensors, not an IP-Adapter, or one of another kind.
    """
    header = read_header(path)
    with prefix_errors(str(path)):
        _check_kind(header)
        widths = _widths(header)
        places = _places(widths, unet)
        table: dict[str, StoredTensor] = {}
        for name in header.tensors:
            if name.startswith(_PROJECTION):
                add_tensor(table, name, file=path, stored=name, header=header)
        for index, number in enumerate(places):
            for leaf in ("to_k_ip.weight", "to_v_ip.weight"):
                add_tensor(
                    table, f"ip_adapter.{index}.{leaf}", file=path, stored=f"ip_adapter.{number}.{leaf}",
                    header=header,
                )  # fmt: skip
        shapes = {name.removeprefix(_PROJECTION): each.shape for name, each in table.items()}
        layout = _layout(shapes, unet, tuple(widths[number] for number in places))
    return Checkpoint(
        path=path, format="single IP-Adapter file", parts={IP_ADAPTER: Part(layout=layout, tensors=table)}
    )


def block_names(unet: UNetLayout) -> list[str]:
    """Return diffusers' names of a UNet's transformer blocks, in execution order."""
    return list(_blocks(transformers(unet)))


def _blocks(depths: Mapping[str, int]) -> Iterator[str]:
    for name, depth in depths.items():
        yield from (f"{name}.transformer_blocks.{block}" for block in range(depth))


def _numbers(unet: UNetLayout) -> dict[str, int]:
    """Return the number in a file of each of a UNet's transformer blocks."""
    depths = transformers(unet)
    registered = sorted(depths, key=lambda name: name.startswith("mid_block"))  # a stable sort
    return {
        name: 2 * index + 1 for index, name in enumerate(_blocks({name: depths[name] for name in registered}))
    }


def _channels(unet: UNetLayout) -> dict[int, int]:
    """Return the channels of the block with each number."""
    levels = [each.channels for each in unet.levels]

    def channels(name: str) -> int:
        side, index, *_ = name.split(".")
        if side == "mid_block":
            return levels[-1]
        return levels[int(index)] if side == "down_blocks" else levels[::-1][int(index)]

    return {number: channels(name) for name, number in _numbers(unet).items()}


def _places(widths: Mapping[int, int], unet: UNetLayout) -> list[int]:
    """Find the number in the file of each of a UNet's transformer blocks, in execution order."""
    names = block_names(unet)
    if widths == _channels(unet):
        numbers = _numbers(unet)
        return [numbers[name] for name in names]
    for _, candidate, layer_map in larger_layouts(unet):
        if widths == _channels(candidate):
            numbers = _numbers(candidate)
            return [numbers[layer_map.modules[name]] for name in names]
    wide = ", ".join(map(str, sorted({*widths.values()}))) or "no"
    ours = ", ".join(map(str, sorted({*_channels(unet).values()})))
    raise MisfitError(
        f"its {len(widths)} layers have {wide} channels; this model has {len(names)} of {ours}, and is no "
        "part of a larger one with these layers"
    )


def _check_kind(header: Header) -> None:
    names = header.tensors
    if not any(map(_KEY.fullmatch, names)) or not any(name.startswith(_PROJECTION) for name in names):
        kind = other_model_kind(names) or f"it contains {first_few(names) or 'nothing'}"
        raise InputError(f"no IP-Adapter: {kind}")
    for kind, sign in _KINDS:
        if any(map(sign.search, names)):
            raise InputError(f"an IP-Adapter of a kind that is not supported: {kind}")
    others = [name for name in names if not name.startswith(_PROJECTION) and not _KEY.fullmatch(name)]
    if others:
        raise InputError(f"{counted(len(others), 'unknown tensor')}: {first_few(others)}")


def _widths(header: Header) -> dict[int, int]:
    """Return the channels of each layer by its number; keys and values must agree."""
    found: dict[int, dict[str, tuple[int, ...]]] = {}
    for name, (_, shape) in header.tensors.items():
        if match := _KEY.fullmatch(name):
            found.setdefault(int(match[1]), {})[match[2]] = shape
    for number, shapes in found.items():
        if len(shapes) != 2 or len({*shapes.values()}) != 1 or any(len(s) != 2 for s in shapes.values()):
            raise InputError(f"ip_adapter.{number}: it must have to_k_ip and to_v_ip of the same shape")
    return {number: next(iter(shapes.values()))[0] for number, shapes in sorted(found.items())}


def _layout(shapes: Shapes, unet: UNetLayout, blocks: tuple[int, ...]) -> IPAdapterLayout:
    """Find the layout from the shapes of the projection, without prefix, and of the layers."""
    where = "not an IP-Adapter of SDXL's kind"
    context = detect_shape(shapes, "ip_adapter.0.to_k_ip.weight", 2, where)[1] if blocks else 0
    if context != unet.cross_attention_dim:
        raise MisfitError(f"it has tokens of {context} channels, the model {unet.cross_attention_dim}")
    if "latents" not in shapes:
        out, image = detect_shape(shapes, "proj.weight", 2, where)
        tokens, rest = divmod(out, context)
        if rest or not tokens:
            raise InputError(f"{where}: its projection gives {out} numbers, not tokens of {context}")
        resampler = None
    else:
        _, tokens, channels = detect_shape(shapes, "latents", 3, where)
        image = detect_shape(shapes, "proj_in.weight", 2, where)[1]
        inner = detect_shape(shapes, "layers.0.0.to_q.weight", 2, where)[0]
        if inner % HEAD_DIM or not inner:
            raise InputError(f"{where}: its attention has {inner} channels, not a multiple of {HEAD_DIM}")
        resampler = ResamplerLayout(
            channels=channels, layers=count("layers.{}.0", ("to_q.weight", "to_kv.weight"), shapes.keys()),
            heads=inner // HEAD_DIM,
            intermediate_size=detect_shape(shapes, "layers.0.1.1.weight", 2, where)[0],
        )  # fmt: skip
    return IPAdapterLayout(
        image_dim=image, tokens=tokens, context_dim=context, blocks=blocks, head_dim=unet.head_dim,
        resampler=resampler,
    )  # fmt: skip
