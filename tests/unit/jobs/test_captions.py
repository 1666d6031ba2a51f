"""Images come in the order of their captions, and no more of them wait than an executor may generate."""

from collections import deque
from collections.abc import Sequence
from concurrent.futures import Future

import pytest
from PIL import Image

from ssd1b.errors import FailedError
from ssd1b.evaluate.drawing import Drawn
from ssd1b.jobs.captions import draw_captions
from ssd1b.model import Model
from ssd1b.pipeline import Watch, ignore
from ssd1b.settings import GenerationSettings

MINI = Model.find("mini-ssd-1b", offline=True)


def image_of(settings: GenerationSettings) -> Drawn:
    return Drawn(Image.new("RGB", (8, 8), (settings.seed, 0, 0)), 0.5, 4)


class Backwards:
    """Finishes batches in the wrong order: nothing until it is full, and then the last one first."""

    capacity = 3

    def __init__(self, batches: int) -> None:
        self.left, self.submitted = batches, 0
        self.running: deque[tuple[Sequence[GenerationSettings], Future[list[Drawn]]]] = deque()

    def load(self, model: str) -> None:
        assert model == MINI.name

    def submit(
        self, model: str, batch: Sequence[GenerationSettings], watch: Watch = ignore
    ) -> Future[list[Drawn]]:
        future: Future[list[Drawn]] = Future()
        self.running.append((batch, future))
        self.submitted += 1
        if len(self.running) == self.capacity or self.submitted == self.left:
            while self.running:
                wanted, last = self.running.pop()
                last.set_result([image_of(settings) for settings in wanted])
        return future


def seed_of(drawn: Drawn) -> int:
    return drawn.image.getpixel((0, 0))[0]  # type: ignore[index]


def test_images_come_in_the_order_of_their_captions() -> None:
    long = "a cube, " * 60  # of another number of chunks, so in other batches
    tasks = [(long if seed % 3 == 0 else "a cube", seed) for seed in range(21)]
    executor = Backwards(batches=4 + 7)
    assert [seed_of(each) for each in draw_captions(MINI, executor, tasks, batch_size=2)] == list(range(21))
    assert executor.submitted == 4 + 7


def test_no_more_images_wait_than_may_be_running() -> None:
    executor = Backwards(batches=8)
    images = draw_captions(MINI, executor, [("a cube", seed) for seed in range(16)], batch_size=2)
    for number, drawn in enumerate(images):
        assert seed_of(drawn) == number
        assert executor.submitted <= number // 2 + executor.capacity


class Failing(Backwards):
    def submit(self, *arguments: object) -> Future[list[Drawn]]:
        future: Future[list[Drawn]] = Future()
        self.running.append(([], future))
        if len(self.running) == self.capacity:
            self.running[0][1].set_exception(FailedError("broken"))
        return future


def test_an_error_ends_the_others() -> None:
    executor = Failing(0)
    with pytest.raises(FailedError, match="broken"):
        list(draw_captions(MINI, executor, [("a cube", seed) for seed in range(20)], batch_size=1))
    assert len(executor.running) == executor.capacity
    assert all(future.cancelled() for _, future in list(executor.running)[1:])
