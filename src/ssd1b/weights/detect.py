"""Detection of a network's layout from its ``config.json`` and the names and shapes of its weights.

The configuration adds what shapes do not show (head size, norm groups, activations, the scaling factor) and
must not contradict them. Without one, the values common to the family are assumed. ``keymap`` has the names.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import Any

from ssd1b.errors import InputError, prefix_errors
from ssd1b.layouts import Level, TextLayout, UNetLayout, VAELayout
from ssd1b.weights import configs
from ssd1b.weights.checkpoint import Layout, Part
from ssd1b.weights.files import Shape
from ssd1b.weights.keymap import RESNET, TEXT_LAYER, TRANSFORMER, count, has
from ssd1b.weights.stored import StoredTensor

Shapes = Mapping[str, Shape]


def detect_unet_layout(
    shapes: Shapes, *, head_dim: int = 64, norm_groups: int = 32, time_ids_dim: int = 256
) -> UNetLayout:
    """Detect a UNet's layout from its shapes, under diffusers' names.

    Args:
        shapes: name and shape of every tensor.
        head_dim: channels per attention head.
        norm_groups: groups of every GroupNorm.
        time_ids_dim: width of the embedding of each micro-conditioning number.

    Raises:
        InputError: it is not a UNet of SDXL's kind, or these three numbers do not fit it.
    """
    where = "not a UNet of SDXL's kind"
    conv_in = detect_shape(shapes, "conv_in.weight", 4, where)
    conv_out = detect_shape(shapes, "conv_out.weight", 4, where)
    sizes = detect_shape(shapes, "add_embedding.linear_1.weight", 2, where)
    number = count("down_blocks.{}.resnets.0", RESNET, shapes.keys())
    levels = []
    for i in range(number):
        channels = detect_shape(shapes, f"down_blocks.{i}.resnets.0.conv1.weight", 4, where)[0]
        down, up = (_depths(block, shapes) for block in (f"down_blocks.{i}", f"up_blocks.{number - 1 - i}"))
        try:
            levels.append(Level(channels=channels, down=down, up=up))
        except ValueError as error:
            raise InputError(f"{where}: level {i}: {error}") from error
    if not levels:
        raise InputError(f"{where}: it has no down_blocks")

    mid = _mid_depth(shapes)
    text_keys = f"{_first_transformer(levels, mid, where)}.transformer_blocks.0.attn2.to_k.weight"
    guidance = "time_embedding.cond_proj.weight"
    layout = UNetLayout(
        levels=tuple(levels),
        mid=mid,
        head_dim=head_dim,
        cross_attention_dim=detect_shape(shapes, text_keys, 2, where)[1],
        pooled_dim=sizes[1] - 6 * time_ids_dim,
        time_ids_dim=time_ids_dim,
        norm_groups=norm_groups,
        guidance_embed_dim=detect_shape(shapes, guidance, 2, where)[1] if guidance in shapes else None,
        in_channels=conv_in[1],
        out_channels=conv_out[0],
    )
    _check_divisions(layout, where)
    return layout


def detect_vae_layout(shapes: Shapes, *, norm_groups: int = 32, scaling_factor: float = 0.13025) -> VAELayout:
    """Detect an autoencoder's layout from its shapes, under diffusers' names.

    Args:
        shapes: name and shape of every tensor.
        norm_groups: groups of every GroupNorm.
        scaling_factor: factor that normalizes the variance of the latents.

    Raises:
        InputError: it is not an autoencoder of SDXL's kind.
    """
    where = "not a VAE of SDXL's kind"
    levels = range(count("encoder.down_blocks.{}.resnets.0", RESNET, shapes.keys()))
    layout = VAELayout(
        channels=tuple(
            detect_shape(shapes, f"encoder.down_blocks.{i}.resnets.0.conv1.weight", 4, where)[0]
            for i in levels
        ),
        layers_per_block=count("encoder.down_blocks.0.resnets.{}", RESNET, shapes.keys()),
        latent_channels=detect_shape(shapes, "decoder.conv_in.weight", 4, where)[1],
        norm_groups=norm_groups,
        scaling_factor=scaling_factor,
    )
    if not layout.channels:
        raise InputError(f"{where}: it has no encoder.down_blocks")
    _divides(norm_groups, layout.channels, "norm_groups", where)
    return layout


def detect_text_layout(
    shapes: Shapes, *, second: bool, heads: int | None = None, activation: str | None = None
) -> TextLayout:
    """Detect a CLIP text encoder's layout from its shapes, under transformers' names.

    Args:
        shapes: name and shape of every tensor.
        second: whether it is SDXL's second encoder (OpenCLIP's) or the first (OpenAI's). This decides
            activation and padding, which the tensors do not show.
        heads: number of attention heads; None means heads of 64 channels, as in both of SDXL's.
        activation: activation of the MLPs; None means that of SDXL's encoder.

    Raises:
        InputError: it is not a CLIP text encoder.
    """
    where = "not a CLIP text encoder"
    vocab_size, hidden_size = detect_shape(shapes, "text_model.embeddings.token_embedding.weight", 2, where)
    max_length, _ = detect_shape(shapes, "text_model.embeddings.position_embedding.weight", 2, where)
    intermediate, _ = detect_shape(shapes, "text_model.encoder.layers.0.mlp.fc1.weight", 2, where)
    projection = "text_projection.weight"
    projection_dim = detect_shape(shapes, projection, 2, where)[0] if projection in shapes else None
    if hidden_size % (heads or 64):
        raise InputError(f"{where}: {hidden_size} channels do not divide into {heads or 'heads of 64'}")
    return TextLayout(
        hidden_size=hidden_size,
        layers=count("text_model.encoder.layers.{}", TEXT_LAYER, shapes.keys()),
        heads=heads or hidden_size // 64,
        intermediate_size=intermediate,
        activation=activation or ("gelu" if second else "quick_gelu"),
        projection_dim=projection_dim,
        vocab_size=vocab_size,
        max_length=max_length,
        bos_token_id=vocab_size - 2,
        eos_token_id=vocab_size - 1,
        # The second tokenizer pads with "!", the first token of CLIP's vocabulary.
        pad_token_id=0 if second else vocab_size - 1,
    )


def detect_shape(shapes: Shapes, name: str, axes: int, where: str) -> Shape:
    """Return a tensor's shape.

    Raises:
        InputError: it is missing, or has another number of axes; ``where`` begins the message.
    """
    if name not in shapes:
        raise InputError(f"{where}: {name} is missing")
    shape = shapes[name]
    if len(shape) != axes or 0 in shape:
        raise InputError(f"{where}: {name} has shape {list(shape)}, expected {axes} axes")
    return shape


def _depths(block: str, shapes: Shapes) -> tuple[int, ...]:
    resnets = count(f"{block}.resnets.{{}}", RESNET, shapes.keys())
    return tuple(_depth(f"{block}.attentions.{j}", shapes) for j in range(resnets))


def _mid_depth(shapes: Shapes) -> int | None:
    has_mid = has("mid_block.resnets.0", RESNET, shapes.keys())
    return _depth("mid_block.attentions.0", shapes) if has_mid else None


def _depth(attention: str, shapes: Shapes) -> int:
    return count(f"{attention}.transformer_blocks.{{}}", TRANSFORMER, shapes.keys())


def _first_transformer(levels: Sequence[Level], mid: int | None, where: str) -> str:
    """Find the prefix of any of the UNet's transformers."""
    for i, level in enumerate(levels):
        if level.down[0]:
            return f"down_blocks.{i}.attentions.0"
        if level.up[0]:
            return f"up_blocks.{len(levels) - 1 - i}.attentions.0"
    if not mid:
        raise InputError(f"{where}: it has no cross-attention")
    return "mid_block.attentions.0"


def _check_divisions(layout: UNetLayout, where: str) -> None:
    if layout.pooled_dim <= 0:
        raise InputError(
            f"{where}: add_embedding is too narrow for six numbers of {layout.time_ids_dim} each"
        )
    channels = tuple(level.channels for level in layout.levels)
    attended = [level.channels for level in layout.levels if any(level.down + level.up)]
    if layout.mid:
        attended.append(channels[-1])
    _divides(layout.norm_groups, channels, "norm_groups", where)
    _divides(layout.head_dim, attended, "head_dim", where)


def _divides(divisor: int, channels: Iterable[int], name: str, where: str) -> None:
    if any(c % divisor for c in channels):
        widths = ", ".join(map(str, channels))
        raise InputError(
            f"{where}: widths {widths} are not multiples of {name} {divisor}; config.json must give it"
        )


@dataclass(frozen=True, slots=True)
class _Kind:
    """Functions that find the layout of one kind of network.

    Attributes:
        detect: finds it from shapes.
        read_config: finds it from the configuration.
        unseen: fields that shapes do not show, which ``detect`` takes from the configuration.
    """

    detect: Callable[..., Layout]
    read_config: Callable[[Mapping[str, Any], str], Layout]
    unseen: tuple[str, ...]


_UNET = _Kind(detect_unet_layout, configs.unet_layout, ("head_dim", "norm_groups", "time_ids_dim"))
_VAE = _Kind(detect_vae_layout, configs.vae_layout, ("norm_groups", "scaling_factor"))
_TEXT, _TEXT_2 = (
    _Kind(
        partial(detect_text_layout, second=second),
        partial(configs.text_layout, second=second),
        ("heads", "activation"),
    )
    for second in (False, True)
)
_KINDS = {"unet": _UNET, "vae": _VAE, "text_encoder": _TEXT, "text_encoder_2": _TEXT_2}


def layout_of(part: str, shapes: Shapes, config: Mapping[str, Any] | None, where: str) -> Layout:
    """Find the layout of one network.

    Args:
        part: which network, one of ``keymap.PARTS``.
        shapes: name and shape of every tensor, under the published names.
        config: its ``config.json``, if any.
        where: name of the network in errors.

    Raises:
        InputError: it is not such a network, or the configuration contradicts the shapes.
    """
    kind = _KINDS[part]
    declared = None if config is None else kind.read_config(config, f"{where}: config")
    with prefix_errors(where):
        found = kind.detect(shapes, **{name: getattr(declared, name) for name in kind.unseen if declared})
    if declared is None:
        return found
    if isinstance(declared, TextLayout) and isinstance(found, TextLayout):
        found = replace(
            found,
            bos_token_id=declared.bos_token_id,
            eos_token_id=declared.eos_token_id,
            pad_token_id=declared.pad_token_id,
        )
        # In a configuration only the class name shows whether there is a projection; the weights are certain.
        if declared.projection_dim is None or found.projection_dim is None:
            declared = replace(declared, projection_dim=found.projection_dim)
    if found != declared:
        raise InputError(f"{where}: config and weights contradict each other: {_difference(declared, found)}")
    return found


def make_part(
    part: str, table: dict[str, StoredTensor], config: Mapping[str, Any] | None, where: str
) -> Part:
    """Make the description of a network from its tensors; raises as ``layout_of``."""
    shapes = {name: tensor.shape for name, tensor in table.items()}
    return Part(layout=layout_of(part, shapes, config, where), tensors=table)


def _difference(declared: Layout, found: Layout) -> str:
    declared_fields, found_fields = asdict(declared), asdict(found)
    name = next(name for name in declared_fields if declared_fields[name] != found_fields[name])
    a, b = declared_fields[name], found_fields[name]
    if name == "levels" and len(a) == len(b):
        index = next(index for index in range(len(a)) if a[index] != b[index])
        name, a, b = f"level {index}", a[index], b[index]
    return f"{name} is {a} in the config, {b} in the weights"
