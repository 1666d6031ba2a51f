"""``ssd1b generate``: prompts to images."""

import json
import time
from dataclasses import asdict
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from ssd1b.advice import advise
from ssd1b.cli.command import Command
from ssd1b.cli.composing import composing_options
from ssd1b.cli.messages import print_advice
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
from ssd1b.cli.paths import echo_path
from ssd1b.composing import HIRES_PROMPTS, Composer
from ssd1b.errors import InputError
from ssd1b.prompts import NO_PROMPT
from ssd1b.settings import (
    SEEDS,
    Count,
    GenerationSettings,
    Preset,
    few_step_loras,
    numbered,
    random_seed,
    resolve_settings,
)
from ssd1b.validation import check

if TYPE_CHECKING:
    from ssd1b.weights.checkpoint import ModelInfo


@click.command("generate", cls=Command)
@prompt_options
@setting_options
@composing_options
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
    composer: Composer,
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
    count = check("count", count, Count)
    if not prompts:
        raise InputError(NO_PROMPT)
    settings = {**(preset.settings if preset else {}), **overrides}
    given = settings.get("embeddings", ())
    # Here, so that mistakes are found before a model is loaded.
    hires = {name: settings.get(name) for name in HIRES_PROMPTS}
    negative = settings.get("negative_prompt")
    composed = [composer.compose(text, negative, 0, given, hires) for text in prompts]
    used = {each.word: each for each in (*given, *(each for one in composed for each in one.embeddings))}
    drawn = {**composed[0].hires, **({} if negative is None else {"negative_prompt": composed[0].negative})}
    check_settings(
        [each.prompt for each in composed], {**overrides, **drawn, "embeddings": (*used.values(),)}, preset
    )

    from ssd1b.adapters.merging import fit_advice
    from ssd1b.cli import display
    from ssd1b.images import check_destination
    from ssd1b.progress import above_bar

    folder = check_destination(out, image_format)
    loading = choice.loading()
    model = loading.find(choice.name)
    complete = partial(
        resolve_settings, family=model.info.family,
        model_defaults={"seed": random_seed(), **model.info.defaults}, preset=preset,
    )  # fmt: skip
    first = complete(composed[0].prompt, **overrides)

    def settings_of(index: int) -> GenerationSettings:
        """Complete the settings of an image. Its number decides what is drawn of a prompt's alternatives."""
        seeds = numbered(first, index)
        made = composer.compose(
            prompts[index // count], first.negative_prompt, (first.seed + index) % SEEDS, first.embeddings,
            {name: getattr(first, name) for name in HIRES_PROMPTS},
        )  # fmt: skip
        given: dict[str, Any] = {
            **overrides, **made.hires, "negative_prompt": made.negative, "loras": (*first.loras, *made.loras),
            "embeddings": (*first.embeddings, *made.embeddings), "seed": seeds.seed,
            "variation_seed": seeds.variation_seed,
        }  # fmt: skip
        return complete(made.prompt, **given)

    settled = [settings_of(number * count) for number in range(len(prompts))]
    few_steps = model.few_steps
    for found in (*([few_steps] if few_steps else []), *few_step_loras(settled[0].loras)):
        click.echo(found.note, err=True)
    loras = [lora for each in settled for lora in each.loras]
    for advice in (
        *advise(settled[0], model.layout.size, model.info.family, few_steps, overrides),
        *fit_advice(loras, model.layout, model.identity.name),
    ):
        print_advice(advice)
    for each in settled:  # before the weights are read, which may take minutes
        _check(each, model.info)
    pipeline = loading.load(model)
    for each in settled:
        check_destination(out, image_format, pipeline.recipe(each))
    total = len(prompts) * count
    loaded = time.perf_counter()
    steps = count * sum(each.total_steps for each in settled)
    with display.watched(pipeline, steps, folder if preview else None) as watch:
        for index in range(total):
            settings = settings_of(index)
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


def _check(settings: GenerationSettings, info: "ModelInfo") -> None:
    """Check what an image is generated from, and its noise levels, against a model.

    Raises:
        InputError: a picture, its mask or a network does not fit, or the schedule has fewer levels.
    """
    from ssd1b.decoding import read_source
    from ssd1b.pipeline import levels_of
    from ssd1b.speed.checking import check_networks

    if settings.init_image is not None:
        read_source(settings.init_image, settings.mask, settings.layout)
    check_networks(settings, info.layout)
    for run in settings.passes:
        levels_of(*run, info.noise_schedule)


def _json_line(path: str, settings: GenerationSettings, seconds: float) -> str:
    return json.dumps(
        {"path": path, "seed": settings.seed, "settings": asdict(settings), "seconds": round(seconds, 3)}
    )
