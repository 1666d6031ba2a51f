"""With unusual streams and signals the command ends without a traceback and with the right exit code."""

import os
import signal
import subprocess
import sys
import time

import pytest

from ssd1b.cli.app import COMMANDS
from ssd1b.cli.process import SPINS

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="streams and signals of POSIX")

DRAW = "generate 'a cube' --steps 1 --size 64 --count 2 --seed 7 --offline --out out"


def shell(line: str, folder, **environment: str) -> subprocess.CompletedProcess:
    """Run a line of shell in which ``ssd1b`` is the command."""
    line = line.replace("ssd1b", f"{sys.executable} -m ssd1b", 1)
    return subprocess.run(
        ["sh", "-c", line], cwd=folder, capture_output=True, timeout=300, env={**os.environ, **environment}
    )


@pytest.mark.parametrize("command", ["", *COMMANDS])
def test_the_standard_output_may_be_closed_full_or_left(tmp_path, command):
    closed = shell(f"ssd1b {command} --help >&-", tmp_path)
    assert (closed.returncode, closed.stderr) == (0, b"")
    full = shell(f"ssd1b {command} --help >/dev/full", tmp_path)
    assert full.returncode == 2
    assert full.stderr == b"error: cannot write to the standard output: No space left on device\n"
    left = shell(f"{{ sleep 0.3; ssd1b {command} --help; echo $? >code; }} | true", tmp_path)
    assert left.stderr == b""
    assert (tmp_path / "code").read_text() == "1\n"


@pytest.mark.parametrize("closed", ["2>&-", "2>/dev/full", "<&- >&- 2>&-", "<&-", "2>&1 >&- | true"])
def test_messages_that_cannot_be_written_change_nothing(tmp_path, closed):
    wrong = shell(f"ssd1b generate x --steps x {closed}", tmp_path)
    assert wrong.returncode == (0 if "|" in closed else 2)
    assert b"Traceback" not in wrong.stderr and b"Exception" not in wrong.stderr


def test_prompts_from_a_closed_standard_input(tmp_path):
    done = shell("ssd1b generate --file - <&-", tmp_path)
    assert done.returncode == 2
    assert done.stderr == b"error: cannot read the standard input: it is closed\n"


def test_pictures_are_kept_when_their_names_cannot_be_printed(tmp_path):
    done = shell(f"ssd1b {DRAW} >/dev/full", tmp_path)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith(b"error: cannot write to the standard output")
    assert [path.name for path in tmp_path.glob("out/*.png")] == ["7-a-cube.png"]


def test_work_goes_on_when_its_messages_cannot_be_written(tmp_path):
    done = shell(f"ssd1b {DRAW} 2>/dev/full", tmp_path)
    assert done.returncode == 0
    assert done.stdout == b"out/7-a-cube.png\nout/8-a-cube.png\n"


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "latin-1"},
        {"PYTHONIOENCODING": "ascii"},
        {"LC_ALL": "C"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
        {"LC_ALL": "en_US.ISO-8859-1", "PYTHONUTF8": "0"},
    ],
)
@pytest.mark.parametrize("call", ["presets", "inspect", "generate --steps 1 --sampler"])
def test_terminals_without_the_letters(tmp_path, environment, call):
    done = shell(f"ssd1b {call} {'' if call == 'presets' else '日本🦊.png'}", tmp_path, **environment)
    assert done.returncode == (0 if call == "presets" else 2)
    assert b"Traceback" not in done.stderr
    assert len(done.stderr.splitlines()) == (0 if call == "presets" else 1)


@pytest.mark.parametrize("number", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_removes_what_is_not_finished(tmp_path, number):
    out = tmp_path / "out"
    call = ["generate", "a cube", "--steps", "500", "--size", "64", "--offline", "--preview", "--out", out]
    with subprocess.Popen(
        [sys.executable, "-m", "ssd1b", *map(str, call)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A parent such as nohup leaves some ignored.
        preexec_fn=lambda: signal.signal(getattr(signal, number), signal.SIG_DFL),
    ) as process:
        while not list(out.glob("*")) and process.poll() is None:
            time.sleep(0.02)
        process.send_signal(getattr(signal, number))
        printed, told = process.communicate()
    assert process.returncode == 128 + getattr(signal, number)
    assert printed == b""
    assert told.splitlines()[-1] == (b"interrupted" if number == "SIGINT" else b"terminated")
    assert [path.name for path in out.glob("*.png")] == []


def _with_default_signals(call, folder):
    """Run a process; a parent such as nohup leaves signals ignored."""

    def default():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_DFL)

    return subprocess.run(call, cwd=folder, capture_output=True, timeout=60, preexec_fn=default)


@pytest.mark.parametrize(("number", "word"), [("SIGINT", b"interrupted\n"), ("SIGTERM", b"terminated\n")])
def test_a_signal_that_an_import_would_discard(tmp_path, number, word):
    """As C++ does while it initialises a module: torch lost some, and aborted the process at others."""
    (tmp_path / "discards.py").write_text(
        f"import signal\ntry:\n    signal.raise_signal(signal.{number})\nexcept BaseException:\n    pass\n"
    )
    code = (
        "import time; from ssd1b.cli import process; "
        "process.main = lambda: (__import__('discards'), time.sleep(60)); raise SystemExit(process.run())"
    )
    done = _with_default_signals([sys.executable, "-c", code], tmp_path)
    assert (done.returncode, done.stderr) == (128 + getattr(signal, number), word)


def test_a_signal_that_arrives_just_before_the_main_thread_waits_is_sent_again(tmp_path):
    """Python notes it, and would run its handler only after the system call, a minute later."""
    (tmp_path / "discards.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    code = (
        "import signal, time; from ssd1b.cli import process; send, lost = signal.pthread_kill, []; "
        "signal.pthread_kill = lambda *given: send(*given) if len(lost) == 3 else lost.append(given); "
        "process.main = lambda: (__import__('discards'), time.sleep(60)); raise SystemExit(process.run())"
    )
    done = _with_default_signals([sys.executable, "-c", code], tmp_path)
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")


@pytest.mark.parametrize("kind", ["ValueError", "InputError"])
def test_an_interrupt_that_compiled_code_replaced_by_an_error(tmp_path, kind):
    code = (
        "import signal; from ssd1b.cli import app, process; from ssd1b.errors import InputError\n"
        "def invoke(context):\n"
        "    try: signal.raise_signal(signal.SIGINT)\n"
        f"    except KeyboardInterrupt: raise {kind}('no Unicode') from None\n"
        "app.cli.invoke = invoke; raise SystemExit(process.run())"
    )
    done = _with_default_signals([sys.executable, "-c", code, "env"], tmp_path)
    assert (done.returncode, done.stderr) == (130, b"interrupted\n")


def test_an_interrupt_during_a_validation_waits_for_its_end(tmp_path):
    code = (
        "import signal, time; from ssd1b.cli import process\n"
        "from pydantic import AfterValidator, TypeAdapter; from typing import Annotated\n"
        "def check(value): signal.raise_signal(signal.SIGINT); print('checked'); return value\n"
        "number = TypeAdapter(Annotated[int, AfterValidator(check)])\n"
        "process.main = lambda: (number.validate_python(3), time.sleep(60))\n"
        "raise SystemExit(process.run())"
    )
    done = _with_default_signals([sys.executable, "-c", code], tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"checked\n", b"interrupted\n")


def test_control_c_while_modules_are_imported(tmp_path):
    """torch among them; before our handler is there, Python itself may print a traceback."""
    begun = (
        "import os, signal; from ssd1b.__main__ import run; handle = signal.signal; "
        "signal.signal = lambda *given: (handle(*given), os.write(1, b'.'))[0]; raise SystemExit(run())"
    )
    ends = []
    for wait in (0.0, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8):
        with subprocess.Popen(
            [sys.executable, "-c", begun, "inspect", "mini-ssd-1b"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        ) as process:
            assert process.stdout.read(1) == b"."
            time.sleep(wait)
            process.send_signal(signal.SIGINT)
            _, told = process.communicate()
        ends.append((process.returncode, told))
    assert {end for end in ends if end[0] != 0} <= {(130, b"interrupted\n")}
    assert all(told in (b"", b"interrupted\n") for _, told in ends)
    assert (130, b"interrupted\n") in ends


def _environment(name: str, **given: str) -> str:
    code = (
        "import os; from ssd1b.cli import process; process.main = lambda **given: print(os.environ.get("
        f"{name!r})) or 0; process.run()"
    )
    clean = {
        key: value for key, value in os.environ.items() if key not in ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    }
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env={**clean, **given}
    )
    return done.stdout.strip()


def test_threads_wait_briefly_unless_the_user_says_how():
    assert _environment("GOMP_SPINCOUNT") == SPINS
    assert _environment("GOMP_SPINCOUNT", GOMP_SPINCOUNT="7") == "7"
    assert _environment("GOMP_SPINCOUNT", OMP_WAIT_POLICY="active") == "None"


def test_importing_the_package_changes_no_setting_of_the_process():
    code = (
        "import os, signal, sys; before = dict(os.environ), signal.getsignal(signal.SIGINT), sys.stdout; "
        "import ssd1b, ssd1b.pipeline, ssd1b.cli; "
        "assert before == (dict(os.environ), signal.getsignal(signal.SIGINT), sys.stdout)"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
