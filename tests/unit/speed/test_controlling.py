"""Networks that follow pictures, in a pipeline: when they run, on what, and what of them is in memory."""

import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from ssd1b.controls import Control, control_of
from ssd1b.edges import canny
from ssd1b.errors import ConflictError, InputError
from ssd1b.execution import Execution
from ssd1b.jobs.executor import renderer
from ssd1b.layouts import SSD_1B, ControlNetLayout, T2IAdapterLayout, encoder_of
from ssd1b.models.controlnet import ControlNet
from ssd1b.models.t2i_adapter import T2IAdapter
from ssd1b.models.unet import PromptKV
from ssd1b.pipeline import Pipeline
from ssd1b.speed import backends
from ssd1b.speed.controlling import _MOST_TEXTS, Guide, _Active
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder
from tiny import DRAWABLE, random_weights, tiny

LAYOUT = replace(tiny(SSD_1B), vae=DRAWABLE.vae, size=64)


def write(path: Path, network: nn.Module) -> Path:
    """Write a network's weights, after giving all of them values that count."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.normal_(std=0.2)
    save_file(network.state_dict(), path)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, two networks and a picture."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("controlling")
    info = ModelInfo(layout=LAYOUT, settings={"steps": 4, "guidance_scale": 4.0, "sampler": "euler"})
    save_folder(folder / "model", info, random_weights(LAYOUT))
    write(
        folder / "net.safetensors",
        ControlNet(ControlNetLayout(encoder=encoder_of(LAYOUT.unet), hint=(4, 4, 4, 4))),
    )
    write(folder / "t2i.safetensors", T2IAdapter(T2IAdapterLayout(channels=(8, 16, 32, 32), depth=1)))
    levels = np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8)
    Image.fromarray(levels).resize((64, 64), Image.Resampling.NEAREST).save(folder / "a.png")
    return folder


def load(folder: Path, **execution: object) -> Pipeline:
    return Pipeline.load(str(folder / "model"), device="cpu", dtype="fp32", execution=Execution(**execution))


@pytest.fixture(scope="module")
def pipeline(folder: Path) -> Pipeline:
    return load(folder)


def latents(
    pipeline: Pipeline, *controls: Control, seeds: tuple[int, ...] = (5,), **given: object
) -> torch.Tensor:
    batch = [pipeline.settings("x", seed=seed, controls=controls, **given) for seed in seeds]
    *_, last = pipeline.steps(batch)
    return last.latents


@pytest.fixture
def rows(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of images of each call of a ControlNet."""
    found: list[int] = []
    forward = ControlNet.forward

    def counted(self: ControlNet, x: torch.Tensor, *rest: object) -> object:
        found.append(len(x))
        return forward(self, x, *rest)

    monkeypatch.setattr(ControlNet, "forward", counted)
    return found


@pytest.mark.parametrize(
    ("fields", "given", "expected"),
    [
        ({}, {}, [2] * 4),
        ({"guess": True}, {}, [1] * 4),
        ({}, {"guidance_scale": 1.0}, [1] * 4),
        ({"guess": True}, {"guidance_scale": 1.0}, [1] * 4),
        ({"start": 0.5}, {}, [2] * 2),
        ({"end": 0.25}, {}, [2]),
        ({"end": 0.2}, {}, []),
        ({"scale": 0.0}, {}, []),
        ({}, {"guidance_interval": (0.2, 0.6)}, [2, 2, 1, 1]),
        ({}, {"sampler": "heun"}, [2] * 7),
    ],
)
def test_a_network_runs_only_where_it_counts(
    folder: Path, pipeline: Pipeline, rows: list[int], fields: dict, given: dict, expected: list[int]
) -> None:
    control = control_of(folder / "net.safetensors", folder / "a.png", **fields)
    found = latents(pipeline, control, **given)
    assert rows == expected
    assert found.equal(latents(pipeline, **given)) == (not expected)


def test_images_of_a_batch_are_what_they_are_alone(folder: Path, pipeline: Pipeline) -> None:
    controls = [
        control_of(folder / name, folder / "a.png") for name in ("net.safetensors", "t2i.safetensors")
    ]
    together = latents(pipeline, *controls, seeds=(5, 6))
    for index, seed in enumerate((5, 6)):
        torch.testing.assert_close(together[index], latents(pipeline, *controls, seeds=(seed,))[0])


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_sixteen_bits_are_near_thirty_two(folder: Path, pipeline: Pipeline, dtype: str) -> None:
    """Also the steps in which a control is active: bfloat16 would round the timesteps that tell."""
    half = Pipeline.load(str(folder / "model"), device="cpu", dtype=dtype)
    controls = [
        control_of(folder / "net.safetensors", folder / "a.png", start=0.25, end=0.75),
        control_of(folder / "t2i.safetensors", folder / "a.png", scale=0.5),
    ]
    exact = latents(pipeline, *controls, seeds=(5, 6))
    found = latents(half, *controls, seeds=(5, 6)).float()
    change = (exact - latents(pipeline, seeds=(5, 6))).norm()
    assert found.isfinite().all() and (found - exact).norm() < 0.1 * change


@pytest.mark.parametrize("dtype", ["bf16", "fp16"])
def test_grey_is_rounded_once(folder: Path, tmp_path: Path, dtype: str) -> None:
    layout = T2IAdapterLayout(channels=(8, 16, 32, 32), depth=1, picture_channels=1)
    write(tmp_path / "grey.safetensors", T2IAdapter(layout))
    pipeline = Pipeline.load(str(folder / "model"), device="cpu", dtype=dtype)
    seen: list[torch.Tensor] = []
    with torch.nn.modules.module.register_module_forward_pre_hook(
        lambda module, given: seen.append(given[0]) if isinstance(module, T2IAdapter) else None
    ):
        latents(pipeline, control_of(tmp_path / "grey.safetensors", folder / "a.png"), steps=1)
    levels = np.asarray(Image.open(folder / "a.png")).astype(np.float64) / 255
    exact = torch.from_numpy(levels @ [0.299, 0.587, 0.114])
    error = ((seen[0][0, 0].double() - exact).abs() / exact).max()
    assert len(seen) == 1 and error <= 0.5001 * torch.finfo(pipeline.dtype).eps


def test_edges_are_those_of_the_fitted_picture(folder: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    edges = canny(np.asarray(Image.open(folder / "a.png")))
    Image.fromarray(edges).save(tmp_path / "edges.png")
    found = latents(pipeline, control_of(folder / "net.safetensors", folder / "a.png", preprocess="canny"))
    assert found.equal(latents(pipeline, control_of(folder / "net.safetensors", tmp_path / "edges.png")))
    assert not found.equal(latents(pipeline, control_of(folder / "net.safetensors", folder / "a.png")))


def test_a_picture_of_another_shape_is_cut_or_stretched(
    folder: Path, pipeline: Pipeline, tmp_path: Path
) -> None:
    Image.open(folder / "a.png").crop((0, 0, 64, 32)).save(tmp_path / "wide.png")
    control = control_of(folder / "net.safetensors", tmp_path / "wide.png")
    cut, stretched = (latents(pipeline, control, resize_mode=each) for each in ("crop", "stretch"))
    assert cut.isfinite().all() and not cut.equal(stretched)


def test_networks_stay_for_the_next_run_and_leave_with_the_next_choice(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, loaded = load(folder), []
    load_component = backends.load_component
    monkeypatch.setattr(
        backends, "load_component", lambda *a, **b: (loaded.append(a[2]), load_component(*a, **b))
    )
    net, t2i = (control_of(folder / f"{name}.safetensors", folder / "a.png") for name in ("net", "t2i"))
    for controls in ((net,), (net,), (net, t2i), (t2i,), (net,)):
        latents(pipeline, *controls)
        assert pipeline.controlling is not None
        assert {*pipeline.controlling.networks} == {each.model.sha256 for each in controls}
    assert loaded == ["controlnet", "t2i_adapter", "controlnet"]


def test_each_step_has_the_text_of_its_own_prompt(folder: Path) -> None:
    """Prompts that change are encoded again, and the memory of a discarded one is used by the next."""
    layout = ControlNetLayout(encoder=encoder_of(LAYOUT.unet), hint=(4, 4, 4, 4))
    network = ControlNet(layout).eval()
    network.cross_attention_kv = lambda embeds, without_text: PromptKV(embeds, [])  # type: ignore[method-assign]
    guide = Guide(
        [_Active(control_of(str(folder / "net.safetensors"), str(folder / "a.png")), network, None, [])],
        [1.0],
    )
    for number in range(3 * _MOST_TEXTS):
        prompts = PromptKV(torch.full((1, 1, 1), float(number)), [(torch.zeros(1, 1, 1, 1),) * 2])
        for _ in range(2):
            assert guide._texts(0, network, prompts, 0).prompt_embeds.item() == number
        del prompts


def test_with_low_memory_unet_and_controlnet_take_turns(folder: Path) -> None:
    control = control_of(folder / "net.safetensors", folder / "a.png")
    exact, low = load(folder), load(folder, memory="low")
    controlling = low.controlling
    assert controlling is not None
    latents(low, control, steps=1)
    network = controlling.networks[control.model.sha256]
    assert isinstance(network, ControlNet)
    owners = []
    slot = controlling.backend._slot
    for step in low.steps([low.settings("x", seed=5, controls=[control])]):
        owners.append(slot.owner)
        final = step.latents
    assert network not in owners and {*map(id, owners)} == {id(low.unet)}, "the UNet is the last of a step"
    expected = latents(exact, control)
    assert (final - expected).norm() / expected.norm() < 0.1


def test_int8(folder: Path) -> None:
    from ssd1b.speed.int8_cpu import int8_is_fast

    if not int8_is_fast():
        pytest.skip("no int8 instructions")
    control = control_of(folder / "net.safetensors", folder / "a.png")
    found, expected = latents(load(folder, quantized="int8"), control), latents(load(folder), control)
    assert (found - expected).norm() / expected.norm() < 0.1


def test_jobs_that_share_steps_do_not_share_those_of_other_controls(folder: Path, pipeline: Pipeline) -> None:
    def settings(**fields: object):
        controls = [control_of(folder / "net.safetensors", folder / "a.png", **fields)]
        return pipeline.settings("x", seed=5, controls=controls)

    chosen = [settings(), settings(scale=0.5), settings(guess=True), pipeline.settings("x", seed=5)]
    with renderer(pipeline, lambda image, prompt: {}) as render:
        files = [render([each])[0].file for each in chosen]
    shared = [np.asarray(Image.open(io.BytesIO(file))) for file in files if file]
    assert len({each.tobytes() for each in shared}) == len(chosen)
    for pixels, each in zip(shared, chosen, strict=True):
        assert np.array_equal(pixels, np.asarray(pipeline.draw([each])[0].image))


def test_what_a_mask_keeps_is_kept(folder: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    Image.new("L", (64, 64), 0).save(tmp_path / "mask.png")
    with Image.open(tmp_path / "mask.png") as mask:
        mask.paste(255, (0, 0, 32, 64))
        mask.save(tmp_path / "mask.png")
    given = {"init_image": str(folder / "a.png"), "mask": str(tmp_path / "mask.png"), "strength": 0.8}
    control = control_of(folder / "net.safetensors", folder / "a.png")
    first, second = (
        np.asarray(pipeline.generate("x", seed=5, controls=controls, **given)[0].image)
        for controls in ((), (control,))
    )
    kept, changed = np.s_[:, 32:], np.s_[:, :32]
    assert np.array_equal(first[kept], second[kept]) and not np.array_equal(first[changed], second[changed])
    assert np.array_equal(second[kept], np.asarray(Image.open(folder / "a.png"))[kept])


def test_mistakes_are_told(folder: Path, pipeline: Pipeline, tmp_path: Path) -> None:
    control = control_of(folder / "net.safetensors", folder / "a.png")
    with pytest.raises(InputError, match="omit --backend openvino"):
        latents(replace(pipeline, controlling=None), control)
    with pytest.raises(InputError, match="guess is for ControlNets"):
        latents(pipeline, control_of(folder / "t2i.safetensors", folder / "a.png", guess=True))
    with pytest.raises(InputError, match="both sides must be multiples of 16"):
        latents(pipeline, control_of(folder / "t2i.safetensors", folder / "a.png"), width=72)
    gross = write(
        tmp_path / "gross.safetensors",
        ControlNet(ControlNetLayout(encoder=encoder_of(LAYOUT.unet), hint=(4, 4))),
    )
    with pytest.raises(InputError, match="it has 2 pixels per latent cell, the model 8"):
        latents(pipeline, control_of(gross, folder / "a.png"))
    other = control_of(gross, folder / "a.png")
    gross.write_bytes((folder / "t2i.safetensors").read_bytes())
    with pytest.raises(ConflictError, match="has changed"):
        latents(pipeline, other)
    latents(pipeline, control)
