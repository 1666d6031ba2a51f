"""Reading of CLIP's image encoders, in transformers' names, as IP-Adapters take them.

A file shows all sizes of its network but the number of attention heads, which the width decides in every
published encoder, as it does the activation.
"""

from pathlib import Path

from ssd1b.errors import InputError, prefix_errors
from ssd1b.layouts import CLIP_VISION_MINI, VisionLayout
from ssd1b.models.vision import IMAGE_ENCODER
from ssd1b.weights.checkpoint import Checkpoint, Part
from ssd1b.weights.detect import detect_shape
from ssd1b.weights.files import first_few, read_header
from ssd1b.weights.keymap import TEXT_LAYER, count
from ssd1b.weights.other_models import other_model_kind
from ssd1b.weights.spellings import UNUSED
from ssd1b.weights.stored import StoredTensor, add_tensor

_WIDTHS = {
    1664: (16, "gelu"),  # ViT-bigG/14 of LAION
    1280: (16, "gelu"),  # ViT-H/14 of LAION
    1024: (16, "quick_gelu"),  # ViT-L/14 of OpenAI
    768: (12, "quick_gelu"),  # ViT-B of OpenAI
    CLIP_VISION_MINI.hidden_size: (CLIP_VISION_MINI.heads, CLIP_VISION_MINI.activation),
}
"""Attention heads and activation by width. The last one is the miniatures'."""

_EMBEDDINGS = "vision_model.embeddings"


def open_image_encoder(path: Path) -> Checkpoint:
    """Describe an image encoder of CLIP, without loading it.

    Returns:
        A checkpoint whose only part is ``IMAGE_ENCODER``.

    Raises:
        InputError: it is not safetensors, or not such an encoder.
    """
    header = read_header(path)
    tensors = header.tensors
    with prefix_errors(str(path)):
        if f"{_EMBEDDINGS}.patch_embedding.weight" not in tensors:
            kind = other_model_kind(tensors) or f"it contains {first_few(tensors) or 'nothing'}"
            raise InputError(f"no image encoder of CLIP in transformers' format: {kind}")
        table: dict[str, StoredTensor] = {}
        for name in tensors:
            # Some files hold the whole of CLIP.
            ours = name.startswith(("vision_model.", "visual_projection."))
            if ours and name.rpartition(".")[2] not in UNUSED:
                add_tensor(table, name, file=path, stored=name, header=header)
        layout = _layout(table)
    return Checkpoint(
        path=path,
        format="single image encoder file",
        parts={IMAGE_ENCODER: Part(layout=layout, tensors=table)},
    )


def _layout(table: dict[str, StoredTensor]) -> VisionLayout:
    where = "not an image encoder of CLIP"
    shapes = {name: tensor.shape for name, tensor in table.items()}
    width, _, patch, _ = detect_shape(shapes, f"{_EMBEDDINGS}.patch_embedding.weight", 4, where)
    positions = detect_shape(shapes, f"{_EMBEDDINGS}.position_embedding.weight", 2, where)[0]
    side = round((positions - 1) ** 0.5) if positions > 1 else 0
    if side**2 != positions - 1 or not side or patch < 1 or side * patch > _LARGEST:
        raise InputError(f"{where}: it has {positions} positions of patches of {patch} pixels")
    if width not in _WIDTHS:
        raise InputError(f"{where} that is known: it has {width} channels; known are {_known()}")
    layers = count("vision_model.encoder.layers.{}", TEXT_LAYER, shapes.keys())
    if not layers:
        raise InputError(f"{where}: it has no layers")
    hidden = detect_shape(shapes, "vision_model.encoder.layers.0.mlp.fc1.weight", 2, where)[0]
    projection = detect_shape(shapes, "visual_projection.weight", 2, where)[0]
    heads, activation = _WIDTHS[width]
    return VisionLayout(
        hidden_size=width, layers=layers, heads=heads, intermediate_size=hidden, projection_dim=projection,
        image_size=side * patch, patch_size=patch, activation=activation,
    )  # fmt: skip


_LARGEST = 1024
"""Largest side of the square that an encoder reads, in pixels; the published ones read 224 to 336."""


def _known() -> str:
    return ", ".join(map(str, sorted(_WIDTHS)))
