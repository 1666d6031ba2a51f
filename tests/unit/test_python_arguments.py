"""What Python passes is checked as what the command line passes: one line names the argument."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ssd1b.actions.upscale import upscale
from ssd1b.errors import InputError
from ssd1b.pipeline import Pipeline

PICTURE = Image.new("RGB", (64, 64))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"init_image": PICTURE}, r"^init_image is <PIL.*>: it must be the path of a file$"),
        ({"init_image": "a.png", "mask": b"PNG"}, r"^mask is .*: it must be the path of a file$"),
        ({"count": 0}, r"^count is 0: it must be a whole number from 1 to 10000$"),
    ],
)
def test_arguments_of_generate(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: dict[str, Any], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    PICTURE.save("a.png")
    pipeline = Pipeline.load(str(tiny_model), device="cpu")
    with pytest.raises(InputError, match=message):
        pipeline.generate("a cat", **given)


def test_a_network_that_no_model_has_is_named_before_its_file_is_read(tiny_model: Path) -> None:
    with pytest.raises(InputError, match=r"^unknown network 'va': did you mean 'vae'"):
        Pipeline.load(str(tiny_model), device="cpu", networks={"va": "nothing.safetensors"})


def test_one_image_is_upscaled_by_its_path(tmp_path: Path) -> None:
    PICTURE.save(tmp_path / "a.png")
    (made,) = upscale(tmp_path / "a.png", tmp_path / "larger")
    assert made.path == tmp_path / "larger/a-2x.png"
