"""The generated references in docs/reference are those of the present commands and docstrings."""

import importlib.util
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SPEC = importlib.util.spec_from_file_location("reference", ROOT / "tools" / "reference.py")
assert SPEC is not None and SPEC.loader is not None
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)


@pytest.mark.parametrize(
    ("page", "write"), [("cli.md", reference.command_line), ("python.md", reference.python)]
)
def test_a_reference_is_current(page, write):
    """``make docs`` writes it anew."""
    assert (reference.PAGES / page).read_text(encoding="utf-8") == write()
