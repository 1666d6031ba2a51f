import io
import re
import time

import pytest

from ssd1b import progress
from ssd1b.progress import progress_bar


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.fixture(autouse=True)
def often(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 0.05)


def test_a_log_file_gets_lines_with_the_time_left(capsys):
    for _ in progress_bar(range(4), label="latents", unit="image"):
        time.sleep(0.06)
    line = r"latents: +\d+% \d/4 \[00:00<00:00, +[\d.]+image/s\]\n"
    assert re.fullmatch(f"({line})+", capsys.readouterr().err)


def test_short_work_prints_nothing_to_a_log_file(capsys, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS", 30)
    with progress_bar(total=1000, unit="step", keep=True) as bar:
        for _ in range(1000):
            bar.update()
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_a_bar_that_is_erased_unless_kept(monkeypatch):
    for keep in (False, True):
        monkeypatch.setattr("sys.stderr", terminal := Terminal())
        list(progress_bar(range(3), label="latents", keep=keep))
        last = terminal.getvalue().rstrip("\n").split("\r")[-1]
        assert ("100%" in last) == keep
        assert ("\n" in terminal.getvalue()) == keep


def test_an_unmeasured_item_is_not_in_the_time_left(monkeypatch):
    monkeypatch.setattr("sys.stderr", terminal := Terminal())
    now = [1000.0]
    monkeypatch.setattr("time.time", lambda: now[0])
    monkeypatch.setattr("tqdm.std.time", lambda: now[0])
    with progress_bar(total=102, unit="step", start=1) as bar:
        now[0] += 600
        progress.update_unmeasured(bar)
        assert "2/102" in terminal.getvalue() and "<?" in terminal.getvalue()
        for _ in range(10):
            now[0] += 2
            bar.update()
        assert "12/102 [10:20<03:00" in terminal.getvalue()


def test_a_hidden_bar(capsys):
    with progress_bar(total=2, hidden=True) as bar:
        time.sleep(0.1)
        progress.update_unmeasured(bar)
        bar.update()
    assert capsys.readouterr().err == ""
