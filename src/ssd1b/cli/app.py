"""The command ``ssd1b``: its subcommands, and how errors are reported.

A subcommand's module is imported when it is called, and imports torch only after its arguments are checked.
"""

import os
import re
import sys
from collections.abc import Sequence
from importlib import import_module

import click

from ssd1b.cli.command import Command
from ssd1b.cli.messages import format_warnings
from ssd1b.errors import InputError, line, shown, unknown
from ssd1b.extras import EXTRAS, install
from ssd1b.files import named, reason

COMMANDS = {
    "generate": "Generate images from prompts.",
    "rerun": "Reproduce an image from the recipe inside it.",
    "upscale": "Upscale images, with a model such as ESRGAN or by interpolation.",
    "bulk": "Generate an image for each row of a table, into shards.",
    "sweep": "Compare settings: generate and measure every combination.",
    "report": "Write a sweep's results as an HTML page, CSV and Parquet.",
    "tune": "Search for the best settings, and test them on fresh pairs.",
    "guide": "Test the published advice about settings on a model.",
    "presets": "List and store named settings, with their evidence.",
    "finetune": "Train a LoRA, a whole model, a new word or a ControlNet on your own images.",
    "distill": "Distill a smaller model from a large one.",
    "evaluate": "Evaluate a model's images, with confidence intervals.",
    "serve": "Serve images over HTTP: a page, and APIs for clients.",
    "bench": "Benchmark a model on this machine against other engines.",
    "selftest": "Check a model: files, weights, an image against diffusers.",
    "inspect": "Describe a model, or the settings of an image.",
    "lora": "Convert, merge, resize and extract LoRAs and other adapters.",
    "models": "List built-in, published and cached models.",
    "env": "Print versions, devices and extras for a bug report.",
    "tabletop": "Render the miniature's world, and train the miniature.",
}
"""Modules of the commands with their lines in the help, in the order of a user's first steps."""

WRONG_INPUT = 2
INTERRUPTED = 130
"""Exit codes. Shells expect 128 + SIGINT after Ctrl-C."""

_OUT_OF_MEMORY = re.compile("out of memory|can't allocate memory|not enough memory", re.IGNORECASE)

_COMPILER_FAILED = re.compile(r"(?:\w+: )?CppCompileError: .*?Output:\s*(?P<output>.*)", re.DOTALL)
"""torch's error when a C++ compiler fails, matched as text so that torch need not be imported."""

_SMALLER = "out of memory: take a smaller --size, 16 bits (--dtype bf16) or a smaller --model"


raised_by_signals: list[BaseException] = []
"""Exceptions that the handlers of signals raised in this process, the last one last."""


class Group(click.Group):
    """A group whose error for an unknown command names the nearest one."""

    command_class = Command

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Find a command.

        Raises:
            InputError: there is no such command.
        """
        command = super().get_command(ctx, cmd_name)
        if command is None:
            raise unknown("command", cmd_name, self.list_commands(ctx))
        return command


class LazyGroup(Group):
    """A group of ``COMMANDS`` that imports only the one that is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Import a command; raises as ``Group``."""
        if cmd_name in COMMANDS:
            return import_module(f"ssd1b.cli.{cmd_name}").command
        return super().get_command(ctx, cmd_name)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(cls=LazyGroup, invoke_without_command=True)
@click.version_option(package_name="ssd1b", message="%(prog)s %(version)s")
@click.pass_context
def cli(context: click.Context) -> None:
    """Text to image with SSD-1B, SDXL and their family, on your own machine.

    \b
    Examples:
      ssd1b generate "a large red metal sphere on a blue background"
      ssd1b generate "an astronaut riding a horse" --model ssd-1b --seed 7
      ssd1b inspect pictures/7-an-astronaut-riding-a-horse.png
    """  # noqa: D301 (\b keeps click from wrapping)
    format_warnings()
    if context.invoked_subcommand is None:
        click.echo(context.get_help())


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    A user's mistake is reported as one line on standard error. A traceback is a bug.

    Args:
        arguments: None for those of the process.

    Returns:
        The exit code.
    """
    try:
        _invoke(list(sys.argv[1:] if arguments is None else arguments))
        return 0
    except click.exceptions.Exit as done:  # --help and --version
        return done.exit_code
    except click.exceptions.NoArgsIsHelpError as error:  # a group without a command
        click.echo(error.format_message(), err=True)
        return WRONG_INPUT
    except KeyboardInterrupt as interrupt:
        click.echo(": ".join(["interrupted", *interrupt.args]), err=True)
        # CPython records an interrupt that passed through exec(), which dataclasses use, and would then exit
        # by SIGINT instead of our code. Another exec() clears the record.
        exec("")
        return INTERRUPTED
    except BrokenPipeError:
        # The reader is gone. Buffered text must not fail again when Python flushes it at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except Exception as error:
        explanation = _explain(error)
        if explanation is None:
            raise
        return _fail(explanation)


def _invoke(arguments: list[str]) -> None:
    try:
        with cli.make_context("ssd1b", arguments) as context:
            cli.invoke(context)
        sys.stdout.flush()
    except Exception as error:
        # Compiled code may have replaced an interrupt by an error, and our code that error by another one.
        if raised_by_signals:
            raise raised_by_signals[-1] from error
        raise


def _explain(error: Exception) -> str | None:
    """Return a line for the user; None if the error is a bug."""
    match error:
        case click.ClickException():
            return _rephrase(error)
        case InputError():
            return str(error)
        case FloatingPointError():
            return f"{error}: take --dtype bf16 or fp32"
        case ModuleNotFoundError(name=str(name)) if any(name.partition(".")[0] in e for e in EXTRAS.values()):
            library = name.partition(".")[0]
            return f"this needs {library}, which is not installed: {install([library])}"
        case ImportError() if not (error.name or "").startswith("ssd1b"):  # of our own, it is a bug
            return f"packages of this environment do not fit together: {reason(error)}; see ssd1b env"
        case MemoryError():
            return _SMALLER
        case OSError(errno=int()):  # a folder that may not be entered, a disk that fails
            return f"{named(error.filename)}: {reason(error)}" if error.filename else reason(error)
        case RuntimeError() if compiling := _COMPILER_FAILED.match(f"{type(error).__name__}: {error}"):
            return f"the C++ compiler of torch.compile failed: {_first_error(compiling['output'])}"
        case RuntimeError() if _OUT_OF_MEMORY.search(str(error)):
            return _SMALLER
        case _:
            return None


def _first_error(output: str) -> str:
    """Return the first line of a compiler's output that says what is wrong."""
    lines = [stripped for each in output.splitlines() if (stripped := each.strip())] or ["it says nothing"]
    return shown(next((each for each in lines if "error" in each), lines[0]))


def _fail(message: str) -> int:
    click.echo(f"error: {line(message)}", err=True)
    return WRONG_INPUT


def _rephrase(error: click.ClickException) -> str:
    """Write click's error in the style of our own: one sentence, with the nearest valid name."""
    if isinstance(error, click.NoSuchOption) and error.ctx is not None:
        options = [name for each in error.ctx.command.get_params(error.ctx) for name in each.opts]
        return str(unknown("option", error.option_name, [name for name in options if name.startswith("-")]))
    message = error.format_message().rstrip(".")
    message = message[:1].lower() + message[1:]
    context = getattr(error, "ctx", None)
    return f"{message} (see '{context.command_path} --help')" if context else message
