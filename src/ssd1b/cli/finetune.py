"""``ssd1b finetune``: train an adapter, or a whole UNet, on captioned images."""

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ssd1b.cli.command import RESUME, Command
from ssd1b.cli.paths import OUT_FOLDER, PATH, echo_path, out_option, overwrite_option
from ssd1b.cli.table import columns
from ssd1b.errors import InputError, unknown
from ssd1b.numerals import byte_size

if TYPE_CHECKING:
    from ssd1b.finetune.cost import FinetunePlan


def _needs(given: Mapping[str, Any]) -> tuple[str, ...]:
    return () if given["dry_run"] else ("accelerate",)


@click.command("finetune", cls=Command, needs=_needs, continues=RESUME)
@click.option("--model", metavar="MODEL", required=True, help="A name, folder, safetensors file or hub id.")
@click.option(
    "--data",
    type=PATH,
    metavar="DATA",
    help="Captioned images: a folder with .txt files or metadata.jsonl, WebDataset shards, a Hugging Face "
    "dataset on disk.",
)
@click.option("--method", metavar="NAME", help="lora (default): an adapter; full: the whole UNet.")
@click.option("--file", type=PATH, metavar="FILE", help="Settings in a .toml file. Options override them.")
@out_option("Folder of the run: checkpoints, log, the adapter or the model, a card.")
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
@click.option("--steps", type=int, help="Optimiser steps. Default: 1000.")
@click.option("--batch-size", type=int, help="Images per step. Default: 1.")
@click.option("--learning-rate", type=float, help="Default: 1e-4 for lora, 1e-6 for full.")
@click.option("--seed", type=int, help="Seed of data, noise and the adapter.")
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
@click.option(
    "--sample", multiple=True, metavar="PROMPT", help="Generate this at each validation. Repeatable."
)
@click.option(
    "--names", metavar="NAME", default="kohya", help="Names in the adapter's file: kohya or diffusers."
)
@click.option("--no-metadata", is_flag=True, help="Write no ss_* metadata into the adapter.")
@click.option("--dry-run", is_flag=True, help="Print what would be trained and what it would cost.")
@click.option("--resume", is_flag=True, help="Continue an interrupted run.")
@overwrite_option
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu.")
@click.option("--offline", is_flag=True, help="Never use the network.")
@click.option("--prediction", metavar="NAME", help="Prediction type, epsilon or v, if no file says.")
def command(
    model: str, data: str | None, method: str | None, file: str | None, out: str | None, cache: str | None,
    kind: str | None, rank: int | None, alpha: float | None, rslora: bool, targets: str | None,
    block: tuple[str, ...], steps: int | None, batch_size: int | None, learning_rate: float | None,
    seed: int | None, prior: str | None, prior_prompt: tuple[str, ...], prior_weight: float | None,
    validation: str | None, sample: tuple[str, ...], names: str, no_metadata: bool,
    dry_run: bool, resume: bool, overwrite: bool, device: str | None, offline: bool, prediction: str | None,
) -> None:  # fmt: skip
    """Train an adapter of a model's UNet, or the whole UNet, on captioned images.

    An adapter is written to OUT/adapter.safetensors, for --lora and for other programs; a whole model to
    OUT/model and OUT/model.safetensors. OUT/README.md lists the settings.

    \b
    Examples:
      ssd1b finetune --model ssd-1b --dry-run
      ssd1b finetune --model ssd-1b --data pictures --out runs/mine
      ssd1b finetune --model ssd-1b --data pictures --kind dora --rank 32 --out runs/dora
    """  # noqa: D301 (\b keeps click from wrapping)
    if out is None and not dry_run:
        raise InputError("missing option '--out': only a dry run can do without")
    if names not in ("kohya", "diffusers"):
        raise unknown("names", names, ("kohya", "diffusers"))

    from ssd1b.actions.finetune import finetune_model, plan_finetuning

    given = {
        "method": method, "kind": kind, "rank": rank, "alpha": alpha, "rslora": rslora or None,
        "targets": targets, "blocks": block, "prior": prior, "prior_prompts": prior_prompt,
        "prior_weight": prior_weight, "validation": validation, "samples": sample, "data.path": data,
        "train.steps": steps, "train.batch_size": batch_size, "train.learning_rate": learning_rate,
        "train.seed": seed,
    }  # fmt: skip
    if dry_run:
        planned = plan_finetuning(model, file, {**given, "data.path": data or "unnamed"}, device=device)
        click.echo(_text(planned))
        return
    for path in finetune_model(
        model, file, given, Path(str(out)), offline=offline, prediction=prediction, device=device,
        cache=None if cache is None else Path(cache), names=names, metadata=not no_metadata, resume=resume,
        overwrite=overwrite,
    ):  # fmt: skip
        echo_path(path)


def _text(plan: "FinetunePlan") -> str:
    share = 100 * plan.trained / plan.parameters
    what = f"adapters of {plan.modules} modules" if plan.modules else "the whole UNet"
    memory = [[purpose, byte_size(size)] for purpose, size in plan.memory.items()]
    memory.append(["total", byte_size(sum(plan.memory.values()))])
    return "\n\n".join([
        f"trained: {what}, {plan.trained:,} parameters, {share:.3g} % of the UNet's {plan.parameters:,}",
        columns([[f"MEMORY, {plan.dtype} on {plan.device}", ""], *memory], right=(1,)),
        f"time on {plan.device}: {plan.seconds / 60:,.3g} minutes at {plan.speed.rate / 1e9:,.3g} GMACs per "
        f"second, {plan.speed.how}",
    ])  # fmt: skip
