"""Adapters of a loaded model: merged as if they had always been there, and taken off without a trace."""

import os
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from itertools import groupby
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from adapter_files import attention, random_lora, write_lora
from ssd1b.adapters.names import PARTS, Module, modules
from ssd1b.errors import InputError
from ssd1b.execution import DEFAULT, Execution
from ssd1b.images import Picture
from ssd1b.jobs.executor import renderer
from ssd1b.loras import Lora, lora_of
from ssd1b.model import Model, load_tensors
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.pipeline import Pipeline
from ssd1b.speed import int8_cpu, packing, weight_only
from ssd1b.speed.adapting import Adapting
from ssd1b.speed.backends import choose_backend, prepare
from ssd1b.speed.int8_cpu import int8_is_fast
from tiny import DRAWABLE, LAYOUTS, inputs

LAYOUT = DRAWABLE

EXECUTIONS = {
    "packed": DEFAULT,
    "int8 weights": Execution(quantized="int8-weights"),
    "int8": Execution(quantized="int8"),
    "low memory": Execution(memory="low"),
}


@pytest.fixture(autouse=True)
def small_layers_are_prepared_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """The miniature's layers would be too small for packed and quantized kernels."""
    for module in (packing, int8_cpu, weight_only):
        monkeypatch.setattr(module, "SMALLEST", 0)


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> Model:
    return Model.find(str(tiny_model))


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> list[Lora]:
    """One for attention, and one for everything that has a matrix, a kernel or a bias."""
    folder = tmp_path_factory.mktemp("loras")
    some = [module for part in PARTS for module in attention(LAYOUT, part)]
    ends = (".conv", "conv1", "ff.net.0.proj", "proj_in", "linear_1", "conv_in")
    most = [*some, *(Module("unet", name) for name in modules("unet", LAYOUT) if name.endswith(ends))]
    full = random_lora(LAYOUT, most, seed=2)
    name = Module("unet", "up_blocks.0.upsamplers.0.conv")
    full[name]["diff_b"] = torch.ones(32)
    return [
        lora_of(
            write_lora(folder / "some.safetensors", random_lora(LAYOUT, some, seed=1), LAYOUT),
            unet=0.02,
            text=0.02,
        ),
        lora_of(write_lora(folder / "most.safetensors", full, LAYOUT), unet=0.01, text=0.02),
    ]


def latents(pipeline: Pipeline, loras: Sequence[Lora]) -> Tensor:
    """The final latents of two steps."""
    settings = pipeline.settings("a red cube", seed=5, steps=2, width=64, height=64, loras=tuple(loras))
    *_, last = pipeline.steps([settings])
    return last.latents.clone()


def load(model: Model, execution: Execution = DEFAULT) -> Pipeline:
    return Pipeline.load(str(model.path), device="cpu", dtype="fp32", execution=execution)


def loaded_with(model: Model, loras: Sequence[Lora], execution: Execution) -> Pipeline:
    """A pipeline whose networks are read with the adapters at once."""
    pipeline, model = load(model, execution), model.with_loras(loras)
    backend = choose_backend(execution, torch.device("cpu"), torch.float32, lambda message: None)
    read = partial(backend.load, model)
    text, unet = model.text_encoders(read), read("unet")
    adapting = Adapting(model=model, backend=backend, networks={}, loras=tuple(loras))
    return replace(pipeline, text=text, unet=unet, adapting=adapting)


@pytest.mark.parametrize("name", EXECUTIONS)
def test_an_adapter_is_merged_as_if_read_with_the_model_and_taken_off_without_a_trace(
    name: str, model: Model, loras: list[Lora]
) -> None:
    execution = EXECUTIONS[name]
    if name == "int8" and not int8_is_fast():
        pytest.skip("this processor has no int8 instructions")
    pipeline = load(model, execution)
    before = latents(pipeline, [])
    with_one = latents(pipeline, loras[:1])
    with_both = latents(pipeline, loras)
    other = latents(pipeline, [replace(loras[1], unet=-0.01), loras[0]])
    assert torch.equal(latents(pipeline, []), before)
    assert torch.equal(latents(pipeline, loras), with_both)
    assert torch.equal(latents(loaded_with(model, loras, execution), loras), with_both)
    assert torch.equal(latents(loaded_with(model, loras[:1], execution), loras[:1]), with_one)
    for one, two in ((before, with_one), (with_one, with_both), (with_both, other)):
        assert (one - two).abs().max() > 0.01


@pytest.mark.parametrize("quantized", [None, "int8-weights", "int8"])
def test_a_prepared_network_loads_published_tensors(quantized: str | None) -> None:
    """Also folded upsampling, which the miniatures' widths do not have."""
    if quantized == "int8" and not int8_is_fast():
        pytest.skip("this processor has no int8 instructions")
    layout = LAYOUTS["vega"]
    torch.manual_seed(0)
    first, second = (UNet(layout).requires_grad_(False).eval() for _ in range(2))
    state = {name: tensor.clone() for name, tensor in second.state_dict().items()}
    for network in (first, second):
        prepare(network, quantized=quantized)
    arguments = inputs(layout, 16, 16)
    assert not torch.equal(first(*arguments), second(*arguments))
    load_tensors(first, state.items())
    assert torch.equal(first(*arguments), second(*arguments))


def test_the_tensors_of_fused_layers_come_together_whatever_the_order_of_the_file(model: Model) -> None:
    """Files are sorted, so attention's output is stored between its queries and keys."""
    unet = Model.find(str(model.path))
    part = unet.checkpoint.part("unet")
    names = sorted(part.tensors)
    unet.__dict__["checkpoint"] = replace(
        unet.checkpoint, parts={"unet": replace(part, tensors={name: part.tensors[name] for name in names})}
    )

    def runs(order: Iterable[str]) -> list[str]:
        return [owner for owner, _ in groupby(name.rsplit(".", 2)[0] for name in order)]

    assert len(runs(names)) > len({*runs(names)})
    found = dict(unet.tensors("unet", names, device="cpu", dtype=torch.float32))
    assert sorted(found) == names and len(runs(found)) == len({*runs(found)})
    network = UNet(LAYOUT.unet).requires_grad_(False).eval()
    prepare(network)
    load_tensors(network, found.items())
    state = network.state_dict()
    assert all(torch.equal(state[name], tensor) for name, tensor in found.items())


OTHERS = """
import sys
import torch
from ssd1b.execution import Execution
from ssd1b.loras import lora_of
from ssd1b.pipeline import Pipeline

path, execution = sys.argv[1], Execution(backend="openvino")
loras = [lora_of(each, unet=0.02, text=0.02) for each in sys.argv[2:]]

def latents(pipeline, loras):
    settings = pipeline.settings("a red cube", seed=5, steps=2, width=64, height=64, loras=tuple(loras))
    return [step.latents.clone() for step in pipeline.steps([settings])][-1]

exact = Pipeline.load(path, device="cpu", dtype="fp32")
fast = Pipeline.load(path, device="cpu", dtype="fp32", execution=execution)
before = latents(fast, [])
for each in (loras, []):
    one, other = latents(exact, each), latents(fast, each)
    difference = (one - other).abs().max()
    print(len(each), float(difference), float(one.abs().max()), torch.equal(other, before))
    assert difference < 1e-3 * one.abs().max()
    assert torch.equal(other, before) == (not each)
"""


def test_openvino_converts_the_adapted_unet(tiny_model: Path, loras: list[Lora], tmp_path: Path) -> None:
    """In a process of its own, since the converter does not get through the checks of types."""
    pytest.importorskip("openvino")
    files = [each.file.path for each in loras]
    done = subprocess.run(
        [sys.executable, "-c", OTHERS, str(tiny_model), *files], capture_output=True, text=True,
        env={**os.environ, "XDG_CACHE_HOME": str(tmp_path)}, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_merged_is_the_same_as_computed_on_the_fly(model: Model, loras: list[Lora]) -> None:
    pipeline = load(model)
    merged = latents(pipeline, loras[:1])
    adapter = random_lora(LAYOUT, [m for part in PARTS for m in attention(LAYOUT, part)], seed=1)
    networks = {part: model.network(part, dtype=torch.float32) for part in PARTS}
    for (part, name), tensors in adapter.items():
        scale = 3.0 / 2 * (loras[0].unet if part == "unet" else loras[0].text)

        def add(
            layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor, t: dict = tensors, s: float = scale
        ) -> Tensor:
            return output + s * inputs[0] @ t["down"].T @ t["up"].T

        networks[part].get_submodule(name).register_forward_hook(add)
    text = model.text_encoders(networks.__getitem__)
    plain = replace(pipeline, text=text, unet=networks["unet"], adapting=None)
    assert (latents(plain, []) - merged).abs().max() <= 1e-5 * merged.abs().max()


def test_states_are_restored_bit_by_bit(model: Model, loras: list[Lora]) -> None:
    pipeline = load(model)
    networks = (pipeline.unet, pipeline.text.encoder, pipeline.text.encoder_2)
    before = [{name: each.clone() for name, each in network.state_dict().items()} for network in networks]
    latents(pipeline, loras)
    changed = [not torch.equal(each, before[0][name]) for name, each in networks[0].state_dict().items()]
    assert 100 < sum(changed) < len(changed)
    latents(pipeline, [])
    for network, state in zip(networks, before, strict=True):
        now = network.state_dict()
        assert now.keys() == state.keys() and all(torch.equal(now[name], state[name]) for name in state)


def test_the_model_file_is_not_written(model: Model, loras: list[Lora]) -> None:
    files = [path for path in model.path.rglob("*.safetensors")] or [model.path]
    before = [path.read_bytes() for path in files]
    latents(load(model), loras)
    assert [path.read_bytes() for path in files] == before


def test_a_file_that_fails_leaves_the_pipeline_usable(
    model: Model, loras: list[Lora], tmp_path: Path
) -> None:
    pipeline = load(model)
    before, merged = latents(pipeline, []), latents(pipeline, loras)
    broken = random_lora(LAYOUT, attention(LAYOUT), seed=3)
    [*broken.values()][-1]["up"][0, 0] = torch.inf
    bad = lora_of(write_lora(tmp_path / "bad.safetensors", broken, LAYOUT))
    with pytest.raises(InputError, match="holds NaN or infinity"):
        latents(pipeline, [bad])
    assert torch.equal(latents(pipeline, []), before)
    with pytest.raises(InputError, match="holds NaN or infinity"):
        latents(pipeline, [bad])
    assert torch.equal(latents(pipeline, loras), merged)
    (tmp_path / "gone.safetensors").write_bytes((tmp_path / "bad.safetensors").read_bytes())
    gone = lora_of(tmp_path / "gone.safetensors")
    (tmp_path / "gone.safetensors").unlink()
    with pytest.raises(InputError, match="cannot read"):
        latents(pipeline, [gone])
    assert torch.equal(latents(pipeline, loras), merged)


def test_strength_zero_changes_nothing(model: Model, loras: list[Lora]) -> None:
    pipeline = load(model)
    assert torch.equal(latents(pipeline, [replace(loras[0], unet=0.0, text=0.0)]), latents(pipeline, []))
    text_only = latents(pipeline, [replace(loras[0], unet=0.0)])
    assert not torch.equal(text_only, latents(pipeline, []))


def test_memoized_outputs_are_those_of_the_same_weights(model: Model, loras: list[Lora]) -> None:
    pipeline = load(model)
    settings = [
        pipeline.settings("a red cube", seed=5, steps=2, width=64, height=64, loras=tuple(each))
        for each in ([], loras[:1], [])
    ]
    expected = [pipeline.draw([each])[0] for each in settings]
    with renderer(pipeline, lambda image, prompt: {}) as render:
        digests = [render([each], lambda step: None)[0].outcome.digest for each in settings]
    assert digests[0] == digests[2] != digests[1]
    assert isinstance(expected[0], Picture)
    assert expected[0].image.tobytes() == expected[2].image.tobytes() != expected[1].image.tobytes()


def test_a_batch_shares_its_loras(model: Model, loras: list[Lora]) -> None:
    pipeline = load(model)
    one = pipeline.settings("a red cube", seed=5, steps=2, width=64, height=64)
    with pytest.raises(InputError, match="must have the same loras"):
        pipeline.draw([one, replace(one, loras=tuple(loras))])


def test_networks_without_files_take_none(model: Model, loras: list[Lora]) -> None:
    with pytest.raises(InputError, match="loaded from files"):
        latents(replace(load(model), adapting=None), loras)


def test_the_digest_of_converted_networks_depends_on_the_adapters_that_change_them(
    model: Model, loras: list[Lora]
) -> None:
    versions = {part: repr(model.version(part)) for part in (*PARTS, "vae")}
    adapted = model.with_loras([replace(loras[0], text=0.0)])
    changed = {part for part, version in versions.items() if repr(adapted.version(part)) != version}
    assert changed == {"unet"}
    assert repr(model.with_loras(loras).version("unet")) != repr(adapted.version("unet"))


def test_a_teacher_can_have_adapters(model: Model, loras: list[Lora]) -> None:
    """Trainings read their networks by ``Model.network``."""
    plain, adapted = (each.network("unet") for each in (model, model.with_loras(loras)))
    assert isinstance(plain, UNet) and isinstance(model.network("vae"), VAE)
    name = "up_blocks.0.upsamplers.0.conv.bias"
    difference = adapted.state_dict()[name].float() - plain.state_dict()[name].float()
    torch.testing.assert_close(difference, torch.full((32,), 0.01), atol=1e-6, rtol=0)
