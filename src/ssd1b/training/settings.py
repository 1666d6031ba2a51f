"""What decides a run of the training loop."""

import math
from collections.abc import Callable
from dataclasses import dataclass

from ssd1b.errors import InputError, unknown

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 - 0.5 * math.cos(math.pi * left),
}
"""Share of the rate while so much of the decay is left, from 1 to 0."""

OPTIMIZERS = ("adamw", "adamw-8bit", "adafactor")
"""Kinds that move the weights; ``optimizers.py`` builds them."""

_LEAST = dict.fromkeys(
    ("steps", "batch_size", "micro_batches", "checkpoint_steps", "log_steps", "validation_steps"), 1
)
_ABOVE = {"max_grad_norm": 0, "timeout_minutes": 0, "spike_factor": 1}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """What decides a run, on however many processes it goes.

    Attributes:
        steps: optimiser steps in all.
        batch_size: what each step learns from, in all processes together; the data are asked for so many.
        micro_batches: equal parts in which a batch is learned, one after the other or, shared out, in
            several processes; their gradients are averaged. Each part has random numbers of its own, so a
            run's result does not depend on how many processes share them. A multiple of their number.
        optimizer: one of ``OPTIMIZERS``; "adamw-8bit" (2110.02861) is bitsandbytes', "adafactor"
            (1804.04235) keeps no momentum and of the squares their row and column means only.
        learning_rate: the constant rate between warm-up and decay.
        muon_rate: likewise, for the matrices and convolutions inside the network, which Muon then moves
            (see ``optimizers.py``); None leaves them, too, to the optimizer.
        muon_decay: Muon's weight decay, which bounds the largest singular value by its inverse.
        warmup_steps: linear rise from zero at the start.
        decay_steps: fall to zero at the end. A constant rate in between means that a finished run can be made
            longer from its last checkpoint before the decay.
        decay: how it falls, a key of ``DECAYS``; "cosine" over all steps after the warm-up is the usual
            cosine schedule.
        betas: AdamW's two averaging constants.
        weight_decay: AdamW's and Adafactor's.
        max_grad_norm: gradients longer than this are shortened to it.
        spike_factor: a gradient so many times as long as the median of those before is not followed; None
            follows any that is finite.
        max_skipped: steps in a row that may be left out for their gradients before the run gives up.
        ema_decay: decay per step of the averaged weights, which are what a run is for; warmed up as
            ``min(ema_decay, (1 + step) / (10 + step))``. 0 takes the latest ones and keeps no copy.
        seed: of everything random.
        checkpoint_steps: a checkpoint every so many steps; the newest two and the last one before the decay
            are kept.
        log_steps: a line of the log every so many steps.
        validation_steps: validate every so many steps; None never does.
        fsdp: share out weights, gradients and optimiser states, too, among the processes (FSDP2), where one
            device's memory does not hold them; with adamw alone.
        gradient_checkpointing: compute what happens inside blocks again on the way back, in place of keeping
            it: about a third more time for a fraction of the activations' memory.
        timeout_minutes: how long processes wait for one of them before the run ends.
    """

    steps: int
    batch_size: int
    micro_batches: int = 1
    optimizer: str = "adamw"
    learning_rate: float
    muon_rate: float | None = None
    muon_decay: float = 0.3
    warmup_steps: int = 200
    decay_steps: int
    decay: str = "linear"
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.01
    max_grad_norm: float = 1.0
    spike_factor: float | None = None
    max_skipped: int = 20
    ema_decay: float = 0.999
    seed: int = 0
    checkpoint_steps: int = 200
    log_steps: int = 20
    validation_steps: int | None = None
    fsdp: bool = False
    gradient_checkpointing: bool = False
    timeout_minutes: float = 30.0

    def __post_init__(self) -> None:
        for name, least in _LEAST.items():
            value = getattr(self, name)
            if value is not None and value < least:
                raise InputError(f"{name} must be at least {least}, got {value}")
        for name, bound in _ABOVE.items():
            value = getattr(self, name)
            if value is not None and value <= bound:
                raise InputError(f"{name} must be above {bound}, got {value}")
        if not 0 < self.learning_rate < 1:
            raise InputError(f"learning_rate must be between 0 and 1, got {self.learning_rate}")
        for name, allowed in (("optimizer", OPTIMIZERS), ("decay", DECAYS)):
            if getattr(self, name) not in allowed:
                raise unknown(name, getattr(self, name), allowed)
        if self.batch_size % self.micro_batches:
            raise InputError(
                "batch_size must be a multiple of micro_batches, "
                f"got {self.batch_size} and {self.micro_batches}"
            )
        if self.fsdp and (self.muon_rate is not None or self.optimizer != "adamw"):
            raise InputError("fsdp goes with optimizer adamw alone: the others and Muon need whole weights")

    def share(self, step: int) -> float:
        """Share of the rates at a step: it rises, stays and falls (see ``decay_steps``)."""
        rising = (step + 1) / max(self.warmup_steps, 1)
        left = min(1.0, (self.steps - step) / max(self.decay_steps, 1))
        return min(1.0, rising, DECAYS[self.decay](left))

    def saves_after(self, steps: int) -> bool:
        """Whether a checkpoint is due after so many steps."""
        return steps % self.checkpoint_steps == 0 or steps in (self.steps, self.steps - self.decay_steps)

    def validates_after(self, steps: int) -> bool:
        """Whether a validation is due after so many steps."""
        return self.validation_steps is not None and steps % self.validation_steps == 0
