"""Files that an image was generated from are found again by their content, wherever they were moved to."""

from pathlib import Path

import pytest

from ssd1b.actions.rerun import find_inputs, find_networks
from ssd1b.embeddings import Embedding
from ssd1b.errors import NotFoundError
from ssd1b.inputs import InputFile
from ssd1b.recipe import NetworkFile
from ssd1b.settings import GenerationSettings, resolve_settings


@pytest.fixture
def moved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to which files are moved; the working folder is empty."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    (tmp_path / "moved").mkdir()
    return tmp_path / "moved"


def moved_file(name: str, folder: Path, new: str | None = None) -> InputFile:
    Path(name).write_bytes(name.encode())
    found = InputFile.of(name, most=100)
    Path(name).rename(folder / (new or name))
    return found


def settings_with(**given: object) -> GenerationSettings:
    given = {"seed": 7, "width": 64, "height": 64, **given}
    return resolve_settings("a ball", family="sdxl", model_defaults={}, preset=None, **given)


def test_an_embedding_is_found_in_another_folder(moved: Path) -> None:
    embedding = Embedding(file=moved_file("ball.safetensors", moved), word="ball", vectors=1)
    given = settings_with(embeddings=(embedding,))
    with pytest.raises(NotFoundError, match=r"^embedding file ball.safetensors .* folder with --inputs$"):
        find_inputs(given, "image.png")
    (found,) = find_inputs(given, "image.png", str(moved)).embeddings
    assert found.file.path == str(moved / "ball.safetensors")


def test_a_part_is_found_in_another_folder_and_beside_the_image(moved: Path) -> None:
    vae = NetworkFile(network="vae", file=moved_file("vae.safetensors", moved))
    with pytest.raises(NotFoundError, match=r"^vae vae.safetensors .* is missing or has changed"):
        find_networks([vae], "image.png")
    for places in (("image.png", str(moved)), (str(moved / "image.png"), None)):
        (found,) = find_networks([vae], *places)
        assert found.file.path == str(moved / "vae.safetensors")


def test_a_picture_is_found_under_another_name(moved: Path) -> None:
    picture = moved_file("picture.png", moved, "3f2a")
    given = settings_with(init_image=picture)
    found = find_inputs(given, "image.png", str(moved)).init_image
    assert found is not None and found.path == str(moved / "3f2a")
    (moved / "3f2a").write_bytes(b"another")
    with pytest.raises(NotFoundError, match=f"has changed, in {moved}, beside the image and at its recorded"):
        find_inputs(given, "image.png", str(moved))


@pytest.mark.parametrize("name", ["nothing", "a file"])
def test_a_folder_that_is_none_is_reported(moved: Path, name: str) -> None:
    (moved / "a file").touch()
    given = settings_with()
    with pytest.raises(NotFoundError, match=f"{name}: no such folder, in which inputs are looked for"):
        find_inputs(given, "image.png", str(moved / name))
