"""CLIP's vocabulary."""

import pytest

from ssd1b.weights.vocabulary import clip_vocabulary


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
