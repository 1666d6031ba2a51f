"""``ssd1b generate``: prompts to images."""

import json
import time
from collections.abc import Mapping
from dataclasses import asdict, replace
from typing import Annotated, Any

import click

from ssd1b.advice import advise
from ssd1b.cli.command import Command
from ssd1b.cli.options import (
    ModelChoice,
    check_settings,
    execution_options,
    model_options,
    out_option,
    preset_option,
    prompt_options,
    setting_options,
    speed_option,
)
from ssd1b.cli.paths import PATH, echo_path
from ssd1b.embeddings import Embedding, used_in
from ssd1b.errors import InputError
from ssd1b.loras import read_tags
from ssd1b.prompts import NO_PROMPT
from ssd1b.settings import SEEDS, GenerationSettings, Preset
from ssd1b.validation import Range, check

COUNT = Annotated[int, Range(1, 10_000)]


@click.command("generate", cls=Command)
@prompt_options
@setting_options
@click.option(
    "--lora-folder",
    type=PATH,
    metavar="FOLDER",
    help="Where the files of <lora:NAME:1> in prompts are; without it they are plain words.",
)
@click.option(
    "--embedding-folder",
    type=PATH,
    metavar="FOLDER",
    help="Where embeddings are, which prompts use by the names of their files.",
)
@preset_option
@click.option("--count", type=int, metavar="N", default=1, show_default=True, help="Images per prompt.")
@model_options
@execution_options
@speed_option
@out_option
@click.option("--format", "image_format", metavar="FORMAT", help="png, jpeg, webp. Default: from --out.")
@click.option("--preview", is_flag=True, help="Show the image being generated in a file next to the images.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each image.")
def command(
    prompts: list[str],
    overrides: dict[str, Any],
    lora_folder: str | None,
    embedding_folder: str | None,
    preset: Preset | None,
    count: int,
    choice: ModelChoice,
    out: str,
    image_format: str | None,
    preview: bool,
    as_json: bool,
) -> None:
    """Generate images from prompts, and print their paths.

    Without --model the built-in mini-ssd-1b is used, on the fastest device. Settings that are not given come
    from the preset, then from the model. Each image contains its recipe, from which `ssd1b rerun` reproduces
    it.

    \b
    Examples:
      ssd1b generate "a small green rubber cube on a white background"
      ssd1b generate "a lighthouse" --model ssd-1b --preset article-detail --count 4
      ssd1b generate "a lighthouse" --sampler "DPM++ 2M Karras" --guidance 7 --size 1152x896
      ssd1b generate "a lighthouse" --model ssd-1b --lora pixel-art.safetensors:0.8
      ssd1b generate --file prompts.txt --out pictures/today --format webp --json
    """  # noqa: D301 (\b keeps click from wrapping)
    begin = time.perf_counter()
    count = check("count", count, COUNT)
    if not prompts:
        raise InputError(NO_PROMPT)
    tagged = [(prompt, ()) if lora_folder is None else read_tags(prompt, lora_folder) for prompt in prompts]
    prompts = [prompt for prompt, _ in tagged]
    if embedding_folder is not None:
        overrides = {**overrides, "embeddings": _embeddings(prompts, overrides, preset, embedding_folder)}
    check_settings(prompts, overrides, preset)

    from ssd1b.cli import display
    from ssd1b.images import check_destination
    from ssd1b.progress import above_bar

    folder = check_destination(out, image_format)
    pipeline = choice.loading().load(choice.name)
    first = pipeline.settings(prompts[0], preset=preset, **overrides)
    for line in advise(first, pipeline.layout.size, pipeline.info.family):
        click.echo(f"advice: {line}", err=True)
    for prompt in prompts:
        check_destination(out, image_format, pipeline.recipe(replace(first, prompt=prompt)))
    total = len(prompts) * count
    loaded = time.perf_counter()
    with display.watched(pipeline, first.start.steps * total, folder if preview else None) as watch:
        for index in range(total):
            prompt, loras = tagged[index // count]
            settings = replace(
                first, prompt=prompt, loras=(*first.loras, *loras), seed=(first.seed + index) % SEEDS
            )
            start = time.perf_counter()
            (picture,) = pipeline.draw([settings], watch)
            path = str(display.save(picture, out, image_format))
            seconds = time.perf_counter() - start
            with above_bar():
                if as_json:
                    click.echo(_json_line(path, settings, seconds))
                else:
                    echo_path(path)
    end = time.perf_counter()
    images = "1 image" if total == 1 else f"{total} images"
    click.echo(f"{images}: loading {loaded - begin:.1f} s, generating {end - loaded:.1f} s", err=True)


def _embeddings(
    prompts: list[str], overrides: Mapping[str, Any], preset: Preset | None, folder: str
) -> tuple[Embedding, ...]:
    """Return the embeddings that are given, and those of a folder that the prompts use by name."""
    settings = {**(preset.settings if preset else {}), **overrides}
    given = settings.get("embeddings", ())
    words = {each.word.lower() for each in given}
    found = used_in([*prompts, settings.get("negative_prompt") or ""], folder)
    return (*given, *(each for each in found if each.word.lower() not in words))


def _json_line(path: str, settings: GenerationSettings, seconds: float) -> str:
    return json.dumps(
        {"path": path, "seed": settings.seed, "settings": asdict(settings), "seconds": round(seconds, 3)}
    )
