"""List the sweeps of a folder, and write a report of one."""

from collections.abc import Generator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import NamedTuple

from ssd1b.errors import InputError, NotFoundError
from ssd1b.extras import install
from ssd1b.jobs.schema import FILE
from ssd1b.jobs.store import Store
from ssd1b.lab.export import SHEETS, contact_sheets, write_csv, write_parquet
from ssd1b.lab.report import write_page
from ssd1b.lab.results import load_results
from ssd1b.lab.sweep import Sweep, parse_definition
from ssd1b.saving import check_renewable, renewing


class Report(NamedTuple):
    """The files of a report, and what it lacks.

    Attributes:
        files: the page, the tables and the contact sheets.
        cells: number of cells of the sweep.
        missing: number of cells that are not generated yet.
        lost: number of images that are missing or were changed since.
        omitted: why there is no Parquet file; None if there is one.
    """

    files: list[Path]
    cells: int
    missing: int
    lost: int
    omitted: str | None


@contextmanager
def _open_store(folder: Path) -> Generator[Store, None, None]:
    if not (folder / FILE).is_file():
        raise NotFoundError(f"{folder} holds no sweep: generate one with ssd1b sweep --out {folder}")
    with closing(Store(folder)) as store:
        yield store


def list_sweeps(folder: Path) -> dict[str, Sweep | None]:
    """Return a folder's sweeps by id; None for one that this version cannot read.

    Raises:
        InputError: the folder holds no sweep.
    """
    found: dict[str, Sweep | None] = {}
    with _open_store(folder) as store:
        for name, content in store.sweeps().items():
            try:
                found[name] = parse_definition(content)
            except InputError:
                found[name] = None
    return found


def write_report(
    folder: Path, out: Path | None = None, *, sweep: str | None = None, metric: str | None = None,
    verify: bool = False, overwrite: bool = False,
) -> Report:  # fmt: skip
    """Write a sweep's results: an HTML page, CSV, Parquet if pyarrow is installed, and contact sheets.

    Args:
        folder: of the sweep.
        out: for the report; None for ``folder/report``.
        sweep: the beginning of a sweep's id; None for the latest.
        metric: ranks settings; None for the judge's count, or else the CLIP score.
        verify: check that every image is still the one that was measured.
        overwrite: also replace files of another origin.

    Raises:
        InputError: there is no such sweep or metric, or a file cannot be written.
    """
    out = folder / "report" if out is None else out
    with _open_store(folder) as store:
        results = load_results(store, sweep, verify=verify)
        page, table, parquet = (out / name for name in ("report.html", "cells.csv", "cells.parquet"))
        sheets = [out / f"sheet-{number}.png" for number in range(min(SHEETS, len(results.sweep.prompts)))]
        for path in (page, table, parquet, *sheets):
            check_renewable(path, overwrite=overwrite)
        write_page(results, store, page, metric=metric, overwrite=overwrite)
        write_csv(results, store, table, overwrite=overwrite)
        omitted = None
        try:
            write_parquet(results, store, parquet, overwrite=overwrite)
        except ModuleNotFoundError:
            omitted = f"{parquet.name} is omitted because it needs pyarrow: {install(['pyarrow'])}"
        for path, sheet in zip(sheets, contact_sheets(results, store), strict=True):
            with renewing(path, overwrite=overwrite) as aside:
                sheet.save(aside, "PNG")
    files = [page, table, *([parquet] if omitted is None else []), *sheets]
    return Report(files, results.keys.size, results.missing, results.lost, omitted)
