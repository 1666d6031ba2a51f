"""Whatever is typed ends in one line: hostile values for every option of every command.

``python tests/hostile_calls.py`` tries all values for all options, each in a process of its own.
"""

import os
import sys

import pytest

from hostile_calls import VALUES, calls, commands, prepare, wrong
from ssd1b.cli.app import main

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="pipes of POSIX")

KINDS = [
    "empty", "nan", "other digits", "digits", "long", "long name", "control", "line ends", "surrogate",
    "no user", "device", "pipe", "json", "brackets", "folder",
]  # fmt: skip
"""Those that are found early, and one that is read."""


@pytest.mark.parametrize("command", [name for name, _ in commands()])
def test_hostile_values_end_in_one_line(command, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    prepare(tmp_path)
    monkeypatch.setattr("ssd1b.server.run.run", lambda *arguments, **options: None)  # it would listen
    broken, tried = [], 0
    chosen = list(calls({kind: VALUES[kind] for kind in KINDS}))
    for index, (what, call) in enumerate(chosen):
        # Every option gets a third of the kinds, other ones than its neighbour.
        if not what.startswith(f"{command} ") or (index // len(KINDS) + index) % 3:
            continue
        tried += 1
        code = main([os.fsdecode(word) for word in call])
        message = capsys.readouterr().err
        if command == "selftest" and code == 1 and not message:
            continue  # the verdict on a file that is no good model
        if problem := wrong(code, message):
            broken.append(f"{what}: {problem}")
    assert broken == []
    assert tried or command in ("models", "env")  # which take no values


def test_the_check_finds_what_breaks_the_promise():
    assert wrong(2, "error: x is wrong\n") is None
    assert wrong(0, "") is None
    assert wrong(0, "advice: x\n") is None
    assert wrong(1, "Traceback (most recent call last):\nValueError: x\n")
    assert wrong(2, "") and wrong(2, "error: a\nerror: b\n") and wrong(2, "error: a\nmore\n")
    assert wrong(2, f"error: {'x' * 1000}\n") and wrong(2, "error: \x1b[2J\n")
