"""``ssd1b bulk``: an image for each row of a table."""

import hashlib
import re
from pathlib import Path
from typing import Annotated, Any

import click
from platformdirs import user_cache_path

from ssd1b.cli.command import AGAIN, Command
from ssd1b.cli.messages import SHOWN_REASONS, print_advice, report_failures
from ssd1b.cli.options import (
    ModelChoice,
    check_settings,
    cluster_options,
    model_options,
    preset_option,
    setting_options,
)
from ssd1b.cli.paths import OUT_FOLDER, PATH_OR_URL
from ssd1b.errors import InputError, shown
from ssd1b.files import named
from ssd1b.numerals import counted
from ssd1b.settings import RANDOM_SEED, SETTINGS, Preset
from ssd1b.validation import Range, check

SHARD = Annotated[int, Range(1, 100_000)]
RANDOM = "seed is -1: a second run could not find random images; without a seed, row N has seed N"


@click.command("bulk", cls=Command, needs=("fsspec", "pyarrow"), continues=AGAIN)
@click.argument("rows", type=PATH_OR_URL, metavar="FILE|URL")
@click.option(
    "--out",
    type=PATH_OR_URL,
    metavar="FOLDER|URL",
    required=True,
    help="Where to write shards and the manifest.",
)
@click.option(
    "--as",
    "arrangement",
    type=click.Choice(["webdataset", "folder"]),
    default="webdataset",
    show_default=True,
    help="A .tar file for each shard, or a folder.",
)
@click.option("--shard", type=int, metavar="N", default=500, show_default=True, help="Rows of a shard.")
@click.option(
    "--part",
    metavar="K/N",
    default="1/1",
    help="Generate every N-th shard from the K-th, so that N processes share a table.",
)
@click.option(
    "--format",
    "image_format",
    type=click.Choice(["png", "webp"]),
    default="png",
    show_default=True,
    help="webp loses a little and takes a fraction of the space.",
)
@click.option(
    "--keep", multiple=True, metavar="COLUMN", help="Copy a column to the manifest; may be repeated."
)
@click.option(
    "--work",
    type=OUT_FOLDER,
    metavar="FOLDER",
    help="Local folder for unfinished shards. Default: FOLDER/unfinished; for a URL, a cache folder.",
)
@setting_options
@preset_option
@model_options
@cluster_options
@click.option("--retry", is_flag=True, help="Generate shards with failed rows again.")
@click.option("--dry-run", is_flag=True, help="Check all rows, and print what would be generated.")
def command(
    rows: str,
    out: str,
    arrangement: str,
    shard: int,
    part: str,
    image_format: str,
    keep: tuple[str, ...],
    work: str | None,
    overrides: dict[str, Any],
    preset: Preset | None,
    choice: ModelChoice,
    retry: bool,
    dry_run: bool,
) -> None:
    """Generate an image for each row of a .jsonl, .csv, .tsv, .parquet or .txt file; - reads JSON lines.

    Columns are prompt, id and any setting (guidance, steps, size, seed, negative_prompt, sampler ...). What a
    row does not set comes from the options; without a seed, row N has seed N. A shard is written completely
    or not at all, and the same command skips finished ones. OUT/manifest says for each row where its image
    is, with SHA-256, recipe and metrics, or why it failed. `ssd1b distill --data OUT/shards` reads the
    shards. The exit code is 1 if rows failed, in this run or an earlier one.

    \b
    Examples:
      ssd1b bulk prompts.jsonl --out images --steps 20
      ssd1b bulk prompts.csv --model ssd-1b --out s3://bucket/images --format webp
      ssd1b bulk prompts.txt --out images --dry-run
      ssd1b bulk prompts.txt --out images --part 3/8
    """  # noqa: D301 (\b keeps click from wrapping)
    if click.get_current_context().params["seed"] == RANDOM_SEED:
        raise InputError(RANDOM)
    check_settings(["a row"], overrides, preset, later=SETTINGS)  # a row may have the rest
    size, share = check("shard", shard, SHARD), _part(part)

    from ssd1b.actions.bulk import Bulk, generate_bulk
    from ssd1b.bulk.rows import is_url
    from ssd1b.cli.display import progress

    what = Bulk(
        rows=rows, out=out, model=choice.name, preset=preset, settings=overrides, keep=keep, shard_size=size,
        part=share, form=image_format, arrangement=arrangement,
    )  # fmt: skip
    folder = Path(work) if work is not None else _work(out, is_url(out), share)
    done = generate_bulk(
        what, folder, choice.loading(), retry=retry, dry_run=dry_run, advise=print_advice, progress=progress
    )
    verb = "would be generated" if dry_run else "generated"
    click.echo(
        f"{counted(done.rows, 'row')}: {counted(done.shards, 'shard')} {verb}, {done.known} known"
        + ("" if dry_run else f", in {named(out)}")
    )
    if done.others:
        left = f"{counted(done.others, 'shard')} of other rows or settings"
        click.echo(f"{named(out)} also has {left}, which stay there and in the manifest", err=True)
    # A dry run writes no manifest, which has the others.
    why = f"the column error of {named(out)}/manifest says why"
    others = "the others" if done.failed.total() < done.rows else "no row"
    advice, most = (f"{others} can be generated", None) if dry_run else (why, SHOWN_REASONS)
    report_failures(done.failed, counted(done.rows, "row"), advice, most=most)


def _part(text: str) -> tuple[int, int]:
    match = re.fullmatch(r"([0-9]{1,6})/([0-9]{1,6})", text, re.ASCII)
    if match is None:
        raise InputError(
            f"part is {shown(text)}: it must be K/N with K from 1 to N, and N below a million, such as 3/8"
        )
    return int(match[1]), int(match[2])


def _work(out: str, remote: bool, part: tuple[int, int]) -> Path:
    """A folder that is the same in the next run."""
    suffix = "" if part == (1, 1) else f"-{part[0]}-of-{part[1]}"
    if not remote:
        return Path(out) / f"unfinished{suffix}"
    return user_cache_path("ssd1b") / "bulk" / f"{hashlib.sha256(out.encode()).hexdigest()[:12]}{suffix}"
