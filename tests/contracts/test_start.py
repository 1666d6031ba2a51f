"""What a picture takes from the start of a process: nothing that is slow to import and not needed."""

import subprocess
import sys

SLOW = {
    "transformers",
    "diffusers",
    "scipy",
    "matplotlib",
    "sympy",
    "torch._dynamo",
    "torch._inductor",
    "torchao",
}

DRAW = f"""
import sys
from ssd1b.cli import main
code = main(["generate", "a red cone", "--seed", "1", "--steps", "1", "--offline", "--out", sys.argv[1]])
print(code, *({SLOW!r} & sys.modules.keys()))
"""


def test_a_picture_imports_nothing_slow(tmp_path):
    command = [sys.executable, "-c", DRAW, str(tmp_path / "cone.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0", done.stdout
    assert (tmp_path / "cone.png").exists()
