"""The miniature's tokenizer: CLIP's byte-pair encoding with merges learned from Tabletop captions."""

import json

import numpy as np
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from ssd1b.layouts import CLIP_MINI
from ssd1b.models.tokenizer import WORD_END
from ssd1b.tabletop.world.captions import VOCABULARY, caption
from ssd1b.tabletop.world.scenes import scene

CAPTIONS = 5000


def train_tokenizer() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Learn vocabulary and merges. Any text can be encoded; Tabletop's words are one token each.

    Ids are as in CLIP: 256 bytes, 256 bytes that end a word, merges, begin and end of text.
    """
    tokenizer = Tokenizer(models.BPE(end_of_word_suffix=WORD_END))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Split(
        Regex(r"\p{L}+|\p{N}|[^\s\p{L}\p{N}]+"), "removed", invert=True
    )
    rng = np.random.default_rng(0)
    corpus = [*(caption(scene(0, index), rng) for index in range(CAPTIONS)), *VOCABULARY]
    room = CLIP_MINI.bos_token_id - 512
    trainer = trainers.BpeTrainer(
        vocab_size=512 + room, end_of_word_suffix=WORD_END, min_frequency=1, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    merges = [(left, right) for left, right in json.loads(tokenizer.to_str())["model"]["merges"]][:room]

    # In CLIP's order the first byte is "!", with which its second tokenizer pads.
    letters = sorted(
        pre_tokenizers.ByteLevel.alphabet(), key=lambda letter: (ord(letter) >= 256, ord(letter))
    )
    tokens = [*letters, *(letter + WORD_END for letter in letters), *("".join(merge) for merge in merges)]
    vocabulary = {token: index for index, token in enumerate(tokens)}
    vocabulary |= {"<|startoftext|>": CLIP_MINI.bos_token_id, "<|endoftext|>": CLIP_MINI.eos_token_id}
    return vocabulary, merges
