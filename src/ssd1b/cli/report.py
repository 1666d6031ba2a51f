"""``ssd1b report``: what a sweep found, to look at."""

from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING

import click

from ssd1b.cli.command import Command
from ssd1b.cli.paths import OUT_FOLDER, PATH, check_outputs, echo_path, overwrite_option
from ssd1b.errors import InputError, NotFoundError, shown
from ssd1b.extras import install

if TYPE_CHECKING:
    from ssd1b.jobs.store import Store


@click.command("report", cls=Command, needs=("scipy", "matplotlib", "jinja2"))
@click.argument("folder", type=PATH, metavar="FOLDER")
@click.option("--sweep", "chosen", metavar="ID", help="The beginning of a sweep's id. Default: the last one.")
@click.option("--metric", metavar="NAME", help="Ranks settings. Default: what is right, else the CLIP score.")
@click.option(
    "--out", type=OUT_FOLDER, metavar="FOLDER", help="Where the report goes. Default: FOLDER/report."
)
@overwrite_option
@click.option("--verify", is_flag=True, help="Read every picture: is it still the one that was measured?")
@click.option("--list", "listing", is_flag=True, help="List the folder's sweeps, and write nothing.")
def command(
    folder: str,
    chosen: str | None,
    metric: str | None,
    out: str | None,
    overwrite: bool,
    verify: bool,
    listing: bool,
) -> None:
    """Write what a sweep found: a page with the pictures and curves, contact sheets, and all figures.

    The page is one file that needs no network: the grid of any two axes with sliders for the others, pictures
    to enlarge and to compare by a wipe, each cell's command and preset to copy, curves with 95 % intervals,
    quality against passes of the UNet. Beside it: contact sheets as PNG, every cell as CSV and Parquet.

    \b
    Examples:
      ssd1b report sweeps/a
      ssd1b report sweeps/a --metric clip --out report
      ssd1b report sweeps/a --list
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.jobs.schema import FILE
    from ssd1b.jobs.store import Store

    if not (Path(folder) / FILE).is_file():
        raise NotFoundError(f"{folder} holds no sweep: draw one with ssd1b sweep --out {folder}")
    with closing(Store(Path(folder))) as store:
        if listing:
            _list(store)
        else:
            place = Path(out) if out else Path(folder) / "report"
            _write(store, chosen, metric, place, verify=verify, overwrite=overwrite)


def _list(store: "Store") -> None:
    from ssd1b.cli.table import columns
    from ssd1b.lab.sweep import parse_definition

    rows = []
    for name, content in store.sweeps().items():
        try:
            sweep = parse_definition(content)
        except InputError:
            rows.append([shown(name), "", "damaged, or of another version of ssd1b"])
            continue
        axes = ", ".join(f"{axis.name} ({len(axis.values)})" for axis in sweep.all_axes)
        rows.append([name, str(sweep.count), axes])
    click.echo(columns([["SWEEP", "CELLS", "AXES"], *rows]))


def _write(
    store: "Store", chosen: str | None, metric: str | None, out: Path, *, verify: bool, overwrite: bool
) -> None:
    from ssd1b.lab.export import SHEETS, contact_sheets, write_csv, write_parquet
    from ssd1b.lab.report import write_page
    from ssd1b.lab.results import load_results
    from ssd1b.saving import renewing

    results = load_results(store, chosen, verify=verify)
    if results.missing:
        click.echo(
            f"this sweep is not finished: {results.missing} of {results.keys.size} cells are not drawn yet; "
            "the same ssd1b sweep goes on with them",
            err=True,
        )
    if results.lost:
        click.echo(
            f"{results.lost} of them were drawn, but their pictures are gone or were changed since: their "
            "figures are left out",
            err=True,
        )
    sheets = [f"sheet-{number}.png" for number in range(min(SHEETS, len(results.sweep.prompts)))]
    check_outputs(out, ("report.html", "cells.csv", "cells.parquet", *sheets), overwrite=overwrite)
    written = [out / "report.html", out / "cells.csv"]
    write_page(results, store, written[0], metric=metric, overwrite=overwrite)
    write_csv(results, store, written[1], overwrite=overwrite)
    try:
        write_parquet(results, store, out / "cells.parquet", overwrite=overwrite)
        written.append(out / "cells.parquet")
    except ModuleNotFoundError:
        click.echo(f"cells.parquet is left out, which needs pyarrow: {install(['pyarrow'])}", err=True)
    for number, sheet in enumerate(contact_sheets(results, store)):
        written.append(out / f"sheet-{number}.png")
        with renewing(written[-1], overwrite=overwrite) as aside:
            sheet.save(aside, "PNG")
    for path in written:
        echo_path(path)
