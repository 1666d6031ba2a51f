"""What decides a run of the training loop."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated

from ssd1b.errors import InputError
from ssd1b.validation import Flag, OneOf, Range, validated

DECAYS: dict[str, Callable[[float], float]] = {
    "linear": lambda left: left,
    "cosine": lambda left: 0.5 - 0.5 * math.cos(math.pi * left),
}
"""Share of the rate while so much of the decay is left, from 1 to 0."""

OPTIMIZERS = ("adamw", "adamw-8bit", "adafactor")
"""Kinds that move the weights; ``optimizers.py`` builds them."""

Steps = Annotated[int, Range(1, 100_000_000)]
SomeSteps = Annotated[int, Range(0, 100_000_000)]
Count = Annotated[int, Range(1, 100_000)]
Rate = Annotated[float, Range(1e-12, 1)]
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 100)]


@validated
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
        warmup_share: the same as a share of the steps; if it is not None, ``warmup_steps`` follows from it.
        decay_steps: fall to zero at the end. A constant rate in between means that a finished run can be made
            longer from its last checkpoint before the decay.
        decay_share: likewise a share, from which ``decay_steps`` follows.
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

    steps: Steps
    batch_size: Count
    micro_batches: Count = 1
    optimizer: Annotated[str, OneOf("optimizer", OPTIMIZERS)] = "adamw"
    learning_rate: Rate
    muon_rate: Rate | None = None
    muon_decay: Decay = 0.3
    warmup_steps: SomeSteps = 200
    warmup_share: Share | None = None
    decay_steps: SomeSteps
    decay_share: Share | None = None
    decay: Annotated[str, OneOf("decay", DECAYS)] = "linear"
    betas: Annotated[tuple[float, float], Range(0, 0.999999)] = (0.9, 0.98)
    weight_decay: Decay = 0.01
    max_grad_norm: Annotated[float, Range(1e-15, 1e15)] = 1.0
    spike_factor: Annotated[float, Range(1.001, 1e6)] | None = None
    max_skipped: SomeSteps = 20
    ema_decay: Annotated[float, Range(0, 0.999999)] = 0.999
    # torch's generator on a CPU takes 64 bits of a seed, which is multiplied for each step.
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    checkpoint_steps: Steps = 200
    log_steps: Steps = 20
    validation_steps: Steps | None = None
    fsdp: Flag = False
    gradient_checkpointing: Flag = False
    timeout_minutes: Annotated[float, Range(0.01, 100_000)] = 30.0

    def __post_init__(self) -> None:
        """Turn shares into steps, and check what no field can say by itself."""
        for steps, share in (("warmup_steps", self.warmup_share), ("decay_steps", self.decay_share)):
            if share is not None:
                # A little more, since a product such as 0.07 * 100 may fall short of the whole number.
                object.__setattr__(self, steps, int(share * self.steps + 1e-6))
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
