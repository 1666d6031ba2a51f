"""A model's files held against what was published: names, shapes, counts, numbers, tokenizers.

Each check is a function that says in a sentence what it found, with figures, or raises what is wrong.
"""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ssd1b.errors import InputError
from ssd1b.layouts import TextLayout
from ssd1b.model import empty_network
from ssd1b.models.tokenizer import BEGIN, END, CLIPTokenizer
from ssd1b.runtime import dtype_name
from ssd1b.weights.checkpoint import Checkpoint
from ssd1b.weights.files import first_few, is_finite
from ssd1b.weights.loading import check_tensors, read_part
from ssd1b.weights.vocabulary import PADDING, VOCABULARY_SIZE, clip_tokenizer, tokenizer_of

Found = tuple[str, dict[str, Any]]
"""What a check found: a sentence, and figures for JSON."""

_SDXL = {"vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840}
_MINI = {"vae": 978_103, "text_encoder": 270_528, "text_encoder_2": 562_464}

PARAMETERS: Mapping[str, Mapping[str, int]] = MappingProxyType({
    "sdxl": {"unet": 2_567_463_684, **_SDXL},
    "ssd-1b": {"unet": 1_331_334_404, **_SDXL},
    "vega": {"unet": 745_225_604, **_SDXL},
    "koala-1b": {"unet": 1_161_184_324, **_SDXL},
    "koala-700m": {"unet": 782_822_724, **_SDXL},
    "mini-sdxl": {"unet": 15_010_316, **_MINI},
    "mini-ssd-1b": {"unet": 7_952_588, **_MINI},
})  # fmt: skip
"""How many numbers each network of a published layout has, by the layout's name."""

TEXTS = (
    "a large red metal sphere on a blue background",
    "An astronaut riding a horse, 35mm photograph; it's 4k & très détaillé!",
    "naïve café — 北京 🙂  two  spaces\tand a tab",
    "supercalifragilisticexpialidocious 1234567890 <|endoftext|> (((worst quality)))",
    "",
)
"""Texts for tokenizers: words, digits, punctuation, other scripts, special tokens, nothing."""


def files(checkpoint: Checkpoint, expected: str | None) -> Found:
    """See that a model is whole, its networks fit together, and it is what its name promises.

    Args:
        checkpoint: the model.
        expected: name of the layout; None for a model that has no well-known name.

    Raises:
        InputError: it is not.
    """
    info = checkpoint.info
    if expected is not None and info.layout.name != expected:
        raise InputError(f"the layout is {info.layout.name}, {expected} was expected")
    family = f", blocks of {checkpoint.family}" if checkpoint.family != info.layout.name else ""
    figures = {
        "format": checkpoint.format,
        "layout": info.layout.name,
        "family": checkpoint.family,
        "notes": list(checkpoint.notes),
    }
    notes = "".join(f"; {note}" for note in checkpoint.notes)
    return f"{checkpoint.format}, layout {info.layout.name}{family}{notes}", figures


def digests(checkpoint: Checkpoint) -> Found:
    """Compute SHA-256 of each file with weights, by its name inside the model.

    Raises:
        OSError: one cannot be read.
    """
    weights = {stored.file for part in checkpoint.parts.values() for stored in part.tensors.values()}
    found = {}
    for path in sorted(weights):
        with path.open("rb") as file:
            found[_inside(path, checkpoint.path)] = hashlib.file_digest(file, "sha256").hexdigest()
    return ", ".join(f"{name} {digest[:16]}" for name, digest in found.items()), {"sha256": found}


def _inside(path: Path, model: Path) -> str:
    return path.relative_to(model).as_posix() if model.is_dir() else path.name


def network(checkpoint: Checkpoint, part: str) -> Found:
    """Hold a network's names, shapes and count against its layout, and see that all numbers are numbers.

    Raises:
        InputError: something differs from the layout, or is NaN or infinite.
    """
    stored = checkpoint.parts[part]
    empty = empty_network(part, stored.layout)
    wanted = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    check_tensors(wanted, stored, part)
    published = PARAMETERS.get(checkpoint.name, {}).get(part)
    if published not in (None, stored.parameters):
        raise InputError(f"{part} has {stored.parameters:,} parameters, {published:,} were published")
    tensors = read_part(checkpoint, part)
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise InputError(f"{len(broken)} tensors hold NaN or infinity: {first_few(broken)}")
    largest = max(float(tensor.float().abs().max()) for tensor in tensors.values() if tensor.numel())
    formats = [dtype_name(dtype) for dtype in stored.dtypes]
    count = "as published" if published else "of a layout that was not published"
    figures = {
        "parameters": stored.parameters,
        "published": published,
        "tensors": len(tensors),
        "dtypes": formats,
        "largest": largest,
    }
    said = f"{stored.parameters:,} parameters in {len(tensors)} tensors, {count}; all are finite, the largest"
    return f"{said} is {largest:.3g}; {', '.join(formats)}", figures


def tokenizer(checkpoint: Checkpoint, part: str) -> Found:
    """Compare a text encoder's tokenizer with CLIP's published one, and with its encoder.

    Raises:
        InputError: it differs, or does not fit.
    """
    layout = checkpoint.parts[part].layout
    assert isinstance(layout, TextLayout)
    published = layout.vocab_size == VOCABULARY_SIZE
    own = part in checkpoint.tokenizers
    if not own and not published:
        raise InputError(f"the model brings no tokenizer, and {layout.vocab_size} tokens are not CLIP's")
    given = tokenizer_of(checkpoint.tokenizers, part)
    _check_fit(given, layout)
    ids = [given.ids(text) for text in TEXTS]
    figures = {"tokens": len(given.vocabulary), "own": own, "published": published}
    if not published:
        return f"{len(given.vocabulary):,} tokens of its own, which fit the encoder", figures
    clip = clip_tokenizer(part)
    if given.vocabulary != clip.vocabulary:
        other = [token for token, number in clip.vocabulary.items() if given.vocabulary.get(token) != number]
        raise InputError(
            f"{len(other)} of CLIP's tokens are missing or have another number: {first_few(other)}"
        )
    if [tuple(pair) for pair in given.merges] != [tuple(pair) for pair in clip.merges]:
        raise InputError("the merges are not CLIP's")
    if given.padding != PADDING[part]:
        raise InputError(f"it pads with {given.padding!r}, the published one with {PADDING[part]!r}")
    if ids != [clip.ids(text) for text in TEXTS]:
        raise InputError("it cuts texts into other tokens than CLIP's")
    source = "the model's own, equal to CLIP's" if own else "CLIP's, as the model brings none"
    return f"{source}: {len(given.vocabulary):,} tokens, padded with {given.padding!r}", figures


def _check_fit(given: CLIPTokenizer, layout: TextLayout) -> None:
    largest = max(given.vocabulary.values())
    if largest >= layout.vocab_size:
        raise InputError(f"token {largest} is beyond the encoder's {layout.vocab_size}")
    for token, number in ((BEGIN, layout.bos_token_id), (END, layout.eos_token_id)):
        if given.vocabulary.get(token) != number:
            raise InputError(f"{token} is {given.vocabulary.get(token)}, the encoder takes {number} for it")
