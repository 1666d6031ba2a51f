"""CLIP's tokenizer, by the library tokenizers: words to byte pairs, as OpenAI's and transformers' do."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

from ssd1b.errors import InputError, shown
from ssd1b.files import named, read_file, text_of

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

LARGEST_VOCABULARY = 2**18
"""Tokens, and merges; CLIP has 49,408."""

_LARGEST_FILE = 8 * 2**20
"""Bytes; CLIP's ``tokenizer.json`` has 3.6 million."""

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""What is a word, in CLIP's own words (openai/CLIP ``clip/simple_tokenizer.py``)."""


@dataclass(frozen=True, slots=True)
class CLIPTokenizer:
    """Texts to token ids, without begin, end and padding.

    Attributes:
        vocabulary: ids by token, with ``</w>`` at the end of a word.
        merges: pairs of tokens that become one, in order.
        padding: the token to pad with. Like begin and end it is a token of its own wherever a text has it,
            as with transformers: an exclamation mark is 0 to the encoder that pads with it.
    """

    vocabulary: dict[str, int]
    merges: Sequence[tuple[str, str]] = field(repr=False)
    padding: str
    _library: Tokenizer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Build the library's tokenizer."""
        unknown = END
        model = models.BPE(
            vocab=self.vocabulary, merges=list(self.merges), unk_token=unknown, end_of_word_suffix=WORD_END
        )
        library = Tokenizer(model)
        library.normalizer = normalizers.Sequence(
            [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
        )
        library.pre_tokenizer = pre_tokenizers.Sequence([
            pre_tokenizers.Split(Regex(_WORDS), "removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ])  # fmt: skip
        library.add_special_tokens(
            [AddedToken(token, normalized=False, special=True) for token in (BEGIN, END, self.padding)]
        )
        object.__setattr__(self, "_library", library)

    @property
    def pad_token_id(self) -> int:
        """Of the padding token."""
        return self.vocabulary[self.padding]

    def ids(self, text: str) -> list[int]:
        """The tokens of a text."""
        return self._library.encode(text, add_special_tokens=False).ids


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """Open a model folder's own tokenizer: ``vocab.json`` and ``merges.txt``, or ``tokenizer.json``.

    Raises:
        InputError: neither is there, or what is there is no tokenizer of CLIP's kind, or too large.
    """
    if (folder / "vocab.json").exists():
        file = folder / "vocab.json"
        vocabulary: Any = _read_json(file)
        lines = _text(folder / "merges.txt").split("\n")
        merges: Any = [line for line in lines if line.strip() and not line.startswith("#version")]
    else:
        file = folder / "tokenizer.json"
        model = _read_json(file).get("model")
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
        told = _read_json(file).get("pad_token") if file.exists() else None
        if isinstance(told, dict):
            told = told.get("content", 0)
        if told is not None and not isinstance(told, str):
            raise InputError(f"{named(file)}: pad_token must be a text, got {shown(told)}")
        if told is not None:
            return told
    return END


def _read_json(file: Path) -> dict[str, Any]:
    text = _text(file)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{named(file)}: not valid JSON ({shown(error)})") from None
    if not isinstance(value, dict):
        raise InputError(f"{named(file)}: a JSON object was expected, got {type(value).__name__}")
    return value


def _text(file: Path) -> str:
    return text_of(read_file(file, most=_LARGEST_FILE), named(file))
