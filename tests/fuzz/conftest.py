"""How long each target is tried, and a model to damage."""

from pathlib import Path

import pytest

from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder, save_single_file
from tiny import DRAWABLE, random_weights


@pytest.fixture
def fuzz_seconds(request: pytest.FixtureRequest) -> float:
    return request.config.getoption("--fuzz-seconds")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny"
    save_folder(path, ModelInfo(layout=DRAWABLE, settings={"steps": 2}), random_weights(DRAWABLE))
    return path


@pytest.fixture(scope="session")
def tiny_single_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("models") / "tiny.safetensors"
    save_single_file(path, ModelInfo(layout=DRAWABLE, settings={"steps": 2}), random_weights(DRAWABLE))
    return path
