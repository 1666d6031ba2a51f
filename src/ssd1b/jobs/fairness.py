"""Which waiting images are generated next: by priority, fair between clients, in batches."""

from collections import Counter
from collections.abc import Callable, Container, Hashable, Iterable
from typing import TypeAlias

from ssd1b.jobs.queue import Image, Request

Picked: TypeAlias = tuple[Request, Image]
"""An image and the request that it belongs to."""


class Turns:
    """Counts the images that each client was given, by which the next client is chosen.

    The client with the fewest goes first. A client that returns after a pause starts level with the others,
    so a pause neither earns turns nor costs any.
    """

    def __init__(self) -> None:
        self._given: Counter[str] = Counter()

    def choose(
        self,
        waiting: Iterable[Request],
        busy: Container[str] = (),
        *,
        group: Callable[[Picked], Hashable] = lambda picked: picked[1].job.batch,
        limit: Callable[[Picked], int] = lambda picked: 1,
        fits: Callable[[list[Picked]], bool] = lambda batch: True,
    ) -> list[Picked]:
        """Choose the images of the next batch, and count them as given.

        The first image decides the batch; others join it in their order if they are of the same group.

        Args:
            waiting: requests with images that have no result.
            busy: keys of jobs that are being generated. Their images wait for the result.
            group: images of different groups are never in one batch.
            limit: the largest batch that an image may be in.
            fits: whether a batch can begin now. If not, nothing is counted, and no other batch overtakes it.

        Returns:
            Images with their requests; none if all wait for jobs that are being generated, or if the batch
            does not fit.
        """
        queues = self._queues(waiting, busy)
        given = self._given.copy()
        found: list[Picked] = []
        keys: set[str] = set()
        while queues:
            client = min(queues, key=lambda name: _rank(queues[name][0][0], given[name]))
            picked = queues[client].pop(0)
            if not queues[client]:
                del queues[client]
            key = picked[1].job.key
            if key in keys or (found and group(picked) != group(found[0])) or limit(picked) <= len(found):
                continue
            found.append(picked)
            keys.add(key)
            given[client] += 1
            if len(found) >= limit(found[0]):
                break
        if not found or not fits(found):
            return []
        self._given = given
        return found

    def _queues(self, waiting: Iterable[Request], busy: Container[str]) -> dict[str, list[Picked]]:
        """Each client's images in the client's own order."""
        queues: dict[str, list[Picked]] = {}
        for request in sorted(waiting, key=lambda each: (-each.priority, each.number)):
            free = [(request, image) for image in request.left if image.job.key not in busy]
            if free:
                queues.setdefault(request.client, []).extend(free)
        level = min((self._given[name] for name in queues if name in self._given), default=0)
        self._given = Counter({name: max(self._given[name], level) for name in queues})
        return queues


def _rank(first: Request, given: int) -> tuple[int, ...]:
    return (-first.priority, given, first.number)
