"""The number of threads follows the work of a step, and what the user set stays."""

import pytest
import torch

from ssd1b import threads
from ssd1b.evaluate.cost import unet_macs
from ssd1b.layouts import UNETS
from ssd1b.threads import suitable, unet_work, use_threads
from ssd1b.weights import hub
from ssd1b.weights.opening import open_checkpoint


@pytest.fixture
def chosen(monkeypatch) -> list[int]:
    """On a machine of eight cores; gives every number that torch is set to."""
    found = [8]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: found[-1])
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    threads._available.cache_clear()
    yield found
    threads._available.cache_clear()


def miniature():
    return open_checkpoint(hub.resolve("mini-ssd-1b", offline=True).path).info.layout.unet


@pytest.mark.parametrize("name", UNETS)
def test_the_estimate_is_near_the_count(name):
    for side in (16, 64, 128):
        assert unet_work(UNETS[name], side, side) == pytest.approx(
            unet_macs(UNETS[name], side, side), rel=0.2
        )


def test_the_estimate_is_near_the_count_of_the_miniature():
    assert unet_work(miniature(), 16, 16) == pytest.approx(unet_macs(miniature(), 16, 16), rel=0.2)


def test_more_work_takes_more_threads_up_to_those_there_are():
    assert [suitable(work, 4) for work in (0.0, 1e9, 8e9, 12.1e9, 1e15)] == [1, 1, 2, 3, 4]
    assert suitable(1e15, 1) == 1


def test_small_pictures_of_small_networks_take_one_thread_and_wide_ones_all(chosen):
    use_threads("auto", miniature(), 16, 16)
    assert chosen == [8, 1]
    use_threads("auto", UNETS["ssd-1b"], 128, 128)  # after one thread there are as many as before
    assert chosen == [8, 1, 8]
    use_threads("auto", UNETS["ssd-1b"], 64, 64)
    assert chosen == [8, 1, 8]
    use_threads("auto", miniature(), 16, 16, batch=16)
    assert chosen == [8, 1, 8, 2]


def test_a_number_is_taken_and_none_changes_nothing(chosen):
    use_threads(3, miniature(), 16, 16)
    use_threads(None, miniature(), 16, 16)
    assert chosen == [8, 3]


@pytest.mark.parametrize("name", ["OMP_NUM_THREADS", "MKL_NUM_THREADS"])
def test_what_the_user_set_in_the_environment_stays(chosen, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    use_threads("auto", miniature(), 16, 16)
    assert chosen == [8]


def test_a_pipeline_sets_threads_only_if_it_is_asked_to(chosen, tiny_model):
    from ssd1b.pipeline import Pipeline

    plain = Pipeline.load(str(tiny_model), device="cpu", dtype="fp32")
    plain.generate("a cube", steps=1, seed=1)
    assert chosen == [8]
    (picture,) = Pipeline.load(str(tiny_model), device="cpu", dtype="fp32", threads="auto").generate(
        "a cube", steps=1, seed=1
    )
    assert chosen == [8, 1]
    assert picture.recipe.threads == 1
