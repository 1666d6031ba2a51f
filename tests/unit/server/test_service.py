"""The life of requests: accepted, generated, shared, cancelled, crashed, restored."""

import asyncio
import logging
import time
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

import pytest
import torch

from server_workers import Plan
from ssd1b.errors import ConflictError, InputError, NotFoundError
from ssd1b.jobs.queue import CANCELLED, DONE, FAILED, QUEUED, RUNNING, Request, Search
from ssd1b.server.errors import DrainingError, QueueFullError, QuotaError
from ssd1b.server.options import ServerOptions
from ssd1b.server.scheduler import Run
from ssd1b.server.service import Service

MODEL = "mini-ssd-1b"


class Running:
    """A service for the time of a test, which is a coroutine."""

    def __init__(self, folder: Path, plan: Plan, **options: Any) -> None:
        self.plan = plan
        options = {name: each for name, each in {"workers": 1, **options}.items() if each is not None}
        self.service = Service(ServerOptions(store=str(folder), **options), plan.start)  # type: ignore[arg-type]

    async def __aenter__(self) -> "Running":
        await self.service.start()
        return self

    async def __aexit__(self, *error: object) -> None:
        self.plan.gate.set()
        await self.service.close()

    async def submit(
        self, prompt: str = "a red cube", *, count: int = 1, seed: int = 0, **rest: Any
    ) -> Request:
        given = {name: rest.pop(name) for name in ("steps", "width", "height") if name in rest}
        settings = await self.service.settings(
            model := rest.pop("model", MODEL), prompt, None, {"seed": seed, "steps": 4, **given}, count=count
        )
        return await self.service.submit(model, settings, **rest)

    async def done(self, *requests: Request) -> list[str]:
        await asyncio.wait_for(asyncio.gather(*map(self.service.wait, requests)), 30)
        return [request.state for request in requests]


def run(test: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(test, 60))


def test_images_of_a_request_are_there_with_their_seeds(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path, Plan()) as it:
            request = await it.submit(count=3, seed=7)
            assert await it.done(request) == [DONE]
            found = await it.service.pictures(Search(), limit=9)
            assert sorted(picture.settings.seed for picture in found) == [7, 8, 9]
            assert all(it.service.file(picture.key).is_file() for picture in found)
            assert it.service.unfinished() == [] and it.service.waiting() == []

    run(test())


def test_the_same_settings_are_generated_once_whoever_asks(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan(seconds=0.01)
        async with Running(tmp_path, plan) as it:
            first, second = await it.submit(client="ann"), await it.submit(client="ben")
            assert await it.done(first, second) == [DONE, DONE]
            third = await it.submit(client="eve")
            assert await it.done(third) == [DONE]
            assert third.starts == 0, "it never ran"
        assert [len(batch) for batch in plan.batches] == [1]

    run(test())


def test_small_images_of_equal_settings_share_batches(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        plan.gate.clear()
        async with Running(tmp_path, plan) as it:
            first = await it.submit("the first keeps the worker busy")
            while not plan.batches:
                await asyncio.sleep(0.01)
            rest = [await it.submit(f"number {n}", client=f"c{n}") for n in range(4)]
            rest.append(await it.submit("in other steps", steps=5))
            plan.gate.set()
            assert set(await it.done(first, *rest)) == {DONE}
        assert sorted(map(len, plan.batches)) == [1, 1, 4]

    run(test())


def test_small_batches_run_side_by_side_while_the_processor_has_threads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A batch of eight at 128x128 keeps one thread busy, one at 512x512 both. Nothing overtakes it."""
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)

    async def test() -> None:
        plan = Plan()
        plan.gate.clear()
        async with Running(tmp_path, plan, workers=None, device="cpu") as it:
            small = [await it.submit(f"small {n}", steps=steps, count=8) for n, steps in enumerate((4, 5))]
            await asyncio.sleep(0.1)
            assert len(plan.batches) == 2 and plan.loads == [MODEL] * 2
            large = await it.submit("large", width=512, height=512, client="ann")
            late = await it.submit("late", client="ben")
            await asyncio.sleep(0.1)
            assert len(plan.batches) == 2
            plan.gate.set()
            assert set(await it.done(*small, large, late)) == {DONE}
        assert plan.batches[2:] == [["large"], ["late"]]

    run(test())


def test_as_many_batches_run_side_by_side_as_were_asked_for(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        plan.gate.clear()
        async with Running(tmp_path, plan, workers=3) as it:
            requests = [await it.submit(f"number {n}", steps=4 + n) for n in range(5)]
            await asyncio.sleep(0.1)
            assert len(plan.batches) == 3
            plan.gate.set()
            assert set(await it.done(*requests)) == {DONE}

    run(test())


def test_a_request_can_be_cancelled_while_it_waits_and_while_it_runs(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        plan.gate.clear()
        async with Running(tmp_path, plan, max_batch=1) as it:
            running, waiting = await it.submit("one", steps=50), await it.submit("two")
            while running.state != RUNNING or not plan.batches:
                await asyncio.sleep(0.01)
            await it.service.cancel(waiting)
            await it.service.cancel(running)
            assert await it.done(running, waiting) == [CANCELLED, CANCELLED]
            plan.gate.set()
            again = await it.submit("one", steps=50)  # what was given up can be generated
            assert await it.done(again) == [DONE]
            with pytest.raises(ConflictError):
                await it.service.cancel(again)
        assert plan.batches == [["one"], ["one"]]
        assert plan.steps <= 52, "the cancelled batch ended within a step"

    run(test())


def test_cancelling_one_of_a_shared_batch_leaves_the_others(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        plan.gate.clear()
        async with Running(tmp_path, plan) as it:
            busy = await it.submit("busy")
            while not plan.batches:
                await asyncio.sleep(0.01)
            ann, ben = await it.submit("ann", client="ann"), await it.submit("ben", client="ben")
            plan.gate.set()
            await it.done(busy)
            await it.service.cancel(ann)
            assert await it.done(ben, ann) == [DONE, CANCELLED]

    run(test())


def test_a_full_queue_refuses_and_says_when_to_come_back(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        plan.gate.clear()
        async with Running(tmp_path, plan, max_pending=5) as it:
            accepted, refused = [], []

            async def one(number: int) -> None:
                try:
                    accepted.append(await it.submit(f"number {number}"))
                except QueueFullError as error:
                    refused.append(error)

            await asyncio.gather(*map(one, range(50)))
            assert (len(accepted), len(refused)) == (5, 45), "a burst does not pass the limit together"
            assert all(error.retry_after > 0 for error in refused)
            plan.gate.set()
            assert set(await it.done(*accepted)) == {DONE}
            assert await it.done(await it.submit("later", count=9)) == [DONE], (
                "alone, a large request is accepted"
            )

    run(test())


def test_an_idempotency_key_gives_the_same_request_however_often(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path, Plan()) as it:
            requests = [await it.submit(client="ann", idempotency="k", seed=n) for n in range(5)]
            assert len({request.id for request in requests}) == 1
            await it.done(requests[0])
            assert (await it.submit(client="ann", idempotency="k", seed=9)).id == requests[0].id
            assert (await it.submit(client="ben", idempotency="k", seed=9)).id != requests[0].id
            for other in ({"prompt": "something else"}, {"count": 2}, {"steps": 5}):
                with pytest.raises(ConflictError, match="used for another request"):
                    await it.submit(client="ann", idempotency="k", **other)

    run(test())


def test_parallel_requests_with_one_idempotency_key_are_one(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path, Plan()) as it:
            found = await asyncio.gather(
                *(it.submit(client="ann", idempotency="k", seed=n) for n in range(8))
            )
            assert len({request.id for request in found}) == 1

    run(test())


def test_an_image_that_fails_fails_its_request_alone(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        plan.broken["bad"] = "the image has NaN"
        async with Running(tmp_path, plan) as it:
            bad, good = await it.submit("bad"), await it.submit("good")
            assert await it.done(bad, good) == [FAILED, DONE]
            assert bad.error == "the image has NaN" and bad.code == "FailedError"
            assert [each.settings.prompt for each in await it.service.pictures(Search(), limit=9)] == ["good"]

    run(test())


def test_a_process_that_dies_is_replaced_and_its_batch_repeated_once(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        plan.crashes["unlucky"] = 1
        async with Running(tmp_path, plan) as it:
            unlucky = await it.submit("unlucky")
            assert await it.done(unlucky) == [DONE]
            assert unlucky.starts == 2
            assert await it.done(await it.submit("next")) == [DONE]
        assert plan.loads == [MODEL, MODEL]

    run(test())


def test_the_loss_of_a_process_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def test() -> None:
        plan = Plan()
        plan.crashes["unlucky"] = 1
        async with Running(tmp_path, plan) as it:
            assert await it.done(await it.submit("unlucky", count=2)) == [DONE]
            workers = it.service._scheduler.workers
            (idle,) = workers._idle
            idle._ended_early = True  # type: ignore[attr-defined]
            workers.end_lost()
            assert workers.loaded == []
            assert await it.done(await it.submit("next")) == [DONE]
        assert plan.loads == [MODEL, MODEL, MODEL]

    run(test())
    said = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert said == [
        "the process ended: 2 of its 2 images are generated again; processes left: 0",
        f"an idle process of the model {MODEL} ended, and is started again when needed; processes left: 0",
    ]


def test_what_always_ends_the_process_fails_and_takes_nobody_with_it(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        plan.crashes["poison"] = 99
        plan.gate.clear()
        async with Running(tmp_path, plan) as it:
            first = await it.submit("first")
            while not plan.batches:
                await asyncio.sleep(0.01)
            poison = await it.submit("poison", client="eve")
            others = [await it.submit(f"number {n}", client=f"c{n}") for n in range(3)]
            plan.gate.set()
            states = await it.done(first, poison, *others)
            assert states == [DONE, FAILED, DONE, DONE, DONE]
            assert poison.code == "UnavailableError"

    run(test())


def test_a_path_is_offered_by_its_last_part_alone(tmp_path: Path, tiny_model: Path) -> None:
    async def test() -> None:
        plan = Plan()
        given = [str(tiny_model), MODEL]
        async with Running(tmp_path / "store", plan, model=given) as it:
            assert list(it.service.models) == [tiny_model.name, MODEL]
            request = await it.submit(model=tiny_model.name)
            assert await it.done(request) == [DONE] and request.model == tiny_model.name
        assert set(plan.loads) == {str(tiny_model)}

    run(test())
    twice = ServerOptions(model=(str(tiny_model), f"{tiny_model}/"), store=str(tmp_path / "other"))
    with pytest.raises(InputError, match="two models are called"):
        _ = twice.models


def test_a_model_that_ends_its_process_while_it_loads_is_given_up(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        plan.fatal.add(MODEL)
        async with Running(tmp_path, plan) as it:
            request = await it.submit()
            assert await it.done(request) == [FAILED]
            assert request.code == "UnavailableError" and len(plan.loads) <= 4

    run(test())


def test_a_model_that_cannot_be_loaded_fails_its_request_with_the_reason(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        plan.missing.add(MODEL)
        async with Running(tmp_path, plan) as it:
            request = await it.submit()
            assert await it.done(request) == [FAILED]
            assert "is damaged" in (request.error or "")
            plan.missing.clear()
            assert await it.done(await it.submit("later")) == [DONE]

    run(test())


def test_the_next_process_goes_on_with_what_waited(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        plan.gate.clear()
        it = Running(tmp_path, plan, drain_seconds=0.0)
        await it.service.start()
        running, waiting = await it.submit("one", steps=3), await it.submit("two", priority=2)
        while not plan.batches:
            await asyncio.sleep(0.01)
        await it.service.close()
        assert (running.state, waiting.state) in {(RUNNING, QUEUED), (QUEUED, RUNNING)}
        async with Running(tmp_path, Plan()) as after:
            found = [await after.service.request(each.id) for each in (running, waiting)]
            assert await after.done(*found) == [DONE, DONE]
            assert found[1].priority == 2
        assert len(plan.batches) == 1

    run(test())


def test_a_request_that_ended_ten_servers_is_given_up(tmp_path: Path) -> None:
    async def test() -> None:
        id = None
        for _ in range(10):
            plan = Plan()
            plan.gate.clear()
            it = Running(tmp_path, plan, drain_seconds=0.0)
            await it.service.start()
            id = id or (await it.submit("poison")).id
            while not plan.batches:
                await asyncio.sleep(0.01)
            await it.service.close()
        async with Running(tmp_path, Plan()) as after:
            assert id is not None
            found = await after.service.request(id)
            assert found.state == FAILED and "ended 10 times" in (found.error or "")

    run(test())


def test_a_server_that_drains_accepts_nothing_and_finishes_what_runs(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan(seconds=0.05)
        it = Running(tmp_path, plan)
        await it.service.start()
        running = await it.submit("one")
        while not plan.batches:
            await asyncio.sleep(0.01)
        it.service.drain()
        with pytest.raises(DrainingError):
            await it.submit("two")
        await it.service.close()
        assert running.state == DONE

    run(test())


def test_a_job_that_takes_too_long_fails_and_its_batch_stops(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan(seconds=0.1)
        async with Running(tmp_path, plan, max_seconds=1.0) as it:
            request = await it.submit(steps=150)
            assert await it.done(request) == [FAILED]
            assert request.code == "DeadlineError"
            await asyncio.sleep(0.3)
            steps = plan.steps
            await asyncio.sleep(0.3)
            assert plan.steps == steps < 40

    run(test())


def test_quotas_are_of_each_key(tmp_path: Path) -> None:
    async def test() -> None:
        keys = tmp_path / "keys.toml"
        keys.write_text('[ann]\nkey = "0123456789abcdef"\nimages_per_hour = 3\nmax_pending = 2\n')
        plan = Plan()
        plan.gate.clear()
        async with Running(tmp_path / "store", plan, api_key_file=str(keys)) as it:
            await it.submit(client="ann", count=2)
            with pytest.raises(QueueFullError, match="2 of your images are waiting"):
                await it.submit("b", client="ann")
            assert (await it.submit("c", client="ben", count=5)).state == QUEUED
            plan.gate.set()
            await it.done(*it.service.unfinished("ann"))
            with pytest.raises(QueueFullError, match="3 images in an hour") as refused:
                await it.submit("d", client="ann", count=2)
            assert isinstance(refused.value, QuotaError) and 3500 < refused.value.retry_after <= 3600
            with pytest.raises(InputError, match="your key allows at most 2 images at once"):
                await it.submit("never", client="ann", count=3)
        async with Running(tmp_path / "store", Plan(), api_key_file=str(keys)) as after:
            with pytest.raises(QuotaError):
                await after.submit("a restart does not help", client="ann", count=2)
            assert (await after.submit("e", client="ann")).state == QUEUED

    run(test())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 151}, r"steps is 151: it must be a whole number from 1 to 150 \(this server's limit\)"),
        ({"width": 2048, "height": 1024}, "allows at most 1048576 pixels"),
        ({"steps": 0}, "steps is 0"),
        ({"stepz": 3}, "did you mean 'steps'"),
        (
            {"negative_prompt": "<lora:crisp:0.8>"},
            "this server has no LoRAs: leave '<lora:crisp:0.8>' out",
        ),
        ({"guidance_scale": float("nan")}, "guidance_scale is nan"),
    ],
)
def test_limits_come_before_anything_is_queued(tmp_path: Path, given: dict[str, Any], message: str) -> None:
    async def test() -> None:
        async with Running(tmp_path, Plan(), max_pixels=1024 * 1024) as it:
            with pytest.raises(InputError, match=message):
                await it.service.settings(MODEL, "x", None, given)
            with pytest.raises(InputError, match="count is 65: this server allows 1 to 64 images"):
                await it.submit(count=65)
            with pytest.raises(NotFoundError):
                await it.service.settings("other", "x", None, {})
            with pytest.raises(NotFoundError):
                await it.service.settings(MODEL, "x", "/etc/passwd.toml", {})
            assert it.service.unfinished() == []

    run(test())


def test_listeners_hear_every_end_and_slow_ones_do_not_hold_up_anybody(tmp_path: Path) -> None:
    async def test() -> None:
        async with Running(tmp_path, Plan()) as it, it.service.listen() as slow:
            requests = [await it.submit(f"number {n}") for n in range(20)]
            assert set(await it.done(*requests)) == {DONE}
            heard: dict[str, str] = {}
            it.service.drain()
            async for request in slow.changes():
                heard[request.id] = request.state
            assert heard == {request.id: DONE for request in requests}

    run(test())


def test_previews_are_made_only_while_somebody_watches(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan(seconds=0.02)
        async with Running(tmp_path, plan) as it:
            first = await it.submit("one", steps=10)
            await it.done(first)
            assert not plan.previewed
            second = await it.submit("two", steps=10)
            async with it.service.listen(second, previews=True) as listener:
                async for request in listener.changes():
                    if request.preview:
                        break
            await it.done(second)
            assert second.preview is None, "nothing of it stays"

    run(test())


def test_a_clock_that_is_set_back_loses_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def test() -> None:
        async with Running(tmp_path, Plan()) as it:
            first = await it.submit("one")
            await it.done(first)
            now = time.time
            monkeypatch.setattr(time, "time", lambda: now() - 86_400)
            second = await it.submit("two")
            assert await it.done(second) == [DONE]
            assert [each.id for each in await it.service.recent(limit=9)] == [second.id, first.id]

    run(test())


def test_the_time_left_shrinks_with_every_step(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan(seconds=0.02)
        async with Running(tmp_path, plan) as it:
            await it.done(await it.submit("timed", steps=10))
            request = await it.submit("followed", steps=40)
            found = []
            async with it.service.listen(request) as listener:
                async for changed in listener.changes():
                    if changed.state == DONE:
                        break
                    found.append(it.service.eta(changed))
            assert found[-1] < found[0] / 4

    run(test())


def test_the_time_left_shrinks_between_two_steps_until_one_is_late(tmp_path: Path) -> None:
    async def test() -> None:
        plan = Plan()
        async with Running(tmp_path, plan) as it:
            request = await it.submit(steps=9)
            await it.done(request)
            batch = Run(picked=[(request, request.images[0])], threads=1)
            assert batch.seconds_left(100.0) is None
            batch.begun, batch.step, batch.stepped = 100.0, 4, 108.0  # two seconds for each of nine steps
            left = [batch.seconds_left(now) for now in (108.0, 109.0, 110.0, 115.0)]
            assert left == [12.0, 11.0, 10.0, 10.0], "with the decoding six are left, and five at least"
            batch.step, batch.stepped = 9, 118.0
            assert [batch.seconds_left(now) for now in (118.0, 119.0, 130.0)] == [2.0, 1.0, 0.0]

    run(test())


def test_the_time_left_is_that_of_the_whole_batch_and_known_from_its_first_step(tmp_path: Path) -> None:
    """The first batch of a server has one image, the second eight of eight clients, and one image waits."""

    async def test() -> None:
        plan = Plan(seconds=0.05)
        plan.gate.clear()
        async with Running(tmp_path, plan, max_batch=8) as it:
            first = await it.submit("first", steps=20)
            batch = [await it.submit(f"number {n}", client=f"c{n}", steps=20) for n in range(8)]
            last = await it.submit("last", steps=20)
            assert [it.service.eta(each) for each in (first, last)] == [None, None]
            plan.gate.set()
            while not first.step:
                await asyncio.sleep(0.01)
            alone, behind = it.service.eta(first), it.service.eta(last)
            assert alone is not None and behind is not None and 0.5 < alone < behind
            await it.done(first)
            while not batch[0].step:
                await asyncio.sleep(0.01)
            left = [it.service.eta(each) or 0 for each in batch]
            assert min(left) > 0.5 and max(left) - min(left) < 0.1, "it is not an eighth for each"
            assert (it.service.eta(last) or 0) > max(left)
            await it.done(*batch, last)

    run(test())


@pytest.mark.parametrize("asked", [False, True])
def test_prompts_are_logged_only_if_asked_for(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, asked: bool
) -> None:
    async def test() -> None:
        async with Running(tmp_path, Plan(), log_prompts=asked) as it:
            await it.done(await it.submit("a secret wish\nand a second line"))

    with caplog.at_level(logging.DEBUG):
        run(test())
    records = [record for record in caplog.records if getattr(record, "fields", {}).get("job")]
    assert len(records) == 1
    assert ("secret wish" in str([each.__dict__ for each in caplog.records])) is asked
    assert "\n" not in records[0].getMessage()
