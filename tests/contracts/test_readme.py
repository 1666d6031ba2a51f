"""What the README and the guide say can be done can be done."""

import re
import shlex
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from ssd1b.cli.app import cli

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/guide").glob("*.md"))]
COMMANDS = [
    command
    for page in PAGES
    for command in re.findall(r"^    (ssd1b [^#\n]+)", page.read_text(encoding="utf-8"), re.MULTILINE)
]
LINKS = [
    page.parent / link
    for page in PAGES
    for link in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8"))
    if "://" not in link
]
TARGETS = re.findall(r"^    make ([a-z-]+)", README, re.MULTILINE)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_parses(line: str) -> None:
    """Names, options and arguments exist; nothing is drawn."""
    command, arguments = cli, shlex.split(line)[1:]
    while isinstance(command, click.Group):
        command = command.get_command(click.Context(command), arguments.pop(0))
    assert command.make_context(command.name, arguments).command is command


def test_every_make_target_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test"} <= set(TARGETS)
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in TARGETS)


def test_the_sheet_is_drawn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    line = next(line for line in COMMANDS if "tabletop show" in line)
    assert CliRunner().invoke(cli, shlex.split(line)[1:]).exit_code == 0
    assert (tmp_path / "renders.png").stat().st_size > 10_000


def test_the_python_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (code,) = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    namespace: dict[str, object] = {}
    exec(compile(code, "README.md", "exec"), namespace)
    assert (tmp_path / "sphere.png").exists()
    assert namespace["final"].recipe.settings.guidance_scale == 7.0  # type: ignore[attr-defined]


@pytest.mark.parametrize("link", LINKS, ids=lambda link: link.name)
def test_every_link_leads_somewhere(link: Path) -> None:
    assert link.exists()
