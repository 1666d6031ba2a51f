"""``ssd1b selftest``: check a model's files, and the images that it generates on this machine."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import click

from ssd1b.cli.command import Command
from ssd1b.cli.messages import notify
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.validation import Range, check

if TYPE_CHECKING:
    from ssd1b.bench.selftest import Check

NUMBERS = {
    "steps": Annotated[int, Range(1, 50)],
    "size": Annotated[int, Range(64, 1024, multiple_of=64)],
    "minutes": Annotated[float, Range(1, 1440)],
}

FAILED = 1
"""Exit code for a model that does not pass; 2 means that there was nothing to test."""


@click.command("selftest", cls=Command)
@click.argument("model", required=False, metavar="[MODEL]")
@click.option(
    "--steps", type=int, default=4, show_default=True, metavar="N", help="Denoising steps of each image."
)
@click.option("--size", type=int, metavar="N", help="Side of the images. Default: the model's, at most 512.")
@click.option("--device", metavar="NAME", help="Test only this one: cpu, cuda, cuda:1, mps, xpu.")
@click.option("--dtype", metavar="NAME", help="Test only this number format: fp32, bf16, fp16.")
@click.option(
    "--minutes", type=float, default=30.0, show_default=True, metavar="N",
    help="Time limit of each image.",
)  # fmt: skip
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(
    model: str | None,
    steps: int,
    size: int | None,
    device: str | None,
    dtype: str | None,
    minutes: float,
    offline: bool,
    as_json: bool,
) -> None:
    """Check a model: files, weights, tokenizers, and an image compared with diffusers', if that is installed.

    Names, shapes and counts of the weights are compared with the published ones, every number is checked to
    be finite, and tokenizers are compared with CLIP's. Then an image is generated in a few steps on each
    device and in each number format that this machine supports. The output contains neither paths nor tokens,
    so it can be pasted into a report. The last line is the verdict; the exit code is 0 for a pass, 1 for a
    fail, and 2 if there was nothing to test.

    \b
    Examples:
      ssd1b selftest
      ssd1b selftest ssd-1b
      ssd1b selftest SSD-1B.safetensors --device cpu --dtype bf16 --size 256
    """  # noqa: D301 (\b keeps click from wrapping)
    for name, value in (("steps", steps), ("size", size), ("minutes", minutes)):
        if value is not None:
            check(name, value, NUMBERS[name])

    from ssd1b.actions.selftest import start_selftest
    from ssd1b.bench.selftest import FAIL, verdict

    test = start_selftest(
        model or DEFAULT_MODEL, device=device, dtype=dtype, steps=steps, size=size, minutes=minutes,
        offline=offline, notify=notify,
    )  # fmt: skip
    if not as_json:
        click.echo(f"selftest of {test.title}, by ssd1b")
        for each, value in test.machine.items():
            click.echo(f"{each}: {value}")
    results: list[Check] = []
    for each in test.checks:
        results.append(each)
        if not as_json:
            click.echo(f"{each.result:8} {each.name}: {each.said}")
    last = verdict(results)
    if as_json:
        report = {"model": test.title, "machine": test.machine, "checks": [asdict(each) for each in results]}
        click.echo(json.dumps({**report, "verdict": last}))
    else:
        click.echo(last)
    if any(each.result == FAIL for each in results):
        raise click.exceptions.Exit(FAILED)
