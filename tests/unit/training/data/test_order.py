"""The order is a pure function of seed and step, of one bucket at a time, and fair to every picture."""

from collections import Counter
from itertools import pairwise

from hypothesis import given, settings
from hypothesis import strategies as st

from ssd1b.training.data.order import Order

sizes = st.lists(st.integers(1, 20), min_size=1, max_size=4).map(tuple)


@settings(max_examples=10)
@given(sizes, st.integers(1, 9), st.integers(0, 5), st.randoms(use_true_random=False))
def test_a_step_does_not_depend_on_what_was_asked_before(
    sizes: tuple[int, ...], batch_size: int, seed: int, random: object
) -> None:
    straight = [Order(sizes, batch_size, seed)[step] for step in range(12)]
    order, steps = Order(sizes, batch_size, seed), list(range(12))
    random.shuffle(steps)  # type: ignore[attr-defined]
    assert {step: order[step] for step in steps} == dict(enumerate(straight))
    assert straight != [Order(sizes, batch_size, seed + 1)[step] for step in range(12)] or sum(sizes) < 9


@settings(max_examples=10)
@given(sizes, st.integers(1, 9), st.integers(1, 5))
def test_every_picture_is_seen_as_often_as_can_be(
    sizes: tuple[int, ...], batch_size: int, epochs: int
) -> None:
    order = Order(sizes, batch_size, 1)
    seen: Counter[tuple[int, int]] = Counter()
    for step in range(order.batches_before(epochs)):
        bucket, chosen = order[step]
        assert len(chosen) == batch_size
        seen.update((bucket, picture) for picture in chosen)
    for bucket, size in enumerate(sizes):
        counts = [seen[bucket, picture] for picture in range(size)]
        assert max(counts) - min(counts) <= 1
        assert size * epochs - batch_size < sum(counts) <= size * epochs
    # Where batches fill their buckets, an epoch is exactly an epoch.
    if all(size % batch_size == 0 for size in sizes):
        assert set(seen.values()) == {epochs}


def test_batches_of_all_buckets_are_mixed() -> None:
    order = Order((400, 400), 4, 0)
    buckets = [order[step][0] for step in range(200)]
    assert buckets.count(0) == 100
    assert 60 < sum(a != b for a, b in pairwise(buckets)) < 140


def test_processes_that_share_the_steps_see_the_same_batches() -> None:
    alone = [Order((7, 30, 3), 4, 9)[step] for step in range(24)]
    shared = {}
    for rank in range(3):
        own = Order((7, 30, 3), 4, 9)
        shared |= {step: own[step] for step in range(rank, 24, 3)}
    assert [shared[step] for step in range(24)] == alone
