"""Presets of fine-tunings: what other programs and the model card recommend, with sources; no torch."""

from collections.abc import Mapping
from typing import Any, NamedTuple

_CARD = "model card of SSD-1B, downstream use"
_DIFFUSERS = "diffusers, examples"

Settings = Mapping[str, Any]
"""Settings by their names; those of the tables as ``train.steps`` and ``data.size``."""


TABLES = ("train", "data")
"""Names of the tables."""


class FinetunePreset(NamedTuple):
    """Named settings of a fine-tuning.

    Attributes:
        source: where they are from.
        settings: layers below a file and options, see ``finetune.settings.make_settings``.
    """

    source: str
    settings: Settings


_SCRIPT: Settings = {
    # What diffusers' scripts for SDXL have in common; they weigh all timesteps alike, and have no buckets.
    "weighting": "constant", "noise_offset": 0.0, "train.optimizer": "adamw", "train.warmup_steps": 0,
    "train.decay_steps": 0, "train.betas": (0.9, 0.999), "train.weight_decay": 1e-2,
    "train.max_grad_norm": 1.0, "train.ema_decay": 0.0, "data.max_ratio": 1.0, "data.crop": "random",
    "data.caption_dropout": 0.0,
}  # fmt: skip

_SCRIPT_LORA: Settings = {
    **_SCRIPT, "method": "lora", "kind": "lora", "rank": 4, "alpha": 4.0, "targets": "attention",
}  # fmt: skip

_TEXT_TO_IMAGE_LORA: Settings = {
    **_SCRIPT_LORA, "epochs": 2, "train.batch_size": 1, "train.learning_rate": 1e-4, "train.seed": 42,
    "data.size": 1024, "data.flip": True,
}  # fmt: skip

_TEXT_TO_IMAGE: Settings = {
    **_SCRIPT, "method": "full", "train.steps": 10_000, "train.batch_size": 4, "train.micro_batches": 4,
    "train.learning_rate": 1e-6, "train.optimizer": "adamw-8bit", "train.gradient_checkpointing": True,
    "data.size": 512, "data.crop": "centre", "data.flip": True, "data.caption_dropout": 0.2,
}  # fmt: skip

_DREAMBOOTH_LORA: Settings = {
    **_SCRIPT_LORA, "train.steps": 500, "train.batch_size": 4, "train.micro_batches": 4,
    "train.learning_rate": 1e-4, "train.weight_decay": 1e-4, "train.seed": 0, "data.size": 1024,
}  # fmt: skip

_CONTROLNET: Settings = {
    **_SCRIPT, "method": "controlnet", "train.steps": 15_000, "train.batch_size": 4,
    "train.micro_batches": 4, "train.learning_rate": 1e-5, "train.seed": 42, "data.size": 1024,
    "data.crop": "centre",
}  # fmt: skip

_KOHYA_LORA: Settings = {
    "method": "lora", "kind": "lora", "rank": 32, "alpha": 16.0, "targets": "transformer",
    "weighting": "constant", "noise_offset": 0.0, "epochs": 10, "train.batch_size": 1,
    "train.learning_rate": 1e-4, "train.optimizer": "adamw-8bit", "train.warmup_steps": 0,
    "train.decay_steps": 0, "train.betas": (0.9, 0.999), "train.weight_decay": 1e-2,
    "train.max_grad_norm": 1.0, "train.ema_decay": 0.0, "train.gradient_checkpointing": True,
    "data.size": 1024, "data.caption_dropout": 0.0,
}  # fmt: skip

_KOHYA_FULL: Settings = {
    "method": "full", "weighting": "constant", "noise_offset": 0.0, "train.batch_size": 1,
    "train.learning_rate": 4e-7, "train.optimizer": "adafactor", "train.warmup_steps": 100,
    "train.decay_steps": 0, "train.weight_decay": 0.0, "train.max_grad_norm": 1.0,
    "train.ema_decay": 0.0, "train.gradient_checkpointing": True, "data.size": 1024,
    "data.caption_dropout": 0.0,
}  # fmt: skip

_ONETRAINER_LORA: Settings = {
    "method": "lora", "kind": "lora", "rank": 16, "alpha": 1.0, "targets": "transformer",
    "weighting": "constant", "noise_offset": 0.0, "train.batch_size": 4,
    "train.learning_rate": 3e-4, "train.optimizer": "adamw", "train.warmup_steps": 200,
    "train.decay_steps": 0, "train.betas": (0.9, 0.999), "train.weight_decay": 1e-2,
    "train.max_grad_norm": 1.0, "train.ema_decay": 0.0, "data.size": 1024,
    "data.caption_dropout": 0.0,
}  # fmt: skip

PRESETS: Mapping[str, FinetunePreset] = {
    "ssd-1b-lora": FinetunePreset(
        f"{_CARD}: train_text_to_image_lora_sdxl.py, 1024 pixels, 2 epochs, 1e-4", _TEXT_TO_IMAGE_LORA
    ),
    "ssd-1b-dreambooth": FinetunePreset(
        f"{_CARD}: train_dreambooth_lora_sdxl.py, 1024 pixels, 500 steps of 1 x 4, 1e-5",
        {**_DREAMBOOTH_LORA, "train.learning_rate": 1e-5},
    ),
    "ssd-1b-full": FinetunePreset(
        f"{_CARD}: train_text_to_image_sdxl.py, 512 pixels, 10,000 steps of 1 x 4, 1e-6, 8-bit Adam, a fifth "
        "without captions",
        _TEXT_TO_IMAGE,
    ),
    "diffusers-lora": FinetunePreset(
        f"{_DIFFUSERS}/text_to_image/README_sdxl.md: train_text_to_image_lora_sdxl.py, rank 4, alpha 4",
        _TEXT_TO_IMAGE_LORA,
    ),
    "diffusers-dreambooth": FinetunePreset(
        f"{_DIFFUSERS}/dreambooth/README_sdxl.md: train_dreambooth_lora_sdxl.py, rank 4, alpha = rank, 500 "
        "steps of 1 x 4, 1e-4",
        _DREAMBOOTH_LORA,
    ),
    "diffusers-full": FinetunePreset(
        f"{_DIFFUSERS}/text_to_image/README_sdxl.md: train_text_to_image_sdxl.py", _TEXT_TO_IMAGE
    ),
    "diffusers-controlnet": FinetunePreset(
        f"{_DIFFUSERS}/controlnet/README_sdxl.md: train_controlnet_sdxl.py, 1024 pixels, 15,000 steps of 1 x "
        "4, 1e-5",
        _CONTROLNET,
    ),
    "kohya-lora": FinetunePreset(
        "sd-scripts, docs/sdxl_train_network.md: the example, with the text encoders frozen, rank 32, "
        "alpha 16 (without --network_alpha it would be 1), 1e-4, 10 epochs, 8-bit AdamW",
        _KOHYA_LORA,
    ),
    "kohya-full": FinetunePreset(
        "sd-scripts' advice for fine-tuning SDXL in 24 GB: Adafactor at SDXL's own 4e-7 after 100 steps of "
        "warm-up, batch 1, the UNet only",
        _KOHYA_FULL,
    ),
    "onetrainer-lora": FinetunePreset(
        "OneTrainer's preset for LoRAs of SDXL: rank 16, alpha 1, 3e-4 after 200 steps of warm-up, batch 4",
        _ONETRAINER_LORA,
    ),
}
"""By name. Of the number formats none says anything: ``training.precision`` chooses the device's."""


def nested(flat: Settings) -> dict[str, Any]:
    """Put the settings of the tables into tables, as in TOML."""
    found: dict[str, Any] = {name: {} for name in TABLES}
    for name, value in flat.items():
        table, _, key = name.partition(".")
        if table in TABLES and key:
            found[table][key] = value
        else:
            found[name] = value
    return found
