"""``ssd1b selftest``: whether a model is whole and draws here as it should."""

import json
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import click

from ssd1b.cli.command import Command
from ssd1b.errors import printable
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.validation import Range, check

if TYPE_CHECKING:
    from ssd1b.model import Model

NUMBERS = {
    "steps": Annotated[int, Range(1, 50)],
    "size": Annotated[int, Range(64, 1024, multiple_of=64)],
    "minutes": Annotated[float, Range(1, 1440)],
}

FAILED = 1
"""Exit code of a model that does not pass; one of 2 means that there was nothing to test."""


@click.command("selftest", cls=Command)
@click.argument("model", required=False, metavar="[MODEL]")
@click.option("--steps", type=int, default=4, show_default=True, metavar="N", help="Of each picture.")
@click.option(
    "--size", type=int, metavar="N", help="Side of the pictures. Default: the model's, 512 at most."
)
@click.option("--device", metavar="NAME", help="Only on this one: cpu, cuda, cuda:1, mps, xpu.")
@click.option("--dtype", metavar="NAME", help="Only in this number format: fp32, bf16, fp16.")
@click.option(
    "--minutes", type=float, default=30.0, show_default=True, metavar="N",
    help="After which a picture is given up.",
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
    """Try a model out: files, weights, tokenizers, and a picture beside diffusers' where that is installed.

    Names, shapes and counts of the weights are held against the published ones, every number is looked at,
    and tokenizers are compared with CLIP's. Then a picture is drawn in a few steps on each device and in each
    number format that is here. What is printed can be pasted into a report: it holds neither paths nor
    tokens. The last line is the verdict; the exit code is 0 for a pass, 1 for a fail, and 2 where there was
    nothing to test.

    \b
    Examples:
      ssd1b selftest
      ssd1b selftest ssd-1b
      ssd1b selftest SSD-1B.safetensors --device cpu --dtype bf16 --size 256
    """  # noqa: D301 (\b keeps click from wrapping)
    for name, value in (("steps", steps), ("size", size), ("minutes", minutes)):
        if value is not None:
            check(name, value, NUMBERS[name])

    from ssd1b.bench.machine import summary
    from ssd1b.bench.selftest import FAIL, Trial, checks, targets, verdict
    from ssd1b.model import Model
    from ssd1b.runtime import DTYPES, choose_device, choose_dtype
    from ssd1b.weights.opening import check_is_model

    where = choose_device(device)
    number = choose_dtype(dtype, where)
    short = None if dtype is None else next(name for name, each in DTYPES.items() if each == number)
    name = model or DEFAULT_MODEL
    found = Model.find(name, offline=offline, half=number.itemsize == 2)
    check_is_model(found.path)
    title, expected = _title(found)
    facts = summary(where)
    if not as_json:
        click.echo(f"selftest of {title}, by ssd1b")
        for each, value in facts.items():
            click.echo(f"{each}: {value}")
    trial = Trial(
        model=found, expected=expected, steps=steps, size=size, seconds=60 * minutes,
        targets=targets(None if device is None else where, short),
    )  # fmt: skip
    results = []
    for each in checks(trial, lambda what: click.echo(f"{what} ...", err=True)):
        results.append(each)
        if not as_json:
            click.echo(f"{each.result:8} {each.name}: {each.said}")
    last = verdict(results)
    if as_json:
        report = {"model": title, "machine": facts, "checks": [asdict(each) for each in results]}
        click.echo(json.dumps({**report, "verdict": last}))
    else:
        click.echo(last)
    if any(each.result == FAIL for each in results):
        raise click.exceptions.Exit(FAILED)


def _title(model: "Model") -> tuple[str, str | None]:
    """What to call the model without saying where it lies, and the layout that its name promises."""
    from ssd1b.weights.hub import ALIASES, BUILT_IN

    if model.is_local:
        return printable(model.path.resolve().name), None
    name, plain = model.name, model.source
    known = {alias.lower(): alias for alias in ALIASES} | {hub_id.lower(): a for a, hub_id in ALIASES.items()}
    expected = name if name in BUILT_IN else known.get(plain.lower())
    return (f"{plain} at commit {model.commit}" if model.commit else plain), expected
