"""A scan of all examples before training, which finds the usable ones and reports the others."""

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

from ssd1b.errors import InputError
from ssd1b.progress import progress_bar
from ssd1b.training.data.captions import lines_of
from ssd1b.training.data.examples import Example, Unusable
from ssd1b.training.data.pictures import Size, digest_of, is_transparent, size_of
from ssd1b.validation import MAX_TEXT, Text, check
from ssd1b.weights.files import first_few

MAX_CAPTIONS = 1000
"""Largest number of captions of an image."""

_AHEAD = 64
"""Number of results computed ahead of the consumer."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True, kw_only=True)
class Scanned:
    """A usable example.

    Attributes:
        example: to read it again.
        captions: stripped of surrounding space.
        size: in the orientation in which the image is shown.
        digest: of the bytes of the image file.
        mask: digest of the bytes of its mask; None if it has none.
        control: digest of the bytes of its control image; None if it has none.
    """

    example: Example
    captions: tuple[str, ...]
    size: Size
    digest: str
    mask: str | None = None
    control: str | None = None


@dataclass(slots=True)
class Report:
    """The unusable examples of a source.

    Attributes:
        total: number of examples in the source.
        unusable: keys of unusable examples, by the kind of problem.
    """

    total: int
    unusable: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def note(self, key: str, reason: str) -> None:
        """Add an unusable example."""
        self.unusable.setdefault(reason, []).append(key)

    @property
    def count(self) -> int:
        """Number of unusable examples."""
        return sum(map(len, self.unusable.values()))

    def check(self, cap: float) -> None:
        """Raise ``InputError`` if all examples, or more than a share of them, are unusable."""
        if self.count > cap * self.total or self.count == self.total:
            raise InputError(f"{self}; allowed are {cap:.0%} (max_unusable)")

    def __str__(self) -> str:
        """Describe the problems in one line, the most frequent one first."""
        by_number = sorted(self.unusable.items(), key=lambda each: -len(each[1]))
        kinds = "; ".join(f"{reason} ({len(keys)}: {first_few(keys)})" for reason, keys in by_number)
        return f"{self.count} of {self.total} images cannot be used" + (f": {kinds}" if kinds else "")

    def facts(self) -> dict[str, Any]:
        """Return everything, for JSON."""
        return {"pictures": self.total, "unusable": self.unusable}


def scan(
    examples: Sequence[Example], *, min_side: int, caption_lines: bool = False
) -> tuple[list[Scanned], Report]:
    """Read every example's captions, the headers of its images, and their digests, in threads.

    An example's images are its picture, its mask and its control image.

    Args:
        examples: of a source.
        min_side: smallest length of an image's shorter side in pixels.
        caption_lines: whether each line of a caption is a caption of its own.

    Returns:
        The usable examples in their order, and a report of the others.
    """
    report = Report(len(examples))
    found: list[Scanned] = []
    for example, result in zip(
        examples,
        in_threads(lambda each: _scan_one(each, min_side, caption_lines), examples, label="scan images"),
        strict=True,
    ):
        if isinstance(result, Scanned):
            found.append(result)
        else:
            report.note(example.key, str(result))
    return found, report


def _scan_one(example: Example, min_side: int, caption_lines: bool) -> Scanned | Unusable:
    try:
        read = example.captions()
        captions = tuple(_checked_caption(text) for text in (lines_of(read) if caption_lines else read))
        if not captions:
            raise Unusable("caption empty")
        if len(captions) > MAX_CAPTIONS:
            raise Unusable(f"more than {MAX_CAPTIONS} captions")
        data = example.picture()
        size = size_of(data)
        if min(size) < min_side:
            raise Unusable(f"picture smaller than {min_side} pixels")
        digest = digest_of(data)
        if example.alpha:
            mask = digest if is_transparent(data) else None
        else:
            mask = _companion_digest("mask", example.mask, size)
        control = digest if example.edges else _companion_digest("control", example.control, size)
    except Unusable as trouble:
        return trouble
    return Scanned(
        example=example, captions=captions, size=size, digest=digest, mask=mask, control=control
    )  # fmt: skip


def _companion_digest(what: str, read: Callable[[], bytes] | None, size: Size) -> str | None:
    """Read the image that belongs to another one of this size, and return its digest."""
    if read is None:
        return None
    try:
        data = read()
        height, width = size_of(data)
    except Unusable as trouble:
        raise Unusable(f"{what}: {trouble}") from None
    # A smaller one has rounded sides.
    if abs(height * size.width - width * size.height) > max(size):
        raise Unusable(f"{what} of another shape than its picture")
    return digest_of(data)


def _checked_caption(caption: str) -> str:
    caption = caption.strip()
    if not caption:
        raise Unusable("caption empty")
    if len(caption) > MAX_TEXT:
        raise Unusable(f"caption longer than {MAX_TEXT} characters")
    try:
        return check("caption", caption, Text)
    except InputError as error:
        raise Unusable("caption with a null or an invalid character") from error


def in_threads(function: Callable[[Item], Result], items: Sequence[Item], *, label: str) -> Iterator[Result]:
    """Apply a function in threads, ahead of the consumer, and yield the results in order, with a bar."""
    waiting: deque[Future[Result]] = deque()
    pool = ThreadPoolExecutor()
    try:
        with progress_bar(total=len(items), label=label, unit="item", keep=True) as bar:
            for item in items:
                waiting.append(pool.submit(function, item))
                if len(waiting) > _AHEAD:
                    yield waiting.popleft().result()
                    bar.update()
            while waiting:
                yield waiting.popleft().result()
                bar.update()
    finally:
        pool.shutdown(cancel_futures=True)
