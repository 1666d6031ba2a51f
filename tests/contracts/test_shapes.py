"""Every array shape in a signature is checked while the tests run."""

from pathlib import Path

import pytest
import torch

from ssd1b.models.vae import VAE
from tiny import TINY

SOURCE = Path(__file__).parents[2] / "src"
OPTION = "--jaxtyping-packages="


def test_modules_with_array_shapes_are_checked(pytestconfig: pytest.Config) -> None:
    (option,) = (each for each in pytestconfig.getini("addopts") if each.startswith(OPTION))
    checked = option.removeprefix(OPTION).split(",")
    for path in SOURCE.rglob("*.py"):
        text = path.read_text(encoding="utf-8")
        if "from jaxtyping import" in text or "from ssd1b.tensors import" in text:
            module = ".".join(path.relative_to(SOURCE).with_suffix("").parts)
            shapes_only = module == "ssd1b.tensors"
            assert shapes_only or any(f"{module}.".startswith(f"{each}.") for each in checked), module


def test_a_wrong_shape_is_reported() -> None:
    with torch.device("meta"), pytest.raises(Exception, match="Type-check error"):
        VAE(TINY.vae).decode(torch.zeros(4, 8, 8))
