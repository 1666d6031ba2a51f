"""CLIP's tokenizer, built on the tokenizers library and equal to OpenAI's and transformers'."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

_WORDS = r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"
"""CLIP's pattern of a word (openai/CLIP ``clip/simple_tokenizer.py``)."""


@dataclass(frozen=True, slots=True, eq=False, weakref_slot=True)
class CLIPTokenizer:
    """A byte-pair tokenizer, from texts to token ids without begin, end and padding.

    Attributes:
        vocabulary: ids by token, with ``</w>`` at the end of a word.
        merges: pairs of tokens to merge, in order.
        padding: the padding token. Like begin and end it is always a separate token, as in transformers: an
            exclamation mark has the id 0 in the encoder that pads with it.
    """

    vocabulary: dict[str, int]
    merges: Sequence[tuple[str, str]] = field(repr=False)
    padding: str
    _library: Tokenizer = field(init=False, repr=False)

    def __post_init__(self) -> None:
        """Build the library's tokenizer."""
        model = models.BPE(
            vocab=self.vocabulary, merges=list(self.merges), unk_token=END, end_of_word_suffix=WORD_END
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
        """Id of the padding token."""
        return self.vocabulary[self.padding]

    def ids(self, text: str) -> list[int]:
        """Tokenize a text."""
        return self._library.encode(text, add_special_tokens=False).ids
