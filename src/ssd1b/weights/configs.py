"""Conversion between ``config.json`` and layouts.

The formats are those of diffusers' UNet2DConditionModel and AutoencoderKL and transformers' CLIPTextConfig. A
field that this package does not support must have the value that SDXL's family uses; with any other value the
network would silently compute something else, so it is an error.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Annotated, Any, Literal, TypeVar

from ssd1b.errors import InputError, prefix_errors, shown
from ssd1b.layouts import ControlNetLayout, Level, TextLayout, UNetLayout, VAELayout
from ssd1b.validation import Flag, Items, Range, Text, check, parse, validated

Config = Mapping[str, Any]

Read = TypeVar("Read")

_UNET_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "addition_embed_type": "text_time",
    "attention_type": "default",
    "center_input_sample": False,
    "class_embed_type": None,
    "class_embeddings_concat": False,
    "conv_in_kernel": 3,
    "conv_out_kernel": 3,
    "cross_attention_norm": None,
    "downsample_padding": 1,
    "dual_cross_attention": False,
    "encoder_hid_dim": None,
    "encoder_hid_dim_type": None,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-5,
    "num_attention_heads": None,
    "num_class_embeds": None,
    "only_cross_attention": False,
    "resnet_out_scale_factor": 1.0,
    "resnet_skip_time_act": False,
    "resnet_time_scale_shift": "default",
    "time_embedding_act_fn": None,
    "time_embedding_dim": None,
    "time_embedding_type": "positional",
    "timestep_post_act": None,
    "use_linear_projection": True,
}

_VAE_FIXED: dict[str, Any] = {
    "act_fn": "silu",
    "in_channels": 3,
    "latents_mean": None,
    "latents_std": None,
    "mid_block_add_attention": True,
    "out_channels": 3,
    "shift_factor": None,
    "use_post_quant_conv": True,
    "use_quant_conv": True,
}

_TEXT_FIXED: dict[str, Any] = {"layer_norm_eps": 1e-5}

_MID_TYPES: dict[str | None, bool | None] = {
    "UNetMidBlock2DCrossAttn": True,
    "UNetMidBlock2D": False,
    None: None,
}
"""Whether the middle block has a transformer; None if there is no middle block."""

_LIMIT = 65_536
"""Maximum width, depth or count in a configuration, so that a typing error cannot exhaust memory."""

Positive = Annotated[int, Range(1, _LIMIT)]
Token = Annotated[int, Range(0, _LIMIT)]
Depth = Annotated[int, Range(0, _LIMIT)]
Side = Annotated[int, Range(1, 1024)] | None
ListLength = Items(1, 16)
"""Bounds of the number of levels, or of resnets in a level."""

Widths = Annotated[tuple[Positive, ...], ListLength]
PerLevel = Positive | Widths
"""One number for all levels, or one for each."""

Depths = Positive | Annotated[tuple[Depth | Annotated[tuple[Depth, ...], ListLength], ...], ListLength]
"""Transformer depths: one number for all levels, or one for each level, or one for each resnet of a level."""


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class _UNetFields:
    """The fields of a UNet2DConditionModel that decide its layout."""

    block_out_channels: Widths
    layers_per_block: PerLevel = 2
    down_block_types: Annotated[tuple[Literal["CrossAttnDownBlock2D", "DownBlock2D"], ...], ListLength]
    up_block_types: Annotated[tuple[Literal["CrossAttnUpBlock2D", "UpBlock2D"], ...], ListLength]
    transformer_layers_per_block: Depths = 1
    reverse_transformer_layers_per_block: Depths | None = None
    attention_head_dim: PerLevel = 8  # diffusers' name for the number of heads
    addition_time_embed_dim: Positive
    projection_class_embeddings_input_dim: Positive
    cross_attention_dim: Positive = 1280
    norm_num_groups: Positive = 32
    time_cond_proj_dim: Positive | None = None
    in_channels: Positive = 4
    out_channels: Positive = 4

    def __post_init__(self) -> None:
        _check_levels(self)


def unet_layout(config: Config, where: str) -> UNetLayout:
    """Parse a diffusers UNet2DConditionModel configuration; ``where`` names it in errors.

    Raises:
        InputError: a field is missing, malformed, or has a value that SDXL's family does not use.
    """
    _check_fixed(config, _UNET_FIXED, where)
    read = _read(_UNetFields, config, where)
    with prefix_errors(where):
        return _unet_layout(read, _mid_attended(config))


def _unet_layout(read: _UNetFields, mid_attended: bool | None) -> UNetLayout:
    widths, number = read.block_out_channels, len(read.block_out_channels)
    resnets = _per_level(read.layers_per_block, number)
    attended_down = [kind == "CrossAttnDownBlock2D" for kind in read.down_block_types]
    attended_up = [kind == "CrossAttnUpBlock2D" for kind in read.up_block_types][::-1]
    depths = _depths(read.transformer_layers_per_block, resnets)
    if read.reverse_transformer_layers_per_block is None:
        depths_up = _depths(read.transformer_layers_per_block, [n + 1 for n in resnets])
    else:
        depths_up = _depths(read.reverse_transformer_layers_per_block, [n + 1 for n in resnets[::-1]])[::-1]
    try:
        levels = tuple(
            Level(
                channels=widths[i],
                down=depths[i] if attended_down[i] else (0,) * resnets[i],
                up=depths_up[i] if attended_up[i] else (0,) * (resnets[i] + 1),
            )
            for i in range(number)
        )
    except ValueError as error:
        raise InputError(f"transformer depths: {error}") from error
    pooled_dim = read.projection_class_embeddings_input_dim - 6 * read.addition_time_embed_dim
    if pooled_dim <= 0:
        raise InputError(
            f"projection_class_embeddings_input_dim must exceed 6 x {read.addition_time_embed_dim}"
        )
    return UNetLayout(
        levels=levels,
        mid=None if mid_attended is None else depths[-1][0] if mid_attended else 0,
        head_dim=_head_dim(read, [down or up for down, up in zip(attended_down, attended_up, strict=True)]),
        cross_attention_dim=read.cross_attention_dim,
        pooled_dim=pooled_dim,
        time_ids_dim=read.addition_time_embed_dim,
        norm_groups=read.norm_num_groups,
        guidance_embed_dim=read.time_cond_proj_dim,
        in_channels=read.in_channels,
        out_channels=read.out_channels,
    )


def _head_dim(read: _UNetFields, attended: Sequence[bool]) -> int:
    """Compute the size of the attention heads, which must be the same in all levels with attention."""
    widths, heads = read.block_out_channels, _per_level(read.attention_head_dim, len(attended))
    head_dims = {
        width // count if width % count == 0 else 0
        for width, count, is_attended in zip(widths, heads, attended, strict=True)
        if is_attended
    }
    if len(head_dims) != 1 or 0 in head_dims:
        raise InputError(f"attention_head_dim {heads} (numbers of heads) must give all heads one size")
    return head_dims.pop()


def _mid_attended(config: Config) -> bool | None:
    kind = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    if not isinstance(kind, str | None) or kind not in _MID_TYPES:
        allowed = ", ".join(map(repr, _MID_TYPES))
        raise InputError(f"mid_block_type is {shown(kind)}, allowed: {allowed}")
    return _MID_TYPES[kind]


def _per_level(value: int | tuple[int, ...], levels: int) -> list[int]:
    return list(value) if isinstance(value, tuple) else [value] * levels


def _depths(value: int | tuple[int | tuple[int, ...], ...], resnets: Sequence[int]) -> list[tuple[int, ...]]:
    """Expand any of diffusers' three notations to the transformer depth after each resnet of each level."""
    levels = []
    entries = value if isinstance(value, tuple) else (value,) * len(resnets)
    for entry, number in zip(entries, resnets, strict=True):
        levels.append(entry if isinstance(entry, tuple) else (entry,) * number)
        if len(levels[-1]) != number:
            raise InputError(f"transformer depths: {entry} must be a depth or {number} of them in each level")
    return levels


def unet_config(layout: UNetLayout, sample_size: int) -> dict[str, Any]:
    """Make a configuration from which diffusers builds the same UNet.

    Args:
        layout: the UNet.
        sample_size: side of the latents it was trained on.

    Raises:
        InputError: diffusers cannot represent the layout.
    """
    attended_down = [any(level.down) for level in layout.levels]
    attended_up = [any(level.up) for level in layout.levels]
    down = [_compact(level.down) for level in layout.levels]
    up = [_compact(level.up) for level in layout.levels][::-1]
    if layout.mid:
        coarsest = layout.levels[-1].down
        if not attended_down[-1]:
            down[-1] = layout.mid
        elif coarsest[0] != layout.mid:
            raise InputError(
                f"diffusers cannot represent a middle block of depth {layout.mid} after a level of depths "
                f"{coarsest}: it uses the first of them for both"
            )
    resnets = [len(level.down) for level in layout.levels]
    symmetric = up == down[::-1] and all(isinstance(depth, int) for depth in down)
    mid_attended = None if layout.mid is None else layout.mid > 0
    mid_type = next(kind for kind, attended in _MID_TYPES.items() if attended == mid_attended)
    return {
        **_UNET_FIXED,
        "_class_name": "UNet2DConditionModel",
        "addition_time_embed_dim": layout.time_ids_dim,
        "attention_head_dim": [max(level.channels // layout.head_dim, 1) for level in layout.levels],
        "block_out_channels": [level.channels for level in layout.levels],
        "cross_attention_dim": layout.cross_attention_dim,
        "down_block_types": ["CrossAttnDownBlock2D" if a else "DownBlock2D" for a in attended_down],
        "in_channels": layout.in_channels,
        "layers_per_block": resnets[0] if len(set(resnets)) == 1 else resnets,
        "mid_block_type": mid_type,
        "norm_num_groups": layout.norm_groups,
        "out_channels": layout.out_channels,
        "projection_class_embeddings_input_dim": layout.pooled_dim + 6 * layout.time_ids_dim,
        "reverse_transformer_layers_per_block": None if symmetric else up,
        "sample_size": sample_size,
        "time_cond_proj_dim": layout.guidance_embed_dim,
        "transformer_layers_per_block": down,
        "up_block_types": ["CrossAttnUpBlock2D" if a else "UpBlock2D" for a in attended_up[::-1]],
    }


def controlnet_config(layout: ControlNetLayout) -> dict[str, Any]:
    """Make a configuration from which diffusers builds the same ControlNet."""
    unet = unet_config(layout.encoder, 0)
    names = (
        "addition_embed_type", "addition_time_embed_dim", "attention_head_dim", "block_out_channels",
        "cross_attention_dim", "down_block_types", "in_channels", "layers_per_block", "mid_block_type",
        "norm_num_groups", "projection_class_embeddings_input_dim", "transformer_layers_per_block",
        "use_linear_projection",
    )  # fmt: skip
    return {
        **{name: unet[name] for name in names},
        "_class_name": "ControlNetModel",
        "conditioning_channels": layout.picture_channels,
        "conditioning_embedding_out_channels": list(layout.hint),
        "controlnet_conditioning_channel_order": "rgb",
        "global_pool_conditions": False,
    }


def _compact(depths: tuple[int, ...]) -> int | list[int]:
    """One number for a uniform level; diffusers requires a positive one even without a transformer."""
    return max(depths[0], 1) if len(set(depths)) == 1 else list(depths)


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class _VAEFields:
    """The fields of an AutoencoderKL that decide its layout."""

    block_out_channels: Widths
    down_block_types: Annotated[tuple[Literal["DownEncoderBlock2D"], ...], ListLength]
    up_block_types: Annotated[tuple[Literal["UpDecoderBlock2D"], ...], ListLength]
    layers_per_block: Positive = 1
    latent_channels: Positive = 4
    norm_num_groups: Positive = 32
    scaling_factor: Annotated[float, Range(1e-6, _LIMIT)] = 0.18215

    def __post_init__(self) -> None:
        _check_levels(self)


def vae_layout(config: Config, where: str) -> VAELayout:
    """Parse a diffusers AutoencoderKL configuration; ``where`` names it in errors.

    Raises:
        InputError: a field is malformed, or has a value that SDXL's autoencoder does not use.
    """
    _check_fixed(config, _VAE_FIXED, where)
    read = _read(_VAEFields, config, where)
    return VAELayout(
        channels=read.block_out_channels,
        layers_per_block=read.layers_per_block,
        latent_channels=read.latent_channels,
        norm_groups=read.norm_num_groups,
        scaling_factor=read.scaling_factor,
    )


def vae_config(layout: VAELayout, sample_size: int) -> dict[str, Any]:
    """Make a configuration from which diffusers builds the same autoencoder; ``sample_size`` in pixels."""
    number = len(layout.channels)
    return {
        **_VAE_FIXED,
        "_class_name": "AutoencoderKL",
        "block_out_channels": list(layout.channels),
        "down_block_types": ["DownEncoderBlock2D"] * number,
        "force_upcast": True,
        "latent_channels": layout.latent_channels,
        "layers_per_block": layout.layers_per_block,
        "norm_num_groups": layout.norm_groups,
        "sample_size": sample_size,
        "scaling_factor": layout.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * number,
    }


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class _TextFields:
    """The fields of a CLIPTextConfig that decide its layout."""

    architectures: Annotated[tuple[Text, ...], Items(0, 16)] = ()
    hidden_act: Literal["gelu", "quick_gelu"] = "quick_gelu"
    hidden_size: Positive = 512
    num_hidden_layers: Positive = 12
    num_attention_heads: Positive = 8
    intermediate_size: Positive = 2048
    projection_dim: Positive = 512
    vocab_size: Positive = 49408
    max_position_embeddings: Positive = 77
    bos_token_id: Token | None = None
    eos_token_id: Positive = 2
    pad_token_id: Token | None = None


def text_layout(config: Config, where: str, *, second: bool) -> TextLayout:
    """Parse the CLIPTextConfig of SDXL's first or ``second`` encoder; ``where`` names it in errors.

    SDXL's files have the token ids 0, 2 and 1, which were always wrong (transformers#24773). They are
    recognized by ``eos_token_id == 2``; then CLIP's last two tokens are begin and end. The padding token is
    defined by the tokenizer, of which the id here is at best a copy.

    Raises:
        InputError: a field is malformed, or has a value that CLIP's text encoder does not use.
    """
    _check_fixed(config, _TEXT_FIXED, where)
    read = _read(_TextFields, config, where)
    if read.eos_token_id == 2:
        eos = read.vocab_size - 1
        bos, pad = eos - 1, 0 if second else eos
    else:
        eos = read.eos_token_id
        bos = eos - 1 if read.bos_token_id is None else read.bos_token_id
        pad = eos if read.pad_token_id is None else read.pad_token_id
    for name, token in (("bos_token_id", bos), ("eos_token_id", eos), ("pad_token_id", pad)):
        if token >= read.vocab_size:
            raise InputError(f"{where}: {name} is {token}, but the vocabulary has {read.vocab_size} tokens")
    projects = any("WithProjection" in name for name in read.architectures)
    return TextLayout(
        hidden_size=read.hidden_size,
        layers=read.num_hidden_layers,
        heads=read.num_attention_heads,
        intermediate_size=read.intermediate_size,
        activation=read.hidden_act,
        projection_dim=read.projection_dim if projects else None,
        vocab_size=read.vocab_size,
        max_length=read.max_position_embeddings,
        bos_token_id=bos,
        eos_token_id=eos,
        pad_token_id=pad,
    )


def text_config(layout: TextLayout) -> dict[str, Any]:
    """Make a configuration from which transformers builds the same text encoder."""
    kind = "CLIPTextModel" if layout.projection_dim is None else "CLIPTextModelWithProjection"
    return {
        **_TEXT_FIXED,
        "architectures": [kind],
        "bos_token_id": layout.bos_token_id,
        "eos_token_id": layout.eos_token_id,
        "hidden_act": layout.activation,
        "hidden_size": layout.hidden_size,
        "intermediate_size": layout.intermediate_size,
        "max_position_embeddings": layout.max_length,
        "model_type": "clip_text_model",
        "num_attention_heads": layout.heads,
        "num_hidden_layers": layout.layers,
        "pad_token_id": layout.pad_token_id,
        "projection_dim": layout.projection_dim or layout.hidden_size,
        "vocab_size": layout.vocab_size,
    }


def sample_size(config: Config, where: str) -> int | None:
    """Read the side of the latents that a UNet was trained on; None if the configuration lacks it.

    Raises:
        InputError: it is not a size, or two different numbers.
    """
    value: Any = config.get("sample_size")
    side: Any = value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value
    with prefix_errors(where):
        return check("sample_size", side, Side)


def flag(config: Config, name: str, default: bool, where: str) -> bool:
    """Read a Boolean field; ``default`` if it is null or missing.

    Raises:
        InputError: it is something else.
    """
    with prefix_errors(where):
        return check(name, default if config.get(name) is None else config[name], Flag)


def class_name(config: Config, where: str) -> str:
    """Read the class of a configuration, "" if it is missing.

    Raises:
        InputError: it is not text.
    """
    with prefix_errors(where):
        return check("_class_name", config.get("_class_name") or "", Text)


def _check_levels(read: Any) -> None:
    levels = len(read.block_out_channels)
    for each in fields(read):
        value = getattr(read, each.name)
        if isinstance(value, tuple) and len(value) != levels:
            raise InputError(
                f"{each.name} is {shown(list(value))}: it must have {levels} items, one per level"
            )


def _check_fixed(config: Config, fixed: Mapping[str, Any], where: str) -> None:
    for name, value in fixed.items():
        if name in config and config[name] != value:
            raise InputError(f"{where}: {name} is {shown(config[name])}, but only {value!r} is supported")


def _read(kind: type[Read], config: Config, where: str) -> Read:
    """Parse the fields of a class from a configuration that has others, too; null counts as missing."""
    known = {each.name: config.get(each.name) for each in fields(kind)}  # type: ignore[arg-type]
    return parse(kind, {name: value for name, value in known.items() if value is not None}, where)
