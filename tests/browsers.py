"""Where a Chromium may be on this machine, and the command that brings one."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

COMMANDS = (
    "chromium",
    "chromium-browser",
    "google-chrome",
    "google-chrome-stable",
    "chrome",
    "microsoft-edge",
)
"""Names under which systems install it; Edge is a Chromium, too."""

APPLICATIONS = (
    "/Applications/Google Chrome.app/Contents/MacOS/Google Chrome",
    "/Applications/Chromium.app/Contents/MacOS/Chromium",
    "C:/Program Files/Google/Chrome/Application/chrome.exe",
    "C:/Program Files (x86)/Microsoft/Edge/Application/msedge.exe",
)
"""Where macOS and Windows put it."""


def find_browser(
    own: str, which: Callable[[str], str | None] = shutil.which, exists: Callable[[Path], bool] = Path.exists
) -> str | None:
    """Find a Chromium: the one that Playwright downloaded, else one of the system's.

    Args:
        own: where Playwright's own would be.
        which: finds a command's path.
        exists: whether a path is there.
    """
    if exists(Path(own)):
        return own
    commands = (which(name) for name in COMMANDS)
    applications = (path for path in APPLICATIONS if exists(Path(path)))
    return next((path for path in (*commands, *applications) if path), None)


def is_debian() -> bool:
    """Whether ``chromium`` is a package here; on Ubuntu, which has ``apt-get`` too, it is none."""
    release = Path("/etc/os-release")
    return release.exists() and "ID=debian" in release.read_text().splitlines()


def how_to_install(*, root: bool = os.getuid() == 0) -> str:
    """The one command that brings a browser."""
    if is_debian():
        command = "apt-get update && apt-get install -y chromium"
        return command if root else f"sudo sh -c '{command}'"
    return f"{sys.executable} -m playwright install --with-deps chromium"


def main() -> int:
    """Find a browser, or install it where that needs no password; say which it is."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        own = playwright.chromium.executable_path
    if find_browser(own) is None and is_debian() and os.getuid() == 0:
        subprocess.run(how_to_install(), shell=True, check=True)
    path = find_browser(own)
    sys.stdout.write(f"{path or f'no Chromium was found: {how_to_install()}'}\n")
    return 0 if path else 1


if __name__ == "__main__":
    sys.exit(main())
