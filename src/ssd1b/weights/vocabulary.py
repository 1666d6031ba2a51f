"""CLIP's byte-pair vocabulary, for models that bring no tokenizer, as single files do.

``data/clip/bpe_simple_vocab_16e6.txt.gz`` is OpenAI's file (MIT, see NOTICE). Both of SDXL's encoders use it;
their tokenizers differ in the padding token only.
"""

import gzip
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError
from ssd1b.weights.files import read_json, write_json

DATA = Path(__file__).parent.parent / "data"
_MERGES_FILE = DATA / "clip" / "bpe_simple_vocab_16e6.txt.gz"

VOCABULARY_SIZE = 49408
BEGIN, END = "<|startoftext|>", "<|endoftext|>"
PADDING = {"text_encoder": END, "text_encoder_2": "!"}
"""The padding token of each encoder's tokenizer."""

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


def _byte_letters() -> list[str]:
    """A printable letter for each byte: its own, or one from U+0100 on (GPT-2's alphabet)."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    rest = 256 - len(printable)
    return [chr(byte) for byte in printable] + [chr(256 + index) for index in range(rest)]


def write_clip_tokenizer(folder: Path, padding: str) -> None:
    """Write CLIP's tokenizer as transformers' ``CLIPTokenizer`` reads it."""
    vocabulary, merges = clip_vocabulary()
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


def special_token_ids(folder: Path) -> dict[str, int]:
    """The ids of the begin, end and padding tokens, as far as a tokenizer's folder tells.

    Raises:
        InputError: a file of the tokenizer is damaged, or a special token is not in its vocabulary.
    """
    config: dict[str, Any] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        if (folder / name).exists():
            config |= read_json(folder / name)
    vocabulary = _vocabulary(folder, config)
    ids = {}
    for name in ("bos_token", "eos_token", "pad_token"):
        token = config.get(name)
        token = token.get("content") if isinstance(token, dict) else token
        if not isinstance(token, str) or not vocabulary:
            continue
        if not isinstance(vocabulary.get(token), int):
            raise InputError(f"{folder}: {name} {token!r} is not in the vocabulary")
        ids[f"{name}_id"] = vocabulary[token]
    return ids


def _vocabulary(folder: Path, config: Mapping[str, Any]) -> dict[str, Any]:
    vocabulary: Any = None
    if (folder / "vocab.json").exists():
        vocabulary = read_json(folder / "vocab.json")
    elif (folder / "tokenizer.json").exists():
        model = read_json(folder / "tokenizer.json").get("model")
        vocabulary = model.get("vocab") if isinstance(model, dict) else None
    if not isinstance(vocabulary, dict):
        return {}
    added = config.get("added_tokens_decoder")
    for index, token in added.items() if isinstance(added, dict) else ():
        if isinstance(token, dict) and index.isdecimal():
            vocabulary.setdefault(token.get("content"), int(index))
    return vocabulary
