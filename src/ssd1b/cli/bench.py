"""``ssd1b bench``: how fast a model computes on this machine, beside peers."""

import json
from dataclasses import asdict
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import click

from ssd1b.bench import PARTS
from ssd1b.cli.command import Command
from ssd1b.cli.paths import OUT_FOLDER, check_outputs, echo_path, overwrite_option
from ssd1b.cli.table import byte_size, columns
from ssd1b.errors import InputError, unknown
from ssd1b.layouts import NAMED, model_layout
from ssd1b.saving import renewing
from ssd1b.validation import Range, check

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import torch

    from ssd1b.bench.engines import EngineChoice
    from ssd1b.bench.rounds import Row
    from ssd1b.layouts import ModelLayout

FILES = ("bench.jsonl", "bench.svg")
NUMBERS = {
    "latent": Annotated[int, Range(8, 512, multiple_of=8)],
    "batch": Annotated[int, Range(1, 256)],
    "steps": Annotated[int, Range(1, 1000)],
    "rounds": Annotated[int, Range(1, 1000)],
}


@click.command(
    "bench", cls=Command, needs=lambda given: ("psutil", "matplotlib") if given["out"] else ("psutil",)
)
@click.option(
    "--layout", "layouts", multiple=True, default=("ssd-1b",), show_default=True, metavar="NAME",
    help=f"{', '.join(NAMED)}; may be given often.",
)  # fmt: skip
@click.option(
    "--part", "parts", multiple=True, default=("unet",), show_default=True, metavar="NAME",
    help="unet (a step), vae (decoding), text (the large encoder), picture (all); may be given often.",
)  # fmt: skip
@click.option(
    "--latent", "latents", type=int, multiple=True, default=(64,), show_default=True, metavar="N",
    help="Side of the latents, an eighth of the picture's; may be given often.",
)  # fmt: skip
@click.option(
    "--batch", type=int, default=1, show_default=True, metavar="N",
    help="Pictures at a time; for each the UNet computes a pair, as guidance takes it.",
)  # fmt: skip
@click.option("--steps", type=int, default=20, show_default=True, metavar="N", help="Of a picture, guided.")
@click.option(
    "--peers", metavar="LIST",
    help="ssd1b-compiled, ssd1b-fp8, ssd1b-int8, ssd1b-plain, diffusers, diffusers-compiled, openvino, "
    "openvino-int8, stable-diffusion.cpp, stable-diffusion.cpp-q8; with a number format as diffusers:bf16.",
)  # fmt: skip
@click.option(
    "--rounds", type=int, default=5, show_default=True, metavar="N", help="Of each engine, in turn."
)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu.")
@click.option("--dtype", metavar="NAME", help="Number format: fp32, bf16, fp16.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each table.")
@click.option("--out", type=OUT_FOLDER, metavar="FOLDER", help="Where bench.jsonl and the plot bench.svg go.")
@overwrite_option
def command(
    layouts: tuple[str, ...],
    parts: tuple[str, ...],
    latents: tuple[int, ...],
    batch: int,
    steps: int,
    peers: str | None,
    rounds: int,
    device: str | None,
    dtype: str | None,
    as_json: bool,
    out: str | None,
    overwrite: bool,
) -> None:
    """Time a model's networks at full size, with random weights, beside peers: nothing is downloaded.

    Engines take turns on the same weights and inputs, and ratios, to the first peer, are taken round by
    round, so that a machine which does other things too is unjust to none. Told are the median with the
    extremes, the difference from the output that diffusers computes in float32 (without diffusers, from our
    own), the share of the rate that matrix products reach here, what preparation took, and memory.

    \b
    Examples:
      ssd1b bench
      ssd1b bench --layout ssd-1b --latent 64 --peers diffusers,diffusers-compiled --json
      ssd1b bench --layout ssd-1b --layout sdxl --latent 64 --latent 128 --rounds 3 --out speed
      ssd1b bench --part vae --peers diffusers:bf16,openvino --dtype bf16
      ssd1b bench --part picture --steps 4 --peers diffusers,stable-diffusion.cpp-q8
    """  # noqa: D301 (\b keeps click from wrapping)
    numbers = {"latent": latents, "batch": (batch,), "steps": (steps,), "rounds": (rounds,)}
    for name, values in numbers.items():
        for value in values:
            check(name, value, NUMBERS[name])
    for kind, chosen, allowed in (("layout", layouts, NAMED), ("part", parts, PARTS)):
        if wrong := [name for name in chosen if name not in allowed]:
            raise unknown(kind, wrong[0], allowed)

    check_outputs(out, FILES, overwrite=overwrite)

    from importlib.util import find_spec

    from tqdm import tqdm

    from ssd1b.bench.case import make_case
    from ssd1b.bench.engines import check_engine, read_choice
    from ssd1b.bench.machine import machine
    from ssd1b.bench.rounds import compare
    from ssd1b.runtime import choose_device

    where = choose_device(device)
    names = ["ssd1b", *(name.strip() for name in (peers or "").split(",") if name.strip())]
    choices = list(dict.fromkeys(read_choice(name, dtype, where) for name in names))
    oracle = "diffusers" if find_spec("diffusers") else "ssd1b-plain"
    reference = read_choice(f"{oracle}:fp32", None, where)
    wanted = [
        {"layout": layout, "part": part, "latent": latent}
        for layout, part in product(layouts, parts)
        for latent in (latents if part != "text" else latents[:1])  # a text has no size
    ]
    for what, choice in product(wanted, choices):  # all of them before the first takes its time
        check_engine(choice.name, what["part"], model_layout(what["layout"]), where)
    tables = []
    calls = len(wanted) * ((rounds + 1) * len(choices) + 1)
    with tqdm(total=calls, unit="call", disable=None, leave=False) as bar:

        def advance(what: str) -> None:
            bar.set_description(what)
            bar.update()

        for what in wanted:
            layout = model_layout(what["layout"])
            _check_memory(what, layout, [reference, *choices], where)
            case = make_case(
                what["part"], layout, latent=what["latent"], batch=batch, steps=steps, device=where
            )
            rows = compare(case, choices, reference=reference, rounds=rounds, device=where, advance=advance)
            facts = {
                "batch": batch,
                "steps": case.settings.get("steps"),
                "reference": str(reference),
                **machine(where),
            }
            tables.append({**what, **facts, "rows": [asdict(each) for each in rows]})
            del case  # before the next one takes its memory
            if out is not None:
                _write(Path(out), tables, overwrite=overwrite)
            with tqdm.external_write_mode():
                click.echo(json.dumps(tables[-1]) if as_json else _told(tables[-1], rows))
    for path in (Path(out, name) for name in FILES if out is not None):
        echo_path(path)


def _check_memory(
    what: "Mapping[str, Any]",
    layout: "ModelLayout",
    choices: "Sequence[EngineChoice]",
    device: "torch.device",
) -> None:
    """Refuse what cannot fit before anything is allocated."""
    import psutil

    from ssd1b.bench.case import parameters
    from ssd1b.bench.engines import needed_bytes

    needed = needed_bytes(parameters(what["part"], layout), choices)
    free = psutil.virtual_memory().available
    if device.type == "cpu" and needed > free:
        raise InputError(
            f"the {what['part']} of {what['layout']} takes {byte_size(needed)} for weights alone in these "
            f"engines, and {byte_size(free)} are free: name fewer --peers"
        )


def _told(what: "Mapping[str, Any]", rows: "list[Row]") -> str:
    """A table for people."""
    head = ["ENGINE", "FORMAT", "SECONDS", "", f"BY {rows[min(1, len(rows) - 1)].engine.upper()}", "",
            "APART", "GFLOP/S", "OF PEAK", "PREPARED", "MEMORY"]  # fmt: skip
    lines = [
        [
            each.engine,
            each.dtype,
            f"{each.seconds:.3g}",
            f"{each.low:.3g} to {each.high:.3g}",
            f"{each.ratio:.2f}",
            f"{each.ratio_low:.2f} to {each.ratio_high:.2f}",
            f"{each.apart:.1e}",
            f"{each.gflops:.0f}",
            f"{each.share:.0%}",
            f"{each.preparation:.1f} s",
            byte_size(max(each.memory, 0)),
        ]
        for each in rows
    ]
    title = "{layout}, {part}, latent {latent}x{latent}, batch {batch}; {device}".format(**what)
    return f"{title}\n{columns([head, *lines])}\n"


def _write(folder: Path, tables: list[dict[str, Any]], *, overwrite: bool) -> None:
    """After each table, so that nothing is lost where the next one is stopped."""
    from ssd1b.bench.plot import plot

    lines = "".join(json.dumps(table) + "\n" for table in tables)
    for name, text in zip(FILES, (lines, plot(tables)), strict=True):
        with renewing(folder / name, overwrite=overwrite) as aside:
            aside.write_text(text, encoding="utf-8")
