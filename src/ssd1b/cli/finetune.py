"""``ssd1b finetune``: train an adapter, a whole UNet, a new word or a ControlNet, on captioned images."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssd1b.cli.command import RESUME, Command
from ssd1b.cli.messages import notify
from ssd1b.cli.paths import OUT_FOLDER, PATH, echo_path, out_option, overwrite_option
from ssd1b.cli.table import columns
from ssd1b.errors import InputError, prefix_errors, shown, unknown
from ssd1b.files import expand_path
from ssd1b.finetune.presets import PRESETS
from ssd1b.inputs import divide
from ssd1b.numerals import byte_size, counted, duration, whole_number

if TYPE_CHECKING:
    from ssd1b.finetune.cost import FinetunePlan


_PLACES = {
    **{
        name: f"train.{name}"
        for name in (
            "steps", "batch_size", "learning_rate", "text_rate", "optimizer", "gradient_checkpointing",
            "seed", "validation_steps",
        )
    },
    **{
        name: f"data.{name}"
        for name in (
            "size", "flip", "trigger", "caption_dropout", "caption_lines", "shuffle_captions", "keep_tokens",
            "tag_dropout", "masks", "unmasked_weight", "controls",
        )
    },
}  # fmt: skip
"""Settings of the tables ``[train]`` and ``[data]``, by their options."""


def _needs(given: Mapping[str, Any]) -> tuple[str, ...]:
    return () if given["dry_run"] else ("accelerate",)


@click.command("finetune", cls=Command, needs=_needs, continues=RESUME)
@click.option("--model", metavar="MODEL", required=True, help="A name, folder, safetensors file or hub id.")
@click.option(
    "--data",
    multiple=True,
    metavar="DATA[:REPEATS]",
    help="Captioned images: a folder with .txt files or metadata.jsonl, WebDataset shards, a Hugging Face "
    "dataset on disk; and how often its images are seen in a pass. Repeatable.",
)
@click.option(
    "--preset",
    metavar="NAME",
    help=f"{', '.join(PRESETS)}: see ssd1b presets --finetune. Options override it.",
)
@click.option(
    "--method",
    metavar="NAME",
    help="lora (default): an adapter; full: the whole UNet; textual-inversion: a word; controlnet.",
)
@click.option("--file", type=PATH, metavar="FILE", help="Settings in a .toml file. Options override them.")
@out_option("Folder of the run: checkpoints, log, the result, a card.")
@click.option(
    "--cache",
    type=OUT_FOLDER,
    metavar="FOLDER",
    help="Folder for encoded images, which several runs can share. Default: --out.",
)
@click.option("--kind", metavar="NAME", help="Kind of the adapter: lora (default), dora, loha, lokr.")
@click.option("--rank", type=int, help="Rank of the adapter. Default: 16.")
@click.option("--alpha", type=float, help="The change is multiplied by alpha / rank. Default: the rank.")
@click.option("--rslora", is_flag=True, help="Multiply by alpha / sqrt(rank).")
@click.option("--targets", metavar="NAME", help="attention, transformer (default) or all: what is adapted.")
@click.option("--block", multiple=True, metavar="NAME", help="Only this block, as up_blocks.0. Repeatable.")
@click.option("--text-encoders", is_flag=True, help="With lora and full, train both text encoders, too.")
@click.option("--int8-base", is_flag=True, help="Frozen weights in int8: half the memory, slower steps.")
@click.option("--text-rate", type=float, help="Learning rate of the text encoders. Default: --learning-rate.")
@click.option("--token", metavar="WORD", help="The new word of textual-inversion, as my-cat.")
@click.option(
    "--vectors", type=int, help="Number of the word's vectors, each instead of a token. Default: 1."
)
@click.option("--init-word", metavar="WORD", help="Start from the vectors of this word. Default: random.")
@click.option(
    "--template",
    metavar="NAME",
    help="subject or style: captions with the new word, instead of those of the data.",
)
@click.option("--steps", type=int, help="Optimiser steps. Default: 1000.")
@click.option("--epochs", type=float, metavar="N", help="Passes over the images, instead of --steps.")
@click.option("--batch-size", type=int, help="Images per step. Default: 1.")
@click.option(
    "--learning-rate",
    type=float,
    help="Default: 1e-4 for lora, 1e-6 for full, 5e-4 for a word, 1e-5 for a ControlNet.",
)
@click.option("--optimizer", metavar="NAME", help="adamw (default), adamw-8bit or adafactor.")
@click.option("--gradient-checkpointing", is_flag=True, help="Less memory for about a third more time.")
@click.option("--seed", type=int, help="Seed of data, noise and the adapter.")
@click.option("--size", type=int, metavar="PIXELS", help="Side of square images. Default: the model's.")
@click.option("--flip", is_flag=True, help="Mirror half of the images.")
@click.option("--trigger", metavar="WORD", help="Put this in front of captions that do not contain it.")
@click.option("--caption-dropout", type=float, metavar="SHARE", help="Images without caption. Default: 0.1.")
@click.option("--caption-lines", is_flag=True, help="Each line of a .txt file is a caption; one is drawn.")
@click.option("--shuffle-captions", is_flag=True, help="Shuffle the parts of captions between commas.")
@click.option("--keep-tokens", type=int, metavar="N", help="Leave the first N of these parts as they are.")
@click.option("--tag-dropout", type=float, metavar="SHARE", help="Share of the other parts to leave out.")
@click.option(
    "--masks",
    metavar="beside|alpha|FOLDER",
    help="Where the loss counts: NAME.mask.png beside the images, their opacity, or a folder of masks.",
)
@click.option(
    "--unmasked-weight", type=float, metavar="WEIGHT", help="Least weight outside of masks. Default: 0.1."
)
@click.option(
    "--controls",
    metavar="beside|edges|FOLDER",
    help="What a ControlNet follows: NAME.control.png beside the images, their edges, or a folder of images.",
)
@click.option(
    "--init-control", metavar="FILE|FOLDER", help="Start from this ControlNet. Default: the UNet's encoder."
)
@click.option("--weighting", metavar="NAME", help="Of noise levels: min-snr (default), debiased, constant.")
@click.option("--min-snr", type=float, metavar="GAMMA", help="Largest weight of min-snr. Default: 5.")
@click.option(
    "--zero-terminal-snr", is_flag=True, help="Of a model that predicts v: noise levels end in pure noise."
)
@click.option(
    "--noise-offset", type=float, metavar="STD", help="Offset noise, for bright and dark images. Default: 0."
)
@click.option(
    "--prior", type=PATH, metavar="DATA", help="Captioned images of the class, learned beside (DreamBooth)."
)
@click.option(
    "--prior-prompt",
    multiple=True,
    metavar="PROMPT",
    help="Predict for this what the model did before. Repeatable.",
)
@click.option("--prior-weight", type=float, help="Weight of the prior's loss. Default: 1.")
@click.option(
    "--validation", type=PATH, metavar="DATA", help="Other captioned images, to measure the loss on."
)
@click.option("--validation-steps", type=int, metavar="N", help="Steps between validations. Default: 100.")
@click.option(
    "--sample", multiple=True, metavar="PROMPT", help="Generate this at each validation. Repeatable."
)
@click.option(
    "--sample-control",
    type=PATH,
    multiple=True,
    metavar="FILE",
    help="Picture that a --sample of a ControlNet follows: one for all, or one for each. Repeatable.",
)
@click.option(
    "--names", metavar="NAME", default="kohya", help="Names in the adapter's file: kohya or diffusers."
)
@click.option("--no-metadata", is_flag=True, help="Write no metadata into the result.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained and what it would cost.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@overwrite_option
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option("--prediction", metavar="NAME", help="Prediction type, epsilon or v, if no file says.")
def command(
    model: str, data: tuple[str, ...], preset: str | None, file: str | None, out: str | None,
    cache: str | None, block: tuple[str, ...], prior_prompt: tuple[str, ...], sample: tuple[str, ...],
    sample_control: tuple[str, ...], names: str, no_metadata: bool, dry_run: bool, resume: bool,
    overwrite: bool, device: str | None, offline: bool, prediction: str | None, **options: Any,
) -> None:  # fmt: skip
    """Train an adapter, a whole model, a new word, or a ControlNet, on captioned images.

    An adapter is written to OUT/adapter.safetensors, for --lora and for other programs; a whole model to
    OUT/model and OUT/model.safetensors; the vectors of a word to OUT/WORD.safetensors, for --embedding and
    for other programs; a ControlNet to OUT/controlnet, for --control and for diffusers. OUT/README.md lists
    the settings.

    \b
    Examples:
      ssd1b finetune --model ssd-1b --dry-run
      ssd1b finetune --model ssd-1b --data pictures --out runs/mine
      ssd1b finetune --model ssd-1b --data pictures --kind dora --rank 32 --out runs/dora
      ssd1b finetune --model ssd-1b --data pictures --text-encoders --text-rate 5e-5 --out runs/text
      ssd1b finetune --model ssd-1b --data pictures --method textual-inversion --token my-cat \
        --init-word cat --template subject --out runs/cat
      ssd1b finetune --model ssd-1b --data pictures --method controlnet --controls edges --out runs/edges
    """  # noqa: D301 (\b keeps click from wrapping)
    if out is None and not dry_run:
        raise InputError("missing option '--out': only a dry run can do without")
    if names not in ("kohya", "diffusers"):
        raise unknown("names", names, ("kohya", "diffusers"))

    from ssd1b.actions.finetune import finetune_model, plan_finetuning

    given = {
        **{_PLACES.get(name, name): None if each is False else each for name, each in options.items()},
        "blocks": block, "prior_prompts": prior_prompt, "samples": sample,
        "sample_controls": sample_control, **_sources(data),
    }  # fmt: skip
    if dry_run:
        click.echo(
            _text(plan_finetuning(model, file, given, preset=preset, device=device, prediction=prediction))
        )
        return
    for path in finetune_model(
        model, file, given, Path(str(out)), preset=preset, offline=offline, prediction=prediction,
        device=device, cache=None if cache is None else Path(cache), names=names, metadata=not no_metadata,
        resume=resume, overwrite=overwrite, notify=notify,
    ):  # fmt: skip
        echo_path(path)


def _sources(data: tuple[str, ...]) -> dict[str, Any]:
    """Read values of ``--data``: paths, each with the number of its repeats."""
    found = [divide(each, [1]) for each in data]
    sources = []
    for (path,), words in found:
        with prefix_errors(f"--data {path}"):
            if len(words) > 1:
                raise InputError(f"it must be DATA:REPEATS, got {shown(':'.join(words))} after it")
            repeats = {"repeats": whole_number(words[0])} if words else {}
            sources.append({"path": expand_path(path), **repeats})
    return {"data.sources": sources} if sources else {}


def _text(plan: "FinetunePlan") -> str:
    share = 100 * plan.trained / plan.parameters
    networks = "the UNet and both text encoders" if plan.text_encoders else "the UNet"
    what = {
        "lora": f"adapters of {counted(plan.modules, 'module')}",
        "full": f"all of {networks}",
        "textual-inversion": f"{counted(plan.vectors, 'vector')} for each text encoder",
        "controlnet": "a ControlNet",
    }[plan.method]
    share_of = f"{share:.3g} % of the" if plan.method != "controlnet" else "beside the"
    memory = [[purpose, byte_size(size)] for purpose, size in plan.memory.items()]
    memory.append(["total", byte_size(sum(plan.memory.values()))])
    steps = [] if plan.images is None else [f"data: {plan.images}"]
    return "\n\n".join([
        *steps,
        f"trained: {what}, {plan.trained:,} parameters, {share_of} "
        f"{plan.parameters:,} in {networks}",
        columns([[f"MEMORY, {plan.dtype} on {plan.device}", ""], *memory], right=(1,)),
        f"time on {plan.device}: {duration(plan.seconds)} at {plan.speed.rate / 1e9:,.3g} GMACs per "
        f"second, {plan.speed.how}",
    ])  # fmt: skip
