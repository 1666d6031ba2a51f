"""Layouts of every published model and of the miniatures, one literal each.

Sources: the published ``config.json`` of each model; ComfyUI ``comfy/supported_models.py`` for the depths of
SSD-1B, Vega and KOALA. Parameter counts are contracts, checked on meta tensors by the tests.
"""

from dataclasses import dataclass, field, replace

STEMS: dict[str, str] = {
    **dict.fromkeys(("unet", "vae"), "diffusion_pytorch_model"),
    **dict.fromkeys(("text_encoder", "text_encoder_2"), "model"),
}
"""Names of the weight files in a network's folder, without suffix, by the folder's name in a model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """One resolution of the UNet. ``down`` and ``up`` have the transformer depth after each resnet.

    ``up`` is in execution order and has one entry more than ``down``, for the skip from the level's input.
    """

    channels: int
    down: tuple[int, ...]
    up: tuple[int, ...]

    def __post_init__(self) -> None:
        if len(self.up) != len(self.down) + 1:
            raise ValueError(f"up must have {len(self.down) + 1} entries (down + 1), got {self.up}")
        for name, depths in (("down", self.down), ("up", self.up)):
            if (0 in depths) and any(depths):
                raise ValueError(f"{name} mixes resnets with and without a transformer: {depths}")


@dataclass(frozen=True, slots=True, kw_only=True)
class UNetLayout:
    """A UNet of SDXL's kind.

    Attributes:
        levels: finest first.
        mid: transformer depth of the middle block; 0 = one resnet only (SSD-1B), None = no middle block.
        head_dim: channels per attention head (diffusers' ``attention_head_dim``, despite its name, is the
            number of heads).
        cross_attention_dim: width of the text embeddings.
        pooled_dim: width of the pooled text embedding.
        time_ids_dim: width of the sinusoidal embedding of each of the six micro-conditioning numbers.
        norm_groups: groups of every GroupNorm.
        guidance_embed_dim: width of the embedded guidance scale in LCM-distilled UNets, None in others.
        in_channels: 4 for noisy latents; 9 in UNets for inpainting, with 1 for the mask and 4 for the latents
            of the masked picture after them.
        out_channels: 4, the prediction.
    """

    levels: tuple[Level, ...]
    mid: int | None
    head_dim: int = 64
    cross_attention_dim: int = 2048
    pooled_dim: int = 1280
    time_ids_dim: int = 256
    norm_groups: int = 32
    guidance_embed_dim: int | None = None
    in_channels: int = 4
    out_channels: int = 4

    @property
    def inpaints(self) -> bool:
        """Whether it takes a mask and a masked picture beside the latents."""
        return self.in_channels == 9

    @property
    def transformer_blocks(self) -> int:
        """Number of transformer blocks in the whole UNet (70 in SDXL, 34 in SSD-1B)."""
        return sum(sum(level.down) + sum(level.up) for level in self.levels) + (self.mid or 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlNetLayout:
    """A ControlNet for UNets of the same widths and resnets.

    Attributes:
        encoder: as a UNet's layout with the depths of this network, of which only the way down and the middle
            exist; the way up has depths of 0.
        hint: channels of the convolutions that read the picture; each but the first halves it.
        picture_channels: 3 for RGB.
    """

    encoder: UNetLayout
    hint: tuple[int, ...] = (16, 32, 96, 256)
    picture_channels: int = 3

    @property
    def factor(self) -> int:
        """Pixels of the picture per latent cell, along each axis."""
        return 2 ** (len(self.hint) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class T2IAdapterLayout:
    """A T2I-Adapter for SDXL, "full_adapter_xl".

    Attributes:
        channels: of the features for each level of the UNet, and for its middle.
        depth: residual blocks of each level.
        picture_channels: 3 for RGB, 1 for grey.
        factor: pixels per feature, along each axis.
    """

    channels: tuple[int, ...] = (320, 640, 1280, 1280)
    depth: int = 2
    picture_channels: int = 3
    factor: int = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class VisionLayout:
    """A CLIP image encoder (Dosovitskiy et al. 2021, 2010.11929) with its projection."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    projection_dim: int
    image_size: int
    patch_size: int
    activation: str = "gelu"


@dataclass(frozen=True, slots=True, kw_only=True)
class ResamplerLayout:
    """Resampler of an IP-Adapter "plus": attention from learned queries to an image encoder's hidden states.

    Attributes:
        channels: width of the queries.
        layers: number of attentions with a perceptron each.
        heads: attention heads of 64 channels.
        intermediate_size: width of the perceptrons.
    """

    channels: int
    layers: int
    heads: int
    intermediate_size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class IPAdapterLayout:
    """An IP-Adapter for a UNet.

    Attributes:
        image_dim: width of the image encoder's output: its embedding's, or with a resampler its states'.
        tokens: number of tokens that a picture becomes.
        context_dim: width of the tokens, which is that of the UNet's text.
        blocks: channels of each of the UNet's transformer blocks, in execution order.
        head_dim: of the UNet.
        resampler: None for the plain kind, which projects one embedding.
    """

    image_dim: int
    tokens: int
    context_dim: int
    blocks: tuple[int, ...]
    head_dim: int
    resampler: ResamplerLayout | None = None


def encoder_of(unet: UNetLayout, *, transformers: bool = True) -> UNetLayout:
    """Return the layout of an encoder that is a copy of a UNet's, possibly without its transformers."""
    levels = tuple(
        replace(level, down=level.down if transformers else (0,) * len(level.down), up=(0,) * len(level.up))
        for level in unet.levels
    )
    mid = unet.mid if transformers else 0
    return replace(unet, levels=levels, mid=mid, guidance_embed_dim=None, in_channels=4)


@dataclass(frozen=True, slots=True, kw_only=True)
class VAELayout:
    """An AutoencoderKL. It halves the resolution ``len(channels) - 1`` times: a factor of 8 for SDXL."""

    channels: tuple[int, ...] = (128, 256, 512, 512)
    layers_per_block: int = 2
    latent_channels: int = 4
    norm_groups: int = 32
    scaling_factor: float = 0.13025

    @property
    def factor(self) -> int:
        """Pixels per latent cell, along each axis."""
        return 2 ** (len(self.channels) - 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class TextLayout:
    """A CLIP text encoder; ``projection_dim`` None = hidden states only (SDXL's first encoder)."""

    hidden_size: int
    layers: int
    heads: int
    intermediate_size: int
    activation: str
    projection_dim: int | None
    vocab_size: int = 49408
    max_length: int = 77
    bos_token_id: int = 49406
    eos_token_id: int = 49407
    pad_token_id: int = 49407


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelLayout:
    """The layouts of all networks of a text-to-image model."""

    name: str
    unet: UNetLayout
    vae: VAELayout = field(default_factory=VAELayout)
    text_encoder: TextLayout
    text_encoder_2: TextLayout
    size: int = 1024
    """Side in pixels of the square images the model was trained on."""


CLIP_L = TextLayout(
    hidden_size=768, layers=12, heads=12, intermediate_size=3072, activation="quick_gelu", projection_dim=None
)
# The second tokenizer pads with "!" (id 0), the first with its end token.
CLIP_BIGG = TextLayout(
    hidden_size=1280, layers=32, heads=20, intermediate_size=5120, activation="gelu", projection_dim=1280,
    pad_token_id=0,
)  # fmt: skip

SDXL = UNetLayout(mid=10, levels=(
    Level(channels=320,  down=(0, 0),   up=(0, 0, 0)),
    Level(channels=640,  down=(2, 2),   up=(2, 2, 2)),
    Level(channels=1280, down=(10, 10), up=(10, 10, 10))))  # fmt: skip

SSD_1B = UNetLayout(mid=0, levels=(
    Level(channels=320,  down=(0, 0), up=(0, 0, 0)),
    Level(channels=640,  down=(2, 2), up=(2, 1, 1)),
    Level(channels=1280, down=(4, 4), up=(4, 4, 10))))  # fmt: skip

VEGA = UNetLayout(mid=0, levels=(
    Level(channels=320,  down=(0, 0), up=(0, 0, 0)),
    Level(channels=640,  down=(1, 1), up=(1, 1, 1)),
    Level(channels=1280, down=(2, 2), up=(2, 2, 2))))  # fmt: skip

KOALA_1B = UNetLayout(mid=6, levels=(
    Level(channels=320,  down=(0,), up=(0, 0)),
    Level(channels=640,  down=(2,), up=(2, 2)),
    Level(channels=1280, down=(6,), up=(6, 6))))  # fmt: skip

KOALA_700M = UNetLayout(mid=None, levels=(
    Level(channels=320,  down=(0,), up=(0, 0)),
    Level(channels=640,  down=(2,), up=(2, 2)),
    Level(channels=1280, down=(5,), up=(5, 5))))  # fmt: skip

UNETS: dict[str, UNetLayout] = {
    "sdxl": SDXL,
    "ssd-1b": SSD_1B,
    "vega": VEGA,
    "koala-1b": KOALA_1B,
    "koala-700m": KOALA_700M,
}


def family_of(unet: UNetLayout) -> str | None:
    """Find the name in ``UNETS`` of the UNet with the same blocks at any width; None if there is none."""
    blocks = _blocks(unet)
    return next((name for name, known in UNETS.items() if _blocks(known) == blocks), None)


def _blocks(unet: UNetLayout) -> tuple[object, ...]:
    return unet.mid, *((level.down, level.up) for level in unet.levels)


def _narrowed(layout: UNetLayout, channels: tuple[int, int, int], **widths: int) -> UNetLayout:
    """Change the widths of ``layout``, and keep every resnet and every depth."""
    levels = tuple(replace(level, channels=c) for level, c in zip(layout.levels, channels, strict=True))
    return replace(layout, levels=levels, **widths)


# Tabletop's miniatures: the published topologies, narrow enough for two cores (measurements in docs/log).
CLIP_MINI = TextLayout(
    hidden_size=64, layers=4, heads=2, intermediate_size=256, activation="quick_gelu", projection_dim=None,
    vocab_size=1024, bos_token_id=1022, eos_token_id=1023, pad_token_id=1023,
)  # fmt: skip
CLIP_MINI_2 = TextLayout(
    hidden_size=96, layers=4, heads=3, intermediate_size=384, activation="gelu", projection_dim=96,
    vocab_size=1024, bos_token_id=1022, eos_token_id=1023, pad_token_id=0,
)  # fmt: skip
CLIP_VISION_MINI = VisionLayout(
    hidden_size=96, layers=4, heads=3, intermediate_size=384, projection_dim=96, image_size=128, patch_size=16
)
# Fewer groups than SDXL's 32: in an area of one colour, a group of two channels would keep only a sign.
VAE_MINI = VAELayout(channels=(16, 32, 64, 64), layers_per_block=1, norm_groups=2, scaling_factor=1.0)

_MINI_WIDTHS = {
    "head_dim": 24, "cross_attention_dim": 160, "pooled_dim": 96, "time_ids_dim": 32, "norm_groups": 4
}  # fmt: skip
# Edges and highlights come from the finest level, which is cheap. If it were wider, the student would have
# more than 53 % of its teacher's parameters.
_MINI_CHANNELS = (44, 48, 96)
SDXL_MINI = _narrowed(SDXL, _MINI_CHANNELS, **_MINI_WIDTHS)
SSD_1B_MINI = _narrowed(SSD_1B, _MINI_CHANNELS, **_MINI_WIDTHS)

NAMED: dict[str, UNetLayout] = {**UNETS, "mini-sdxl": SDXL_MINI, "mini-ssd-1b": SSD_1B_MINI}
"""Every UNet with a name; widths included."""

MINI_SDXL = ModelLayout(
    name="mini-sdxl",
    unet=SDXL_MINI,
    vae=VAE_MINI,
    text_encoder=CLIP_MINI,
    text_encoder_2=CLIP_MINI_2,
    size=128,
)


def model_layout(name: str) -> ModelLayout:
    """Return the layout of a whole model by the name of its UNet, one of ``NAMED``."""
    if name in UNETS:
        return ModelLayout(name=name, unet=UNETS[name], text_encoder=CLIP_L, text_encoder_2=CLIP_BIGG)
    return replace(MINI_SDXL, name=name, unet=NAMED[name])
