"""Options of the server: what cannot be meant is refused in one line, in flags and in the settings file."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from server_process import ServerProcess
from ssd1b.errors import InputError
from ssd1b.server.options import Key, ServerOptions, read_keys, read_options
from ssd1b.server.security import Guard

KEY = "0123456789abcdef"

NO_HOSTS = [
    "a b", " localhost", "https://images.example.org", "//images", "images.example.org:443", "images/path",
    "*", "*.example.org", "user@images", "1.2.3.400", "12345", "[::1]:80", "::g", ".", "a..b", "images\n",
    "é", "a" * 300,
]  # fmt: skip


@pytest.mark.parametrize("given", NO_HOSTS)
@pytest.mark.parametrize("option", ["host", "allow_host"])
def test_what_is_no_host_is_refused(tmp_path: Path, option: str, given: str) -> None:
    value = (given,) if option == "allow_host" else given
    with pytest.raises(InputError, match=f"^{option} is .*: it must be a host name or an IP address alone"):
        read_options(None, {option: value})


def test_what_is_no_host_is_refused_in_a_settings_file(tmp_path: Path) -> None:
    file = tmp_path / "serve.toml"
    file.write_text('allow_host = ["images.example.org", "http://images.example.org"]\n')
    with pytest.raises(InputError, match=f"^{file}: allow_host is 'http://images.example.org': it must be"):
        read_options(str(file), {})
    file.write_text('allow_host = [""]\n')
    with pytest.raises(InputError, match="must not be empty"):
        read_options(str(file), {})


def test_the_command_refuses_it_in_one_line() -> None:
    command = [sys.executable, "-m", "ssd1b", "serve", "--allow-host", "https://images.example.org"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode == 2
    assert len(ended.stderr.splitlines()) == 1 and "'https://images.example.org'" in ended.stderr


@pytest.mark.parametrize(
    ("given", "header"),
    [
        ("images.example.org", "images.example.org:8080"), ("Images.Example.org", "images.example.ORG"),
        ("images.example.org.", "images.example.org"), ("my_box", "my_box"), ("10.0.0.7", "10.0.0.7:7860"),
        ("fd00::7", "[fd00::7]:7860"), ("[fd00::7]", "[fd00::7]"), ("FD00::7", "[fd00::7]"),
        ("xn--bcher-kva.example", "xn--bcher-kva.example"),
    ],
)  # fmt: skip
def test_a_host_is_known_however_it_is_written(given: str, header: str) -> None:
    ServerOptions(host=given, allow_host=(given,))
    guard = Guard(lambda *_: None, hosts=frozenset({given}), keys={})  # type: ignore[arg-type]
    assert guard._is_known(header) and not guard._is_known(f"x{header}")


@pytest.mark.parametrize("key", [f" {KEY}", f"{KEY} ", f"{KEY}é", f"{KEY}\n{KEY}", "\t" + KEY])
def test_a_key_that_no_client_could_send_is_refused_and_not_shown(tmp_path: Path, key: str) -> None:
    file = tmp_path / "keys.json"
    file.write_text(f'{{"ann": {{"key": {key!r}}}}}'.replace("'", '"'))
    with pytest.raises(InputError, match=r"ann: the key must be printable ASCII") as refused:
        read_keys(str(file))
    assert KEY not in str(refused.value)


def test_a_key_may_have_spaces_inside(tmp_path: Path) -> None:
    file = tmp_path / "keys.toml"
    file.write_text('[ann]\nkey = "a long random text"\n')
    assert read_keys(str(file)) == {"ann": Key(key="a long random text")}


@pytest.mark.enable_socket
@pytest.mark.skipif(os.name != "posix", reason="the mode tells nothing elsewhere")
@pytest.mark.parametrize(("mode", "warned"), [(0o644, True), (0o640, False), (0o600, False)])
def test_keys_that_every_user_can_read_are_a_warning(tmp_path: Path, mode: int, warned: bool) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[ann]\nkey = "{KEY}"\n')
    keys.chmod(mode)
    server = ServerProcess(tmp_path / "store", "--api-key-file", str(keys), key=KEY)
    try:
        server.wait()
        assert server.ask("GET", "/v1/queue") == [], "it is no error"
        assert ("every user of this machine can read" in server.log.read_text()) is warned
        assert KEY not in server.log.read_text()
    finally:
        server.stop()
