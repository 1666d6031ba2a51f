"""The names that users import: all there, none loaded before it is used."""

import ast
import subprocess
import sys
from importlib import import_module
from importlib.metadata import version
from pathlib import Path

import pytest

import ssd1b

NAMES = [
    "Bulk", "ConflictError", "Execution", "FailedError", "GenerationSettings", "InputError", "InputFile",
    "Loading", "NotFoundError", "OutOfSpaceError", "Parameters", "Picture", "Pipeline", "Preset", "Recipe",
    "Sweep", "UnavailableError", "__version__", "advise", "benchmark", "describe_image", "describe_model",
    "distill_model", "distill_steps", "evaluate_folder", "evaluate_tabletop", "generate_bulk", "guide",
    "load_preset", "make_stages", "make_step_stages", "parse_axis", "plan_distillation", "plan_steps",
    "read_goal", "read_recipe", "reproduce", "save_picture", "sweep",
    "tune", "upscale", "write_report",
]  # fmt: skip
"""Programs depend on these: none may go without a deprecation."""


def test_public_names_are_these():
    assert sorted(ssd1b.__all__) == sorted(NAMES)
    assert set(NAMES) <= set(dir(ssd1b))


@pytest.mark.parametrize("name", NAMES)
def test_every_name_loads(name):
    assert getattr(ssd1b, name) is getattr(ssd1b, name)


def test_version_is_the_distributions():
    assert ssd1b.__version__ == version("ssd1b")


def test_type_checkers_see_what_runs():
    """The imports under TYPE_CHECKING are those that ``__getattr__`` makes."""
    tree = ast.parse(Path(ssd1b.__file__).read_text(encoding="utf-8"))
    (block,) = (node for node in tree.body if isinstance(node, ast.If))
    shown = {
        alias.name: getattr(import_module(str(node.module)), alias.name)
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }
    assert shown == {name: getattr(ssd1b, name) for name in NAMES if name != "__version__"}


def test_other_names_are_refused():
    with pytest.raises(AttributeError, match="module 'ssd1b' has no attribute 'Pipelin'"):
        ssd1b.Pipelin  # noqa: B018
    assert not hasattr(ssd1b, "__path_to_nowhere__")


def test_importing_the_package_imports_nothing_else():
    code = "import sys; before = set(sys.modules); import ssd1b; print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert {name for name in done.stdout.split() if name.startswith(("ssd1b", "torch", "numpy"))} == {"ssd1b"}
