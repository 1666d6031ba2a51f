"""Settings of a fine-tuning: defaults of the method, a TOML file, and options over them."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from ssd1b.errors import InputError, shown
from ssd1b.table_files import read_table
from ssd1b.training.data.batches import DataSettings
from ssd1b.training.objective import WEIGHTINGS
from ssd1b.training.settings import LoopSettings
from ssd1b.validation import Flag, Items, Name, OneOf, Range, parse, validated

KINDS = ("lora", "dora", "loha", "lokr")
"""Kinds of adapters that can be trained; see ``layers.py``."""

TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": (".to_q", ".to_k", ".to_v", ".to_out.0"),
    "transformer": (
        ".to_q",
        ".to_k",
        ".to_v",
        ".to_out.0",
        ".ff.net.0.proj",
        ".ff.net.2",
        ".proj_in",
        ".proj_out",
    ),
    "all": ("",),
}
"""Modules of the UNet that get an adapter, by the ends of their names: diffusers' default, kohya's default,
and also the convolutions and the linear layers outside of the transformers."""

_TRAIN: Mapping[str, Mapping[str, Any]] = {
    # diffusers' train_text_to_image_lora_sdxl.py: 1e-4, constant.
    "lora": {"learning_rate": 1e-4},
    # SSD-1B's model card: 1e-6.
    "full": {"learning_rate": 1e-6},
}
_COMMON = {
    "steps": 1000,
    "batch_size": 1,
    "warmup_steps": 0,
    "decay_steps": 0,
    "betas": (0.9, 0.999),
    "ema_decay": 0.0,
}


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """Settings of a fine-tuning.

    Attributes:
        method: "lora" trains an adapter of the UNet, "full" all of the UNet.
        kind: of the adapter, one of ``KINDS``.
        rank: of the adapter's products.
        alpha: the change of a weight is multiplied by ``alpha / rank``; None is the rank. With the same
            learning rate, alpha 1 at rank 16 learns much more slowly than alpha 16.
        rslora: multiply by ``alpha / sqrt(rank)`` instead (2312.03732).
        targets: which modules get an adapter, a key of ``TARGETS``.
        blocks: only modules whose names begin with one of these, such as "up_blocks.0"; empty for all.
        weighting: of the loss over the timesteps, one of ``objective.WEIGHTINGS``; "constant" is the plain
            loss of diffusers and kohya.
        min_snr: gamma of min-SNR (2303.09556), see ``objective.loss_weights``.
        noise_offset: see ``objective.noised``; SDXL's base was trained with 0.0357.
        prior: source of captioned images of the subject's class, which are learned beside it (DreamBooth).
        prior_prompts: prompts of the class, for which the model is to predict what it did before; needs no
            images.
        prior_weight: of the loss of either.
        validation: source of other captioned images, whose loss is measured at fixed noise and timesteps.
        samples: prompts generated at each validation, each with its index as seed.
        train: settings of the loop.
        data: settings of the data.
    """

    method: Annotated[str, OneOf("method", _TRAIN)] = "lora"
    kind: Annotated[str, OneOf("kind", KINDS)] = "lora"
    rank: Annotated[int, Range(1, 1024)] = 16
    alpha: Annotated[float, Range(1e-6, 1e6)] | None = None
    rslora: Flag = False
    targets: Annotated[str, OneOf("targets", TARGETS)] = "transformer"
    blocks: Annotated[tuple[Name, ...], Items(0, 64)] = ()
    weighting: Annotated[str, OneOf("weighting", WEIGHTINGS)] = "min-snr"
    min_snr: Annotated[float, Range(0.1, 1e6)] = 5.0
    noise_offset: Annotated[float, Range(0, 1)] = 0.0
    prior: Name | None = None
    prior_prompts: Annotated[tuple[Name, ...], Items(0, 256)] = ()
    prior_weight: Annotated[float, Range(0, 100)] = 1.0
    validation: Name | None = None
    samples: Annotated[tuple[Name, ...], Items(0, 16)] = ()
    train: LoopSettings
    data: DataSettings

    def __post_init__(self) -> None:
        """Check combinations of fields."""
        if self.prior_weight != 1 and self.prior is None and not self.prior_prompts:
            raise InputError("prior_weight needs prior (--prior) or prior_prompts (--prior-prompt)")
        if self.method == "lora" and self.train.fsdp:
            raise InputError("fsdp is for method full: an adapter fits on each device")
        if self.method == "lora" and self.train.muon_rate is not None:
            raise InputError("muon_rate is for method full")

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


def make_settings(file: str | None, given: Mapping[str, Any], *, size: int) -> FinetuneSettings:
    """Combine the method's defaults, a TOML file, and options.

    Args:
        file: the TOML file: fields of ``FinetuneSettings``, with the tables ``[train]`` and ``[data]``.
        given: options with their names; those of the tables as ``train.steps`` and ``data.path``.
            None is not given.
        size: of the model's images in pixels.

    Raises:
        InputError: the file cannot be read, or a setting is unknown or out of range.
    """
    where = file or "settings"
    table: Any = {} if file is None else read_table(_toml(file))
    tables = {name: table.get(name, {}) for name in ("train", "data")}
    for name, each in tables.items():
        if not isinstance(each, Mapping):
            raise InputError(f"{name} of {where} is {shown(each)}: it must be a table")
    plain = {name: value for name, value in table.items() if name not in tables}
    options = {name: value for name, value in given.items() if value is not None and value != ()}
    plain |= {name: value for name, value in options.items() if "." not in name}

    def part(name: str) -> dict[str, Any]:
        return {
            key.removeprefix(f"{name}."): each for key, each in options.items() if key.startswith(f"{name}.")
        }

    defaults = _TRAIN.get(str(plain.get("method", "lora")), {})
    merged = {
        **plain,
        "train": {**_COMMON, **defaults, **tables["train"], **part("train")},
        "data": {"size": size, **tables["data"], **part("data")},
    }
    return parse(FinetuneSettings, merged, where)


def _toml(name: str) -> Path:
    path = Path(name)
    if path.suffix.lower() != ".toml":
        raise InputError(f"settings are read from .toml files, got {shown(name)}")
    return path
