"""Recording, replaying and dropping of CUDA graphs, with a fake recorder that runs on the CPU."""

import warnings
from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor

from ssd1b.models.unet import UNet
from ssd1b.speed import graphs
from ssd1b.speed.backends import prepare
from ssd1b.speed.graphs import RecordedForward, forget_records, record_forward
from ssd1b.speed.reuse import FeatureReuse
from tiny import LAYOUTS, inputs


def small_unet() -> UNet:
    torch.manual_seed(0)
    return UNet(LAYOUTS["ssd-1b"]).eval().requires_grad_(False)


class Recorder:
    """Imitates a CUDA graph: a replay computes the same from the same tensors, into the same tensor."""

    def __init__(self) -> None:
        self.records = self.replays = 0

    def __call__(self, run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        self.records += 1
        output = run().clone()

        def replay() -> Tensor:
            self.replays += 1
            return output.copy_(run())

        return replay


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


def test_a_unet_is_recorded_at_the_second_call_of_a_shape(recorder: Recorder) -> None:
    unet = small_unet()
    forward = RecordedForward(unet.forward, "cpu", recorder)
    results = []
    for call in range(4):
        latents, timesteps, embeds, pooled, time_ids = inputs(LAYOUTS["ssd-1b"], 8, 8)
        latents = latents + call
        context = unet.cross_attention_kv(embeds + call, without_text=1)
        result = forward(latents, timesteps - call, context, pooled, time_ids, None)
        torch.testing.assert_close(result, unet(latents, timesteps - call, context, pooled, time_ids, None))
        results.append((result, result.clone()))
    assert (recorder.records, recorder.replays) == (1, 3), "one of the replays is a check"
    assert all(kept.equal(then) for kept, then in results), "a replay must not change an earlier result"


def test_each_shape_and_number_has_a_record_of_its_own_and_few_are_kept(recorder: Recorder) -> None:
    forward = RecordedForward(lambda x, factor=1.0: x * factor, "cpu", recorder)
    for _ in range(3):
        for size in range(1, graphs.KEPT + 1):
            assert forward(torch.ones(size)).equal(torch.ones(size))
    assert recorder.records == graphs.KEPT
    for _ in range(3):
        assert forward(torch.ones(1), factor=3).equal(3 * torch.ones(1))
    assert recorder.records == graphs.KEPT + 1 and len(forward._found) == graphs.KEPT
    before = recorder.replays
    forward(torch.ones(graphs.KEPT))
    assert recorder.replays == before + 1, "used recently"
    forward(torch.ones(1))
    assert recorder.replays == before + 1, "dropped"


@pytest.mark.parametrize(
    "extra", [FeatureReuse(0.1), "text", torch.ones(1, device="meta")], ids=["reuse", "text", "other device"]
)
def test_calls_that_decide_in_python_are_not_recorded(recorder: Recorder, extra: object) -> None:
    forward = RecordedForward(lambda x, other: x + 1, "cpu", recorder)
    for _ in range(3):
        assert forward(torch.ones(1), extra).equal(2 * torch.ones(1))
    assert recorder.records == 0


def test_new_weights_need_new_records(recorder: Recorder) -> None:
    layer = torch.nn.Linear(2, 2).requires_grad_(False)
    stale: list[Tensor] = []

    def run(x: Tensor) -> Tensor:
        return x @ (stale or [layer.weight])[0].T + layer.bias

    layer.forward = RecordedForward(run, "cpu", recorder)  # type: ignore[method-assign]
    for _ in range(3):
        layer(torch.ones(1, 2))
    layer.weight = torch.nn.Parameter(torch.zeros(2, 2), requires_grad=False)
    forget_records(layer)
    for _ in range(3):
        assert layer(torch.ones(1, 2)).equal(layer.bias[None])
    assert recorder.records == 2


@pytest.mark.parametrize("fault", ["differs", "fails", "out of memory"])
def test_a_record_that_differs_or_fails_is_given_up_with_a_warning(fault: str) -> None:
    calls = []

    def record(run: Callable[[], Tensor]) -> Callable[[], Tensor]:
        calls.append(1)
        if fault == "fails":
            raise RuntimeError("operation not permitted when stream is capturing")
        if fault == "out of memory":
            raise torch.OutOfMemoryError("CUDA out of memory")
        return lambda: run() + 1

    forward = RecordedForward(lambda x: 2 * x, "cpu", record)
    forward(torch.ones(3))
    with pytest.warns(RuntimeWarning, match="could not be recorded as a CUDA graph, and waits for Python: "):
        assert forward(torch.ones(3)).equal(2 * torch.ones(3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for size in (3, 3, 4, 4, 4):
            assert forward(torch.ones(size)).equal(2 * torch.ones(size))
    assert len(calls) == 1


def test_not_finite_outputs_are_passed_on(recorder: Recorder) -> None:
    forward = RecordedForward(lambda x: x * float("nan"), "cpu", recorder)
    for _ in range(3):
        assert forward(torch.ones(1)).isnan().all()
    assert recorder.records == 1


@pytest.mark.parametrize(
    ("memory", "cuda", "switch", "recorded"),
    [(24, "13.0", None, True), (24, "13.0", "0", False), (8, "13.0", None, False), (24, None, None, False)],
    ids=["room", "switched off", "small", "ROCm"],
)
def test_where_forward_passes_are_recorded(
    monkeypatch: pytest.MonkeyPatch, memory: int, cuda: str | None, switch: str | None, recorded: bool
) -> None:
    network = SimpleNamespace(parameters=lambda: iter([SimpleNamespace(device=torch.device("cuda"))]))
    network.forward = plain = lambda x: x
    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))
    properties = SimpleNamespace(total_memory=memory * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: properties)
    if switch is not None:
        monkeypatch.setenv(graphs.SWITCH, switch)
    record_forward(network)  # type: ignore[arg-type]
    assert (network.forward is not plain) == recorded


def test_nothing_is_recorded_on_a_cpu() -> None:
    unet = small_unet()
    prepare(unet)
    assert not isinstance(unet.forward, RecordedForward)
    forget_records(unet)
