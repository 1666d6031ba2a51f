"""Options that several commands share: prompts, settings, model and device, execution, output.

``setting_options`` and ``model_options`` each pass a command a single argument with all their values.
"""

import os
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, fields, replace
from functools import wraps
from typing import TYPE_CHECKING, Annotated, Any

import click

from ssd1b.cli.command import TEXT
from ssd1b.cli.messages import format_warnings, notify, print_advice
from ssd1b.cli.paths import PATH
from ssd1b.cluster.options import ClusterOptions, option_names
from ssd1b.composing import HIRES_PROMPTS
from ssd1b.embeddings import find_words, without_words
from ssd1b.errors import InputError, prefix_errors, shown, unknown
from ssd1b.execution import DEFAULT, Execution
from ssd1b.files import decode_text, named, read_file
from ssd1b.inputs import InputFile
from ssd1b.numerals import whole_number
from ssd1b.presets import NEGATIVE_PROMPTS, PRESETS, SPEEDS, load_preset
from ssd1b.prompts import EMBEDDING, NETWORK, WILDCARD, parse_prompt, split_prompts, unsupported
from ssd1b.recipe import NETWORKS, NetworkFile
from ssd1b.settings import (
    DEFAULT_MODEL,
    OPTIONS,
    SETTINGS,
    Preset,
    Prompt,
    Setting,
    check_needs,
    check_overrides,
    identified,
    read_size,
    with_drawn_seed,
)
from ssd1b.validation import Range, check
from ssd1b.weights.prediction import diffusers_prediction

if TYPE_CHECKING:
    from ssd1b.actions.loading import Loading

AUTO = "auto"

MAX_PROMPT_FILE_BYTES = 16 * 2**20

out_option = click.option(
    "--out", type=PATH, metavar="FOLDER|FILE", default="pictures", show_default=True,
    help="Where to write images; existing files are kept. Names that end in .png, .jpg, .jpeg or .webp are "
    "files, others are folders.",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelChoice:
    """The model and how to run it. None, or no threads, lets the program choose."""

    model: str | None = None
    device: str | None = None
    dtype: str | None = None
    offline: bool = False
    prediction: str | None = None
    networks: tuple[NetworkFile, ...] = ()
    threads: int | None = None
    execution: Execution = DEFAULT
    cluster: ClusterOptions | None = None

    @property
    def name(self) -> str:
        """The model's name."""
        return self.model or DEFAULT_MODEL

    def loading(self) -> "Loading":
        """Prepare this process, and return the options for loading models; imports torch."""
        from ssd1b.actions.loading import Loading

        # The tokenizer warns about prompts beyond 77 tokens, but we split them and cut nothing off.
        os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
        format_warnings()
        return Loading(
            device=self.device, dtype=self.dtype, offline=self.offline, prediction=self.prediction,
            networks=self.networks,
            execution=self.execution, threads=self.threads or AUTO, notify=notify, cluster=self.cluster,
        )  # fmt: skip


_MODEL_OPTIONS = ("model", "device", "dtype", "offline", "prediction")


def preset_option(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command ``preset``, a ``Preset`` or None."""

    @click.option("--preset", metavar="NAME|FILE", help=f"{', '.join(PRESETS)}, or a .toml or .json file.")
    @wraps(command)
    def bundled(*args: Any, preset: str | None, **rest: Any) -> None:
        command(*args, preset=None if preset is None else load_preset(preset), **rest)

    return bundled


def prompt_options(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command ``prompts``, a list: those on the command line, then those in a file."""

    @click.argument("prompts", nargs=-1, type=TEXT, metavar="[PROMPT]...")
    @click.option(
        "--file", type=PATH, metavar="FILE", help="File with one prompt per line; - reads standard input."
    )
    @wraps(command)
    def bundled(*args: Any, prompts: tuple[str, ...], file: str | None, **rest: Any) -> None:
        command(*args, prompts=[*prompts, *([] if file is None else read_prompts(file))], **rest)

    return bundled


def model_options(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command ``choice``, a ``ModelChoice``."""

    @click.option("--model", metavar="MODEL", help="A name, folder, safetensors file or hub id.")
    @click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu.")
    @click.option("--dtype", metavar="NAME", help="Number format: fp32, bf16, fp16.")
    @click.option(
        "--threads", metavar="N", default=AUTO, show_default=True,
        help="Number of CPU threads; auto: as many as a step of the network keeps busy.",
    )  # fmt: skip
    @click.option("--offline", is_flag=True, help="Never use the network.")
    @click.option(
        "--prediction", metavar="NAME",
        help="Prediction type, epsilon or v, if the model's files do not say.",
    )  # fmt: skip
    @click.option(
        "--vae", type=PATH, metavar="FILE|FOLDER",
        help="Take the VAE from this file, or from this folder in diffusers' format.",
    )  # fmt: skip
    @click.option("--unet", type=PATH, metavar="FILE|FOLDER", help="The same for the UNet.")
    @click.option("--text-encoder", type=PATH, metavar="FILE|FOLDER", help="For the first text encoder.")
    @click.option("--text-encoder-2", type=PATH, metavar="FILE|FOLDER", help="For the second one.")
    @wraps(command)
    def bundled(*args: Any, threads: str, **options: Any) -> None:
        diffusers_prediction(options["prediction"])
        given = {name: options.pop(name) for name in _MODEL_OPTIONS}
        files = {network: options.pop(network) for network in NETWORKS}
        networks = tuple(NetworkFile.of(name, path) for name, path in files.items() if path is not None)
        choice = ModelChoice(**given, networks=networks, threads=_read_threads(threads))
        command(*args, choice=choice, **options)

    return bundled


def _read_threads(text: str) -> int | None:
    if text == AUTO:
        return None
    try:
        with prefix_errors("threads"):
            number = whole_number(text)
        return check("threads", number, Annotated[int, Range(1, os.cpu_count() or 1)])
    except InputError as error:
        raise InputError(f"{error}; or {AUTO}") from None


def execution_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add execution options to the ``choice`` of a command with ``model_options``."""

    @click.option(
        "--compile", "compiled", is_flag=True, help="Use torch.compile: slow the first time, then faster."
    )
    @click.option(
        "--quantize", "quantized", metavar="NAME",
        help="int8, fp8 or int8-weights: quantize the UNet to 8 bits; auto: int8 if that is faster. Changes "
        "the image.",
    )  # fmt: skip
    @click.option(
        "--memory", metavar="NAME", default="normal", show_default=True,
        help="low: keep text encoders and UNet in 8 bits and never both in memory, decode in tiles.",
    )  # fmt: skip
    @click.option(
        "--backend", metavar="NAME", default="torch", show_default=True, help="torch or, on a CPU, openvino."
    )
    @wraps(command)
    def bundled(*args: Any, choice: ModelChoice, **options: Any) -> None:
        execution = Execution(**{each.name: options.pop(each.name) for each in fields(Execution)})
        command(*args, choice=replace(choice, execution=execution), **options)

    return bundled


def ray_options(
    verb: str, one: str, many: str, gpus: str = ""
) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Pass a command ``cluster``, the Ray cluster that it works on, or None.

    Args:
        verb: what the command does there, for the help texts.
        one: what an actor is called.
        many: the plural.
        gpus: more about the GPUs of each.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        @click.option(
            "--ray", metavar="ADDRESS",
            help=f"{verb} on a Ray cluster: HOST:PORT of its head node, auto for the one that this machine "
            "belongs to, or local for a new one on this machine.",
        )  # fmt: skip
        @click.option(
            "--ray-actors", type=int, metavar="N",
            help=f"Number of {many}. Default: as many as there is room for.",
        )  # fmt: skip
        @click.option(
            "--ray-gpus", type=float, metavar="N",
            help=f"GPUs of each {one}{gpus}. Default: one, if the cluster has any.",
        )  # fmt: skip
        @click.option(
            "--ray-cpus", type=float, metavar="N",
            help=f"CPUs of each {one}. Default: one beside a GPU, otherwise all of a node.",
        )  # fmt: skip
        @wraps(command)
        def bundled(*args: Any, ray: str | None, **options: Any) -> None:
            shares = {name: options.pop(f"ray_{name}") for name in ("actors", "gpus", "cpus")}
            given = {name: value for name, value in shares.items() if value is not None}
            cluster = None
            if ray is not None:
                with option_names("--ray", "-"):
                    cluster = ClusterOptions(address=ray, **given)
            elif given:
                raise InputError(f"--ray-{next(iter(given))} needs --ray")
            command(*args, cluster=cluster, **options)

        return bundled

    return decorate


def cluster_options(command: Callable[..., None]) -> Callable[..., None]:
    """Add the cluster to the ``choice`` of a command with ``model_options``."""

    @ray_options("Generate", "actor", "actors", gpus="; 0.5 lets two share one")
    @wraps(command)
    def bundled(*args: Any, choice: ModelChoice, cluster: ClusterOptions | None, **options: Any) -> None:
        command(*args, choice=replace(choice, cluster=cluster), **options)

    return bundled


def setting_options(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command ``overrides``, the settings given on the command line by name."""

    @wraps(command)
    def bundled(*args: Any, negative_preset: str | None, **options: Any) -> None:
        sizes = {name: options.pop(_parameter(name)) for name, group in OPTIONS.items() if len(group) == 2}
        chosen = {name: options.pop(name) for name in SETTINGS if name in options}
        overrides = {name: value for name, value in chosen.items() if value is not None and value != ()}
        overrides |= {
            name: tuple(map(read, overrides[name])) for name in overrides if (read := SETTINGS[name].read)
        }
        for name, text in sizes.items():
            overrides |= {} if text is None else read_size(text, name)
        overrides |= _negative(overrides, negative_preset)
        overrides = with_drawn_seed(identified(overrides))  # here, so that all images of a sweep share them
        command(*args, overrides=overrides, **options)

    named = click.option("--negative-preset", metavar="NAME", help=f"{', '.join(NEGATIVE_PROMPTS)}.")
    negative, *others = (_setting_option(name, *settings) for name, settings in OPTIONS.items())
    for option in reversed([negative, named, *others]):
        bundled = option(bundled)
    return bundled


def _parameter(option: str) -> str:
    """Name the parameter of an option for two settings, width and height."""
    return option.replace("-", "_")


def _setting_option(name: str, setting: Setting, *others: Setting) -> Callable[[Any], Any]:
    if others:  # width and height in one word
        kind: Any = str
    elif setting.kind is str:
        kind = str if setting.is_name else TEXT
    elif setting.kind is InputFile:
        kind = PATH
    else:
        kind = float if setting.kind is tuple else setting.kind
    if setting.read:
        return click.option(
            *setting.flags, setting.name, multiple=True, metavar=setting.metavar, help=setting.help
        )
    return click.option(
        *setting.flags, _parameter(name) if others else setting.name, type=kind,
        nargs=2 if setting.kind is tuple else 1, metavar=setting.metavar, help=setting.help,
    )  # fmt: skip


def speed_option(command: Callable[..., None]) -> Callable[..., None]:
    """Fill ``overrides`` and ``choice`` from a named speed; options given explicitly win."""

    @click.option(
        "--speed", metavar="NAME", help=f"{', '.join(SPEEDS)}: trade fidelity for time; prints the cost."
    )
    @wraps(command)
    def bundled(
        *args: Any, overrides: Mapping[str, Any], choice: ModelChoice, speed: str | None, **rest: Any
    ) -> None:
        if speed is not None:
            if speed not in SPEEDS:
                raise unknown("speed", speed, SPEEDS)
            named = SPEEDS[speed]
            if named.variants:
                choice = replace(choice, model=_variant(speed, choice.name))
            click.echo(f"speed {speed}: {named.price}", err=True)
            overrides = {**named.settings, **overrides}
            if choice.execution == DEFAULT:
                choice = replace(choice, execution=Execution(quantized=named.quantized))
        command(*args, overrides=overrides, choice=choice, **rest)

    return bundled


def _variant(speed: str, model: str) -> str:
    """Return the few-step variant of a model, which may be one itself."""
    known = SPEEDS[speed].variants
    if model not in {*known, *known.values()}:
        raise InputError(
            f"--speed {speed}: {shown(model)} has no few-step variant, {', '.join(known)} has; others need a "
            "few-step LoRA or ssd1b distill --steps-method"
        )
    return known.get(model, model)


def _negative(overrides: Mapping[str, Any], preset: str | None) -> dict[str, str]:
    if preset is None:
        return {}
    if "negative_prompt" in overrides:
        raise InputError("give --negative or --negative-preset, not both")
    if preset not in NEGATIVE_PROMPTS:
        raise unknown("negative preset", preset, NEGATIVE_PROMPTS)
    return {"negative_prompt": NEGATIVE_PROMPTS[preset]}


def check_settings(
    prompts: Iterable[str],
    overrides: Mapping[str, Any],
    preset: Preset | None = None,
    later: Collection[str] = (),
) -> None:
    """Check prompts and settings before torch is imported and a model loaded.

    Prints advice if a prompt contains syntax of other programs that is not supported.

    Args:
        prompts: the prompts.
        overrides: the user's settings.
        preset: the preset, if any.
        later: settings that each image will have from elsewhere, such as a sweep's axes.

    Raises:
        InputError: as ``check_overrides``, ``check_needs`` and ``parse_prompt``.
    """
    settings = check_overrides({**(preset.settings if preset else {}), **overrides})
    check_needs(settings, later)
    found: dict[str, str] = {}
    words = [each.word for each in settings.get("embeddings", ())]
    others = (settings.get(name) or "" for name in ("negative_prompt", *HIRES_PROMPTS))
    texts = [*(check("prompt", prompt, Prompt) for prompt in prompts), *others]
    for text in texts:
        parse_prompt(text)
        found = unsupported(without_words(text, words)) | found
    used = {words[which] for text in texts for _, _, which in find_words(text, words)}
    for word in words:
        if word not in used:
            print_advice(f"no prompt has the word {shown(word)} of an embedding")
    if found:
        notes = {
            NETWORK: "see --lora-folder",
            EMBEDDING: "see --embedding",
            WILDCARD: "see --wildcard-folder",
        }
        pieces = ", ".join(
            f"{shown(piece)} ({feature}: {notes.get(feature, 'not supported yet')})"
            for feature, piece in found.items()
        )
        print_advice(f"taken literally: {pieces}")


def read_prompts(path: str) -> list[str]:
    """Read prompts, one per line, from a file, or from standard input if ``path`` is "-".

    Raises:
        InputError: it cannot be read, is not UTF-8 and has no byte order mark, is too large, or holds no
            prompts.
    """
    if path == "-":
        source, data = "the standard input", _standard_input()
    else:
        source, data = named(path), read_file(path, most=MAX_PROMPT_FILE_BYTES)
    return split_prompts(decode_text(data, source), source=source)


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise InputError("cannot read the standard input: it is closed")
    try:
        data = sys.stdin.buffer.read(MAX_PROMPT_FILE_BYTES + 1)
    except OSError as error:
        raise InputError(f"cannot read the standard input: {error.strerror}") from None
    if len(data) > MAX_PROMPT_FILE_BYTES:
        raise InputError(f"the standard input is too large: allowed are {MAX_PROMPT_FILE_BYTES} bytes")
    return data
