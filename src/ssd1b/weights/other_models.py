"""Recognition of files that are not models of SDXL's family, by unmistakable tensor names.

Sources as in ``spellings``.
"""

import re
from collections.abc import Mapping

from ssd1b.errors import InputError
from ssd1b.inputs import ADAPTER_KEY
from ssd1b.weights.files import Shape

_CONTROLNET, _T2I_ADAPTER, _CONTROL_LORA = "a ControlNet", "a T2I-Adapter", "a Control-LoRA"
_EMBEDDING = "an embedding (textual inversion)"
_IP_ADAPTER = "an IP-Adapter"
_ADAPTER = "a LoRA, which modifies a model: give the model itself"

_KINDS: tuple[tuple[str, str], ...] = (
    (_CONTROL_LORA, r"lora_controlnet$"),
    ("a ControlNet-LLLite", r"^lllite_"),
    ("a ControlNet-Union", r"(^|\.)(task_embedding|control_add_embedding)"),
    (
        "a ControlNet for Flux or Stable Diffusion 3",
        r"^(controlnet_blocks|controlnet_x_embedder|pos_embed_input)\.",
    ),
    (
        _CONTROLNET,
        r"(^|\.)(control_model|controlnet_cond_embedding|controlnet_down_blocks|controlnet_mid_block"
        r"|input_hint_block|zero_convs)\.",
    ),
    (_ADAPTER, ADAPTER_KEY.pattern),
    (_IP_ADAPTER, r"^(ip_adapter|image_proj)\.|to_k_ip\."),
    ("a motion module (AnimateDiff)", r"motion_modules\."),
    (_T2I_ADAPTER, r"^(adapter\.)?body\.\d+\.(resnets|block1|in_conv)\."),
    (_EMBEDDING, r"^(emb_params|string_to_param\..*|clip_[lg])$"),
    ("a GLIGEN model", r"position_net\."),
    ("a Flux model", r"double_blocks\.\d+\.img_attn|single_transformer_blocks\.\d+\."),
    ("a Stable Diffusion 3 model", r"joint_blocks\.\d+\.|context_embedder\.weight$"),
    ("a Stable Cascade model", r"clip_txt_mapper\.|effnet_mapper\."),
    ("a diffusion transformer", r"cond_seq_linear\.|cap_embedder\.|caption_projection\.|adaln_single\."),
    ("a video model", r"(^|\.)time_stack\.|time_mixer\.|temporal_transformer_blocks\."),
    ("a T5 text encoder", r"\.block\.\d+\.layer\.0\.SelfAttention\.|^shared\.weight$"),
    ("a language model", r"^(model\.)?layers\.\d+\.self_attn\.|^model\.embed_tokens"),
    ("a tiny autoencoder (TAESD)", r"^(taesd_)?(encoder|decoder)\.(layers\.)?\d+\.(weight|bias|conv)"),
    ("an upscaler (ESRGAN)", r"^model\.\d+\.(weight|bias|sub\.)|^conv_first\.|^conv_body\."),
    ("an image encoder of CLIP", r"^(vision_model\.embeddings|visual\.class_embedding)"),
)
_PATTERNS = [(kind, re.compile(pattern)) for kind, pattern in _KINDS]

_TEXT_KEYS = re.compile(r"\.attn2\.to_k\.weight$")
_CONDITIONED = re.compile(r"(^|\.)(label_emb|add_embedding)\.")
_BY_TEXT_WIDTH = {768: "a Stable Diffusion 1 model", 1024: "a Stable Diffusion 2 model"}


def is_adapter_file(tensors: Mapping[str, tuple[str, Shape]]) -> bool:
    """Whether a file with these tensors is a LoRA or another adapter."""
    return _kind(tensors) == _ADAPTER


def is_embedding_file(tensors: Mapping[str, tuple[str, Shape]]) -> bool:
    """Whether a file with these tensors is an embedding."""
    return _kind(tensors) == _EMBEDDING


def _kind(tensors: Mapping[str, tuple[str, Shape]]) -> str | None:
    return next((kind for kind, sign in _PATTERNS if any(map(sign.search, tensors))), None)


def is_control_file(tensors: Mapping[str, tuple[str, Shape]]) -> bool:
    """Whether a file with these tensors is a ControlNet, Control-LoRA or T2I-Adapter, of any family."""
    return _kind(tensors) in (_CONTROLNET, _CONTROL_LORA, _T2I_ADAPTER)


def is_ip_adapter_file(tensors: Mapping[str, tuple[str, Shape]]) -> bool:
    """Whether a file with these tensors is an IP-Adapter, of any kind and family."""
    return _kind(tensors) == _IP_ADAPTER


def control_kind(tensors: Mapping[str, tuple[str, Shape]]) -> str | None:
    """Return "controlnet", "control_lora" or "t2i_adapter" for a file that follows a picture; else None.

    Raises:
        InputError: it is a ControlNet for another family of models.
    """
    kind = _kind(tensors)
    if kind == _CONTROLNET and not any(map(_CONDITIONED.search, tensors)):
        text = _by_text_width(tensors) or "a model of another family"
        raise InputError(f"{_CONTROLNET} for {text}; only those for SDXL's family are supported")
    kinds = {_CONTROLNET: "controlnet", _CONTROL_LORA: "control_lora", _T2I_ADAPTER: "t2i_adapter"}
    return kinds.get(kind or "")


def _by_text_width(tensors: Mapping[str, tuple[str, Shape]]) -> str | None:
    widths = {shape[1] for name, (_, shape) in tensors.items() if _TEXT_KEYS.search(name) and len(shape) == 2}
    return next((_BY_TEXT_WIDTH[width] for width in widths if width in _BY_TEXT_WIDTH), None)


def other_model_kind(tensors: Mapping[str, tuple[str, Shape]]) -> str | None:
    """Describe what kind of file has these tensor names and shapes; None if it is unknown."""
    kind = _kind(tensors)
    if kind or any(map(_CONDITIONED.search, tensors)):
        return kind
    return _by_text_width(tensors)
