"""Prefixes of networks in single files of other programs, and tensors that are not needed.

``docs/guide/files.md`` has the table for users. Sources: ComfyUI ``comfy/supported_models.py`` and
``comfy/model_detection.py``, stable-diffusion.cpp ``src/name_conversion.cpp``, kohya's sd-scripts
``library/sdxl_model_util.py``, diffusers ``loaders/single_file_utils.py``.
"""

from collections.abc import Mapping
from typing import NamedTuple

from ssd1b.weights.files import FLOATS, Shape

PLACES: dict[str, str] = {
    "diffusion_model.": "unet",
    "unet.": "unet",
    "first_stage_model.": "vae",
    "vae.": "vae",
    "conditioner.embedders.0.": "text_encoder",
    "conditioner.embedders.1.": "text_encoder_2",
    "cond_stage_model.1.": "text_encoder_2",
    "cond_stage_model.": "text_encoder",
    "text_encoders.clip_l.": "text_encoder",
    "text_encoders.clip_g.": "text_encoder_2",
    "clip_l.": "text_encoder",
    "clip_g.": "text_encoder_2",
    "te.": "text_encoder",
    "te1.": "text_encoder",
    "te2.": "text_encoder_2",
    "text_encoder.2.": "text_encoder_2",
    "text_encoder.": "text_encoder",
    "text_encoder_2.": "text_encoder_2",
}
"""Networks by prefix. A prefix comes before shorter ones that also match."""

WRAPPERS = ("model.", "module.", "_orig_mod.")
"""Meaningless words before names and prefixes: the pipeline's, DataParallel's, the compiler's."""

_BARE: dict[str, str] = {
    **dict.fromkeys(
        ("input_blocks", "middle_block", "output_blocks", "time_embed", "label_emb", "out"), "unet"
    ),
    **dict.fromkeys(
        ("down_blocks", "mid_block", "up_blocks", "conv_in", "conv_norm_out", "conv_out"), "unet"
    ),
    **dict.fromkeys(("time_embedding", "add_embedding"), "unet"),
    **dict.fromkeys(("encoder", "decoder", "quant_conv", "post_quant_conv", "loss"), "vae"),
    **dict.fromkeys(("text_model", "text_projection", "transformer", "token_embedding"), "text"),
    **dict.fromkeys(("positional_embedding", "ln_final", "logit_scale", "attn_mask"), "text"),
}
"""Network of a tensor without a prefix, by its first word; "text" is either text encoder."""

_EMBEDDINGS = ("text_model.embeddings.token_embedding.weight", "token_embedding.weight")
_WIDE = 1280
"""Channels of SDXL's second text encoder, by which it is recognized without a prefix."""

UNUSED = (
    "position_ids",
    "logit_scale",
    "attn_mask",
    "scaled_fp8",
    "comfy_quant",
    "scale_input",
    "input_scale",
)
"""Last words of tensors in files that no computation needs."""

_UNUSED_BRANCHES = {
    "vae": ("loss.",),
    # SDXL uses the pooled text of the second encoder only.
    "text_encoder": ("text_projection", "vision_model.", "visual.", "visual_projection."),
    "text_encoder_2": ("vision_model.", "visual.", "visual_projection."),
}


def unused(part: str, name: str) -> bool:
    """Whether a tensor is known but not needed: a buffer, a loss, the other half of CLIP."""
    return name.rpartition(".")[2] in UNUSED or name.startswith(_UNUSED_BRANCHES.get(part, ()))


class Section(NamedTuple):
    """The tensors of one network under one prefix.

    Attributes:
        prefix: the prefix in the file.
        stored: names in the file by names without prefix and wrappers.
    """

    prefix: str
    stored: dict[str, str]


def sections(tensors: Mapping[str, tuple[str, Shape]], text: str | None = None) -> dict[str, list[Section]]:
    """Find the networks of a file.

    A network can occur under several prefixes: twice, or with a few tensors elsewhere.

    Args:
        tensors: number format and shape of every tensor.
        text: the text encoder that tensors without a prefix belong to; None decides by their width.

    Returns:
        The sections of each network in order of preference: most tensors first, then the widest numbers.
        Tensors that belong to no network are omitted.
    """
    places: dict[str, tuple[str, str]] = {name: _place(name) for name in tensors}
    prefixed: dict[str, dict[str, dict[str, str]]] = {}
    for name, (part, rest) in places.items():
        if part:
            prefixed.setdefault(part, {}).setdefault(name.removesuffix(rest), {})[rest] = name
    bare: dict[str, dict[str, dict[str, str]]] = {}
    text = text or _bare_text_encoder(tensors, places)
    for name, (part, rest) in places.items():
        word = _BARE.get(rest.partition(".")[0])
        network = text if word == "text" else word
        if not part and network and network not in prefixed:
            bare.setdefault(network, {}).setdefault(name.removesuffix(rest), {})[rest] = name
    return {
        part: sorted((Section(*item) for item in prefixes.items()), key=lambda s: _worth(s, tensors))
        for part, prefixes in sorted((prefixed | bare).items())
    }


def _worth(section: Section, tensors: Mapping[str, tuple[str, Shape]]) -> tuple[int, int, str]:
    formats = (FLOATS.get(tensors[name][0]) for name in section.stored.values())
    width = max((number.itemsize for number in formats if number), default=0)
    return -len(section.stored), -width, section.prefix


def _place(name: str) -> tuple[str, str]:
    """Split a name into network ("" for none) and rest. Prefixes and wrappers may occur twice."""
    part, rest = "", unwrapped(name)
    while prefix := next((p for p in PLACES if rest.startswith(p) and part in ("", PLACES[p])), None):
        part, rest = PLACES[prefix], unwrapped(rest.removeprefix(prefix))
    is_text = part.startswith("text_encoder") or (not part and _BARE.get(rest.partition(".")[0]) == "text")
    return part, plain_text_name(rest) if is_text else rest


def unwrapped(name: str) -> str:
    """Remove ``WRAPPERS`` from the beginning of a name."""
    while wrapper := next((each for each in WRAPPERS if name.startswith(each)), None):
        name = name.removeprefix(wrapper)
    return name


def plain_text_name(name: str) -> str:
    """Remove the words that some programs put before a text encoder's names, once or twice."""
    while True:
        for before, after in _TEXT_WRAPPERS:
            if name.startswith(before + after):
                name = name.removeprefix(before)
                break
        else:
            return name


_TEXT_WRAPPERS = (
    *(("transformer.", word) for word in ("transformer.", "text_model.", "text_projection", "vision_model.")),
    *(("transformer.", word) for word in ("embeddings.", "encoder.", "final_layer_norm.", "logit_scale")),
    ("text_model.", "text_model."),
    ("text_model.", "text_projection"),
)
"""(meaningless word, word after it). OpenCLIP's layers have a meaningful ``transformer.``."""


def _bare_text_encoder(
    tensors: Mapping[str, tuple[str, Shape]], places: Mapping[str, tuple[str, str]]
) -> str:
    """Decide which text encoder the tensors without a prefix belong to."""
    found = (tensors[name][1] for name, (part, rest) in places.items() if not part and rest in _EMBEDDINGS)
    shape = next(found, ())
    return "text_encoder_2" if len(shape) == 2 and shape[1] >= _WIDE else "text_encoder"
