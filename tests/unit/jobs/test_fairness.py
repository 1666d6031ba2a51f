"""Which images go next: priority first, then turns, in batches of one kind."""

import random
from dataclasses import replace

from ssd1b.jobs.fairness import Turns
from ssd1b.jobs.job import Job
from ssd1b.jobs.queue import Image, Request
from ssd1b.settings import GenerationSettings, resolve_settings

SETTINGS: GenerationSettings = resolve_settings(
    "a red cube", family="ssd-1b", model_defaults={"width": 128, "height": 128}, preset=None, seed=0
)


def request(client: str, number: int, images: int = 1, *, priority: int = 0, steps: int = 25) -> Request:
    settings = replace(SETTINGS, steps=steps)
    return Request(
        id=f"{client}{number}", number=number, client=client, model="mini-ssd-1b", priority=priority,
        images=[
            Image(id=f"{client}{number}.{each}", job=Job(f"{client}{number}.{each}", "m", settings, (steps,)))
            for each in range(images)
        ],
    )  # fmt: skip


def served(requests: list[Request], limit: int = 1, turns: Turns | None = None) -> list[list[str]]:
    """Make every image, batch by batch, and give whose images each batch held."""
    turns = turns or Turns()
    batches = []
    while picked := turns.choose(requests, limit=lambda picked: limit):
        for _, image in picked:
            image.made = 1.0
        batches.append([request.client for request, _ in picked])
    return batches


def test_clients_take_turns_whatever_they_ask_for() -> None:
    order = served([request("bulk", 1, images=6), request("ann", 2, images=2), request("ben", 3, images=2)])
    assert [client for (client,) in order] == ["bulk", "ann", "ben"] * 2 + ["bulk"] * 4


def test_a_client_alone_is_served_in_its_own_order() -> None:
    requests = [request("ann", 2), request("ann", 1), request("ann", 3, priority=1)]
    turns, ids = Turns(), []
    while picked := turns.choose(requests):
        picked[0][1].made = 1.0
        ids.append(picked[0][0].id)
    assert ids == ["ann3", "ann1", "ann2"]


def test_priority_goes_before_turns() -> None:
    order = served([request("bulk", 1, images=3, priority=-1), request("ann", 2, images=3)])
    assert [client for (client,) in order] == ["ann"] * 3 + ["bulk"] * 3


def test_a_batch_is_shared_fairly_and_holds_one_kind() -> None:
    requests = [request("bulk", 1, images=8), request("ann", 2), request("ben", 3, steps=9)]
    assert served(requests, limit=4) == [["bulk", "ann", "bulk", "bulk"], ["ben"], ["bulk"] * 4, ["bulk"]]


def test_a_pause_neither_earns_turns_nor_costs_any() -> None:
    turns = Turns()
    served([request("bulk", 1, images=50)], turns=turns)
    requests = [request("bulk", 2, images=3), request("ann", 3, images=3)]
    order = [client for (client,) in served(requests, turns=turns)]
    assert order == ["bulk", "ann"] * 3


def test_jobs_that_are_being_generated_wait_and_equal_jobs_are_generated_once() -> None:
    first, second = request("ann", 1), request("ben", 2)
    second.images[0].job = first.images[0].job
    turns = Turns()
    assert len(turns.choose([first, second], limit=lambda picked: 8)) == 1
    assert turns.choose([first, second], busy={first.images[0].job.key}) == []


def test_a_batch_that_does_not_fit_costs_no_turn_and_is_not_overtaken() -> None:
    large, small = request("ann", 1, steps=50), request("ben", 2)
    turns = Turns()
    for _ in range(3):
        assert turns.choose([small, large], fits=lambda batch: batch[0][0] is small) == []
    assert [found is large for found, _ in turns.choose([small, large])] == [True]


def test_an_image_whose_own_limit_is_smaller_does_not_join_a_batch() -> None:
    careful, others = request("ann", 2), request("bulk", 1, images=3)
    turns = Turns()
    picked = turns.choose([others, careful], limit=lambda picked: 1 if picked[0] is careful else 8)
    assert [request.client for request, _ in picked] == ["bulk"] * 3


def test_nobody_starves_however_much_others_ask_for() -> None:
    rng, turns = random.Random(5), Turns()
    clients = {f"c{number}": [request(f"c{number}", number, images=200)] for number in range(5)}
    late = request("late", 99, images=5)
    waits = []
    for batch in range(60):
        pending = [each for requests in clients.values() for each in requests]
        if batch >= 20:
            pending.append(late)
        picked = turns.choose(pending, limit=lambda picked: rng.randint(1, 6))
        if any(request is late for request, _ in picked):
            waits.append(batch)
        for _, image in picked:
            image.made = 1.0
    assert late.left == []
    assert waits[-1] <= 20 + 5 * 6, "each of six clients has its turn before a second one"
