"""Requests on disk: what was accepted is there after the process ended."""

import json
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

from ssd1b.errors import InputError
from ssd1b.jobs.job import Job
from ssd1b.jobs.queue import CANCELLED, DONE, FILE, QUEUED, RUNNING, Image, Queue, Request, Search
from ssd1b.settings import BEFORE, GenerationSettings, resolve_settings


def settings(prompt: str = "a red cube", seed: int = 0) -> GenerationSettings:
    return resolve_settings(
        prompt, family="ssd-1b", model_defaults={"width": 128, "height": 128}, preset=None, seed=seed,
        guidance_interval=(0.1, 0.9), negative_prompt="blurry",
    )  # fmt: skip


def job(model: str, settings: GenerationSettings) -> Job:
    return Job(f"key{settings.seed}", model, settings, ())


def request(id: str, number: int, *, prompt: str = "a red cube", images: int = 2, **rest) -> Request:
    return Request(
        id=id, number=number, client="ann", model="mini-ssd-1b",
        images=[
            Image(id=f"{id}.{seed}", job=job("mini-ssd-1b", settings(prompt, seed))) for seed in range(images)
        ],
        **rest,
    )  # fmt: skip


@pytest.fixture
def queue(tmp_path: Path) -> Queue:
    return Queue(tmp_path)


def finished(queue: Queue, id: str, number: int, *, made: float, **rest) -> Request:
    each = request(id, number, **rest)
    queue.add(each)
    each.state = DONE
    for image in each.images:
        image.made = made
    queue.update([each])
    return each


def test_what_was_queued_or_running_is_there_for_the_next_process(queue: Queue, tmp_path: Path) -> None:
    for number, state in enumerate((QUEUED, RUNNING, DONE, CANCELLED)):
        each = request(f"r{number}", number, priority=number)
        queue.add(each)
        each.state, each.starts = state, number
        each.images[0].made = 5.0
        queue.update([each])
    queue.close()
    found = Queue(tmp_path).unfinished(job)
    assert [(each.id, each.state, each.starts, each.priority) for each in found] == [
        ("r0", QUEUED, 0, 0), ("r1", RUNNING, 1, 1),
    ]  # fmt: skip
    assert found[1].images[0].made == 5.0 and len(found[1].left) == 1
    assert found[0].images[1].job.settings == settings(seed=1)


def test_a_finished_image_keeps_the_key_that_it_was_stored_under(queue: Queue) -> None:
    finished(queue, "r", 1, made=2.0)
    found = queue.load("r", lambda model, settings: Job("of a changed model", model, settings, ()))
    assert found is not None
    assert [image.job.key for image in found.images] == ["key0", "key1"]


def test_settings_that_came_later_have_the_values_of_earlier_images(queue: Queue, tmp_path: Path) -> None:
    queue.add(request("r", 1))
    queue.close()
    with closing(sqlite3.connect(tmp_path / FILE)) as database, database:
        for id, text in database.execute("select id, settings from images").fetchall():
            earlier = {name: each for name, each in json.loads(text).items() if name not in BEFORE}
            database.execute("update images set settings = ? where id = ?", (json.dumps(earlier), id))
    (found,) = Queue(tmp_path).unfinished(job)
    assert [image.job.settings for image in found.images] == [settings(seed=0), settings(seed=1)]


def test_an_idempotency_key_is_of_one_client_and_one_request(queue: Queue) -> None:
    queue.add(request("r1", 1, idempotency="abc"))
    assert queue.repeated("ann", "abc") == "r1"
    assert queue.repeated("ben", "abc") is None
    with pytest.raises(InputError):
        queue.add(request("r2", 2, idempotency="abc"))
    assert queue.load("r2", job) is None, "nothing of a refused request is left"


def test_newest_first_page_by_page(queue: Queue) -> None:
    for number in range(5):
        queue.add(request(f"r{number}", number))
    first = queue.newest(job, limit=2)
    assert [each.id for each in first] == ["r4", "r3"]
    rest = queue.newest(job, limit=9, before=first[-1].number)
    assert [each.id for each in rest] == ["r2", "r1", "r0"]
    assert queue.newest(job, [DONE], limit=9) == []


def test_pictures_are_found_by_words_model_and_marks(queue: Queue) -> None:
    finished(queue, "a", 1, made=1.0, prompt="a red cube 100%", images=1)
    finished(queue, "b", 2, made=2.0, prompt="a blue sphere", images=2)
    queue.add(request("waiting", 3))
    ids = lambda **search: [each.id for each in queue.pictures(Search(**search), limit=9)]  # noqa: E731
    assert ids() == ["b.1", "b.0", "a.0"]
    assert ids(words="CUBE red") == ["a.0"]
    assert ids(words="100%") == ["a.0"] and ids(words="%") == ["a.0"] and ids(words="_") == []
    assert ids(model="other") == []
    queue.mark("b.0", favourite=True)
    assert ids(favourite=True) == ["b.0"]
    queue.mark("b.0", deleted=True)
    assert ids() == ["b.1", "a.0"] and ids(deleted=True) == ["b.0"]
    queue.mark("b.0", deleted=False)
    assert ids(favourite=True) == ["b.0"], "undone, with its mark"


def test_pictures_page_by_page_also_at_equal_times(queue: Queue) -> None:
    for number in range(4):
        finished(queue, f"r{number}", number, made=7.0, images=3)
    found, before = [], None
    while page := queue.pictures(Search(), limit=5, before=before):
        found += [each.id for each in page]
        before = (page[-1].made, page[-1].id)
    assert len(found) == len(set(found)) == 12


def test_an_image_without_result_or_with_an_error_is_no_picture(queue: Queue) -> None:
    each = request("r", 1)
    queue.add(each)
    each.images[0].made, each.images[0].error = 1.0, "out of memory"
    queue.update([each])
    assert queue.pictures(Search(), limit=9) == []
    assert queue.picture("r.0") is None
    found = queue.load("r", job)
    assert found is not None and found.images[0].error == "out of memory"


def test_what_is_deleted_goes_for_good_unless_another_image_shares_it(queue: Queue) -> None:
    finished(queue, "a", 1, made=1.0, images=2)
    finished(queue, "b", 2, made=2.0, images=1)  # the same job as a's first image
    for id in ("a.0", "a.1"):
        queue.mark(id, deleted=True)
    assert queue.purge(before=0.0) == []
    assert queue.purge(before=1e12) == ["key1"]
    assert [each.id for each in queue.pictures(Search(), limit=9)] == ["b.0"]
    assert queue.picture("a.0") is None


def test_a_file_of_a_newer_version_and_a_damaged_one_are_refused(tmp_path: Path) -> None:
    with sqlite3.connect(tmp_path / FILE) as database:
        database.execute("pragma user_version = 99")
    with pytest.raises(InputError, match="newer ssd1b"):
        Queue(tmp_path)
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / FILE).write_bytes(b"no database" * 500)
    with pytest.raises(InputError, match="damaged"):
        Queue(tmp_path / "b")
