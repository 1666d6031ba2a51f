"""``ssd1b report``: the results of a sweep."""

from pathlib import Path

import click

from ssd1b.cli.command import Command
from ssd1b.cli.paths import PATH, echo_path, out_option, overwrite_option
from ssd1b.cli.table import columns
from ssd1b.errors import shown


@click.command("report", cls=Command, needs=("scipy", "matplotlib", "jinja2"))
@click.argument("folder", type=PATH, metavar="FOLDER")
@click.option("--sweep", "chosen", metavar="ID", help="The beginning of a sweep's id. Default: the latest.")
@click.option(
    "--metric", metavar="NAME", help="Ranks settings. Default: share of right images, else CLIP score."
)
@out_option("Where to write the report. Default: FOLDER/report.")
@overwrite_option
@click.option("--verify", is_flag=True, help="Check that every image is still the one that was measured.")
@click.option("--list", "listing", is_flag=True, help="List the folder's sweeps and write nothing.")
def command(
    folder: str,
    chosen: str | None,
    metric: str | None,
    out: str | None,
    overwrite: bool,
    verify: bool,
    listing: bool,
) -> None:
    """Write a report of a sweep: an HTML page with images and curves, contact sheets, and tables.

    The page is one file that works offline. It has a grid over any two axes with sliders for the others,
    images to enlarge and to compare with a wipe, each cell's command and preset to copy, curves with 95 %
    intervals, and quality against forward passes of the UNet. Contact sheets are PNG files; every cell is in
    a CSV and a Parquet file.

    \b
    Examples:
      ssd1b report sweeps/a
      ssd1b report sweeps/a --metric clip --out report
      ssd1b report sweeps/a --list
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.actions.report import list_sweeps, write_report

    if listing:
        rows: list[list[str]] = []
        for name, sweep in list_sweeps(Path(folder)).items():
            if sweep is None:
                rows.append([shown(name), "", "damaged, or from another version of ssd1b"])
            else:
                axes = ", ".join(f"{axis.name} ({len(axis.values)})" for axis in sweep.all_axes)
                rows.append([name, str(sweep.count), axes])
        click.echo(columns([["SWEEP", "CELLS", "AXES"], *rows]))
        return
    report = write_report(
        Path(folder), Path(out) if out else None, sweep=chosen, metric=metric, verify=verify,
        overwrite=overwrite,
    )  # fmt: skip
    if report.missing:
        click.echo(
            f"this sweep is not finished: {report.missing} of {report.cells} cells are missing; run the same "
            "ssd1b sweep again to generate them",
            err=True,
        )
    if report.lost:
        click.echo(
            f"{report.lost} of them were generated, but their images are missing or were changed since: "
            "their figures are left out",
            err=True,
        )
    if report.omitted:
        click.echo(report.omitted, err=True)
    for path in report.files:
        echo_path(path)
