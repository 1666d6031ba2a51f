"""Which browser the browser tests take."""

import pytest

import browsers


def nothing(name: object) -> None:
    return None


def test_playwrights_own_browser_is_taken_before_the_systems():
    assert (
        browsers.find_browser("/own/chrome", lambda name: f"/usr/bin/{name}", lambda path: True)
        == "/own/chrome"
    )


@pytest.mark.parametrize("name", browsers.COMMANDS)
def test_a_command_of_the_system_is_found(name):
    which = {name: f"/usr/bin/{name}"}.get
    assert browsers.find_browser("/own/chrome", which, lambda path: False) == f"/usr/bin/{name}"


@pytest.mark.parametrize("path", browsers.APPLICATIONS)
def test_an_application_is_found(path):
    assert browsers.find_browser("/own/chrome", nothing, lambda each: each.as_posix() == path) == path


def test_where_there_is_none_a_command_brings_it(monkeypatch):
    assert browsers.find_browser("/own/chrome", nothing, lambda path: False) is None
    monkeypatch.setattr(browsers, "is_debian", lambda: True)
    assert browsers.how_to_install(root=True) == "apt-get update && apt-get install -y chromium"
    assert browsers.how_to_install(root=False).startswith("sudo sh -c 'apt-get update && ")
    monkeypatch.setattr(browsers, "is_debian", lambda: False)
    assert browsers.how_to_install().endswith("-m playwright install --with-deps chromium")
