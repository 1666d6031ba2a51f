"""Enlarging: networks from files, tiles without seams, sizes and limits."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from picture_files import smooth
from ssd1b import enlarging
from ssd1b.enlarging import OVERLAP, Network, enlarge, load_network, plan
from ssd1b.errors import ConflictError, FailedError, InputError, NotFoundError
from ssd1b.upscalers import PIXEL_UPSCALERS, find_upscaler, identify_network, upscaler_label
from upscaler_files import RADIUS, write_compact

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def compact(tmp_path_factory: pytest.TempPathFactory) -> Network:
    path = write_compact(tmp_path_factory.mktemp("networks") / "2x-compact.safetensors")
    return load_network(identify_network(path), CPU)


def array(image: Image.Image) -> np.ndarray:
    return np.asarray(image, np.int16)


def test_a_network_computes_what_spandrel_computes(tmp_path: Path) -> None:
    path = write_compact(tmp_path / "x.safetensors", scale=4, seed=3)
    network = load_network(identify_network(path), CPU)
    image = smooth(24, 16)
    expected = (
        enlarging.import_spandrel()
        .ModelLoader()
        .load_from_file(path)(torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255)
    )
    found = enlarge(image, (96, 64), network)
    levels = (expected[0].permute(1, 2, 0) * 255).round().numpy()
    assert np.abs(array(found) - levels).max() <= 1
    assert array(found).std() > 5, "not a single colour"


@pytest.mark.parametrize("size", [(200, 150), (64, 65), (70, 257), (33, 400), (5, 3)])
@pytest.mark.parametrize("tile", [64, 97])
def test_tiles_leave_no_seams(compact: Network, size: tuple[int, int], tile: int) -> None:
    """The overlap covers all that the network reads, so the result does not depend on the tiles."""
    assert RADIUS < (OVERLAP - enlarging._FADE) / 2
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), np.uint8))
    large = (size[0] * 2, size[1] * 2)
    whole = enlarge(image, large, compact, tile=4096)
    calls: list[int] = []
    tiled = enlarge(image, large, compact, tile=tile, watch=calls.append)
    assert np.abs(array(tiled) - array(whole)).max() <= 1
    assert sum(calls) == plan(size, large, compact, tile).tiles
    assert len(calls) > 1 or max(size) <= tile


def test_a_network_that_sees_everything_has_no_hard_edges_either() -> None:
    """A network whose result depends on the whole tile: neighbouring tiles fade into each other."""

    def brighter(pixels: torch.Tensor) -> torch.Tensor:
        return (pixels + 0.2 * pixels.mean()).clamp(0, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)

    network = Network(brighter, 2, 3, False, CPU, torch.float32)
    ramp = np.broadcast_to(np.linspace(0, 200, 300)[None, :, None], (70, 300, 3)).astype(np.uint8)
    found = array(enlarge(Image.fromarray(ramp), (600, 140), network, tile=64))
    steps = np.abs(np.diff(found, axis=1)).max()
    assert steps <= 4, "with hard edges, 8 levels and more"


def test_a_network_that_divides_images_itself_gets_all_at_once(compact: Network) -> None:
    shapes: list[Any] = []

    def seen(pixels: torch.Tensor) -> torch.Tensor:
        shapes.append(pixels.shape)
        return compact.run(pixels)

    enlarge(smooth(100, 90), (200, 180), compact._replace(run=seen, whole=True), tile=64)
    assert shapes == [(1, 3, 90, 100)]


def test_a_network_of_one_channel_takes_each_colour(tmp_path: Path) -> None:
    path = write_compact(tmp_path / "grey.safetensors", channels=1)
    network = load_network(identify_network(path), CPU)
    image = smooth(20, 20)
    found = enlarge(image, (40, 40), network)
    for band in range(3):
        alone = Image.merge("RGB", [image.getchannel(band)] * 3)
        assert np.array_equal(array(enlarge(alone, (40, 40), network))[..., 0], array(found)[..., band])


@pytest.mark.parametrize(("wanted", "runs"), [((20, 20), 1), ((40, 40), 1), ((41, 40), 2), ((150, 160), 3)])
def test_a_network_is_run_until_the_image_is_large_enough(
    compact: Network, wanted: tuple[int, int], runs: int
) -> None:
    assert plan((20, 20), wanted, compact).runs == runs
    assert enlarge(smooth(20, 20), wanted, compact).size == wanted


def test_a_network_that_does_not_enlarge_is_run_once(tmp_path: Path) -> None:
    network = load_network(identify_network(write_compact(tmp_path / "1x.safetensors", scale=1)), CPU)
    assert (network.scale, plan((20, 20), (60, 60), network).runs) == (1, 1)
    assert enlarge(smooth(20, 20), (60, 60), network).size == (60, 60)


def test_transparency_is_kept(compact: Network) -> None:
    image = smooth(40, 30).convert("RGBA")
    image.putalpha(Image.linear_gradient("L").resize((40, 30)))
    for upscaler in ("lanczos", compact):
        found = enlarge(image, (80, 60), upscaler)
        assert found.mode == "RGBA"
        alpha = array(found.getchannel("A"))
        assert alpha[0].max() < 20 and alpha[-1].min() > 235
    opaque = enlarge(image.convert("RGB"), (80, 60), compact)
    assert np.array_equal(array(found)[..., :3], array(opaque))


@pytest.mark.parametrize("name", PIXEL_UPSCALERS)
def test_interpolation_is_pillows(name: str) -> None:
    image = smooth(20, 30)
    assert enlarge(image, (50, 75), name) == image.resize((50, 75), Image.Resampling[name.upper()])


def test_limits_come_before_work(compact: Network) -> None:
    for upscaler in ("lanczos", compact):
        with pytest.raises(InputError, match=r"would have 20000x20000 pixels, 1\.2 GB: at most 268435456"):
            enlarge(smooth(20, 20), (20_000, 20_000), upscaler)
    with pytest.raises(InputError, match="would have 16400x16400"):  # on the way
        plan((4100, 4100), (8201, 8201), compact)


def test_damaged_weights_are_an_error(compact: Network) -> None:
    broken = compact._replace(run=lambda pixels: compact.run(pixels) * float("nan"))
    with pytest.raises(FailedError, match="computes NaN or infinity"):
        enlarge(smooth(20, 20), (40, 40), broken)


def _without(name: str) -> Any:
    def change(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {key: each for key, each in tensors.items() if key != name}

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: {"x": torch.ones(3)}, "not an upscaling network that spandrel knows"),
        (_without("body.3.weight"), "a damaged upscaling network"),
        (_without("body.8.bias"), "a damaged upscaling network"),
        (lambda tensors: tensors | {"body.0.weight": torch.ones(8, 3)}, "a damaged upscaling network"),
        (lambda tensors: tensors | {"body.99999999.weight": torch.ones(1)}, "has fewer layers"),
        (lambda tensors: tensors | {"body.9_9.weight": torch.ones(1)}, "a damaged upscaling network"),
    ],
)
def test_files_of_others_are_refused_in_one_line(tmp_path: Path, change: Any, message: str) -> None:
    path = write_compact(tmp_path / "x.safetensors")
    save_file(change(load_file(path)), path)
    with pytest.raises(InputError, match=message) as error:
        load_network(identify_network(path), CPU)
    assert "\n" not in str(error.value) and len(str(error.value)) < 500


def test_networks_for_something_else_are_refused(tmp_path: Path) -> None:
    path = write_compact(tmp_path / "x.safetensors", channels=4)
    with pytest.raises(InputError, match="takes 4 channels: allowed are 3 and 1"):
        load_network(identify_network(path), CPU)


def test_a_pickle_is_not_opened(tmp_path: Path) -> None:
    path = tmp_path / "4x.pth"
    torch.save({"params_ema": load_file(write_compact(tmp_path / "x.safetensors"))}, path)
    with pytest.raises(InputError, match="a pickle can run code when opened") as error:
        find_upscaler(str(path))
    command = str(error.value).partition("Convert it: python ")[2].replace("FILE", str(tmp_path / "4x"))
    code = command.partition('-c "')[2].partition('"')[0]
    subprocess.run([sys.executable, "-c", code, path, tmp_path / "4x.safetensors"], check=True, timeout=60)
    assert load_network(identify_network(tmp_path / "4x.safetensors"), CPU).scale == 2


def test_upscalers_are_found_by_name_or_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_compact(Path("2x-a.safetensors"), seed=10)  # no other test loads it
    found = find_upscaler("2x-a.safetensors")
    assert upscaler_label(found) == "2x-a"
    assert find_upscaler("Lanczos") == "lanczos"
    with pytest.raises(NotFoundError, match=r"no\.safetensors"):
        find_upscaler("no.safetensors")
    with pytest.raises(InputError, match="did you mean 'lanczos'"):
        find_upscaler("lanczs")
    with pytest.raises(InputError, match="it is a folder"):
        find_upscaler(str(tmp_path))
    write_compact(Path("2x-a.safetensors"), seed=11)
    with pytest.raises(ConflictError, match="has changed"):
        load_network(found, CPU)


def test_torchvision_is_left_as_it_was(compact: Network) -> None:
    assert compact.scale == 2
    torchvision = sys.modules.get("torchvision")
    assert torchvision is None or torchvision.__spec__ is not None
