"""The requests of a server: in memory while they are open, on disk always, and who listens to them."""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from ssd1b.errors import FailedError, InputError, OutOfSpaceError, UnavailableError
from ssd1b.jobs.job import Job
from ssd1b.jobs.queue import DONE, FAILED, FINISHED, Image, Queue, Request
from ssd1b.jobs.store import FAILED as JOB_FAILED
from ssd1b.jobs.store import Outcome, Store
from ssd1b.server.metrics import Metrics
from ssd1b.settings import GenerationSettings

log = logging.getLogger("ssd1b.server")

T = TypeVar("T")

MakeJob = Callable[[str, GenerationSettings], Job]


class Listener:
    """Hears that requests changed. A slow listener misses states in between, never the last one.

    Args:
        request: the only one it hears of; None for all.
        previews: it wants previews of images in progress.
    """

    def __init__(self, request: Request | None, previews: bool) -> None:
        self.request = request
        self.previews = previews
        self._changed: dict[str, Request] = {}
        self._event = asyncio.Event()
        self._ended = False

    def hear(self, request: Request) -> None:
        """Note that a request changed."""
        if self.request is None or self.request is request:
            self._changed[request.id] = request
            self._event.set()

    def end(self) -> None:
        """End the iteration after what was heard."""
        self._ended = True
        self._event.set()

    async def changes(self) -> AsyncIterator[Request]:
        """Give each request that changed since it was given last; ends when the server does."""
        while True:
            await self._event.wait()
            self._event.clear()
            changed, self._changed = self._changed, {}
            for request in changed.values():
                yield request
            if self._ended:
                return


class Ledger:
    """Requests and their images.

    The store and the queue are used from one thread of their own, so that a slow disk does not stop the event
    loop. A change is on disk before anybody hears of it.

    Args:
        folder: of the store; made if need be.
        metrics: of the server.
        watched: called when listeners come or go.
    """

    def __init__(self, folder: Path, metrics: Metrics, watched: Callable[[], object]) -> None:
        self.open: dict[str, Request] = {}
        """Requests that are not finished, by id."""
        self._unsaved: dict[str, Request] = {}
        """Requests that are finished, but not on disk."""
        self._folder = folder
        self._metrics = metrics
        self._watched = watched
        self._done: dict[str, asyncio.Event] = {}
        self._listeners: set[Listener] = set()
        self._keeper = ThreadPoolExecutor(1, "store")

    async def start(self) -> None:
        """Open the store and the queue.

        Raises:
            InputError: the folder cannot be written, or is not a store.
        """
        await self.keep(self._start)

    def _start(self) -> None:
        self.store = Store(self._folder)
        self.store.claim([])  # makes the folder
        self.queue = Queue(self._folder)

    async def close(self) -> None:
        """Close both."""
        await self.keep(self._close)
        self._keeper.shutdown()

    def _close(self) -> None:
        self.queue.close()
        self.store.close()

    async def keep(self, work: Callable[[], T]) -> T:
        """Do something with the store or the queue, in their thread.

        Raises:
            InputError: the disk refused. The error names no path, which the log has instead.
        """
        try:
            return await asyncio.get_running_loop().run_in_executor(self._keeper, work)
        except OutOfSpaceError as error:
            log.error("%s", error)
            raise OutOfSpaceError("the server's disk is full") from error

    async def write(self, work: Callable[[], T]) -> T:
        """As ``keep``, for changes: whatever refuses them, a missing folder too, is the server's trouble."""
        try:
            return await self.keep(work)
        except OutOfSpaceError:
            raise
        except InputError as error:
            log.error("%s", error)
            raise UnavailableError("the server cannot write to its store") from error

    async def add(self, request: Request) -> None:
        """Accept a new request.

        Raises:
            InputError: the disk refused; the request is forgotten.
        """
        self.open[request.id] = request
        self._done[request.id] = asyncio.Event()
        try:
            await self.write(partial(self.queue.add, request))
        except BaseException:
            self._forget(request)
            raise
        self.tell([request])

    def reopen(self, request: Request) -> None:
        """Take a request from disk that an earlier process left."""
        self.open[request.id] = request
        self._done[request.id] = asyncio.Event()

    async def update(self, requests: Sequence[Request]) -> None:
        """Store changes of requests, and tell listeners.

        If the disk refuses, those that ended have failed. They are stored with the next change.
        """
        try:
            await self.write(partial(self.queue.update, [*self._unsaved.values(), *requests]))
            self._unsaved.clear()
        except InputError as error:
            for request in requests:
                if request.state in FINISHED:
                    request.state, request.error, request.code = FAILED, str(error), type(error).__name__
                    self._unsaved[request.id] = request
        for request in requests:
            if request.state in FINISHED:
                self._forget(request)
        self.tell(requests)

    async def finish(self, requests: Iterable[Request], state: str, error: InputError | None = None) -> None:
        """End requests in a state, unless they ended before."""
        ending = [request for request in requests if request.state not in FINISHED]
        for request in ending:
            self._end(request, state)
            if error is not None:
                request.error, request.code = str(error), type(error).__name__
        await self.update(ending)

    async def take(self, outcomes: dict[str, Outcome]) -> None:
        """Note results of jobs, for every request that waits for them.

        Args:
            outcomes: by the key of the job.
        """
        changed, now = [], time.time()
        for request in self.open.values():
            images = [image for image in request.left if image.job.key in outcomes]
            for image in images:
                now += 1e-6  # images of a batch keep their order
                image.made = now
                if (outcome := outcomes[image.job.key]).state == JOB_FAILED:
                    image.error = request.error = outcome.error
                    request.code = FailedError.__name__
            if images:
                changed.append(request)
                if not request.left and request.state not in FINISHED:
                    self._end(request, FAILED if request.error else DONE)
        await self.update(changed)

    def _end(self, request: Request, state: str) -> None:
        request.state, request.finished, request.preview = state, time.time(), None
        self._metrics.jobs.labels(request.dialect, state).inc()
        self._metrics.whole.labels(request.dialect).observe(request.finished - request.created)

    def _forget(self, request: Request) -> None:
        self.open.pop(request.id, None)
        if (done := self._done.pop(request.id, None)) is not None:
            done.set()

    def give_up(self, request: Request) -> None:
        """End all waiting for a request that this process will not finish."""
        if (done := self._done.get(request.id)) is not None:
            done.set()

    async def wait(self, request: Request) -> None:
        """Wait until a request is finished, and that is on disk; or given up."""
        if (done := self._done.get(request.id)) is not None:
            await done.wait()

    async def load(self, request: str, job: MakeJob) -> Request | None:
        """Return a request by its id, also one that is finished; None if there is none, or it is deleted."""
        if known := self._known(request):
            return known
        return await self.keep(partial(self.queue.load, request, job))

    def current(self, request: Request) -> Request:
        """Return what is known of a request that was loaded; on a full disk that is more."""
        return self._known(request.id) or request

    def _known(self, request: str) -> Request | None:
        return self.open.get(request) or self._unsaved.get(request)

    @asynccontextmanager
    async def listen(
        self, request: Request | None = None, *, previews: bool = False
    ) -> AsyncGenerator[Listener, None]:
        """Hear of changes in requests while the context lasts.

        Args:
            request: hear of this one only.
            previews: have previews made as long as somebody listens.
        """
        listener = Listener(request, previews)
        self._listeners.add(listener)
        self._watched()
        try:
            yield listener
        finally:
            self._listeners.discard(listener)
            self._watched()

    def is_watched(self, requests: Iterable[Request]) -> bool:
        """Whether somebody wants previews of one of these requests."""
        watched = list(requests)
        return any(
            listener.previews and (listener.request is None or listener.request in watched)
            for listener in self._listeners
        )

    def tell(self, requests: Iterable[Request]) -> None:
        """Tell listeners that requests changed."""
        for request in requests:
            for listener in self._listeners:
                listener.hear(request)

    def end_listeners(self) -> None:
        """End all streams of changes."""
        for listener in self._listeners:
            listener.end()


def left(requests: Iterable[Request]) -> list[Image]:
    """The images of requests that have no result."""
    return [image for request in requests for image in request.left]
