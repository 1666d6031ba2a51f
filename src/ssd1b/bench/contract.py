"""Checks of a model's files against what was published: names, shapes, counts, values, tokenizers.

Each check is a function that returns a sentence and figures, or raises an error that says what is wrong.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from ssd1b.errors import InputError
from ssd1b.files import hash_file
from ssd1b.layouts import TextLayout
from ssd1b.model import empty_network
from ssd1b.models.tokenizer import BEGIN, END, CLIPTokenizer
from ssd1b.numerals import counted
from ssd1b.runtime import dtype_name
from ssd1b.weights.checkpoint import Checkpoint
from ssd1b.weights.files import first_few, is_finite
from ssd1b.weights.loading import check_tensors, read_part
from ssd1b.weights.vocabulary import PADDING, VOCABULARY_SIZE, clip_tokenizer, tokenizer_of

Finding = tuple[str, dict[str, Any]]
"""Result of a check: a sentence, and figures for JSON."""

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
"""Number of parameters of each network of the published layouts."""

TEXTS = (
    "a large red metal sphere on a blue background",
    "An astronaut riding a horse, 35mm photograph; it's 4k & très détaillé!",
    "naïve café — 北京 🙂  two  spaces\tand a tab",
    "supercalifragilisticexpialidocious 1234567890 <|endoftext|> (((worst quality)))",
    "",
)
"""Test texts for tokenizers: words, digits, punctuation, other scripts, special tokens, nothing."""


def files(checkpoint: Checkpoint, expected: str | None) -> Finding:
    """Check that a model is complete, that its networks fit together, and that its layout is as expected.

    Args:
        checkpoint: the model.
        expected: name of the layout; None for a model without a well-known name.

    Raises:
        InputError: a check failed.
    """
    info = checkpoint.info
    if expected is not None and info.layout.name != expected:
        raise InputError(f"the layout is {info.layout.name}, but {expected} was expected")
    family = f", family {checkpoint.family}" if checkpoint.family != info.layout.name else ""
    figures = {
        "format": checkpoint.format,
        "layout": info.layout.name,
        "family": checkpoint.family,
        "notes": list(checkpoint.notes),
    }
    notes = "".join(f"; {note}" for note in checkpoint.notes)
    return f"{checkpoint.format}, layout {info.layout.name}{family}{notes}", figures


def digests(checkpoint: Checkpoint) -> Finding:
    """Compute the SHA-256 of each file of weights, by its path inside the model.

    Raises:
        OSError: a file cannot be read.
    """
    paths = {stored.file for part in checkpoint.parts.values() for stored in part.tensors.values()}
    found: dict[str, str] = {}
    for path in sorted(paths):
        name = path.relative_to(checkpoint.path).as_posix() if checkpoint.path.is_dir() else path.name
        found[name] = hash_file(path)
    return ", ".join(f"{name} {digest[:16]}" for name, digest in found.items()), {"sha256": found}


def network(checkpoint: Checkpoint, part: str) -> Finding:
    """Check a network's tensor names, shapes and number of parameters, and that all values are finite.

    Raises:
        InputError: something differs from the layout, or a value is NaN or infinite.
    """
    stored = checkpoint.parts[part]
    empty = empty_network(part, stored.layout)
    shapes = {name: tuple(tensor.shape) for name, tensor in empty.state_dict().items()}
    check_tensors(shapes, stored, part)
    published = PARAMETERS.get(checkpoint.name, {}).get(part)
    if published not in (None, stored.parameters):
        raise InputError(f"{part} has {stored.parameters:,} parameters, {published:,} were published")
    tensors = read_part(checkpoint, part)
    broken = [name for name, tensor in tensors.items() if not is_finite(tensor)]
    if broken:
        raise InputError(f"NaN or infinity in {counted(len(broken), 'tensor')}: {first_few(broken)}")
    largest = max(float(tensor.float().abs().max()) for tensor in tensors.values() if tensor.numel())
    formats = [dtype_name(dtype) for dtype in stored.dtypes]
    origin = "as published" if published else "of a layout that was not published"
    figures = {
        "parameters": stored.parameters,
        "published": published,
        "tensors": len(tensors),
        "dtypes": formats,
        "largest": largest,
    }
    count = f"{stored.parameters:,} parameters in {len(tensors)} tensors, {origin}"
    return f"{count}; all are finite, the largest is {largest:.3g}; {', '.join(formats)}", figures


def tokenizer(checkpoint: Checkpoint, part: str) -> Finding:
    """Check that a tokenizer fits its text encoder and, for CLIP's vocabulary, equals the published one.

    Raises:
        InputError: the tokenizer does not fit, or differs.
    """
    layout = checkpoint.parts[part].layout
    assert isinstance(layout, TextLayout)
    published = layout.vocab_size == VOCABULARY_SIZE
    own = part in checkpoint.tokenizers
    if not own and not published:
        raise InputError(
            f"the model has no tokenizer, and its vocabulary of {layout.vocab_size} is not CLIP's"
        )
    given = tokenizer_of(checkpoint.tokenizers, part)
    _check_fit(given, layout)
    ids = [given.ids(text) for text in TEXTS]
    figures = {"tokens": len(given.vocabulary), "own": own, "published": published}
    if not published:
        return f"{len(given.vocabulary):,} tokens of the model's own, which fit the encoder", figures
    clip = clip_tokenizer(part)
    if given.vocabulary != clip.vocabulary:
        other = [token for token, number in clip.vocabulary.items() if given.vocabulary.get(token) != number]
        raise InputError(f"{len(other)} of CLIP's tokens are missing or have other ids: {first_few(other)}")
    if [tuple(pair) for pair in given.merges] != [tuple(pair) for pair in clip.merges]:
        raise InputError("the merges are not CLIP's")
    if given.padding != PADDING[part]:
        raise InputError(f"the padding is {given.padding!r}, but {PADDING[part]!r} in the published one")
    if ids != [clip.ids(text) for text in TEXTS]:
        raise InputError("it splits texts into other tokens than CLIP's")
    source = "the model's own, equal to CLIP's" if own else "CLIP's, because the model has none"
    return f"{source}: {len(given.vocabulary):,} tokens, padded with {given.padding!r}", figures


def _check_fit(given: CLIPTokenizer, layout: TextLayout) -> None:
    largest = max(given.vocabulary.values())
    if largest >= layout.vocab_size:
        raise InputError(f"token id {largest} exceeds the encoder's vocabulary of {layout.vocab_size}")
    for token, number in ((BEGIN, layout.bos_token_id), (END, layout.eos_token_id)):
        if given.vocabulary.get(token) != number:
            raise InputError(
                f"{token} has the id {given.vocabulary.get(token)}, but the encoder expects {number}"
            )
