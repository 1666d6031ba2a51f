"""The order in which pictures of several buckets are learned: a pure function of seed and step."""

import bisect
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Order:
    """Batches of one bucket each, without an end.

    A bucket is dealt out as one stream, shuffle after shuffle of all its pictures, cut into batches without
    regard to where a shuffle ends: nothing is dropped and nothing padded. By the end of epoch e a bucket of n
    pictures has given ``floor(n e / batch_size)`` batches: less than one batch behind its share. And no
    picture of a bucket is ever seen two times more often than another. The batches of an epoch are shuffled
    over all buckets.

    Nothing here knows of processes: step s is the same batch however many share the work.

    Attributes:
        sizes: pictures in each bucket.
        batch_size: pictures in each batch.
        seed: of the shuffles.
    """

    sizes: tuple[int, ...]
    batch_size: int
    seed: int
    _shuffles: dict[int, tuple[int, NDArray[np.int64]]] = field(
        default_factory=dict, repr=False, compare=False
    )
    _epochs: dict[int, list[tuple[int, int]]] = field(default_factory=dict, repr=False, compare=False)

    def __getitem__(self, step: int) -> tuple[int, list[int]]:
        """The bucket of a step and the pictures in it."""
        # The first epoch that has more batches behind it than steps before this one; it cannot be later.
        latest = (step + len(self.sizes) + 1) * self.batch_size // sum(self.sizes) + 2
        epoch = bisect.bisect_right(range(latest), step, key=self.batches_before) - 1
        bucket, batch = self._epoch(epoch)[step - self.batches_before(epoch)]
        stream = range(batch * self.batch_size, (batch + 1) * self.batch_size)
        return bucket, [self._picture(bucket, place) for place in stream]

    def batches_before(self, epoch: int) -> int:
        """Batches in all epochs before this one."""
        return sum(size * epoch // self.batch_size for size in self.sizes)

    def _epoch(self, epoch: int) -> list[tuple[int, int]]:
        """Bucket and number within the bucket of each batch of an epoch."""
        if epoch not in self._epochs:
            batches = [
                (bucket, batch)
                for bucket, size in enumerate(self.sizes)
                for batch in range(size * epoch // self.batch_size, size * (epoch + 1) // self.batch_size)
            ]
            shuffle = np.random.default_rng((self.seed, 0, epoch)).permutation(len(batches))
            self._epochs.clear()
            self._epochs[epoch] = [batches[index] for index in shuffle]
        return self._epochs[epoch]

    def _picture(self, bucket: int, place: int) -> int:
        """The picture at a place of a bucket's stream; the last shuffle is remembered, for speed alone."""
        number, index = divmod(place, self.sizes[bucket])
        if bucket not in self._shuffles or self._shuffles[bucket][0] != number:
            rng = np.random.default_rng((self.seed, 1, bucket, number))
            self._shuffles[bucket] = (number, rng.permutation(self.sizes[bucket]))
        return int(self._shuffles[bucket][1][index])
