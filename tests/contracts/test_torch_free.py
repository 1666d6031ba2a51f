"""What the command line needs for ``--help`` must not wait for torch."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "numpy", "PIL", "transformers", "safetensors", "jaxtyping", "pydantic"}
LIGHT = [
    "settings",
    "presets",
    "advice",
    "prompts",
    "recipe",
    "sampler_names",
    "layouts",
    "table_files",
    "validation",
    "errors",
]


@pytest.mark.parametrize("module", LIGHT)
def test_module_is_light(module):
    code = f"import sys, ssd1b.{module}; print(*sorted({HEAVY!r} & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
