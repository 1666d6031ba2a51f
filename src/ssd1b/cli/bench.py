"""``ssd1b bench``: the speed of a model on this machine, compared with other engines."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import click

from ssd1b.bench import PARTS
from ssd1b.cli.command import Command
from ssd1b.cli.paths import check_outputs, echo_path, out_option, overwrite_option
from ssd1b.cli.table import columns
from ssd1b.errors import unknown
from ssd1b.layouts import NAMED
from ssd1b.numerals import byte_size
from ssd1b.validation import Range, check

if TYPE_CHECKING:
    from ssd1b.actions.bench import BenchTable

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
    help=f"{', '.join(NAMED)}; may be repeated.",
)  # fmt: skip
@click.option(
    "--part", "parts", multiple=True, default=("unet",), show_default=True, metavar="NAME",
    help="unet (one step), vae (decoding), text (the large encoder), picture (all); may be repeated.",
)  # fmt: skip
@click.option(
    "--latent", "latents", type=int, multiple=True, default=(64,), show_default=True, metavar="N",
    help="Side of the latents, an eighth of the image's; may be repeated.",
)  # fmt: skip
@click.option(
    "--batch", type=int, default=1, show_default=True, metavar="N",
    help="Images at a time; the UNet computes two inputs for each, as with guidance.",
)  # fmt: skip
@click.option(
    "--steps",
    type=int,
    default=20,
    show_default=True,
    metavar="N",
    help="Denoising steps of an image, with guidance.",
)
@click.option(
    "--peers", metavar="LIST",
    help="Comma-separated: ssd1b-compiled, ssd1b-fp8, ssd1b-int8, ssd1b-plain, diffusers, "
    "diffusers-compiled, openvino, openvino-int8, stable-diffusion.cpp, stable-diffusion.cpp-q8; with a "
    "number format: diffusers:bf16.",
)  # fmt: skip
@click.option(
    "--rounds",
    type=int,
    default=5,
    show_default=True,
    metavar="N",
    help="Timed calls of each engine, in turn.",
)
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu.")
@click.option("--dtype", metavar="NAME", help="Number format: fp32, bf16, fp16.")
@click.option("--json", "as_json", is_flag=True, help="Print one line of JSON for each table.")
@out_option("Where to write bench.jsonl and the plot bench.svg.")
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
    """Time a model's networks at full size, with random weights, alongside other engines.

    Nothing is downloaded. Engines take turns on the same weights and inputs, and ratios to the first peer are
    computed round by round, so that other load on the machine affects all of them alike. The table shows
    median and extremes, the relative error against diffusers in float32 (without diffusers, against our own
    unoptimised network), the share of the speed that matrix products reach here, preparation time and memory.

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

    engines = [name.strip() for name in (peers or "").split(",") if name.strip()]

    from ssd1b.actions.bench import FILES, benchmark, write_tables
    from ssd1b.cli import display
    from ssd1b.progress import above_bar

    check_outputs(out, FILES, overwrite=overwrite)
    tables: list[BenchTable] = []
    written: list[Path] = []
    with display.call_progress() as advance:
        for table in benchmark(
            layouts, parts, latents, peers=engines, batch=batch, steps=steps, rounds=rounds, device=device,
            dtype=dtype, advance=advance,
        ):  # fmt: skip
            tables.append(table)
            if out is not None:  # after each table, so that an interruption loses none
                written = write_tables(Path(out), tables, overwrite=overwrite)
            with above_bar():
                click.echo(json.dumps(table.facts()) if as_json else _text(table))
    for path in written:
        echo_path(path)


def _text(table: "BenchTable") -> str:
    rows = table.rows
    head = ["ENGINE", "FORMAT", "SECONDS", "", f"BY {rows[min(1, len(rows) - 1)].engine.upper()}", "",
            "ERROR", "GFLOP/S", "OF PEAK", "PREPARED", "MEMORY"]  # fmt: skip
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
    size = f"{table.latent}x{table.latent}"
    title = f"{table.layout}, {table.part}, latent {size}, batch {table.batch}; {table.machine['device']}"
    return f"{title}\n{columns([head, *lines])}\n"
