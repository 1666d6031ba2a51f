"""The cost of a stage before it is run: memory, counted on meta tensors, and time, measured briefly."""

import time
from collections.abc import Callable, Iterable
from typing import NamedTuple

import torch
from torch import Tensor, nn

from ssd1b.distill.plan import PlannedStage
from ssd1b.layer_map import parameters
from ssd1b.layouts import UNetLayout
from ssd1b.models.attention import Attention, plain_attention
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import example_inputs
from ssd1b.runtime import dtype_name
from ssd1b.training.gradient_checkpointing import checkpointed_blocks

BACKWARD = 2
"""MACs of a backward pass relative to the forward pass: gradients of inputs and of weights."""

FLOAT32 = 4

OPTIMISER_BYTES = {"adamw": 2 * FLOAT32, "adamw-8bit": 2, "adafactor": 0}
"""Bytes per weight: AdamW keeps two averages, adamw-8bit two of one byte each; Adafactor's state is small."""

_LONGEST_FORWARD = 10.0
"""Longest forward pass in seconds that is measured; beyond it, the rate of a matrix product is used."""

_LONG_ENOUGH = 0.5
"""Intended seconds of the measured forward pass at the best rate; a single image does not use all cores."""


class Throughput(NamedTuple):
    """Multiply-accumulate operations (MACs) per second, and how they were measured."""

    rate: float
    how: str


def step_macs(teacher: int, student: int, batch_size: int) -> int:
    """Return the MACs of a training step: the teacher's forward pass, the student's forward and backward.

    Args:
        teacher: MACs of the teacher's forward pass for one image.
        student: MACs of the student's forward pass for one image.
        batch_size: number of images.
    """
    return batch_size * (teacher + (1 + BACKWARD) * student)


def memory(planned: PlannedStage, cells: int, dtype: torch.dtype, device: str) -> dict[str, int]:
    """Return the bytes that a step needs on its device, by purpose.

    Args:
        planned: the stage.
        cells: side of the latents.
        dtype: number format of both networks' computations; the student's parameters are float32.
        device: on a CPU, attention keeps its weights for the backward pass; on a GPU, it does not.
    """
    count, settings = parameters(planned.layers.student), planned.stage.train
    found = {
        "student's weights": FLOAT32 * count,
        "gradients": FLOAT32 * count,
        # Muon updates nearly all weights, and keeps one average of each gradient.
        "optimiser": count * (OPTIMISER_BYTES[settings.optimizer] if settings.muon_rate is None else FLOAT32),
        "averaged weights": FLOAT32 * count * (settings.ema_decay > 0),
        "teacher's weights": dtype.itemsize * parameters(planned.layers.teacher),
        "activations": settings.batch_size
        // settings.micro_batches
        * activations(
            planned.layers.student, cells, dtype, device, checkpointed=settings.gradient_checkpointing
        ),
    }
    if dtype.itemsize < FLOAT32:
        checkpointed = settings.gradient_checkpointing
        rounded = _rounded_at_once(planned.layers.student) if checkpointed else count
        found["rounded weights"] = dtype.itemsize * rounded
    return found


def _rounded_at_once(layout: UNetLayout) -> int:
    """Count the weights rounded at a time with gradient checkpointing: one block, and all outside blocks."""
    with torch.device("meta"):
        unet = UNet(layout)
    blocks = [sum(each.numel() for each in block.parameters()) for block in checkpointed_blocks(unet)]
    return parameters(layout) - sum(blocks) + max(blocks)


def activations(
    layout: UNetLayout, cells: int, dtype: torch.dtype, device: str, *, checkpointed: bool = False
) -> int:
    """Count the bytes that the forward pass of one image keeps for the backward pass, without computing.

    Args:
        layout: of the student.
        cells: side of the latents.
        dtype: number format of the computation.
        device: see ``memory``.
        checkpointed: with gradient checkpointing, the inputs of each block and all of the largest block.
    """
    with torch.device("meta"):
        unet = UNet(layout).to(dtype)
        inputs = example_inputs(layout, 1, cells, cells).to("meta", dtype)
    use_kernels_of(device, unet)
    return kept_for_backward(unet, inputs, checkpointed=checkpointed)


def use_kernels_of(device: str, network: nn.Module) -> None:
    """Let a network on the meta device attend as on another device, where other tensors are kept."""
    for module in network.modules():
        if isinstance(module, Attention):
            module.attend = plain_attention if device == "cpu" else _fused_attention


def kept_for_backward(network: nn.Module, inputs: Iterable[Tensor], *, checkpointed: bool = False) -> int:
    """Count the bytes that a forward pass on meta tensors keeps for the backward pass, without the weights.

    Args:
        network: on the meta device.
        inputs: of its forward pass, likewise.
        checkpointed: see ``activations``.
    """
    weights = {_storage(parameter) for parameter in network.parameters()}
    # Of the network and, last, of the current block; holding the storages keeps their addresses unique.
    kept: list[dict[int, torch.UntypedStorage]] = [{}]
    recomputed = [0]

    def keep(tensor: Tensor) -> Tensor:
        if _storage(tensor) not in weights:
            kept[-1][_storage(tensor)] = tensor.untyped_storage()
        return tensor

    def enter(block: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for each in inputs:
            keep(each)
        kept.append({})

    def leave(block: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        recomputed.append(_bytes(kept.pop()))

    if checkpointed:
        for block in checkpointed_blocks(network):
            block.register_forward_pre_hook(enter)
            block.register_forward_hook(leave)
    with torch.device("meta"), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        network(*inputs)
    return _bytes(kept[0]) + max(recomputed)


def _bytes(storages: dict[int, torch.UntypedStorage]) -> int:
    return sum(storage.nbytes() for storage in storages.values())


def measure_speed(
    load: Callable[[], UNet] | None, macs: int, cells: int, dtype: torch.dtype, device: str, *,
    batch_size: int,
) -> Throughput:  # fmt: skip
    """Measure the speed of a device: a forward pass of a UNet, or a matrix product without one.

    Args:
        load: loads the teacher, or the model that is fine-tuned.
        macs: of its forward pass for one image.
        cells: side of the latents.
        dtype: number format of the computation.
        device: to measure.
        batch_size: of the training; fewer images are timed if they are slow.
    """
    product = _product_rate(dtype, device)
    if load is None or macs / product > _LONGEST_FORWARD:
        return Throughput(product, f"upper bound from a large matrix product in {dtype_name(dtype)}")
    unet = load().to(device, dtype)
    count = max(1, min(batch_size, int(_LONG_ENOUGH * product / macs)))
    inputs = example_inputs(unet.layout, count, cells, cells).to(device, dtype)
    with torch.inference_mode():
        seconds = _timed(lambda: unet(*inputs), device) / count
    return Throughput(
        macs / seconds,
        f"from a forward pass in {dtype_name(dtype)}, {seconds:.3g} s per image",
    )


def _product_rate(dtype: torch.dtype, device: str) -> float:
    side = 1024 if device == "cpu" else 8192
    matrix = torch.randn(side, side, device=device).to(dtype)
    return side**3 / _timed(lambda: matrix @ matrix, device)


def _timed(work: Callable[[], object], device: str) -> float:
    """Return the shortest of three runs, after one to warm up."""
    seconds: list[float] = []
    for _ in range(4):
        start = time.perf_counter()
        work()
        if device != "cpu":
            torch.accelerator.synchronize(device)
        seconds.append(time.perf_counter() - start)
    return min(seconds[1:])


def _fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Compute FlashAttention (2205.14135), which keeps no weights; meta tensors would use another kernel."""
    return torch.ops.aten._scaled_dot_product_flash_attention(q, k, v)[0]


def _storage(tensor: Tensor) -> int:
    return tensor.untyped_storage()._cdata  # type: ignore[attr-defined]
