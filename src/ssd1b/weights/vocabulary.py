"""CLIP's byte-pair vocabulary, for models that bring no tokenizer, as single files do.

``data/clip/bpe_simple_vocab_16e6.txt.gz`` is OpenAI's file (MIT, see NOTICE). Both of SDXL's encoders use it;
their tokenizers differ in the padding token only.
"""

import gzip
import json
from pathlib import Path

from ssd1b.layouts import ModelLayout
from ssd1b.models.tokenizer import BEGIN, END, CLIPTokenizer, load_tokenizer
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.files import write_json
from ssd1b.weights.fitting import check_tokenizer

DATA = Path(__file__).parent.parent / "data"
_MERGES_FILE = DATA / "clip" / "bpe_simple_vocab_16e6.txt.gz"

VOCABULARY_SIZE = 49408
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


def clip_tokenizer(part: str) -> CLIPTokenizer:
    """CLIP's tokenizer for a text encoder that brings none, one of ``PADDING``."""
    return CLIPTokenizer(*clip_vocabulary(), PADDING[part])


def tokenizers(info: ModelInfo) -> tuple[CLIPTokenizer, CLIPTokenizer]:
    """Give the tokenizers of a model's text encoders: its own, or CLIP's where it brings none.

    Raises:
        InputError: a tokenizer of its own cannot be read, or has more tokens than its encoder.
    """
    found = []
    for part in PADDING:
        folder = info.tokenizers.get(part)
        tokenizer = load_tokenizer(folder) if folder else clip_tokenizer(part)
        check_tokenizer(tokenizer, getattr(info.layout, part), str(folder or part))
        found.append(tokenizer)
    first, second = found
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
