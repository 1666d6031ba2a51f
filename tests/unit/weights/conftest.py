import pytest

from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder, save_single_file
from tiny import TINY

from .cases import random_weights


@pytest.fixture(scope="session")
def tiny_weights():
    return random_weights(TINY)


@pytest.fixture(scope="session")
def tiny_info():
    return ModelInfo(layout=TINY, settings={"steps": 7})


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory, tiny_info, tiny_weights):
    """A whole model as a diffusers folder; read only."""
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_folder(path, tiny_info, tiny_weights)
    return path


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory, tiny_info, tiny_weights):
    """The same as a single file; read only."""
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_single_file(path, tiny_info, tiny_weights)
    return path
