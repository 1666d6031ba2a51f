"""Messages of the server name API fields, not command-line options."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import ssd1b
from ssd1b.server.errors import with_fields
from ssd1b.server.routes.settings import _setting
from ssd1b.server.schemas import CLIENT_SETTINGS, JobBody

PACKAGE = Path(ssd1b.__file__).parent

OTHERS = {
    "cli", "actions", "bench", "bulk", "cluster", "distill", "evaluate", "finetune", "lab", "tabletop",
    "training",
}  # fmt: skip
"""Packages whose messages no client of a server gets."""

ADMINISTRATORS = {
    "adapters/combining.py", "model.py", "prompts.py", "saving.py", "server/replicas.py", "server/run.py",
    "server/security.py", "speed/openvino.py", "weights/checkpoint.py", "weights/opening.py",
    "weights/prediction.py",
}  # fmt: skip
"""Modules that name options of commands, or of the server, whose start they end; these are no settings."""

OPENVINO = "omit --backend openvino"
"""A server refuses its settings itself; see ``Service._check``."""


def messages(file: Path) -> Iterator[str]:
    """The texts of a module but for docstrings, and for options and their help in the table of settings."""
    if "--" not in (source := file.read_text()):  # most modules, and parsing takes time
        return
    tree = ast.parse(source)
    skipped = {id(each.value) for each in ast.walk(tree) if isinstance(each, ast.Expr)}
    for call in ast.walk(tree):
        if isinstance(call, ast.keyword) and call.arg in ("flags", "help"):
            skipped |= {id(each) for each in ast.walk(call.value)}
    for each in ast.walk(tree):
        if isinstance(each, ast.Constant) and isinstance(each.value, str) and id(each) not in skipped:
            yield each.value


def test_no_message_names_an_option_to_a_client() -> None:
    left: dict[str, list[str]] = {}
    translated = 0
    for file in PACKAGE.rglob("*.py"):
        module = file.relative_to(PACKAGE).as_posix()
        if module.partition("/")[0] in OTHERS or module == "command_line.py":
            continue
        for text in messages(file):
            translated += with_fields(text) != text
            rest = with_fields(text).replace(OPENVINO, "")
            if re.search(r"(?<![\w-])--[a-z]", rest):
                left.setdefault(module, []).append(text)
    assert translated > 5
    assert left.keys() == ADMINISTRATORS, left


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("strength needs init_image (--from), the picture", "strength needs init_image, the picture"),
        ("enlarge the picture with --size", "enlarge the picture with size"),
        ("not an embedding but a LoRA: use --lora", "not an embedding but a LoRA: use loras"),
        ("unknown setting '--steps': the server's --steps", "unknown setting '--steps': the server's steps"),
        ("see --allow-host", "see --allow-host"),
    ],
)
def test_an_option_becomes_a_field(message: str, expected: str) -> None:
    assert with_fields(message) == expected


def test_no_description_of_a_setting_names_an_option() -> None:
    properties = JobBody.model_json_schema()["properties"]
    for name in CLIENT_SETTINGS:
        assert "--" not in properties[name].get("description", "") + _setting(name, {}).help, name
