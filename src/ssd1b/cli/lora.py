"""``ssd1b lora``: tools for LoRAs and other adapters."""

from collections.abc import Callable
from dataclasses import asdict
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ssd1b.adapters.ranks import RULES, Cut
from ssd1b.cli.app import Group
from ssd1b.cli.inspect import adapter_text
from ssd1b.cli.messages import print_advice
from ssd1b.cli.paths import PATH, echo_path
from ssd1b.cli.table import columns, json_line
from ssd1b.errors import line
from ssd1b.loras import TRANSFERS, read_lora
from ssd1b.numerals import byte_size

if TYPE_CHECKING:
    from ssd1b.actions.adapters import AdapterReport, Output

_LORAS = "FILE[:UNET[:TEXT]]..."

model_option = click.option(
    "--model", metavar="MODEL", help="The model that it is for. Default: the published one that it fits."
)


@click.group("lora", cls=Group)
def command() -> None:
    """Convert, merge, resize and extract LoRAs and other adapters, and bake them into models."""


def output_options(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command ``output``, an ``Output``, and ``as_json``."""

    @click.option("--out", type=PATH, metavar="FILE", required=True, help="The new file, *.safetensors.")
    @click.option(
        "--dialect", metavar="NAME", default="kohya", show_default=True,
        help="Spelling of the names: kohya, which all programs read, comfyui or diffusers.",
    )  # fmt: skip
    @click.option("--dtype", metavar="NAME", help="fp32, fp16, bf16. Default: that of the files.")
    @click.option("--overwrite", is_flag=True, help="Replace an existing file.")
    @click.option("--dry-run", is_flag=True, help="Compute and report, but write nothing.")
    @click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
    @wraps(command)
    def bundled(
        *args: Any, out: str, dialect: str, dtype: str | None, overwrite: bool, dry_run: bool, **rest: Any
    ) -> None:
        from ssd1b.actions.adapters import Output

        output = Output(path=out, dialect=dialect, dtype=dtype, overwrite=overwrite, dry_run=dry_run)
        command(*args, output=output, **rest)

    return bundled


def cut_options(command: Callable[..., None]) -> Callable[..., None]:
    """Pass a command ``cut``, a ``Cut``, or None if no option is given."""

    @click.option("--rank", type=int, metavar="N", help="Largest rank of each module.")
    @click.option(
        "--energy", type=float, metavar="SHARE",
        help="0 to 1: smallest rank that keeps this share of the squares of the singular values.",
    )  # fmt: skip
    @click.option("--sv-fro", type=float, metavar="SHARE", help="The same for their root, as in sd-scripts.")
    @click.option("--sv-cumulative", type=float, metavar="SHARE", help="The same for their sum.")
    @click.option("--sv-ratio", type=float, metavar="N", help="Keep those above the largest divided by N.")
    @wraps(command)
    def bundled(*args: Any, **options: Any) -> None:
        given = {name: options.pop(name) for name in ("rank", *RULES)}
        empty = all(value is None for value in given.values())
        command(*args, cut=None if empty else Cut(**given), **options)

    return bundled


@command.command("convert")
@click.argument("file", type=PATH, metavar="FILE|FOLDER")
@output_options
@model_option
@click.option("--to", metavar="MODEL", help="Move it to this model, such as ssd-1b or a student.")
@click.option(
    "--transfer", metavar="NAME", default="kept", show_default=True,
    help=f"How it is moved: {', '.join(TRANSFERS)}.",
)  # fmt: skip
@click.option(
    "--teacher", metavar="MODEL", help="With --to: the model that it was trained for. Default: by its names."
)
@click.option("--partial", is_flag=True, help="Leave out keys that match nothing, instead of refusing.")
def convert_command(
    file: str,
    output: "Output",
    as_json: bool,
    model: str | None,
    to: str | None,
    transfer: str,
    teacher: str | None,
    partial: bool,
) -> None:
    """Write an adapter in another spelling, or for another model.

    FILE may be a folder of PEFT. Without --to and --dtype every number stays, and the metadata. With --to, it
    goes through the layer maps from which models were distilled, and what belongs to blocks that the model
    lacks is left out. The metadata then name the new model.

    \b
    Examples:
      ssd1b lora convert pixel-art.safetensors --dialect diffusers --out pixel-art-diffusers.safetensors
      ssd1b lora convert pixel-art.safetensors --to ssd-1b --out pixel-art-ssd-1b.safetensors
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.actions.adapters import convert_adapter
    from ssd1b.cli.display import progress

    report = convert_adapter(
        file, output, model=model, to=to, transfer=transfer, teacher=teacher, partial=partial,
        progress=progress,
    )  # fmt: skip
    _echo(report, output, as_json=as_json)


@command.command("merge")
@click.argument("loras", nargs=-1, required=True, metavar=_LORAS)
@output_options
@cut_options
@model_option
def merge_command(
    loras: tuple[str, ...], output: "Output", cut: Cut | None, as_json: bool, model: str | None
) -> None:
    """Make one LoRA of several, with their strengths.

    Without a rank their ranks add up, and the result is exact. With one, it is the best of that rank.

    \b
    Examples:
      ssd1b lora merge pixel-art.safetensors:0.8 light.safetensors:0.5 --out both.safetensors
      ssd1b lora merge pixel-art.safetensors light.safetensors --energy 0.98 --out both.safetensors
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.actions.adapters import merge_adapters
    from ssd1b.cli.display import progress

    given = [read_lora(each) for each in loras]
    _echo(merge_adapters(given, output, cut=cut, model=model, progress=progress), output, as_json=as_json)


@command.command("resize")
@click.argument("file", type=PATH, metavar="FILE")
@output_options
@cut_options
@model_option
def resize_command(file: str, output: "Output", cut: Cut | None, as_json: bool, model: str | None) -> None:
    """Make a LoRA smaller, or a LoRA of another kind of adapter: the best one of a rank.

    Several options together take the smallest rank. Kinds whose change depends on the model, such as DoRA,
    need --model.

    \b
    Examples:
      ssd1b lora resize pixel-art.safetensors --rank 16 --out pixel-art-16.safetensors
      ssd1b lora resize pixel-art.safetensors --sv-fro 0.95 --rank 64 --out pixel-art-small.safetensors
    """  # noqa: D301 (\b keeps click from wrapping)
    cut = cut or Cut()  # refused: nothing is given

    from ssd1b.actions.adapters import merge_adapters
    from ssd1b.cli.display import progress
    from ssd1b.loras import lora_of

    report = merge_adapters([lora_of(file)], output, cut=cut, model=model, progress=progress)
    _echo(report, output, as_json=as_json)


@command.command("extract")
@click.argument("original", metavar="MODEL")
@click.argument("tuned", metavar="TUNED")
@output_options
@cut_options
@click.option("--unet-only", is_flag=True, help="Leave the text encoders out.")
@click.option("--small", is_flag=True, help="Also keep changes of norms and biases, which ComfyUI reads.")
def extract_command(
    original: str,
    tuned: str,
    output: "Output",
    cut: Cut | None,
    as_json: bool,
    unet_only: bool,
    small: bool,
) -> None:
    """Make a LoRA of the difference between MODEL and TUNED, a fine-tuned one of the same layout.

    \b
    Example:
      ssd1b lora extract ssd-1b finetuned.safetensors --rank 64 --out style.safetensors
    """  # noqa: D301 (\b keeps click from wrapping)
    cut = cut or Cut()  # refused: nothing is given

    from ssd1b.actions.adapters import extract_adapter
    from ssd1b.adapters.names import PARTS
    from ssd1b.cli.display import progress

    report = extract_adapter(
        original, tuned, output, cut=cut, parts=PARTS[:1] if unet_only else PARTS, small=small,
        progress=progress,
    )  # fmt: skip
    _echo(report, output, as_json=as_json)


@command.command("bake")
@click.argument("model", metavar="MODEL")
@click.option(
    "--lora", "loras", multiple=True, required=True, metavar=_LORAS.removesuffix("..."),
    help="An adapter and its strengths; may be repeated.",
)  # fmt: skip
@click.option(
    "--out", type=PATH, metavar="FOLDER|FILE", required=True,
    help="A folder of diffusers, or a single file if the name ends in .safetensors.",
)  # fmt: skip
@click.option("--dtype", metavar="NAME", help="fp32, fp16, bf16. Default: the model's.")
@click.option("--overwrite", is_flag=True, help="Replace an existing file.")
@click.option("--dry-run", is_flag=True, help="Check that everything fits, but write nothing.")
def bake_command(
    model: str, loras: tuple[str, ...], out: str, dtype: str | None, overwrite: bool, dry_run: bool
) -> None:
    """Write MODEL with adapters merged into its weights.

    \b
    Examples:
      ssd1b lora bake ssd-1b --lora pixel-art.safetensors:0.8 --out ssd-1b-pixel-art
      ssd1b lora bake ssd-1b --lora pixel-art.safetensors --out ssd-1b-pixel-art.safetensors
    """  # noqa: D301 (\b keeps click from wrapping)
    given = [read_lora(each) for each in loras]

    from ssd1b.actions.adapters import bake_adapters
    from ssd1b.cli.display import progress

    path = bake_adapters(
        model, given, out, dtype=dtype, overwrite=overwrite, dry_run=dry_run, progress=progress,
        notify=print_advice,
    )  # fmt: skip
    if not dry_run:
        echo_path(path)


@command.command("inspect")
@click.argument("file", type=PATH, metavar="FILE|FOLDER")
@click.option("--model", metavar="MODEL", help="The model it is compared with. Default: all known.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect_command(file: str, model: str | None, as_json: bool) -> None:
    """Describe an adapter, as `ssd1b inspect` does.

    \b
    Example:
      ssd1b lora inspect pixel-art.safetensors --model ssd-1b
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.actions.inspect import describe_adapter

    facts = describe_adapter(file, model)
    click.echo(json_line(facts) if as_json else adapter_text(facts))


def _echo(report: "AdapterReport", output: "Output", *, as_json: bool) -> None:
    """Print what was written: facts on standard error, and the path."""
    if as_json:
        click.echo(json_line(asdict(report)))
        return
    ranks = ", ".join(f"{rank} ({count})" for rank, count in report.ranks.items())
    rows = {
        "modules": str(report.modules), "rank": ranks, "size": byte_size(report.bytes),
        "model": report.assumed and f"{report.assumed}, assumed", "through": report.through,
        "carried": _share(report.carried), "kept": _share(report.kept),
    }  # fmt: skip
    click.echo(columns([(name, value) for name, value in rows.items() if value]), err=True)
    reasons: dict[str, int] = {}
    for why in report.left_out.values():
        reasons[why] = reasons.get(why, 0) + 1
    for why, count in reasons.items():
        click.echo(line(f"left out: {count} keys: {why}"), err=True)
    if not output.dry_run:
        echo_path(report.path)


def _share(value: float | None) -> str | None:
    return None if value is None else f"{100 * value:.1f} %"
