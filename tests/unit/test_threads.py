"""The number of threads follows the work of a step; the user's own setting stays."""

import pytest
import torch

from ssd1b import threads
from ssd1b.evaluate.cost import unet_macs
from ssd1b.layouts import UNETS
from ssd1b.threads import estimate_unet_macs, suitable_threads, use_threads
from ssd1b.weights import hub
from ssd1b.weights.opening import open_checkpoint


@pytest.fixture
def chosen(monkeypatch) -> list[int]:
    """Pretend to have eight cores; returns every number of threads that torch is set to."""
    found = [8]
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.delenv("MKL_NUM_THREADS", raising=False)
    monkeypatch.setattr(torch, "get_num_threads", lambda: found[-1])
    monkeypatch.setattr(torch, "set_num_threads", found.append)
    threads._initial_threads.cache_clear()
    yield found
    threads._initial_threads.cache_clear()


def miniature():
    return open_checkpoint(hub.resolve("mini-ssd-1b", offline=True).path).info.layout.unet


@pytest.mark.parametrize("name", UNETS)
def test_the_estimate_is_near_the_count(name):
    for side in (16, 64, 128):
        expected = pytest.approx(unet_macs(UNETS[name], side, side), rel=0.2)
        assert estimate_unet_macs(UNETS[name], side, side) == expected


def test_the_estimate_is_near_the_count_of_the_miniature():
    assert estimate_unet_macs(miniature(), 16, 16) == pytest.approx(unet_macs(miniature(), 16, 16), rel=0.2)


def test_more_work_takes_more_threads_up_to_the_available_ones():
    assert [suitable_threads(macs, 4) for macs in (0.0, 1e9, 8e9, 12.1e9, 1e15)] == [1, 1, 2, 3, 4]
    assert suitable_threads(1e15, 1) == 1


def test_small_images_of_small_networks_take_one_thread_and_large_ones_all(chosen):
    use_threads("auto", miniature(), 16, 16)
    assert chosen == [8, 1]
    use_threads("auto", UNETS["ssd-1b"], 128, 128)  # one thread before does not lower the maximum
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
def test_environment_variables_take_precedence(chosen, monkeypatch, name):
    monkeypatch.setenv(name, "4")
    use_threads("auto", miniature(), 16, 16)
    assert chosen == [8]


def test_a_pipeline_sets_threads_only_on_request(chosen, tiny_model):
    from ssd1b.pipeline import Pipeline

    plain = Pipeline.load(str(tiny_model), device="cpu", dtype="fp32")
    plain.generate("a cube", steps=1, seed=1)
    assert chosen == [8]
    (picture,) = Pipeline.load(str(tiny_model), device="cpu", dtype="fp32", threads="auto").generate(
        "a cube", steps=1, seed=1
    )
    assert chosen == [8, 1]
    assert picture.recipe.threads == 1
