"""``ssd1b generate``: prompts to pictures."""

import json
import time
from dataclasses import asdict, replace
from typing import Annotated, Any

import click

from ssd1b.cli.command import Command
from ssd1b.cli.options import (
    ModelChoice,
    check_settings,
    execution_options,
    model_options,
    out_option,
    prompt_options,
    setting_options,
    speed_option,
)
from ssd1b.cli.paths import echo_path
from ssd1b.errors import InputError
from ssd1b.presets import PRESETS, load_preset
from ssd1b.prompts import NO_PROMPT
from ssd1b.settings import SEEDS, GenerationSettings
from ssd1b.validation import Range, check

COUNT = Annotated[int, Range(1, 10_000)]


@click.command("generate", cls=Command)
@prompt_options
@setting_options
@click.option("--preset", metavar="NAME|FILE", help=f"{', '.join(PRESETS)}, or a .toml or .json file.")
@click.option("--count", type=int, metavar="N", default=1, show_default=True, help="Pictures of each prompt.")
@model_options
@execution_options
@speed_option
@out_option
@click.option("--format", "picture_format", metavar="FORMAT", help="png, jpeg, webp. Default: by --out.")
@click.option("--preview", is_flag=True, help="Show the picture being drawn in a file beside the pictures.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each picture.")
def command(
    prompts: list[str],
    overrides: dict[str, Any],
    preset: str | None,
    count: int,
    choice: ModelChoice,
    out: str,
    picture_format: str | None,
    preview: bool,
    as_json: bool,
) -> None:
    """Draw pictures from prompts, and print where they are.

    The built-in mini-ssd-1b draws if no --model is named, on the fastest device there is. Settings that are
    not given come from the preset, then from the model. Each picture carries its recipe, from which
    `ssd1b rerun` draws it again.

    \b
    Examples:
      ssd1b generate "a small green rubber cube on a white background"
      ssd1b generate "a lighthouse" --model ssd-1b --preset article-detail --count 4
      ssd1b generate "a lighthouse" --sampler "DPM++ 2M Karras" --guidance 7 --size 1152x896
      ssd1b generate --file prompts.txt --out pictures/today --format webp --json
    """  # noqa: D301 (\b keeps click from wrapping)
    begin = time.perf_counter()
    chosen_preset = None if preset is None else load_preset(preset)
    count = check("count", count, COUNT)
    if not prompts:
        raise InputError(NO_PROMPT)
    check_settings(prompts, overrides, chosen_preset)

    from tqdm import tqdm

    from ssd1b.advice import advise
    from ssd1b.cli import drawing
    from ssd1b.images import check_destination

    folder = check_destination(out, picture_format)
    pipeline = drawing.load(choice)
    first = pipeline.settings(prompts[0], preset=chosen_preset, **overrides)
    for line in advise(first, pipeline.layout.size, pipeline.info.family):
        click.echo(f"advice: {line}", err=True)
    for prompt in prompts:
        check_destination(out, picture_format, pipeline.recipe(replace(first, prompt=prompt)))
    total = len(prompts) * count
    loaded = time.perf_counter()
    with drawing.watched(pipeline, first.steps * total, folder if preview else None) as watch:
        for index in range(total):
            settings = replace(first, prompt=prompts[index // count], seed=(first.seed + index) % SEEDS)
            start = time.perf_counter()
            (picture,) = pipeline.draw([settings], watch)
            path = str(drawing.save(picture, out, picture_format))
            seconds = time.perf_counter() - start
            with tqdm.external_write_mode():
                if as_json:
                    click.echo(_line(path, settings, seconds))
                else:
                    echo_path(path)
    drawn = time.perf_counter()
    pictures = "1 picture" if total == 1 else f"{total} pictures"
    click.echo(f"{pictures}: loading {loaded - begin:.1f} s, drawing {drawn - loaded:.1f} s", err=True)


def _line(path: str, settings: GenerationSettings, seconds: float) -> str:
    """What a program wants to know of a picture, as one line of JSON."""
    return json.dumps(
        {"path": path, "seed": settings.seed, "settings": asdict(settings), "seconds": round(seconds, 3)}
    )
