"""The queue of a server: what clients asked for, kept in SQLite, and which images are generated next.

A *request* asks for one or more images. Each image is a job (``jobs.job``) whose result ``jobs.store`` keeps,
so requests for the same settings share it. A request is queued, running, done, failed or cancelled. It
outlives the process: what was queued or running is queued again by the next one.
"""

import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ssd1b.errors import InputError
from ssd1b.files import named
from ssd1b.jobs.job import Job
from ssd1b.jobs.schema import explain_errors, open_database, transaction
from ssd1b.settings import BEFORE, GenerationSettings

QUEUED, RUNNING, DONE, FAILED, CANCELLED = "queued", "running", "done", "failed", "cancelled"
FINISHED = frozenset({DONE, FAILED, CANCELLED})

FILE = "queue.sqlite"

MAX_STARTS = 2
"""A request that was running when a worker's process ended this often is given up: it may be the reason."""

MAX_RESTARTS = 10
"""As ``MAX_STARTS``, for the server's own process, which usually ends for other reasons."""

_SCHEMA = 1
_TABLES = """
create table if not exists requests (
    id text primary key, number integer not null, state text not null, client text not null,
    priority integer not null, model text not null, dialect text not null, idempotency text,
    created real not null, started real, finished real, starts integer not null default 0, error text,
    code text
);
create index if not exists requests_by_state on requests (state, number);
create index if not exists requests_by_number on requests (number);
create unique index if not exists requests_by_idempotency on requests (client, idempotency)
    where idempotency is not null;
create table if not exists images (
    id text primary key, request text not null references requests (id), position integer not null,
    key text not null, settings text not null, prompt text not null, made real, error text,
    favourite integer not null default 0, deleted real
);
create index if not exists images_by_request on images (request, position);
create index if not exists images_by_made on images (made desc) where made is not null;
create index if not exists images_by_key on images (key);
create table if not exists inputs (
    image text not null references images (id), sha256 text not null, primary key (image, sha256)
) without rowid;
"""


@dataclass(eq=False, slots=True, kw_only=True)
class Image:
    """An image of a request.

    Attributes:
        id: of the image.
        job: the job whose result it is.
        made: when its result was there, in seconds since 1970; None until then.
        error: why there is no image; None if there is one, or no result yet.
    """

    id: str
    job: Job
    made: float | None = None
    error: str | None = None


@dataclass(eq=False, slots=True, kw_only=True)
class Request:
    """What a client asked for.

    Attributes:
        id: of the request.
        number: its place in the order of arrival.
        state: ``QUEUED``, ``RUNNING``, ``DONE``, ``FAILED`` or ``CANCELLED``.
        client: name of the API key, or the client's address: what fairness is between.
        priority: requests of a higher priority go first; 0 is a person who waits, negative is bulk work.
        model: the model's name.
        dialect: the API it came by.
        idempotency: the client's own id: a second request with it is the first one.
        images: in order.
        created: seconds since 1970, as the following.
        started: when the first image was begun.
        finished: when it was done, failed or cancelled.
        starts: how often it was begun.
        error: why it failed.
        code: class of the error, by which a dialect chooses a status.
        step: denoising steps done of the images in progress.
        preview: a JPEG of an image in progress.
    """

    id: str
    number: int
    client: str
    model: str
    images: list[Image]
    state: str = QUEUED
    priority: int = 0
    dialect: str = "v1"
    idempotency: str | None = None
    created: float = field(default_factory=time.time)
    started: float | None = None
    finished: float | None = None
    starts: int = 0
    error: str | None = None
    code: str | None = None
    step: int = 0
    preview: bytes | None = None

    @property
    def left(self) -> list[Image]:
        """The images without a result."""
        return [image for image in self.images if image.made is None]

    @property
    def done(self) -> list[Image]:
        """The images that were generated."""
        return [image for image in self.images if image.made is not None and image.error is None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """A finished image.

    Attributes:
        id: of the image.
        request: id of the request that asked for it.
        model: the model's name.
        key: of the job whose result it is.
        settings: of the image.
        made: seconds since 1970.
        favourite: marked by the user.
        deleted: hidden until it is removed.
    """

    id: str
    request: str
    model: str
    key: str
    settings: GenerationSettings
    made: float
    favourite: bool
    deleted: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """Which finished images to return.

    Attributes:
        words: each must be in the prompt.
        model: the model's name; None for any.
        favourite: only favourites.
        deleted: the deleted ones instead of the others.
    """

    words: str = ""
    model: str | None = None
    favourite: bool = False
    deleted: bool = False


_ESCAPES = str.maketrans({letter: f"!{letter}" for letter in "%_!"})


_SHOWN = "exists (select 1 from images where request = requests.id and deleted is null)"
"""A request all of whose images are deleted is deleted, too, until one of them is restored."""

_REPEATED = "client = ? and idempotency = ?"


class Queue:
    """The requests of a folder, on disk. Use it from one thread.

    Args:
        folder: of the store; it exists.

    Raises:
        InputError: the file is not a queue, is damaged or of a newer version, or the disk refused.
    """

    def __init__(self, folder: Path) -> None:
        self.file = folder / FILE
        self._database = open_database(self.file)
        with explain_errors(self.file):
            self._database.row_factory = sqlite3.Row
            (version,) = self._database.execute("pragma user_version").fetchone()
            if version > _SCHEMA:
                raise InputError(
                    f"{named(self.file)} was written by a newer ssd1b: update ssd1b or use another folder"
                )
            self._database.execute("pragma journal_mode = wal")
            self._database.execute("pragma synchronous = full")  # a client that got an answer relies on it
            self._database.executescript(_TABLES)
            self._database.execute(f"pragma user_version = {_SCHEMA}")

    def close(self) -> None:
        """Close the file."""
        self._database.close()

    def add(self, request: Request) -> None:
        """Store a new request.

        Raises:
            InputError: the disk refused.
        """
        row = (
            request.id, request.number, request.state, request.client, request.priority, request.model,
            request.dialect, request.idempotency, request.created,
        )  # fmt: skip
        images = [
            (image.id, request.id, position, image.job.key, json.dumps(asdict(image.job.settings)),
             image.job.settings.prompt)
            for position, image in enumerate(request.images)
        ]  # fmt: skip
        with transaction(self._database, self.file):
            self._database.execute(  # the key of a deleted request is free
                f"update requests set idempotency = null where {_REPEATED} and not {_SHOWN}",
                (request.client, request.idempotency),
            )
            self._database.execute(
                "insert into requests (id, number, state, client, priority, model, dialect, idempotency, "
                "created) values (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                row,
            )
            self._database.executemany(
                "insert into images (id, request, position, key, settings, prompt) values (?, ?, ?, ?, ?, ?)",
                images,
            )
            self._database.executemany(
                "insert into inputs (image, sha256) values (?, ?)",
                [(image.id, digest) for image in request.images for digest in _inputs(image.job.settings)],
            )

    def update(self, requests: Iterable[Request]) -> None:
        """Store what changed in requests: state, times, place in the queue, and which images are made.

        Raises:
            InputError: the disk refused.
        """
        with transaction(self._database, self.file):
            for each in requests:
                self._database.execute(
                    "update requests set number = ?, priority = ?, state = ?, started = ?, finished = ?, "
                    "starts = ?, error = ?, code = ? where id = ?",
                    (each.number, each.priority, each.state, each.started, each.finished, each.starts,
                     each.error, each.code, each.id),
                )  # fmt: skip
                self._database.executemany(
                    "update images set made = ?, error = ?, key = ? where id = ? and made is not ?",
                    [(image.made, image.error, image.job.key, image.id, image.made) for image in each.images],
                )

    def unfinished(self, job: Callable[[str, GenerationSettings], Job]) -> list[Request]:
        """Load the requests that were queued or running when the last process ended, in order.

        Args:
            job: makes the job of a model's name and the settings of an image.

        Raises:
            InputError: the file is damaged.
        """
        rows = self._rows("select * from requests where state in (?, ?) order by number", (QUEUED, RUNNING))
        return [self._request(row, job) for row in rows]

    def load(self, request: str, job: Callable[[str, GenerationSettings], Job]) -> Request | None:
        """Load a request by its id; None if there is none, or it is deleted.

        Args:
            request: the id.
            job: see ``unfinished``.
        """
        rows = self._rows(f"select * from requests where id = ? and {_SHOWN}", (request,))
        return self._request(rows[0], job) if rows else None

    def newest(
        self,
        job: Callable[[str, GenerationSettings], Job],
        states: Sequence[str] = (),
        *,
        limit: int,
        before: int | None = None,
    ) -> list[Request]:
        """Load requests that are not deleted, the newest first.

        Args:
            job: see ``unfinished``.
            states: only those in one of these; all if empty.
            limit: at most so many.
            before: only those with a smaller number.
        """
        wanted = f"state in ({', '.join('?' * len(states))})" if states else "true"
        rows = self._rows(
            f"select * from requests where {wanted} and number < ? and {_SHOWN} order by number desc limit ?",
            (*states, 2**62 if before is None else before, limit),
        )
        return [self._request(row, job) for row in rows]

    def pictures(
        self, search: Search, *, limit: int, before: tuple[float, str] | None = None
    ) -> list[Picture]:
        """Return finished images, the newest first.

        Args:
            search: which.
            limit: at most so many.
            before: time and id of the image after which to continue.
        """
        clauses, values = ["made is not null", "images.error is null"], []
        clauses.append(f"deleted is {'not ' if search.deleted else ''}null")
        for word in search.words.split():
            clauses.append("prompt like ? escape '!'")
            values.append(f"%{word.translate(_ESCAPES)}%")
        if search.favourite:
            clauses.append("favourite")
        if search.model is not None:
            clauses.append("model = ?")
            values.append(search.model)
        if before is not None:
            clauses.append("(made, images.id) < (?, ?)")
            values += before
        return self._pictures(
            f"{' and '.join(clauses)} order by made desc, images.id desc limit ?", (*values, limit)
        )

    def picture(self, image: str) -> Picture | None:
        """Return a finished image by its id, also a deleted one; None if there is none."""
        found = self._pictures("images.id = ? and made is not null and images.error is null", (image,))
        return found[0] if found else None

    def mark(self, image: str, *, favourite: bool | None = None, deleted: bool | None = None) -> None:
        """Change what a user says of an image.

        Args:
            image: the id.
            favourite: whether it is one; None leaves it.
            deleted: whether it is hidden until ``purge`` removes it; None leaves it.
        """
        with transaction(self._database, self.file):
            if favourite is not None:
                self._database.execute("update images set favourite = ? where id = ?", (favourite, image))
            if deleted is not None:
                when = time.time() if deleted else None
                self._database.execute("update images set deleted = ? where id = ?", (when, image))

    def delete(self, request: str) -> None:
        """Delete all images of a request. It is not found any more, until one of them is restored.

        Args:
            request: the id.
        """
        with transaction(self._database, self.file):
            self._database.execute(
                "update images set deleted = ? where request = ? and deleted is null", (time.time(), request)
            )

    def purge(self, before: float) -> list[str]:
        """Forget images that were deleted before a time, and requests of which no image is left.

        Returns:
            The keys that no other image has.
        """
        with transaction(self._database, self.file):
            keys = self._database.execute(
                "select distinct key from images where deleted < ? and key not in "
                "(select key from images where deleted is null or deleted >= ?)",
                (before, before),
            ).fetchall()
            self._database.execute("delete from images where deleted < ?", (before,))
            self._database.execute("delete from requests where id not in (select request from images)")
            self._database.execute("delete from inputs where image not in (select id from images)")
        return [row["key"] for row in keys]

    def inputs(self) -> set[str]:
        """Return the SHA-256 of all pictures and masks that an image, also a finished one, is made from."""
        return {str(row["sha256"]) for row in self._rows("select distinct sha256 from inputs", ())}

    def _pictures(self, where: str, values: Sequence[Any]) -> list[Picture]:
        rows = self._rows(
            "select images.id, request, model, key, settings, made, favourite, deleted from images "
            f"join requests on requests.id = images.request where {where}",
            values,
        )
        return [
            Picture(
                id=row["id"], request=row["request"], model=row["model"], key=row["key"],
                settings=_settings(row["settings"]), made=row["made"], favourite=bool(row["favourite"]),
                deleted=row["deleted"] is not None,
            )
            for row in rows
        ]  # fmt: skip

    def repeated(self, client: str, idempotency: str) -> str | None:
        """Return the id of the client's request with that idempotency key; None if there is none."""
        rows = self._rows(
            f"select id from requests where client = ? and idempotency = ? and {_SHOWN}",
            (client, idempotency),
        )
        return str(rows[0]["id"]) if rows else None

    def recent(self, client: str, since: float) -> list[tuple[float, int]]:
        """Return when a client's requests since a time were made, oldest first, and of how many images."""
        rows = self._rows(
            "select created, (select count(*) from images where request = requests.id) as images "
            "from requests where client = ? and created >= ? order by created", (client, since)
        )  # fmt: skip
        return [(float(row["created"]), int(row["images"])) for row in rows]

    def last_number(self) -> int:
        """Return the largest number of a request."""
        return int(self._rows("select coalesce(max(number), 0) as number from requests", ())[0]["number"])

    def _request(self, row: sqlite3.Row, job: Callable[[str, GenerationSettings], Job]) -> Request:
        images = []
        for image in self._rows("select * from images where request = ? order by position", (row["id"],)):
            described = job(row["model"], _settings(image["settings"]))
            # A finished image keeps the key it was stored under, even if the model has changed since.
            if image["made"] is not None:
                described = described._replace(key=image["key"])
            images.append(Image(id=image["id"], job=described, made=image["made"], error=image["error"]))
        names = ("id", "number", "client", "model", "state", "priority", "dialect", "idempotency", "created",
                 "started", "finished", "starts", "error", "code")  # fmt: skip
        return Request(images=images, **{name: row[name] for name in names})

    def _rows(self, select: str, values: Sequence[Any]) -> list[sqlite3.Row]:
        with explain_errors(self.file):
            return self._database.execute(select, values).fetchall()


def _inputs(settings: GenerationSettings) -> set[str]:
    """The SHA-256 of the pictures that an image is generated from."""
    return {file.sha256 for file in settings.pictures}


def _settings(text: str) -> GenerationSettings:
    return GenerationSettings(**{**BEFORE, **json.loads(text)})
