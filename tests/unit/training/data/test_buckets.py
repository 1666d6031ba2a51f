"""Buckets keep their promises at any size, and SDXL's are among them."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd1b.errors import InputError
from ssd1b.training.data.buckets import Bucket, buckets_for, nearest, place

CARD = [(1024, 1024), *((a, b) for pair in ((1152, 896), (1216, 832), (1344, 768), (1536, 640))
                        for a, b in (pair, pair[::-1]))]  # fmt: skip

multiples = st.sampled_from([8, 16, 32, 64])
sides = st.integers(1, 5000)


def test_the_model_cards_resolutions_are_buckets() -> None:
    buckets = buckets_for(1024)
    assert set(CARD) < set(buckets)
    assert len(buckets) == 33
    assert (buckets[0], buckets[-1]) == ((2048, 512), (512, 2048))


@given(multiples, st.integers(1, 40), st.floats(1, 8))
def test_buckets(multiple: int, count: int, max_ratio: float) -> None:
    size = multiple * count
    buckets = buckets_for(size, multiple=multiple, max_ratio=max_ratio)
    assert Bucket(size, size) in buckets
    assert len(set(buckets)) == len(buckets)
    ratios = [width / height for height, width in buckets]
    assert ratios == sorted(ratios)
    for height, width in buckets:
        assert Bucket(width, height) in buckets
        assert height % multiple == width % multiple == 0
        assert height * width <= size * size < (min(height, width) + multiple) * max(height, width)
        assert max(height, width) <= max_ratio * min(height, width)


def test_a_size_that_is_no_multiple() -> None:
    with pytest.raises(InputError, match="size is 1000: it must be a multiple of 64"):
        buckets_for(1000)


@given(
    st.sampled_from([(1024, 64), (128, 32), (512, 64)]),
    sides,
    sides,
    st.integers(0, 99),
    st.sampled_from(["centre", "random"]),
)
def test_a_picture_covers_its_bucket(
    size: tuple[int, int], height: int, width: int, seed: int, crop: str
) -> None:
    buckets = buckets_for(size[0], multiple=size[1])
    bucket = nearest(buckets, height, width)
    off = abs(math.log(bucket.width / bucket.height * height / width))
    assert all(off <= abs(math.log(w / h * height / width)) for h, w in buckets)
    placement = place((height, width), bucket, crop=crop, seed=[seed])  # type: ignore[arg-type]
    resized, (top, left) = placement.resized, placement.crop
    assert resized.height == bucket.height or resized.width == bucket.width
    assert 0 <= top <= resized.height - bucket.height
    assert 0 <= left <= resized.width - bucket.width
    # Both sides are scaled by the factor that just covers the bucket, and rounded.
    scale = max(bucket.height / height, bucket.width / width)
    assert abs(resized.height - height * scale) <= 0.5 + 1e-6
    assert abs(resized.width - width * scale) <= 0.5 + 1e-6
    assert placement == place((height, width), bucket, crop=crop, seed=[seed])  # type: ignore[arg-type]


def test_micro_conditioning_of_known_pictures() -> None:
    def time_ids(height: int, width: int) -> tuple[int, ...]:
        bucket = nearest(buckets_for(1024), height, width)
        return place((height, width), bucket, crop="centre", seed=[0]).time_ids

    assert time_ids(1024, 1024) == (1024, 1024, 0, 0, 1024, 1024)
    assert time_ids(512, 512) == (512, 512, 0, 0, 1024, 1024)
    # 3:2 is nearest to 1216 x 832: the height is brought to 832, so the width to 1248, of which 32 are cut.
    assert time_ids(2000, 3000) == (2000, 3000, 0, 16, 832, 1216)
    assert time_ids(3000, 2000) == (3000, 2000, 16, 0, 1216, 832)
    # Ten times as wide as high, in the widest bucket: 512 high makes 5120 wide.
    assert time_ids(300, 3000) == (300, 3000, 0, (5120 - 2048) // 2, 512, 2048)


def test_random_crops_reach_everywhere() -> None:
    tops = {place((300, 100), Bucket(64, 64), crop="random", seed=[3, n]).crop[0] for n in range(2000)}
    assert tops == set(range(192 - 64 + 1))
