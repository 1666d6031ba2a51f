"""CLIP's tokenizer, by the library tokenizers: words to byte pairs, as OpenAI's and transformers' do."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from tokenizers import AddedToken, Regex, Tokenizer, models, normalizers, pre_tokenizers

BEGIN, END = "<|startoftext|>", "<|endoftext|>"
WORD_END = "</w>"

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
