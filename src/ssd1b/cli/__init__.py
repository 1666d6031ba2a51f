"""The command line: each command is a thin file that parses, calls and prints."""

from ssd1b.cli.app import main

__all__ = ["main"]
