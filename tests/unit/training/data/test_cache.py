"""What the cache gives back is what was written under just this key, or nothing."""

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
from torch import nn

from ssd1b.training.data.cache import Cache
from ssd1b.training.digests import digest_of_modules

TENSORS = {
    "latents": torch.arange(24.0).reshape(4, 2, 3).half(),
    "pooled": torch.ones(5, dtype=torch.bfloat16),
}
KEY = "ab" * 20


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    cache = Cache(tmp_path / "latents")
    cache.write(KEY, TENSORS)
    return cache


def test_tensors_come_back_in_their_number_format(cache: Cache) -> None:
    found = cache.read(KEY)
    assert found is not None
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        torch.testing.assert_close(found[name], tensor, rtol=0, atol=0)
    assert cache.read("cd" * 20) is None


def test_a_file_cut_anywhere_or_with_a_flipped_bit_is_no_entry(cache: Cache) -> None:
    path = cache.path(KEY)
    whole = path.read_bytes()
    for length in range(0, len(whole), 7):
        path.write_bytes(whole[:length])
        assert cache.read(KEY) is None, length
    path.write_bytes(whole + b"\0")
    assert cache.read(KEY) is None
    data = int.from_bytes(whole[:8], "little") + 8  # behind the header
    for place in range(data, len(whole)):
        flipped = bytearray(whole)
        flipped[place] ^= 4
        path.write_bytes(flipped)
        assert cache.read(KEY) is None, place
    cache.write(KEY, TENSORS)
    assert cache.read(KEY) is not None


def test_a_kill_between_write_and_rename_leaves_what_was_there(
    cache: Cache, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def kill(*_: object) -> None:
        raise Killed

    before = cache.path(KEY).read_bytes()
    with monkeypatch.context() as patched:
        patched.setattr(os, "link", kill)
        # A killed process tidies nothing up.
        patched.setattr("ssd1b.saving._remove", lambda path: None)
        for key in (KEY, "cd" * 20):
            with pytest.raises(Killed):
                cache.write(key, {"latents": torch.zeros(3)})
    assert len([*cache.folder.rglob("*.partial")]) == 2
    assert cache.path(KEY).read_bytes() == before
    assert cache.read("cd" * 20) is None
    cache.write("cd" * 20, TENSORS)
    assert cache.read("cd" * 20) is not None


def test_several_write_the_same_entry_at_once(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: (cache.write(KEY, TENSORS), cache.read(KEY))[1], range(40)))
    assert None not in found
    assert len([path for path in tmp_path.rglob("*") if path.is_file()]) == 1


def test_the_digest_sees_every_weight_and_its_format() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(3, 2)
    first = digest_of_modules([layer], "layout")
    assert first == digest_of_modules([layer], "layout") != digest_of_modules([layer], "another")
    with torch.no_grad():
        layer.bias[1] += 1e-7
    changed = digest_of_modules([layer], "layout")
    assert len({first, changed, digest_of_modules([layer.bfloat16()], "layout")}) == 3
