"""Mapping between diffusers' tensor names and the original ones of LDM, SGM and OpenCLIP.

This package uses the names of the published diffusers folders. A map is a list of pairs (our prefix, original
prefix, transform), used in both directions. The numbering of the original UNet runs through all levels, and
follows from the number of resnets per level.

Sources: generative-models ``sgm/modules/diffusionmodules/openaimodel.py`` and ``model.py``, OpenCLIP
``transformer.py``; diffusers ``loaders/single_file_utils.py`` is the tests' oracle.
"""

from collections.abc import Callable, Collection, Iterator, Sequence, Set
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from ssd1b.weights.files import Shape
from ssd1b.weights.spellings import plain_text_name

PARTS = ("unet", "vae", "text_encoder", "text_encoder_2")
"""The networks of a model by folder name."""

ORIGINAL_PREFIXES: dict[str, str] = {
    "unet": "model.diffusion_model.",
    "vae": "first_stage_model.",
    "text_encoder": "conditioner.embedders.0.transformer.",
    "text_encoder_2": "conditioner.embedders.1.model.",
}
"""Prefix of each part in a single-file SDXL checkpoint."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorTransform:
    """Conversion between a tensor and its form in the original file.

    Attributes:
        shape: computes our shape from the stored one; an invalid one is returned unchanged, to be reported.
        read: converts the stored tensor to ours, a view if possible.
        write: converts all of our tensors that the stored one consists of.
        index: our tensor's position among them.
    """

    shape: Callable[[Shape], Shape]
    read: Callable[[Tensor], Tensor]
    write: Callable[[list[Tensor]], Tensor]
    index: int = 0


def _third(index: int) -> TensorTransform:
    """Make the transform of one of q, k, v, which OpenCLIP stacks into a single ``in_proj``."""
    return TensorTransform(
        shape=lambda s: (s[0] // 3, *s[1:]) if s and s[0] % 3 == 0 else s,
        read=lambda t: t.chunk(3)[index],
        write=torch.cat,
        index=index,
    )


PLAIN = TensorTransform(shape=lambda s: s, read=lambda t: t, write=lambda ts: ts[0])
TRANSPOSED = TensorTransform(
    shape=lambda s: s[::-1], read=lambda t: t.T.contiguous(), write=lambda ts: ts[0].T.contiguous()
)
CONV_1X1 = TensorTransform(
    shape=lambda s: s[:2] if s[2:] == (1, 1) else s,
    read=lambda t: t.flatten(1),
    write=lambda ts: ts[0][:, :, None, None],
)
QKV = (_third(0), _third(1), _third(2))


class Pair(NamedTuple):
    """A name, or a prefix of complete dotted words, in both spellings."""

    ours: str
    original: str
    transform: TensorTransform = PLAIN


RESNET = ("conv1.weight", "conv2.weight")
TRANSFORMER = ("norm1.weight", "norm3.weight")
TEXT_LAYER = ("layer_norm1.weight", "layer_norm2.weight")
_ORIGINAL_RESNET = ("in_layers.2.weight", "out_layers.3.weight")
_OPEN_CLIP = ("ln_1.weight", "ln_2.weight")
"""Two tensors that each layer of a kind has. A layer exists if at least one of them does."""


def has(layer: str, leaves: Sequence[str], names: Set[str]) -> bool:
    """Whether a layer exists, with at least one of the tensors ``leaves``."""
    return any(f"{layer}.{leaf}" in names for leaf in leaves)


def count(pattern: str, leaves: Sequence[str], names: Set[str]) -> int:
    """Count consecutive layers; ``pattern`` has ``{}`` for the number, starting with 0."""
    number = 0
    while has(pattern.format(number), leaves, names):
        number += 1
    return number


def from_original(part: str, names: Collection[str]) -> dict[str, list[tuple[str, TensorTransform]]]:
    """Translate the original names of one part, without their part prefix.

    Text encoders have either transformers' or OpenCLIP's names. SSD-1B's file has OpenCLIP's, but with a
    ``text_projection.weight`` that is a linear layer's and not transposed.

    Returns:
        Our names (three for a stacked projection) by stored name; unknown names are omitted.
    """
    known: dict[str, list[tuple[str, TensorTransform]]] = {}
    for ours, original, transform in _pairs(part, set(names), original=True):
        known.setdefault(original, []).append((ours, transform))
    return {name: found for name in names if (found := _translate(name, known))}


def to_original(part: str, names: Collection[str]) -> dict[str, tuple[str, TensorTransform]]:
    """Translate all of our names of one part; the result has no part prefix.

    Raises:
        KeyError: no layout has the name.
    """
    known = {
        ours: [(original, transform)]
        for ours, original, transform in _pairs(part, set(names), original=False)
    }
    result = {}
    for name in names:
        translated = _translate(name, known)
        if not translated:
            raise KeyError(name)
        result[name] = translated[0]
    return result


def our_name(part: str, name: str) -> str:
    """Normalize a name in a diffusers folder to the published spelling.

    transformers >= 5.6 writes CLIP without the ``text_model.`` prefix; diffusers once named the VAE's
    attention ``query``, ``key``, ``value`` and ``proj_attn``.
    """
    if part.startswith("text_encoder"):
        name = plain_text_name(name)
        return name if name.startswith(("text_model.", "text_projection.")) else f"text_model.{name}"
    if part == "vae" and ".attentions." in name:
        head, old, leaf = name.rsplit(".", 2)
        return f"{head}.{_OLD_ATTENTION.get(old, old)}.{leaf}"
    return name


_OLD_ATTENTION = {"query": "to_q", "key": "to_k", "value": "to_v", "proj_attn": "to_out.0"}


def _translate(
    name: str, known: dict[str, list[tuple[str, TensorTransform]]]
) -> list[tuple[str, TensorTransform]]:
    """Replace the longest known prefix."""
    head = name
    while head:
        if head in known:
            return [(other + name[len(head) :], transform) for other, transform in known[head]]
        head = head.rpartition(".")[0]
    return []


def _pairs(part: str, names: Set[str], *, original: bool) -> Iterator[Pair]:
    match part:
        case "unet" | "controlnet":
            yield from _unet(_original_unet_levels(names) if original else _unet_levels(names))
            yield from _controlnet(names)
        case "t2i_adapter":
            for word in ("conv_in", "body"):
                yield Pair(f"adapter.{word}", word)
        case "vae":
            if original:
                levels, layers = "encoder.down.{}.block.0", "encoder.down.0.block.{}"
            else:
                levels, layers = "encoder.down_blocks.{}.resnets.0", "encoder.down_blocks.0.resnets.{}"
            yield from _vae(count(levels, RESNET, names), count(layers, RESNET, names))
        case "text_encoder":
            yield Pair("text_model", "text_model")
            yield Pair("text_projection", "text_projection")
            if original:
                yield from _open_clip(count("transformer.resblocks.{}", _OPEN_CLIP, names))
        case "text_encoder_2":
            if not original:
                yield from _open_clip(count("text_model.encoder.layers.{}", TEXT_LAYER, names))
            else:
                yield from _open_clip(count("transformer.resblocks.{}", _OPEN_CLIP, names))
                yield Pair("text_model", "text_model")
                yield Pair("text_projection.weight", "text_projection.weight")
                yield Pair("text_projection.weight", "text_projection.weight.weight")
        case _:
            raise ValueError(part)


class _UNetLevel(NamedTuple):
    resnets: int
    """Number on the way down; there is one more on the way up."""
    attention_up: bool


def _unet_levels(names: Set[str]) -> list[_UNetLevel]:
    levels = count("down_blocks.{}.resnets.0", RESNET, names)
    return [
        _UNetLevel(
            count(f"down_blocks.{i}.resnets.{{}}", RESNET, names),
            f"up_blocks.{levels - 1 - i}.attentions.0.norm.weight" in names,
        )
        for i in range(levels)
    ]


def _original_unet_levels(names: Set[str]) -> list[_UNetLevel]:
    """Derive the levels from the original numbering; each ends with a downsampling convolution."""
    resnets, index = [0], 1
    while True:
        if has(f"input_blocks.{index}.0", _ORIGINAL_RESNET, names):
            resnets[-1] += 1
        elif f"input_blocks.{index}.0.op.weight" in names:
            resnets.append(0)
        else:
            break
        index += 1
    levels, first = [], 0
    for number in reversed(resnets):
        levels.append(_UNetLevel(number, f"output_blocks.{first}.1.norm.weight" in names))
        first += number + 1
    return levels[::-1]


_UNET_RESNET = (
    ("norm1", "in_layers.0"),
    ("conv1", "in_layers.2"),
    ("time_emb_proj", "emb_layers.1"),
    ("norm2", "out_layers.0"),
    ("conv2", "out_layers.3"),
    ("conv_shortcut", "skip_connection"),
)


def _unet(levels: Sequence[_UNetLevel]) -> Iterator[Pair]:
    yield Pair("conv_in", "input_blocks.0.0")
    yield Pair("time_embedding.linear_1", "time_embed.0")
    yield Pair("time_embedding.linear_2", "time_embed.2")
    # Distilled guidance exists only in diffusers and has no original name; with this one it can be read back.
    yield Pair("time_embedding.cond_proj", "time_embed.cond_proj")
    yield Pair("add_embedding.linear_1", "label_emb.0.0")
    yield Pair("add_embedding.linear_2", "label_emb.0.2")

    index = 1
    for i, level in enumerate(levels):
        for j in range(level.resnets):
            yield from _resnet(f"down_blocks.{i}.resnets.{j}", f"input_blocks.{index}.0")
            yield Pair(f"down_blocks.{i}.attentions.{j}", f"input_blocks.{index}.1")
            index += 1
        yield Pair(f"down_blocks.{i}.downsamplers.0.conv", f"input_blocks.{index}.0.op")
        index += 1

    yield from _resnet("mid_block.resnets.0", "middle_block.0")
    yield Pair("mid_block.attentions.0", "middle_block.1")
    yield from _resnet("mid_block.resnets.1", "middle_block.2")

    index = 0
    for i, level in enumerate(reversed(levels)):
        for j in range(level.resnets + 1):
            yield from _resnet(f"up_blocks.{i}.resnets.{j}", f"output_blocks.{index}.0")
            if level.attention_up:
                yield Pair(f"up_blocks.{i}.attentions.{j}", f"output_blocks.{index}.1")
            index += 1
        position = 2 if level.attention_up else 1
        yield Pair(f"up_blocks.{i}.upsamplers.0.conv", f"output_blocks.{index - 1}.{position}.conv")

    yield Pair("conv_norm_out", "out.0")
    yield Pair("conv_out", "out.2")


def _controlnet(names: Set[str]) -> Iterator[Pair]:
    """Pair what a ControlNet has beside a UNet's encoder; the original numbers every second layer."""
    hint = "controlnet_cond_embedding"
    last = 0
    while f"input_hint_block.{last + 2}.weight" in names:
        last += 2
    if last:
        yield Pair(f"{hint}.conv_in", "input_hint_block.0")
        yield Pair(f"{hint}.conv_out", f"input_hint_block.{last}")
    for number in range(2, last, 2):
        yield Pair(f"{hint}.blocks.{number // 2 - 1}", f"input_hint_block.{number}")
    index = 0
    while f"zero_convs.{index}.0.weight" in names:
        yield Pair(f"controlnet_down_blocks.{index}", f"zero_convs.{index}.0")
        index += 1
    yield Pair("controlnet_mid_block", "middle_block_out.0")


def _resnet(ours: str, original: str) -> Iterator[Pair]:
    for leaf, original_leaf in _UNET_RESNET:
        yield Pair(f"{ours}.{leaf}", f"{original}.{original_leaf}")


_VAE_ATTENTION = (("to_q", "q"), ("to_k", "k"), ("to_v", "v"), ("to_out.0", "proj_out"))


def _vae(levels: int, layers: int) -> Iterator[Pair]:
    for name in ("quant_conv", "post_quant_conv"):
        yield Pair(name, name)
    for half in ("encoder", "decoder"):
        yield Pair(f"{half}.conv_in", f"{half}.conv_in")
        yield Pair(f"{half}.conv_norm_out", f"{half}.norm_out")
        yield Pair(f"{half}.conv_out", f"{half}.conv_out")
        for j in (0, 1):
            yield from _vae_resnet(f"{half}.mid_block.resnets.{j}", f"{half}.mid.block_{j + 1}")
        ours, original = f"{half}.mid_block.attentions.0", f"{half}.mid.attn_1"
        yield Pair(f"{ours}.group_norm", f"{original}.norm")
        for leaf, original_leaf in _VAE_ATTENTION:
            yield Pair(f"{ours}.{leaf}.weight", f"{original}.{original_leaf}.weight", CONV_1X1)
            yield Pair(f"{ours}.{leaf}.bias", f"{original}.{original_leaf}.bias")
    for i in range(levels):
        # Both halves of the original count from the finest level, but diffusers' decoder from the coarsest.
        for half, way, position, resnets in (
            ("encoder", "down", i, layers),
            ("decoder", "up", levels - 1 - i, layers + 1),
        ):
            ours, original = f"{half}.{way}_blocks.{position}", f"{half}.{way}.{i}"
            for j in range(resnets):
                yield from _vae_resnet(f"{ours}.resnets.{j}", f"{original}.block.{j}")
            yield Pair(f"{ours}.{way}samplers.0.conv", f"{original}.{way}sample.conv")


def _vae_resnet(ours: str, original: str) -> Iterator[Pair]:
    for leaf in ("norm1", "conv1", "norm2", "conv2"):
        yield Pair(f"{ours}.{leaf}", f"{original}.{leaf}")
    yield Pair(f"{ours}.conv_shortcut", f"{original}.nin_shortcut")


_OPEN_CLIP_LAYER = (
    ("layer_norm1", "ln_1"),
    ("layer_norm2", "ln_2"),
    ("mlp.fc1", "mlp.c_fc"),
    ("mlp.fc2", "mlp.c_proj"),
    ("self_attn.out_proj", "attn.out_proj"),
)


def _open_clip(layers: int) -> Iterator[Pair]:
    yield Pair("text_model.embeddings.token_embedding", "token_embedding")
    yield Pair("text_model.embeddings.position_embedding.weight", "positional_embedding")
    yield Pair("text_model.final_layer_norm", "ln_final")
    yield Pair("text_projection.weight", "text_projection", TRANSPOSED)
    for i in range(layers):
        ours, original = f"text_model.encoder.layers.{i}", f"transformer.resblocks.{i}"
        for leaf, original_leaf in _OPEN_CLIP_LAYER:
            yield Pair(f"{ours}.{leaf}", f"{original}.{original_leaf}")
        for projection, transform in zip(("q_proj", "k_proj", "v_proj"), QKV, strict=True):
            for leaf in ("weight", "bias"):
                yield Pair(
                    f"{ours}.self_attn.{projection}.{leaf}", f"{original}.attn.in_proj_{leaf}", transform
                )
