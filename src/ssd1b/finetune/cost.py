"""What a fine-tuning would train, and what it would cost; nothing is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch

from ssd1b.distill.cost import BACKWARD, FLOAT32, OPTIMISER_BYTES, Throughput, activations, measure_speed
from ssd1b.evaluate.cost import unet_macs
from ssd1b.finetune.layers import adapt, adapted_modules
from ssd1b.finetune.settings import FinetuneSettings
from ssd1b.layer_map import parameters
from ssd1b.layouts import ModelLayout
from ssd1b.model import Model
from ssd1b.models.unet import UNet
from ssd1b.runtime import choose_device, dtype_name
from ssd1b.training.precision import training_dtype
from ssd1b.training.trained import trained_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetunePlan:
    """What a fine-tuning would train, and what it would cost.

    Attributes:
        modules: number of modules that get an adapter; 0 for a whole UNet.
        trained: number of trained parameters.
        parameters: of the UNet.
        memory: bytes on the device during a step, by purpose.
        seconds: estimated training time, without encoding the data.
        speed: of the device, as measured.
        device: that the estimates are for.
        dtype: number format of the computation there.
    """

    modules: int
    trained: int
    parameters: int
    memory: Mapping[str, int]
    seconds: float
    speed: Throughput
    device: str
    dtype: str


def plan_finetune(
    layout: ModelLayout, model: Model | None, settings: FinetuneSettings, device: str | None = None
) -> FinetunePlan:
    """Plan a fine-tuning; nothing is downloaded or written.

    Args:
        layout: of the model.
        model: with weights, to measure the device's speed; None if they are not on disk.
        settings: of the run.
        device: to estimate for; None for the fastest one.

    Raises:
        InputError: the settings choose no module.
    """
    place = str(choose_device(device))
    dtype, cells, train = training_dtype(place), settings.data.size // layout.vae.factor, settings.train
    with torch.device("meta"):
        unet = UNet(layout.unet)
        modules = len(adapted_modules(unet, settings)) if settings.method == "lora" else 0
        if modules:
            adapt(unet, settings)
        trained = sum(each.numel() for each in trained_parameters(unet).values())
    low_rank = modules > 0 and settings.kind == "lora"
    backward = BACKWARD / 2 if low_rank else BACKWARD  # no gradients of the frozen weights
    # Each prior needs a pass of its own; that of prompts also one of the model before.
    passes = 1 + (settings.prior is not None) + bool(settings.prior_prompts)
    total, at_once = parameters(layout.unet), train.batch_size // train.micro_batches
    memory = {
        "frozen weights": dtype.itemsize * (total if modules or settings.prior_prompts else 0),
        "trained weights": FLOAT32 * trained,
        "gradients": FLOAT32 * trained,
        "optimiser": trained * (OPTIMISER_BYTES[train.optimizer] if train.muon_rate is None else FLOAT32),
        "averaged weights": FLOAT32 * trained * (train.ema_decay > 0),
        "activations": passes
        * at_once
        * activations(layout.unet, cells, dtype, place, checkpointed=train.gradient_checkpointing),
        # The rounded weights of a whole UNet; the changed ones of adapters that change weights.
        "computed weights": dtype.itemsize * total
        if not low_rank and (modules or dtype.itemsize < FLOAT32)
        else 0,
    }
    macs = unet_macs(layout.unet, cells, cells)
    load = model and partial(model.network, "unet")
    speed = measure_speed(load, macs, cells, dtype, place, batch_size=at_once)
    return FinetunePlan(
        modules=modules, trained=trained, parameters=total, memory=memory, speed=speed, device=place,
        seconds=train.steps
        * train.batch_size
        * (passes * (1 + backward) + bool(settings.prior_prompts))
        * macs
        / speed.rate,
        dtype=dtype_name(dtype),
    )  # fmt: skip
