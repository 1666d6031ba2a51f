"""Hostile command lines for every command and option, from click's own list of them.

python tests/hostile_calls.py            # all of them, each in a process of its own: an hour
python tests/hostile_calls.py generate   # of some commands
"""

import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import click

from ssd1b.cli.app import COMMANDS, cli

LONGEST_LINE = 1000

VALUES = {
    "empty": "", "blank": " ", "dash": "-", "dashes": "--", "minus one": "-1", "nan": "nan", "inf": "inf",
    "overflow": "1e309", "other digits": "٣", "underscore": "1_0", "plus": "+5", "digits": "9" * 5000,
    "long": "x" * 100_000, "long name": "y" * 300, "control": "a\x1b[2J\r\x07b", "line ends": "a\nb\u2028c",
    "surrogate": b"\xff\xfe", "direction": "\u202eabc", "no user": "~nosuchuser/x", "device": "/dev/null",
    "endless": "/dev/zero", "folder": ".", "missing": "none/such.file", "beneath a file": "a-file.txt/x",
    "pipe": "pipe", "toml": "bad.toml", "json": "bad.json", "picture": "bad.png",
    "weights": "bad.safetensors", "brackets": "[" * 5000, "percent": "%s%n{0}$(x)", "traversal": "../" * 50,
    "zero": "0", "huge": "99999999999", "fraction": "0.5", "comma": ",", "equals": "=", "null text": "null",
}  # fmt: skip

NEEDED = {
    "generate": ["a cube", "--steps", "0"], "rerun": ["none.png"], "inspect": ["none.png"],
    "sweep": ["a cube", "--out", "s", "--axis", "steps=0"], "report": ["--sweep", "none"],
    "tune": ["--out", "t", "--trials", "0"], "guide": ["--out", "g", "--pairs", "0"],
    "evaluate": ["--seeds", "0"], "upscale": ["none.png", "--out", "u"],
    "distill": ["--teacher", "none/none", "--out", "d", "--offline"], "bench": ["--rounds", "0"],
    "tabletop render": ["--out", "r", "--count", "0"], "tabletop show": ["--out", "s.png", "--count", "0"],
    "tabletop examine": ["--count", "0"], "tabletop train": ["vae", "--out", "v", "--steps", "0"],
}  # fmt: skip
"""What each command cannot do without, and something wrong, so that nothing is drawn whatever is added."""


def commands() -> Iterator[tuple[str, click.Command]]:
    context = click.Context(cli)
    for name in COMMANDS:
        command = cli.get_command(context, name)
        if isinstance(command, click.Group):
            yield from ((f"{name} {each}", command.commands[each]) for each in command.list_commands(context))
        else:
            yield name, command


def calls(kinds: dict[str, str | bytes] = VALUES) -> Iterator[tuple[str, list[str | bytes]]]:
    """Every hostile value for every option and argument: (what it is, the command line)."""
    for name, command in commands():
        for parameter in command.params:
            for kind, value in kinds.items():
                given: list[str | bytes] = []
                if isinstance(parameter, click.Option):
                    if parameter.is_flag:
                        continue
                    given = [max(parameter.opts, key=len)]
                given += [value] * max(parameter.nargs, 1)
                front = [] if isinstance(parameter, click.Option) else ["--"]
                needed = [] if front and name not in ("sweep", "generate") else NEEDED.get(name, [])
                yield f"{name} {parameter.name}: {kind}", [*name.split(), *needed, *front, *given]


def prepare(folder: Path) -> None:
    """Lay out what the values name."""
    (folder / "a-file.txt").write_text("a text")
    os.mkfifo(folder / "pipe")
    (folder / "bad.toml").write_text(f"[axes]\nsteps = {'9' * 5000}\n[settings]\nsteps = 1e400")
    (folder / "bad.json").write_text('{"settings": {"steps": ' + "9" * 4000 + ', "\\u001b[2J": 1}}')
    (folder / "bad.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"\xff" * 100)
    (folder / "bad.safetensors").write_bytes(b"\xff" * 100)


def wrong(code: int, told: str) -> str | None:
    """Say what a call that ended so did not keep of the promise; None if it kept it."""
    lines = told.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    if "Traceback" in told or code not in (0, 2):
        return f"exit code {code}: {lines[-1][-200:] if lines else ''}"
    if code == 2 and (len(errors) != 1 or not lines[-1].startswith("error: ")):
        return f"{len(errors)} error lines"
    if any(len(line) > LONGEST_LINE or not line.isprintable() for line in lines):
        return "a line that is too long or not printable"
    return None


def main(wanted: list[str]) -> None:
    failed, kinds = [], Counter()
    for what, call in calls():
        if wanted and not any(what.startswith(f"{name} ") for name in wanted):
            continue
        kinds[what.rpartition(": ")[2]] += 1
        with tempfile.TemporaryDirectory() as folder:
            prepare(Path(folder))
            try:
                done = subprocess.run(
                    [sys.executable, "-m", "ssd1b", *call],
                    cwd=folder, capture_output=True, timeout=120, stdin=subprocess.DEVNULL,
                )  # fmt: skip
                problem = wrong(done.returncode, done.stderr.decode("utf-8", "replace"))
            except subprocess.TimeoutExpired:
                problem = "no end"
            except OSError as error:
                problem = None if error.errno == 7 else str(error)  # too long for the system itself
        if problem:
            failed.append(what)
            sys.stdout.write(f"{what}: {problem}\n")
            sys.stdout.flush()
    sys.stdout.write(f"{kinds.total()} calls, {len(failed)} broke the promise; by kind: {dict(kinds)}\n")


if __name__ == "__main__":
    main(sys.argv[1:])
