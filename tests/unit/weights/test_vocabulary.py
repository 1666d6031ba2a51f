"""CLIP's vocabulary."""

import json

import pytest

from ssd1b.errors import InputError
from ssd1b.weights.vocabulary import PADDING, clip_vocabulary, special_token_ids, write_clip_tokenizer


@pytest.fixture(scope="module")
def vocabulary():
    return clip_vocabulary()


def test_size_and_known_tokens(vocabulary):
    tokens, merges = vocabulary
    assert len(tokens) == 49408
    assert sorted(tokens.values()) == list(range(49408))
    assert len(merges) == 48894
    known = {"!": 0, "a</w>": 320, "photo</w>": 1125, "of</w>": 539, "cat</w>": 2368}
    assert {token: tokens[token] for token in known} == known
    assert (tokens["<|startoftext|>"], tokens["<|endoftext|>"]) == (49406, 49407)


def test_every_merge_makes_a_token_of_tokens(vocabulary):
    tokens, merges = vocabulary
    for rank, (left, right) in enumerate(merges):
        assert tokens[left + right] == 512 + rank
        assert max(tokens[left], tokens[right]) < 512 + rank


@pytest.mark.parametrize(("part", "pad"), [("text_encoder", 49407), ("text_encoder_2", 0)])
def test_special_tokens_of_what_is_written(tmp_path, part, pad):
    write_clip_tokenizer(tmp_path / "t", PADDING[part])
    expected = {"bos_token_id": 49406, "eos_token_id": 49407, "pad_token_id": pad}
    assert special_token_ids(tmp_path / "t") == expected


def test_special_tokens_of_other_tokenizers(tmp_path):
    assert special_token_ids(tmp_path) == {}
    (tmp_path / "tokenizer_config.json").write_text('{"pad_token": {"content": "[pad]"}, "eos_token": null}')
    assert special_token_ids(tmp_path) == {}, "no vocabulary, no ids"
    (tmp_path / "tokenizer.json").write_text(
        json.dumps({"model": {"type": "WordLevel", "vocab": {"[pad]": 7}}})
    )
    assert special_token_ids(tmp_path) == {"pad_token_id": 7}
    (tmp_path / "vocab.json").write_text('{"a": 0}')
    with pytest.raises(InputError, match=r"pad_token '\[pad\]' is not in the vocabulary"):
        special_token_ids(tmp_path)
    added = {"pad_token": "[pad]", "added_tokens_decoder": {"9": {"content": "[pad]"}}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(added))
    assert special_token_ids(tmp_path) == {"pad_token_id": 9}
