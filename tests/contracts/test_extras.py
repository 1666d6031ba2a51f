"""Libraries of the extras: each is known, and a command that lacks one says so before it does anything."""

import ast
import importlib.util
import re
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest

import ssd1b
from ssd1b.cli import main
from ssd1b.errors import InputError
from ssd1b.extras import EXTRAS, WITHOUT_EXTRA, install, require

SOURCE = Path(ssd1b.__file__).parent
PROJECT = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]

IMPORTED_AS = {
    "huggingface_hub": "huggingface_hub", "pillow": "PIL",
    "prometheus-client": "prometheus_client", "python-multipart": "python_multipart", 
    "tomli-w": "tomli_w", "torch-fidelity": "torch_fidelity",
}  # fmt: skip
COMES_WITH = {
    "markupsafe": "jinja2", "huggingface_hub": "transformers", "openvino_telemetry": "openvino",
    "pydantic_core": "pydantic", "torchvision": "spandrel", "starlette": "fastapi", "h11": "uvicorn",
}  # fmt: skip


def names(requirements: "list[str]") -> "set[str]":
    found = {re.split(r"[<>=\[ ]", each, maxsplit=1)[0] for each in requirements}
    return {IMPORTED_AS.get(name, name) for name in found}


def imported(path: Path) -> "set[str]":
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {each.name.partition(".")[0] for each in node.names}
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            found.add(node.module.partition(".")[0])
        elif (
            isinstance(node, ast.Call)
            and getattr(node.func, "id", getattr(node.func, "attr", ""))
            in ("import_module", "library", "find_spec")
            and node.args
            and isinstance(node.args[0], ast.Constant)
        ):
            found.add(str(node.args[0].value).partition(".")[0])
    return found


def test_every_library_that_the_source_imports_is_of_the_base_or_of_an_extra() -> None:
    base = names(PROJECT["dependencies"])
    known = (
        base | {name for brought in EXTRAS.values() for name in brought} | WITHOUT_EXTRA.keys() | {"ssd1b"}
    )
    for path in SOURCE.rglob("*.py"):
        others = imported(path) - known - sys.stdlib_module_names - {"_typeshed"}
        assert {COMES_WITH.get(name, name) for name in others} <= known, f"{path} imports {others}"


def test_extras_are_those_of_the_project() -> None:
    for extra, brought in EXTRAS.items():
        assert set(brought) == names(PROJECT["optional-dependencies"][extra]), extra


@pytest.fixture
def hidden(monkeypatch: pytest.MonkeyPatch):
    """Make libraries look as if they were not installed; commands must not get to their work."""

    def hide(*libraries: str) -> None:
        find = importlib.util.find_spec

        def found(name: str, package: "str | None" = None):
            return None if name in libraries else find(name, package)

        monkeypatch.setattr("ssd1b.extras.find_spec", found)

    return hide


PROMPT = "a red cube"
COMMANDS = {
    ("report", "cells"): {"scipy", "matplotlib", "jinja2"},
    ("tune", PROMPT, "--out", "tuned"): {"scipy", "optuna"},
    ("guide", PROMPT, "--out", "guide"): {"scipy", "matplotlib", "jinja2"},
    ("evaluate",): {"scipy"},
    ("bench",): {"psutil"},
    ("bench", "--out", "bench"): {"psutil", "matplotlib"},
    ("finetune", "--model", "mini-sdxl", "--data", "pictures", "--out", "run"): {"accelerate"},
    ("distill", "--teacher", "mini-sdxl", "--data", "tabletop", "--out", "run"): {"accelerate"},
    ("distill", "--teacher", "mini-sdxl", "--data", "tabletop", "--out", "run", "--ray", "local"): {
        "accelerate",
        "datasets",
        "ray",
    },
    ("distill", "--teacher", "mini-sdxl", "--dry-run", "--out", "run"): {"matplotlib"},
    ("tabletop", "examine"): {"scipy", "matplotlib"},
    ("tabletop", "train", "judge", "--out", "run"): {"accelerate"},
}


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_all_that_a_command_lacks_is_said_before_it_begins(
    arguments, hidden, capsys, monkeypatch, tmp_path
) -> None:
    monkeypatch.chdir(tmp_path)
    for missing in (COMMANDS[arguments], *({each} for each in COMMANDS[arguments])):
        with monkeypatch.context() as patched:
            patched.setattr("ssd1b.pipeline.Pipeline.load", None)
            hidden(*missing)
            assert main([*arguments]) == 2
        told = capsys.readouterr()
        (line,) = told.err.splitlines()
        said = re.search(r"needs (.*), which (?:is|are) not installed: (pip install .*)$", line)
        assert said is not None and set(said[1].split(", ")) == missing, line
        assert told.out == "" and not [*tmp_path.iterdir()]


@pytest.mark.parametrize(
    "arguments", [("sweep", PROMPT, "--out", "cells", "--dry-run"), ("models",), ("presets",)]
)
def test_other_commands_do_without(arguments, hidden, monkeypatch, tmp_path) -> None:
    monkeypatch.chdir(tmp_path)
    hidden(*(name for brought in EXTRAS.values() for name in brought))
    assert main([*arguments]) == 0


def test_one_command_installs_everything() -> None:
    # The torch that is there stays, whatever the libraries depend on.
    torch = f"torch=={version('torch').partition('+')[0]}"
    assert install(["scipy"]) == f"pip install 'ssd1b[eval]' {torch}"
    assert install(["jinja2", "scipy"]) == f"pip install 'ssd1b[lab]' {torch}"
    assert install(["jinja2", "accelerate"]) == f"pip install 'ssd1b[lab,train]' {torch}"
    assert install(["bitsandbytes"]) == f"pip install bitsandbytes {torch}"
    assert install(["bitsandbytes", "torchao"]) == f"pip install 'ssd1b[quantize]' bitsandbytes {torch}"
    with pytest.raises(
        InputError, match=r"^this needs nothing_of_that_name, which is not installed: pip install"
    ):
        require("this", "json", "nothing_of_that_name")
