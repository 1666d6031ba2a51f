"""``ssd1b upscale``: files of every kind, folders, what stays in them, and errors."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import ssd1b
from picture_files import COMFY, smooth
from ssd1b.cli import main
from ssd1b.images import POSTPROCESSING, Picture, decode_recipe, read_recipe, save_picture
from ssd1b.inputs import InputFile
from ssd1b.recipe import ModelIdentity, Recipe
from ssd1b.settings import resolve_settings
from upscaler_files import write_compact


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    write_compact(Path("2x.safetensors"))
    return tmp_path


def recipe() -> Recipe:
    return Recipe.of(
        resolve_settings("a cube, red", family="sdxl", model_defaults={"seed": 7}, preset=None),
        ModelIdentity(name="m", source="m", revision=None, layout="sdxl"),
        dtype="float32", device="cpu", batch_size=1,
    )  # fmt: skip


def called(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> tuple[list[str], str]:
    assert main(["upscale", *arguments]) == code
    told = capsys.readouterr()
    return told.out.splitlines(), told.err


def read(path: str) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


@pytest.mark.parametrize("format", ["png", "jpeg", "webp"])
@pytest.mark.parametrize("model", ["lanczos", "2x.safetensors"])
def test_the_recipe_stays(capsys: pytest.CaptureFixture[str], format: str, model: str) -> None:
    path = save_picture(Picture(image=smooth(40, 24), recipe=recipe()), "images/", format)
    (line,), _ = called(capsys, str(path), "--model", model, "--out", "large")
    large = Path(line)
    assert large == Path("large") / f"{path.stem}-2x{path.suffix}"
    assert read_recipe(large) == recipe()
    with Image.open(large) as image:
        assert (image.size, image.format) == ((80, 48), format.upper())
        if format == "png":
            name = "Lanczos" if model == "lanczos" else "2x"
            said = f"Postprocess upscale by: 2, Postprocess upscaler: {name}"
            assert image.info[POSTPROCESSING] == said
    (again,), _ = called(capsys, str(large), "--model", model, "--scale", "1.5", "--out", "large")
    with Image.open(again) as image:
        assert image.size == (120, 72)
        if format == "png":
            assert image.info[POSTPROCESSING] == f"{said}, {said.replace('by: 2', 'by: 1.5')}"


def test_other_programs_settings_stay(capsys: pytest.CaptureFixture[str]) -> None:
    from PIL.PngImagePlugin import PngInfo

    chunks = PngInfo()
    chunks.add_text("prompt", json.dumps(COMFY))
    chunks.add_text("workflow", "{}")
    chunks.add_text("Title", "private")
    smooth(20, 20).save("comfy.png", pnginfo=chunks)
    (line,), _ = called(capsys, "comfy.png", "--out", "large")
    with Image.open(line) as image:
        assert {*image.info} == {"prompt", "workflow", POSTPROCESSING}
    assert read_recipe(line) == read_recipe("comfy.png")


def test_rotation_transparency_16_bits_and_profiles(capsys: pytest.CaptureFixture[str]) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    smooth(40, 24).save("turned.jpg", exif=exif, icc_profile=b"profile")
    clear = smooth(16, 16).convert("RGBA")
    clear.putalpha(0)
    clear.save("clear.png")
    Image.fromarray(np.full((8, 8), 65535 // 2, np.uint16)).save("grey.png")
    lines, _ = called(capsys, "turned.jpg", "clear.png", "grey.png", "--out", "large")
    turned, clear, grey = map(read, lines)
    assert (turned.size, turned.getexif().get(0x0112)) == ((48, 80), None)
    assert turned.info["icc_profile"] == b"profile"
    assert clear.mode == "RGBA" and clear.getextrema()[3] == (0, 0)
    assert abs(int(np.asarray(grey.convert("L")).mean()) - 127) <= 1
    (line,), _ = called(capsys, "clear.png", "--out", "large", "--format", "jpeg")
    assert read(line).getpixel((3, 3)) == (255, 255, 255)


def test_folders_formats_and_json(capsys: pytest.CaptureFixture[str]) -> None:
    Path("images/deeper").mkdir(parents=True)
    for name in ("b.png", "a.webp", "deeper/c.png"):
        smooth(10, 10).save(f"images/{name}")
    Path("images/notes.txt").write_text("x")
    lines, _ = called(capsys, "images", "--out", "large", "--format", "png", "--scale", "3", "--json")
    found = [json.loads(line) for line in lines]
    assert [each["source"] for each in found] == ["images/a.webp", "images/b.png"]
    assert [each["path"] for each in found] == ["large/a-3x.png", "large/b-3x.png"]
    assert {(each["width"], each["height"]) for each in found} == {(30, 30)}
    lines, _ = called(capsys, "images/b.png", "--out", "large", "--scale", "3")
    assert lines == ["large/b-3x-2.png"], "existing files are kept"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("no.png",), r"no.png"),
        (("good.png", "bad.png"), "bad.png: not a readable PNG, JPEG or WebP"),
        (("empty",), "empty: no PNG, JPEG or WebP in this folder"),
        (("good.png", "--model", "latent"), "unknown upscaler of pixels 'latent'"),
        (("good.png", "--model", "x"), "'x': allowed: a .safetensors file, bicubic, lanczos, nearest\n"),
        (("good.png", "--model", "lanzcos"), "did you mean 'lanczos'"),
        (("good.png", "--model", "no.safetensors"), "no.safetensors"),
        (("good.png", "--model", "good.png"), "only intact safetensors files"),
        (("good.png", "--scale", "0.5"), "scale is 0.5: it must be a number from 1 to 16"),
        (("good.png", "--scale", "nan"), "nan"),
        (("good.png", "--tile", "32"), "tile is 32: it must be a whole number from 64 to 4096"),
        (("good.png", "--format", "gif"), "unknown image format 'gif'"),
        (("good.png", "--device", "tpu", "--model", "2x.safetensors"), "unknown device 'tpu'"),
        (("large.png", "--scale", "16"), "large.png: the enlarged image would have 22400x22400"),
        (("good.png", "--out", "good.png"), "good.png"),
    ],
)
def test_mistakes_are_found_before_work(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    smooth(10, 10).save("good.png")
    Image.new("RGB", (1400, 1400)).save("large.png")
    Path("bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\0" * 40)
    Path("empty").mkdir()
    out = () if "--out" in arguments else ("--out", "large")
    lines, told = called(capsys, *arguments, *out, code=2)
    assert lines == [] and message in told and "Traceback" not in told
    assert not Path("large").exists()


def test_a_network_needs_the_extra(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    smooth(10, 10).save("good.png")
    monkeypatch.setattr("ssd1b.extras.find_spec", lambda name: None)
    called(capsys, "good.png", "--out", "large")
    _, told = called(capsys, "good.png", "--model", "2x.safetensors", "--out", "large", code=2)
    assert "needs spandrel, which is not installed: pip install 'ssd1b[upscale]'" in told


def test_from_python() -> None:
    smooth(10, 12).save("a.png")
    seen: list[Any] = []
    (found,) = ssd1b.upscale(["a.png"], "large", model="2x.safetensors", wrote=seen.append)
    assert seen == [found] and (found.width, found.height) == (20, 24)
    assert found.path.read_bytes() and found.source == Path("a.png")
    with pytest.raises(ssd1b.InputError, match="contains no recipe"):
        decode_recipe(found.path.read_bytes())
    assert InputFile.of("2x.safetensors", most=10**6).path.endswith("2x.safetensors")


def test_the_hires_fix_with_a_network_is_recorded_and_generated_again(
    run: Any, tiny_model: Path, here: Path
) -> None:
    given = ["--model", tiny_model, "--device", "cpu", "--seed", 3, "--size", 64, "--steps", 1, "--json"]
    hires = ["--hires-scale", 1.5, "--hires-upscaler"]
    again = ["--model", tiny_model, "--device", "cpu"]
    network, plain = (
        run("generate", "a cat", *given, *hires, each) for each in ("2x.safetensors", "lanczos")
    )
    assert [network.code, plain.code] == [0, 0], network.err
    path, other = (json.loads(each.out)["path"] for each in (network, plain))
    assert read(path).size == (96, 96)
    assert read(path).tobytes() != read(other).tobytes()
    described = run("inspect", path)
    assert str(here / "2x.safetensors") in described.out
    assert "--hires-upscaler" in described.out or "rerun" in described.out
    assert "Hires upscaler: 2x," in read(path).info["parameters"]
    assert "bit-equal: every pixel" in run("rerun", path, *again, "--out", "again").err
    Path("elsewhere").mkdir()
    Path("2x.safetensors").rename("elsewhere/2x.safetensors")
    gone = run("rerun", path, *again, "--out", "again")
    assert gone.code == 2 and "hires_upscaler 2x.safetensors" in gone.err and gone.err.count("\n") == 1
    there = run("rerun", path, *again, "--out", "again", "--inputs", "elsewhere")
    assert "bit-equal: every pixel" in there.err
    write_compact(Path("2x.safetensors"), seed=9)
    assert run("rerun", path, *again, "--out", "again").code == 2, "another file of that name"


def test_a_network_is_a_value_of_an_axis(run: Any, tiny_model: Path) -> None:
    given = ["--model", tiny_model, "--hires-scale", 1.5, "--seeds", 1, "--dry-run", "--out", "lab"]
    axis = ["--axis", "hires-upscaler=latent,2x.safetensors"]
    assert run("sweep", "a cat", *given, *axis).code == 0
    wrong = run("sweep", "a cat", *given, "--axis", "hires-upscaler=latent,3x.safetensors")
    assert wrong.code == 2 and "axis hires-upscaler: " in wrong.err and "3x.safetensors" in wrong.err
