"""Control-LoRAs: ControlNets written as a LoRA of the base UNet's encoder, with what is new in full.

Stability AI published them for SDXL (``control-lora-canny-rank256``). Tensors have the original names; a
weight is either in full, or as ``up`` and ``down``, whose product is added to the UNet's weight. Everything
that the file does not have is the UNet's.

Source: ComfyUI ``comfy/controlnet.py`` (ControlLora), and diffusers ``loaders/peft.py`` for the scale of 1.
"""

from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path

from ssd1b.adapters.matching import larger_layouts
from ssd1b.errors import InputError, prefix_errors
from ssd1b.layer_map import shapes as unet_shapes
from ssd1b.layouts import ControlNetLayout, UNetLayout, encoder_of
from ssd1b.models.unet import skip_channels
from ssd1b.numerals import counted
from ssd1b.weights.checkpoint import Checkpoint, Part
from ssd1b.weights.controls import CONTROLNET, HINT, MisfitError, hint_widths
from ssd1b.weights.detect import Shapes
from ssd1b.weights.files import Header, Shape, first_few, read_header
from ssd1b.weights.keymap import from_original
from ssd1b.weights.stored import LowRank, StoredTensor, add_tensor

MARKER = "lora_controlnet"
"""Name of a tensor that every such file has."""

_NEW = (HINT, "controlnet_down_blocks", "controlnet_mid_block")
"""Parts of a ControlNet that a UNet's encoder lacks, by the first component of their tensor names."""


def is_control_lora(path: Path) -> bool:
    """Whether a file is a Control-LoRA.

    Raises:
        InputError: it is not safetensors.
    """
    return MARKER in read_header(path).tensors


def open_control_lora(
    path: Path, unet: UNetLayout, base: Mapping[str, StoredTensor] | None = None
) -> Checkpoint:
    """Describe a Control-LoRA as the ControlNet that it is with a UNet, without loading it.

    A file for SDXL is carried to a smaller UNet by the layer map, as LoRAs are.

    Args:
        path: a safetensors file.
        unet: the layout of the UNet that it is added to.
        base: that UNet's tensors; without them the network cannot be loaded, only described.

    Returns:
        A checkpoint whose only part is ``CONTROLNET``.

    Raises:
        MisfitError: it is for UNets of another width, or with other numbers of resnets.
        InputError: it is not such a file, or damaged.
    """
    header = read_header(path)
    with prefix_errors(str(path)):
        full, products = _tensors(path, header)
        shapes = {name: each.shape for name, each in full.items()}
        encoder = encoder_of(unet)
        places = _places({**shapes, **{name: each.shape for name, each in products.items()}}, unet, encoder)
        zero = sum(name.startswith("controlnet_down_blocks.") for name in full) // 2
        if zero != len(skip_channels(encoder)):
            raise MisfitError(f"it adds to {zero} feature maps, the model has {len(skip_channels(encoder))}")
        table = {name: each for name, each in full.items() if name.partition(".")[0] in _NEW}
        for name, source in places.items():
            if source in full:
                table[name] = full[source]
            elif base is not None:
                if name not in base:
                    raise InputError(f"{first_few([name])} is neither in the file nor in the model")
                table[name] = base[name].plus(products.get(source))
        layout = ControlNetLayout(encoder=encoder, hint=hint_widths(shapes, "not a Control-LoRA"))
    return Checkpoint(
        path=path, format="single Control-LoRA file", parts={CONTROLNET: Part(layout=layout, tensors=table)}
    )


def _tensors(path: Path, header: Header) -> tuple[dict[str, StoredTensor], dict[str, LowRank]]:
    """Return the tensors that the file has in full, and those that it changes, by our names."""
    pairs = {name.removesuffix(".up") for name in header.tensors if name.endswith(".up")}
    pairs |= {name.removesuffix(".down") for name in header.tensors if name.endswith(".down")}
    halves = {f"{name}.{half}" for name in pairs for half in ("up", "down")}
    if missing := sorted(halves - header.tensors.keys()):
        raise InputError(f"not a Control-LoRA: {first_few(missing)} is missing")
    plain = [name for name in header.tensors if name not in halves and name != MARKER]
    ours = from_original(CONTROLNET, [*plain, *(f"{name}.weight" for name in pairs)])
    full: dict[str, StoredTensor] = {}
    for name in plain:
        for our, transform in ours.get(name, ()):
            add_tensor(full, our, file=path, stored=name, header=header, transform=transform)
    if unknown := [name for name in ours.keys() ^ {*plain, *(f"{each}.weight" for each in pairs)}]:
        raise InputError(
            f"not a Control-LoRA: {counted(len(unknown), 'unknown tensor')}: {first_few(unknown)}"
        )
    products: dict[str, LowRank] = {}
    for name in pairs:
        ((our, _),) = ours[f"{name}.weight"]
        products[our] = _product(path, name, header)
    return full, products


def _product(path: Path, name: str, header: Header) -> LowRank:
    up, down = (header.tensors[f"{name}.{half}"][1] for half in ("up", "down"))
    if len(up) < 2 or len(down) != len(up) or prod(up[1:]) != down[0] or 0 in (*up, *down):
        raise InputError(f"{first_few([name])}: up {list(up)} and down {list(down)} do not belong together")
    return LowRank(file=path, up=f"{name}.up", down=f"{name}.down", shape=(up[0], *down[1:]))


def _places(given: Shapes, unet: UNetLayout, encoder: UNetLayout) -> dict[str, str]:
    """Find the name in the file of each tensor of the model's encoder.

    Raises:
        MisfitError: the file's tensors are those of no UNet that this one is a part of.
    """
    changed = {name: shape for name, shape in given.items() if name.partition(".")[0] not in _NEW}
    wanted = list(_encoder_names(encoder))
    if not _misfits(changed, encoder):
        return {name: name for name in wanted}
    for _, candidate, layer_map in larger_layouts(unet):
        if not _misfits(changed, encoder_of(candidate)):
            return {name: layer_map.keys[name] for name in wanted}
    raise MisfitError(f"its tensors are not the model's: {first_few(_misfits(changed, encoder))}")


def _misfits(given: Mapping[str, Shape], encoder: UNetLayout) -> list[str]:
    """Return tensors that an encoder does not have, or not with this shape."""
    known = unet_shapes(encoder)
    return [name for name, shape in given.items() if tuple(known.get(name, ())) != tuple(shape)]


def _encoder_names(encoder: UNetLayout) -> Iterator[str]:
    """Yield the names of an encoder's tensors: a UNet's without the way up."""
    for name in unet_shapes(encoder):
        if not name.startswith(("up_blocks.", "conv_norm_out.", "conv_out.")):
            yield name
