"""Reading of networks that follow a picture: ControlNets and T2I-Adapters for SDXL's family.

A file shows the widths and depths of its network. What it does not show (head size, norm groups) is the same
as in the UNet that the network is added to, so no configuration is needed.

Sources: diffusers ``models/controlnets/controlnet.py`` and ``models/adapter.py``; ControlNet ``cldm/cldm.py``
for the original names.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from ssd1b.errors import InputError, prefix_errors
from ssd1b.layouts import ControlNetLayout, Level, T2IAdapterLayout, UNetLayout
from ssd1b.weights.checkpoint import Checkpoint, Part
from ssd1b.weights.detect import Shapes, detect_shape
from ssd1b.weights.files import first_few, read_header
from ssd1b.weights.keymap import RESNET, TRANSFORMER, count
from ssd1b.weights.other_models import control_kind, is_adapter_file, other_model_kind
from ssd1b.weights.spellings import Section, unwrapped
from ssd1b.weights.stored import locate_tensors


class MisfitError(InputError):
    """A network for UNets of another width."""


CONTROLNET, T2I_ADAPTER = "controlnet", "t2i_adapter"
"""Names of the only part of a checkpoint."""

_PREFIXES = ("control_model.", "controlnet.")
HINT = "controlnet_cond_embedding"
"""First word of the names of what reads the picture in a ControlNet."""


def open_control(path: Path, unet: UNetLayout) -> Checkpoint:
    """Describe a network that follows a picture, without loading it.

    Args:
        path: a safetensors file, with diffusers' or the original names.
        unet: the UNet that it is added to.

    Returns:
        A checkpoint whose only part is ``CONTROLNET`` or ``T2I_ADAPTER``.

    Raises:
        MisfitError: it is for UNets of another width.
        InputError: it is not safetensors, or not such a network.
    """
    header = read_header(path)
    with prefix_errors(str(path)):
        part = control_kind(header.tensors)
        if part not in (CONTROLNET, T2I_ADAPTER):
            kind = other_model_kind(header.tensors) or f"it contains {first_few(header.tensors) or 'nothing'}"
            kind = "a LoRA: use --lora" if is_adapter_file(header.tensors) else kind
            raise InputError(f"no ControlNet or T2I-Adapter for SDXL's family: {kind}")
    names = {_plain(name) if part == CONTROLNET else unwrapped(name): name for name in header.tensors}
    table = locate_tensors(part, path, [Section("", names)], header)
    shapes = {name: tensor.shape for name, tensor in table.items()}
    with prefix_errors(str(path)):
        layout = _controlnet(shapes, unet) if part == CONTROLNET else _t2i_adapter(shapes, unet)
    return Checkpoint(
        path=path, format=f"single {part} file", parts={part: Part(layout=layout, tensors=table)}
    )


def _plain(name: str) -> str:
    name = unwrapped(name)
    return next((name.removeprefix(each) for each in _PREFIXES if name.startswith(each)), name)


def _controlnet(shapes: Shapes, unet: UNetLayout) -> ControlNetLayout:
    """Find the layout of a ControlNet from its shapes, under diffusers' names."""
    where = "not a ControlNet of SDXL's kind"
    number = count("down_blocks.{}.resnets.0", RESNET, shapes.keys())
    levels: list[Level] = []
    for i in range(number):
        channels = detect_shape(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 4, where)[0]
        resnets = count(f"down_blocks.{i}.resnets.{{}}", RESNET, shapes.keys())
        down = tuple(_depth(f"down_blocks.{i}.attentions.{j}", shapes) for j in range(resnets))
        try:
            levels.append(Level(channels=channels, down=down, up=(0,) * (resnets + 1)))
        except ValueError as error:
            raise InputError(f"{where}: level {i}: {error}") from error
    given, wanted = ([(each.channels, len(each.down)) for each in some] for some in (levels, unet.levels))
    if given != wanted:
        raise MisfitError(
            f"its levels have {_widths(levels)} channels, the model's {_widths(unet.levels)}"
            + ("" if _widths(levels) != _widths(unet.levels) else ", with other numbers of resnets")
        )
    added = detect_shape(shapes, "add_embedding.linear_1.weight", 2, where)[1]
    _check_equal("pooled text channels", added - 6 * unet.time_ids_dim, unet.pooled_dim)
    if (text := _text_width(shapes)) is not None:
        _check_equal("text channels", text, unet.cross_attention_dim)
    hint = hint_widths(shapes, where)
    mid = _depth("mid_block.attentions.0", shapes) if "mid_block.resnets.0.conv1.weight" in shapes else None
    encoder = replace(unet, levels=tuple(levels), mid=mid, in_channels=4, guidance_embed_dim=None)
    return ControlNetLayout(encoder=encoder, hint=hint)


def hint_widths(shapes: Shapes, where: str) -> tuple[int, ...]:
    """Return the channels of the convolutions that read a ControlNet's picture.

    Raises:
        InputError: the first one is missing, or does not take three colours.
    """
    hint = [detect_shape(shapes, f"{HINT}.conv_in.weight", 4, where)]
    while (name := f"{HINT}.blocks.{2 * len(hint) - 1}.weight") in shapes:
        hint.append(detect_shape(shapes, name, 4, where))
    _check_equal("colours", hint[0][1], 3)
    return tuple(each[0] for each in hint)


def _t2i_adapter(shapes: Shapes, unet: UNetLayout) -> T2IAdapterLayout:
    """Find the layout of a T2I-Adapter from its shapes, under diffusers' names."""
    where = "not a T2I-Adapter of SDXL's kind"
    conv_in = detect_shape(shapes, "adapter.conv_in.weight", 4, where)
    blocks = count("adapter.body.{}.resnets.0", ("block1.weight", "block2.weight"), shapes.keys())
    channels = tuple(
        detect_shape(shapes, f"adapter.body.{i}.resnets.0.block1.weight", 4, where)[0] for i in range(blocks)
    )
    wanted = (*(each.channels for each in unet.levels), unet.levels[-1].channels)
    if channels != wanted:
        given, needed = (", ".join(map(str, each)) for each in (channels, wanted))
        raise MisfitError(f"its features have {given or 'no'} channels, the model needs {needed}")
    colors, rest = divmod(conv_in[1], T2IAdapterLayout().factor ** 2)
    if rest or colors not in (1, 3):
        raise InputError(f"{where}: it reads {conv_in[1]} channels, not 256 or 768")
    depth = count("adapter.body.0.resnets.{}", ("block1.weight", "block2.weight"), shapes.keys())
    return T2IAdapterLayout(channels=channels, depth=depth, picture_channels=colors)


def _depth(attention: str, shapes: Shapes) -> int:
    return count(f"{attention}.transformer_blocks.{{}}", TRANSFORMER, shapes.keys())


def _text_width(shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    ends = (shape for name, shape in shapes.items() if name.endswith("attn2.to_k.weight") and len(shape) == 2)
    return next((shape[1] for shape in ends), None)


def _check_equal(what: str, given: int, wanted: int) -> None:
    if given != wanted:
        raise MisfitError(f"it takes {given} {what}, the model has {wanted}")


def _widths(levels: tuple[Level, ...] | list[Level]) -> str:
    return ", ".join(str(each.channels) for each in levels)
