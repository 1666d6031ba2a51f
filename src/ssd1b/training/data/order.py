"""The order of training images from several buckets: a pure function of seed and step."""

import bisect
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True)
class Order:
    """An endless sequence of batches, each of one bucket.

    Each bucket is a stream of shuffles of all its images, divided into batches that may span two shuffles.
    Nothing is dropped or padded. By the end of epoch e a bucket of n images has given ``floor(n e /
    batch_size)`` batches, less than one batch behind its share. At any time, no image of a bucket has been
    seen two times more often than another. The batches of an epoch are shuffled over all buckets.

    A step's batch does not depend on the number of processes.

    Attributes:
        sizes: number of images in each bucket.
        batch_size: number of images in each batch.
        seed: of the shuffles.
    """

    sizes: tuple[int, ...]
    batch_size: int
    seed: int
    _shuffles: dict[int, tuple[int, NDArray[np.int64]]] = field(
        default_factory=dict[int, tuple[int, NDArray[np.int64]]], repr=False, compare=False
    )
    _epochs: dict[int, list[tuple[int, int]]] = field(
        default_factory=dict[int, list[tuple[int, int]]], repr=False, compare=False
    )

    def __getitem__(self, step: int) -> tuple[int, list[int]]:
        """Return the bucket of a step, and the indices of its images."""
        # No later epoch can hold the step.
        latest = (step + len(self.sizes) + 1) * self.batch_size // sum(self.sizes) + 2
        epoch = bisect.bisect_right(range(latest), step, key=self.batches_before) - 1
        bucket, batch = self._epoch(epoch)[step - self.batches_before(epoch)]
        stream = range(batch * self.batch_size, (batch + 1) * self.batch_size)
        return bucket, [self._picture(bucket, place) for place in stream]

    def batches_before(self, epoch: int) -> int:
        """Return the number of batches in all epochs before this one."""
        return sum(size * epoch // self.batch_size for size in self.sizes)

    def _epoch(self, epoch: int) -> list[tuple[int, int]]:
        """Return the bucket, and the number within the bucket, of each batch of an epoch."""
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
        """Return the image at a position of a bucket's stream, caching the last shuffle."""
        number, index = divmod(place, self.sizes[bucket])
        if bucket not in self._shuffles or self._shuffles[bucket][0] != number:
            rng = np.random.default_rng((self.seed, 1, bucket, number))
            self._shuffles[bucket] = (number, rng.permutation(self.sizes[bucket]))
        return int(self._shuffles[bucket][1][index])
