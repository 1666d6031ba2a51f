"""What a fine-tuning would train, and what it would cost; nothing is trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ssd1b.distill.cost import (
    BACKWARD,
    FLOAT32,
    OPTIMISER_BYTES,
    Throughput,
    activations,
    kept_for_backward,
    measure_speed,
    use_kernels_of,
)
from ssd1b.embeddings import ENCODERS
from ssd1b.evaluate.cost import unet_macs
from ssd1b.finetune.controlnet import control_layout, start_of
from ssd1b.finetune.layers import AdaptedWeight
from ssd1b.finetune.networks import Networks, prepare
from ssd1b.finetune.settings import FinetuneSettings
from ssd1b.layer_map import parameters
from ssd1b.layouts import ModelLayout
from ssd1b.model import Model
from ssd1b.models.controlnet import Controlled, ControlNet
from ssd1b.models.text import CONTEXT, TextEncoder
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import example_inputs
from ssd1b.runtime import choose_device, dtype_name
from ssd1b.training.kernels import use_fast_cpu_text_kernels
from ssd1b.training.low_rank import LowRank
from ssd1b.training.precision import training_dtype
from ssd1b.training.trained import trained_parameters


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetunePlan:
    """What a fine-tuning would train, and what it would cost.

    Attributes:
        method: see ``FinetuneSettings``.
        modules: number of modules that get an adapter; 0 for other methods than "lora".
        vectors: number of vectors of a new word for each text encoder; 0 for other methods.
        text_encoders: whether both text encoders are in memory during the training.
        trained: number of trained parameters.
        parameters: of the UNet, and of both text encoders if they are in memory.
        memory: bytes on the device during a step, by purpose.
        images: numbers of images, steps and passes; None if there are no data.
        seconds: estimated training time, without encoding the data.
        speed: of the device, as measured.
        device: that the estimates are for.
        dtype: number format of the computation there.
    """

    method: str
    modules: int
    vectors: int
    text_encoders: bool
    trained: int
    parameters: int
    memory: Mapping[str, int]
    images: str | None
    seconds: float
    speed: Throughput
    device: str
    dtype: str


def plan_finetune(
    layout: ModelLayout, model: Model | None, settings: FinetuneSettings, device: str | None = None,
    images: str | None = None,
) -> FinetunePlan:  # fmt: skip
    """Plan a fine-tuning; nothing is downloaded or written.

    Args:
        layout: of the model.
        model: with weights, to measure the device's speed; None if they are not on disk.
        settings: of the run.
        device: to estimate for; None for the fastest one.
        images: see ``FinetunePlan``.

    Raises:
        InputError: the settings choose no module.
    """
    place = str(choose_device(device))
    dtype, cells, train = training_dtype(place), settings.data.size // layout.vae.factor, settings.train
    networks = described_networks(layout, settings)
    total = sum(each.numel() for network in networks.parts.values() for each in network.parameters())
    encoders = [each for each in networks.parts.values() if isinstance(each, TextEncoder)]
    prepare(networks, settings)
    controlnet = networks.controlnet
    frozen = [each for each in networks.parameters() if not each.requires_grad]
    largest = max((each.numel() for each in frozen if not each.is_floating_point()), default=0)
    modules = sum(isinstance(each, LowRank | AdaptedWeight) for each in networks.modules())
    trained = sum(each.numel() for each in trained_parameters(networks).values())
    full, changed = settings.method == "full", modules > 0 and settings.kind != "lora"
    rounded = trained * (controlnet is not None and dtype.itemsize < FLOAT32)
    backward = BACKWARD if full or changed else BACKWARD / 2  # no gradients of the frozen weights
    # Each prior needs a pass of its own; that of prompts also one of the model before.
    passes = 1 + (settings.prior is not None) + bool(settings.prior_prompts)
    at_once = train.batch_size // train.micro_batches
    before = parameters(layout.unet) if full and settings.prior_prompts else 0
    memory = {
        "frozen weights": dtype.itemsize * before
        + sum(each.numel() * (dtype.itemsize if each.is_floating_point() else 1) for each in frozen),
        "trained weights": FLOAT32 * trained,
        "gradients": FLOAT32 * trained,
        "optimiser": trained * (OPTIMISER_BYTES[train.optimizer] if train.muon_rate is None else FLOAT32),
        "averaged weights": FLOAT32 * trained * (train.ema_decay > 0),
        "activations": passes
        * at_once
        * (
            _activations(networks, cells, dtype, place, settings)
            + sum(_text_activations(each, dtype, place, settings) for each in encoders)
        ),
        # The rounded weights of whole networks; the changed ones of adapters that change weights; the largest
        # one that is stored in int8.
        "computed weights": dtype.itemsize
        * (total if changed or (full and dtype.itemsize < FLOAT32) else largest + rounded),
    }
    macs = unet_macs(layout.unet, cells, cells)
    load = model and partial(model.network, "unet")
    speed = measure_speed(load, macs, cells, dtype, place, batch_size=at_once)
    if controlnet is None:
        step = passes * (1 + backward) * (macs + sum(map(_text_macs, encoders)))
    else:
        step = _controlled_macs(networks, cells)
    step += bool(settings.prior_prompts) * macs
    return FinetunePlan(
        method=settings.method, modules=modules, vectors=settings.vectors if settings.token else 0,
        text_encoders=bool(encoders), trained=trained, parameters=total, memory=memory, speed=speed,
        device=place, dtype=dtype_name(dtype), images=images,
        seconds=train.steps * train.batch_size * step / speed.rate,
    )  # fmt: skip


def described_networks(layout: ModelLayout, settings: FinetuneSettings) -> Networks:
    """Return a run's networks on the meta device, without weights."""
    texts = (layout.text_encoder, layout.text_encoder_2)
    with torch.device("meta"):
        encoders = (TextEncoder(texts[0]), TextEncoder(texts[1])) if settings.learns_text else None
        count = settings.vectors if settings.token else 0
        vectors = {
            name: torch.empty(count, each.hidden_size) for name, each in zip(ENCODERS, texts, strict=True)
        }
        controlnet = None
        if settings.method == "controlnet":
            controlnet = ControlNet(control_layout(layout, start_of(settings, layout)))
        return Networks(UNet(layout.unet), encoders, vectors if count else {}, controlnet)


def _activations(
    networks: Networks, cells: int, dtype: torch.dtype, device: str, settings: FinetuneSettings
) -> int:
    """Count the bytes that UNet and ControlNet keep of one image for the backward pass."""
    checkpointed, layout = settings.train.gradient_checkpointing, networks.unet.layout
    if networks.controlnet is None:
        return activations(layout, cells, dtype, device, checkpointed=checkpointed)
    controlled, inputs = _controlled(networks, cells)
    use_kernels_of(device, controlled)
    inputs = [each.to(dtype) for each in inputs]
    return kept_for_backward(controlled.to(dtype), inputs, checkpointed=checkpointed)


def _controlled_macs(networks: Networks, cells: int) -> int:
    """Count the MACs of a step for one image: no gradients of what is frozen, and none before the skips."""
    controlled, inputs = _controlled(networks, cells)
    with torch.device("meta"), FlopCounterMode(display=False) as counter:
        controlled(*inputs).sum().backward()
    return counter.get_total_flops() // 2


def _controlled(networks: Networks, cells: int) -> tuple[Controlled, list[Tensor]]:
    """Make a frozen UNet with a ControlNet in training on the meta device, and what they take."""
    assert networks.controlnet is not None
    control, layout = networks.controlnet.control_layout, networks.unet.layout
    with torch.device("meta"):
        controlled = Controlled(UNet(layout).requires_grad_(False), ControlNet(control))
        side = cells * control.factor
        picture = torch.zeros(1, control.picture_channels, side, side)
        return controlled, [picture, *example_inputs(layout, 1, cells, cells)]


def _text_activations(
    encoder: TextEncoder, dtype: torch.dtype, device: str, settings: FinetuneSettings
) -> int:
    """Count the bytes that a text encoder keeps of one chunk of 77 tokens for the backward pass."""
    with torch.device("meta"):
        plain = TextEncoder(encoder.layout).to(dtype)
        ids = torch.zeros(1, CONTEXT, dtype=torch.int64)
    if device == "cpu":
        use_fast_cpu_text_kernels(plain)
    return kept_for_backward(plain, [ids], checkpointed=settings.train.gradient_checkpointing)


def _text_macs(encoder: TextEncoder) -> int:
    """Count the MACs of a text encoder's products with weights for 77 tokens."""
    return CONTEXT * sum(each.weight.numel() for each in encoder.modules() if isinstance(each, nn.Linear))
