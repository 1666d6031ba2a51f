"""Tokenizers of models: their own, or CLIP's for those that bring none, as single files do.

``data/clip/bpe_simple_vocab_16e6.txt.gz`` is OpenAI's file (MIT, see NOTICE). Both of SDXL's encoders use it;
their tokenizers differ in the padding token only.
"""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError, shown
from ssd1b.files import decode_text, named, read_file
from ssd1b.layouts import ModelLayout
from ssd1b.models.tokenizer import BEGIN, END, CLIPTokenizer
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.files import read_json, write_json
from ssd1b.weights.fitting import check_tokenizer

DATA = Path(__file__).parent.parent / "data"
_MERGES_FILE = DATA / "clip" / "bpe_simple_vocab_16e6.txt.gz"

VOCABULARY_SIZE = 49408
PADDING = {"text_encoder": END, "text_encoder_2": "!"}
"""The padding token of each encoder's tokenizer."""

LARGEST_VOCABULARY = 2**18
"""Tokens, and merges; CLIP has 49,408."""

_LARGEST_MERGES = 8 * 2**20
"""Bytes; CLIP's ``merges.txt`` has 0.5 million."""

# 256 bytes, each alone and as a word's end, then the merges, then begin and end.
_MERGES = VOCABULARY_SIZE - 2 * 256 - 2


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """CLIP's tokens with their ids, and the merges in order (openai/CLIP ``clip/simple_tokenizer.py``).

    Returns:
        The ids 0 to 49407 by token, with ``</w>`` at the end of a word, and 48,894 pairs.
    """
    lines = gzip.decompress(_MERGES_FILE.read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, right in (line.split() for line in lines[1 : 1 + _MERGES])]
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), BEGIN, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def clip_tokenizer(part: str) -> CLIPTokenizer:
    """CLIP's tokenizer for a text encoder that brings none, one of ``PADDING``."""
    return CLIPTokenizer(*clip_vocabulary(), PADDING[part])


def tokenizer_of(folders: Mapping[str, Path], part: str) -> CLIPTokenizer:
    """Give the tokenizer of a text encoder: the model's own, or CLIP's where it brings none.

    Args:
        folders: the model's own tokenizers.
        part: one of ``PADDING``.

    Raises:
        InputError: it cannot be read.
    """
    return load_tokenizer(folders[part]) if part in folders else clip_tokenizer(part)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Open a model folder's own tokenizer: ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``.

    Raises:
        InputError: neither is there, or what is there is no tokenizer of CLIP's kind, or too large.
    """
    if (folder / "vocab.json").exists():
        file = folder / "vocab.json"
        vocabulary: Any = read_json(file)
        pairs_file = folder / "merges.txt"
        lines = decode_text(read_file(pairs_file, most=_LARGEST_MERGES), named(pairs_file)).split("\n")
        merges: Any = [line for line in lines if line.strip() and not line.startswith("#version")]
    else:
        file = folder / "tokenizer.json"
        model = read_json(file).get("model")
        model = model if isinstance(model, dict) else {}
        vocabulary, merges = model.get("vocab"), model.get("merges")
    padding = _padding(folder)
    _check_vocabulary(vocabulary, padding, file)
    if not isinstance(merges, list) or len(merges) > LARGEST_VOCABULARY:
        raise InputError(f"{named(folder)}: merges must be a list of at most {LARGEST_VOCABULARY} pairs")
    try:
        pairs = [(left, right) for left, right in (e.split() if isinstance(e, str) else e for e in merges)]
        return CLIPTokenizer(vocabulary, pairs, padding)
    except Exception as error:  # the library raises bare ones
        raise InputError(f"{named(folder)}: no tokenizer that can be read: {shown(error)}") from None


def _check_vocabulary(vocabulary: object, padding: str, file: Path) -> None:
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise InputError(f"{named(file)}: no vocabulary in it, which is a table of tokens")
    if len(vocabulary) > LARGEST_VOCABULARY:
        raise InputError(
            f"{named(file)}: the vocabulary has {len(vocabulary)} tokens; allowed are {LARGEST_VOCABULARY}"
        )
    for token, number in vocabulary.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < LARGEST_VOCABULARY:
            raise InputError(
                f"{named(file)}: the number of a token must be 0 to {LARGEST_VOCABULARY - 1}, "
                f"{shown(token)} has {shown(number)}"
            )
    for what, token in (("begin", BEGIN), ("end", END), ("padding", padding)):
        if token not in vocabulary:
            raise InputError(f"{named(file)}: the vocabulary has no {shown(token)}, the {what} token")


def _padding(folder: Path) -> str:
    """The padding token, a string or a table with its content; CLIP's own is the end token."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        token = read_json(file).get("pad_token") if file.exists() else None
        if isinstance(token, dict):
            token = token.get("content", 0)
        if token is not None and not isinstance(token, str):
            raise InputError(f"{named(file)}: pad_token must be a text, got {shown(token)}")
        if token is not None:
            return token
    return END


def load_tokenizers(info: ModelInfo) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Give the tokenizers of a model's text encoders, see ``tokenizer_of``.

    Raises:
        InputError: a tokenizer of its own cannot be read, or has more tokens than its encoder.
    """
    first, second = (tokenizer_of(info.tokenizers, part) for part in PADDING)
    for part, tokenizer in zip(PADDING, (first, second), strict=True):
        check_tokenizer(tokenizer, getattr(info.layout, part), str(info.tokenizers.get(part, part)))
    return first, second


def tokenizer_folder(text_encoder: str) -> str:
    """Name the folder of an encoder's tokenizer: ``tokenizer_2`` for ``text_encoder_2``."""
    return text_encoder.replace("text_encoder", "tokenizer")


def calibration_prompts(layout: ModelLayout) -> list[str]:
    """Prompts that draw what a model's layers commonly see: photographs and paintings, or Tabletop."""
    name = "clip" if layout.text_encoder.vocab_size == VOCABULARY_SIZE else "tabletop"
    return (DATA / "calibration" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def _byte_letters() -> list[str]:
    """A printable letter for each byte: its own, or one from U+0100 on (GPT-2's alphabet)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    rest = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(rest)]


def write_tokenizer(
    folder: Path, vocabulary: dict[str, int], merges: list[tuple[str, str]], padding: str
) -> None:
    """Write a tokenizer as transformers' ``CLIPTokenizer`` reads it."""
    folder.mkdir(parents=True)
    special = {"bos_token": BEGIN, "eos_token": END, "pad_token": padding, "unk_token": END}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(f"{left} {right}" for left, right in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    write_json(folder / "special_tokens_map.json", special)
    write_json(
        folder / "tokenizer_config.json",
        {
            **special,
            "add_prefix_space": False,
            "do_lower_case": True,
            "errors": "replace",
            "model_max_length": 77,
            "tokenizer_class": "CLIPTokenizer",
        },
    )
