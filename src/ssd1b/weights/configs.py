"""``config.json`` to layout and back.

The formats are those of diffusers' UNet2DConditionModel and AutoencoderKL and transformers' CLIPTextConfig. A
field that this package has no switch for must have the one value that SDXL's family uses; anything else would
compute something different in silence, so it is an error.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from ssd1b.errors import InputError, shown
from ssd1b.layouts import Level, TextLayout, UNetLayout, VAELayout

Config = Mapping[str, Any]

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
"""Whether the middle block has a transformer; None = there is no middle block."""

_LIMIT = 65_536
"""No width, depth or count in a configuration is larger; a typing error must not fill the memory."""


def unet_layout(config: Config, where: str) -> UNetLayout:
    """Read a diffusers UNet2DConditionModel configuration; ``where`` names it in errors.

    Raises:
        InputError: a field that is missing, malformed, or asks for something else than SDXL's family does.
    """
    _check_fixed(config, _UNET_FIXED, where)
    read = _Reader(config, where)
    widths = read.integers("block_out_channels")
    number = len(widths)
    resnets = read.per_level("layers_per_block", number, 2)
    attended_down = read.blocks("down_block_types", number, "CrossAttnDownBlock2D", "DownBlock2D")
    attended_up = read.blocks("up_block_types", number, "CrossAttnUpBlock2D", "UpBlock2D")[::-1]
    depths = read.depths("transformer_layers_per_block", resnets)
    if config.get("reverse_transformer_layers_per_block") is None:
        depths_up = read.depths("transformer_layers_per_block", [n + 1 for n in resnets])
    else:
        name = "reverse_transformer_layers_per_block"
        depths_up = read.depths(name, [n + 1 for n in resnets[::-1]])[::-1]
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
        raise InputError(f"{where}: transformer depths: {error}") from error
    heads = read.per_level("attention_head_dim", number, 8)  # diffusers' name for the number of heads
    head_dims = {
        widths[i] // heads[i] if widths[i] % heads[i] == 0 else 0
        for i in range(number)
        if attended_down[i] or attended_up[i]
    }
    if len(head_dims) != 1 or 0 in head_dims:
        raise InputError(
            f"{where}: attention_head_dim {heads} (numbers of heads) must give all heads one size"
        )
    time_ids_dim = read.integer("addition_time_embed_dim")
    pooled_dim = read.integer("projection_class_embeddings_input_dim") - 6 * time_ids_dim
    if pooled_dim <= 0:
        raise InputError(f"{where}: projection_class_embeddings_input_dim must exceed 6 x {time_ids_dim}")
    return UNetLayout(
        levels=levels,
        mid=_mid(config, where, depths[-1][0]),
        head_dim=head_dims.pop(),
        cross_attention_dim=read.integer("cross_attention_dim", 1280),
        pooled_dim=pooled_dim,
        time_ids_dim=time_ids_dim,
        norm_groups=read.integer("norm_num_groups", 32),
        guidance_embed_dim=read.optional_integer("time_cond_proj_dim"),
        in_channels=read.integer("in_channels", 4),
        out_channels=read.integer("out_channels", 4),
    )


def _mid(config: Config, where: str, depth: int) -> int | None:
    kind = config.get("mid_block_type", "UNetMidBlock2DCrossAttn")
    if not isinstance(kind, str | None) or kind not in _MID_TYPES:
        allowed = ", ".join(map(repr, _MID_TYPES))
        raise InputError(f"{where}: mid_block_type is {shown(kind)}, allowed: {allowed}")
    attended = _MID_TYPES[kind]
    return None if attended is None else depth if attended else 0


def unet_config(layout: UNetLayout, sample_size: int) -> dict[str, Any]:
    """Write a configuration that diffusers builds the same UNet from.

    Args:
        layout: the UNet.
        sample_size: side of the latents it was trained on.

    Raises:
        InputError: a layout that diffusers has no words for.
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
                f"diffusers cannot hold a middle block of depth {layout.mid} behind a level of depths "
                f"{coarsest}: it takes the first of them for both"
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


def _compact(depths: tuple[int, ...]) -> int | list[int]:
    """One number for a uniform level; diffusers wants a positive one also where it builds no transformer."""
    return max(depths[0], 1) if len(set(depths)) == 1 else list(depths)


def vae_layout(config: Config, where: str) -> VAELayout:
    """Read a diffusers AutoencoderKL configuration; ``where`` names it in errors.

    Raises:
        InputError: a field that is malformed or asks for something else than SDXL's autoencoder.
    """
    _check_fixed(config, _VAE_FIXED, where)
    read = _Reader(config, where)
    channels = read.integers("block_out_channels")
    read.blocks("down_block_types", len(channels), "DownEncoderBlock2D")
    read.blocks("up_block_types", len(channels), "UpDecoderBlock2D")
    return VAELayout(
        channels=tuple(channels),
        layers_per_block=read.integer("layers_per_block", 1),
        latent_channels=read.integer("latent_channels", 4),
        norm_groups=read.integer("norm_num_groups", 32),
        scaling_factor=read.number("scaling_factor", 0.18215),
    )


def vae_config(layout: VAELayout, sample_size: int) -> dict[str, Any]:
    """Write a configuration that diffusers builds the same autoencoder from; ``sample_size`` in pixels."""
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


def text_layout(config: Config, where: str, *, second: bool) -> TextLayout:
    """Read a transformers CLIPTextConfig; ``where`` names it in errors, ``second`` is SDXL's second encoder.

    SDXL's own files carry the token ids 0, 2 and 1, which were wrong from the start (transformers#24773).
    ``eos_token_id == 2`` is the sign of it; then CLIP's last two tokens are begin and end. The padding token
    is the tokenizer's affair, and its id here a copy of it at best.

    Raises:
        InputError: a field that is malformed or unknown to CLIP's text encoder.
    """
    _check_fixed(config, _TEXT_FIXED, where)
    read = _Reader(config, where)
    activation = config.get("hidden_act", "quick_gelu")
    if activation not in ("quick_gelu", "gelu"):
        raise InputError(f"{where}: hidden_act is {shown(activation)}, allowed: 'gelu', 'quick_gelu'")
    projects = any("WithProjection" in name for name in read.texts("architectures"))
    vocab_size = read.integer("vocab_size", 49408)
    eos = read.integer("eos_token_id", 2)
    if legacy := eos == 2:
        eos = vocab_size - 1
    layout = TextLayout(
        hidden_size=read.integer("hidden_size", 512),
        layers=read.integer("num_hidden_layers", 12),
        heads=read.integer("num_attention_heads", 8),
        intermediate_size=read.integer("intermediate_size", 2048),
        activation=activation,
        projection_dim=read.integer("projection_dim", 512) if projects else None,
        vocab_size=vocab_size,
        max_length=read.integer("max_position_embeddings", 77),
        bos_token_id=eos - 1 if legacy else read.integer("bos_token_id", eos - 1, least=0),
        eos_token_id=eos,
        pad_token_id=(0 if second else eos) if legacy else read.integer("pad_token_id", eos, least=0),
    )
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        if getattr(layout, name) >= vocab_size:
            raise InputError(
                f"{where}: {name} is {getattr(layout, name)}, the vocabulary has {vocab_size} tokens"
            )
    return layout


def text_config(layout: TextLayout) -> dict[str, Any]:
    """Write a configuration that transformers builds the same text encoder from."""
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
    """Side of the latents that a UNet was trained on; None where its configuration does not say it.

    Raises:
        InputError: it is no size; two numbers must be the same.
    """
    value: Any = config.get("sample_size")
    side: Any = value[0] if isinstance(value, list) and len(value) == 2 and value[0] == value[1] else value
    if side is None or (_whole(side) and side <= 1024):
        return side
    raise InputError(f"{where}: sample_size must be a whole number from 1 to 1024, got {shown(value)}")


def flag(config: Config, name: str, default: bool, where: str) -> bool:
    """A field that is true or false; null and a missing one are the default.

    Raises:
        InputError: it is something else.
    """
    value = default if config.get(name) is None else config[name]
    if not isinstance(value, bool):
        raise InputError(f"{where}: {name} must be true or false, got {shown(value)}")
    return value


def class_name(config: Config, where: str) -> str:
    """The class that a configuration is of, "" where it does not say.

    Raises:
        InputError: it is no text.
    """
    value = config.get("_class_name") or ""
    if not isinstance(value, str):
        raise InputError(f"{where}: _class_name must be a text, got {shown(value)}")
    return value


def _check_fixed(config: Config, fixed: Mapping[str, Any], where: str) -> None:
    for name, value in fixed.items():
        if name in config and config[name] != value:
            raise InputError(
                f"{where}: {name} is {shown(config[name])}, this package computes {value!r} only"
            )


class _Reader:
    """Typed access to the fields of a configuration; null and a missing field are the same."""

    def __init__(self, config: Config, where: str) -> None:
        self.config = config
        self.where = where

    def integer(self, name: str, default: int | None = None, *, least: int = 1) -> int:
        value = self._value(name, default)
        return self._checked(name, value, _whole(value, least), f"a whole number from {least} to {_LIMIT}")

    def optional_integer(self, name: str) -> int | None:
        return None if self.config.get(name) is None else self.integer(name)

    def number(self, name: str, default: float) -> float:
        value = self._value(name, default)
        numeric = isinstance(value, int | float) and not isinstance(value, bool)
        return float(self._checked(name, value, numeric and 0 < value < _LIMIT, "a positive number"))

    def texts(self, name: str) -> list[str]:
        """A list of texts; without the field none."""
        value = self._value(name, [])
        valid = isinstance(value, list) and len(value) <= 16 and all(isinstance(each, str) for each in value)
        return self._checked(name, value, valid, "a list of texts")

    def integers(self, name: str) -> list[int]:
        """A list of one number per level."""
        value = self.config.get(name)
        return self._checked(name, value, _wholes(value, 1, 16), "a list of whole numbers, one a level")

    def per_level(self, name: str, levels: int, default: int) -> list[int]:
        """One number for all levels, or a list of one a level."""
        value = self._value(name, default)
        value = [value] * levels if _whole(value) else value
        return self._checked(
            name, value, _wholes(value, levels, levels), f"a whole number or {levels} of them"
        )

    def blocks(self, name: str, levels: int, *kinds: str) -> list[bool]:
        """Whether the block of each level is of the first of the allowed kinds."""
        value = self.config.get(name)
        valid = isinstance(value, list) and len(value) == levels and all(kind in kinds for kind in value)
        self._checked(name, value, valid, f"a list of {levels} out of {', '.join(kinds)}")
        return [kind == kinds[0] for kind in value or ()]

    def depths(self, name: str, resnets: Sequence[int]) -> list[tuple[int, ...]]:
        """Transformer depth behind each resnet of each level, from any of diffusers' three spellings."""
        value = self._value(name, 1)
        value = [value] * len(resnets) if _whole(value) else value
        self._checked(
            name, value, isinstance(value, list) and len(value) == len(resnets), "one entry a level"
        )
        levels = []
        for entry, number in zip(value, resnets, strict=True):
            entries = [entry] * number if _whole(entry, 0) else entry
            expected = f"a depth or {number} of them in each level"
            levels.append(tuple(self._checked(name, entries, _wholes(entries, number, number, 0), expected)))
        return levels

    def _value(self, name: str, default: Any) -> Any:
        value = self.config.get(name)
        return default if value is None else value

    def _checked(self, name: str, value: Any, valid: bool, expected: str) -> Any:
        if not valid:
            raise InputError(f"{self.where}: {name} must be {expected}, got {shown(value)}")
        return value


def _whole(value: Any, least: int = 1) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= _LIMIT


def _wholes(value: Any, fewest: int, most: int, least: int = 1) -> bool:
    return isinstance(value, list) and fewest <= len(value) <= most and all(_whole(n, least) for n in value)
