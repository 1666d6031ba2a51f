"""Tokenizers of models: their own, or CLIP's for models without one, such as single files.

``data/clip/bpe_simple_vocab_16e6.txt.gz`` is OpenAI's file (MIT, see NOTICE). Both of SDXL's encoders use it;
their tokenizers differ only in the padding token.
"""

import gzip
import json
from collections.abc import Iterable, Mapping
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
"""Padding token of each encoder's tokenizer."""

LARGEST_VOCABULARY = 2**18
"""Maximum number of tokens, and of merges; CLIP has 49,408 tokens."""

_LARGEST_MERGES = 8 * 2**20
"""Maximum size of ``merges.txt`` in bytes; CLIP's has 0.5 million."""

# 256 bytes, each alone and at the end of a word, then the merges, then begin and end.
_MERGES = VOCABULARY_SIZE - 2 * 256 - 2


def clip_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Read CLIP's tokens with their ids, and the merges in order (openai/CLIP ``clip/simple_tokenizer.py``).

    Returns:
        The ids 0 to 49407 by token, with ``</w>`` at the end of a word, and 48,894 pairs.
    """
    lines = gzip.decompress(_MERGES_FILE.read_bytes()).decode("utf-8").split("\n")
    merges = [(left, right) for left, right in (line.split() for line in lines[1 : 1 + _MERGES])]
    letters = _byte_letters()
    tokens = [*letters, *(letter + "</w>" for letter in letters), *(a + b for a, b in merges), BEGIN, END]
    return {token: index for index, token in enumerate(tokens)}, merges


def clip_tokenizer(part: str) -> CLIPTokenizer:
    """Make CLIP's tokenizer for a text encoder, one of ``PADDING``."""
    return CLIPTokenizer(*clip_vocabulary(), PADDING[part])


def tokenizer_of(folders: Mapping[str, Path], part: str) -> CLIPTokenizer:
    """Load the tokenizer of a text encoder: the model's own, or else CLIP's.

    Args:
        folders: the model's own tokenizers.
        part: one of ``PADDING``.

    Raises:
        InputError: it cannot be read.
    """
    return load_tokenizer(folders[part]) if part in folders else clip_tokenizer(part)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Load a tokenizer from ``vocab.json`` and ``merges.txt``, or from ``tokenizer.json``.

    Raises:
        InputError: neither exists, or the tokenizer is not like CLIP's, or too large.
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
        return CLIPTokenizer(vocabulary, _pairs(merges, folder), padding)
    except InputError:
        raise
    except Exception as error:  # the library raises bare ones
        raise InputError(f"{named(folder)}: invalid tokenizer: {shown(error)}") from None


def _pairs(merges: Iterable[Any], folder: Path) -> list[tuple[str, str]]:
    found: list[tuple[str, str]] = []
    for merge in merges:
        match merge.split() if isinstance(merge, str) else merge:
            case [str(left), str(right)]:
                found.append((left, right))
            case _:
                raise InputError(f"{named(folder)}: {shown(merge)} is no merge: it must be two tokens")
    return found


def _check_vocabulary(vocabulary: object, padding: str, file: Path) -> None:
    if not isinstance(vocabulary, dict) or not vocabulary:
        raise InputError(f"{named(file)}: it has no vocabulary, which is a table of tokens")
    if len(vocabulary) > LARGEST_VOCABULARY:
        size = len(vocabulary)
        raise InputError(
            f"{named(file)}: the vocabulary has {size} tokens; at most {LARGEST_VOCABULARY} are allowed"
        )
    for token, number in vocabulary.items():
        if not isinstance(number, int) or isinstance(number, bool) or not 0 <= number < LARGEST_VOCABULARY:
            raise InputError(
                f"{named(file)}: token ids must be from 0 to {LARGEST_VOCABULARY - 1}, "
                f"but {shown(token)} has {shown(number)}"
            )
    for what, token in (("begin", BEGIN), ("end", END), ("padding", padding)):
        if token not in vocabulary:
            raise InputError(f"{named(file)}: the vocabulary has no {shown(token)}, the {what} token")


def _padding(folder: Path) -> str:
    """Read the padding token, a string or a table with its content; the default is CLIP's, the end token."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        file = folder / name
        token = read_json(file).get("pad_token") if file.exists() else None
        if isinstance(token, dict):
            token = token.get("content", 0)
        if token is not None and not isinstance(token, str):
            raise InputError(f"{named(file)}: pad_token must be text, got {shown(token)}")
        if token is not None:
            return token
    return END


def load_tokenizers(info: ModelInfo) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Load the tokenizers of a model's text encoders, see ``tokenizer_of``.

    Raises:
        InputError: a tokenizer cannot be read, or has more tokens than its encoder.
    """
    first, second = (tokenizer_of(info.tokenizers, part) for part in PADDING)
    for part, tokenizer in zip(PADDING, (first, second), strict=True):
        check_tokenizer(tokenizer, getattr(info.layout, part), str(info.tokenizers.get(part, part)))
    return first, second


def tokenizer_folder(text_encoder: str) -> str:
    """Return the folder name of an encoder's tokenizer: ``tokenizer_2`` for ``text_encoder_2``."""
    return text_encoder.replace("text_encoder", "tokenizer")


def calibration_prompts(layout: ModelLayout) -> list[str]:
    """Read prompts that produce typical activations: photographs and paintings, or Tabletop."""
    name = "clip" if layout.text_encoder.vocab_size == VOCABULARY_SIZE else "tabletop"
    return (DATA / "calibration" / f"{name}.txt").read_text(encoding="utf-8").splitlines()


def _byte_letters() -> list[str]:
    """Return a printable letter for each byte: its own, or one from U+0100 on (GPT-2's alphabet)."""
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
    """Write a tokenizer in the format of transformers' ``CLIPTokenizer``."""
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
