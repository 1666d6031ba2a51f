"""Settings of the training loop."""

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
"""Factor on the learning rate by the part of the decay that is left, from 1 to 0."""

OPTIMIZERS = ("adamw", "adamw-8bit", "adafactor")
"""Names of the optimisers; ``optimizers.py`` builds them."""

Steps = Annotated[int, Range(1, 100_000_000)]
StepsOrZero = Annotated[int, Range(0, 100_000_000)]
Count = Annotated[int, Range(1, 100_000)]
Rate = Annotated[float, Range(1e-12, 1)]
Share = Annotated[float, Range(0, 1)]
Decay = Annotated[float, Range(0, 100)]


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class LoopSettings:
    """Settings of a run; its result does not depend on the number of processes.

    Attributes:
        steps: total number of optimiser steps.
        batch_size: number of examples per step, over all processes.
        micro_batches: number of equal parts of a batch, a multiple of the number of processes. Their
            gradients are averaged. Each part has its own random numbers.
        optimizer: one of ``OPTIMIZERS``. "adamw-8bit" (2110.02861) is bitsandbytes'; "adafactor" (1804.04235)
            keeps no momentum, and only row and column means of the squares.
        learning_rate: constant learning rate between warm-up and decay.
        text_rate: learning rate of parameters whose names begin with "text_encoder"; None is
            ``learning_rate``.
        muon_rate: learning rate of Muon, which then updates the matrices and convolutions inside the network
            (see ``optimizers.py``); None leaves them to the optimizer.
        muon_decay: Muon's weight decay, which bounds the largest singular value by its inverse.
        warmup_steps: number of steps of the linear rise from zero.
        warmup_share: warm-up as a share of the steps; replaces ``warmup_steps``.
        decay_steps: number of steps of the fall to zero. Since the rate is constant before, a finished run
            can be prolonged from its last checkpoint before the decay.
        decay_share: decay as a share of the steps; replaces ``decay_steps``.
        decay: shape of the decay, a key of ``DECAYS``. "cosine" over all steps after the warm-up is the usual
            cosine schedule.
        betas: AdamW's two averaging constants.
        weight_decay: of AdamW and Adafactor.
        max_grad_norm: longer gradients are scaled down to this norm.
        spike_factor: gradients longer than this many times the median of those before are skipped; None skips
            only gradients that are not finite.
        max_skipped: number of steps in a row that may be skipped before the run ends.
        ema_decay: decay per step of the averaged weights, the result of a run; warmed up as
            ``min(ema_decay, (1 + step) / (10 + step))``. With 0, the result is the latest weights.
        seed: of everything random.
        checkpoint_steps: steps between checkpoints. The newest two and the last one before the decay are
            kept.
        log_steps: steps between lines of the log; the last step has one, too.
        validation_steps: steps between validations, which are also before the first step and after the last;
            None disables them.
        fsdp: shard weights, gradients and optimiser states among the processes (FSDP2), if they do not fit on
            one device; with adamw only.
        gradient_checkpointing: recompute blocks in the backward pass: about a third more time for a fraction
            of the activations' memory.
        timeout_minutes: how long processes wait for each other before the run ends.
    """

    steps: Steps
    batch_size: Count
    micro_batches: Count = 1
    optimizer: Annotated[str, OneOf("optimizer", OPTIMIZERS)] = "adamw"
    learning_rate: Rate
    text_rate: Rate | None = None
    muon_rate: Rate | None = None
    muon_decay: Decay = 0.3
    warmup_steps: StepsOrZero = 200
    warmup_share: Share | None = None
    decay_steps: StepsOrZero
    decay_share: Share | None = None
    decay: Annotated[str, OneOf("decay", DECAYS)] = "linear"
    betas: Annotated[tuple[float, float], Range(0, 0.999999)] = (0.9, 0.98)
    weight_decay: Decay = 0.01
    max_grad_norm: Annotated[float, Range(1e-15, 1e15)] = 1.0
    spike_factor: Annotated[float, Range(1.001, 1e6)] | None = None
    max_skipped: StepsOrZero = 20
    ema_decay: Annotated[float, Range(0, 0.999999)] = 0.999
    # The seed is multiplied for each step, and torch's CPU generator takes 64 bits.
    seed: Annotated[int, Range(0, 2**32 - 1)] = 0
    checkpoint_steps: Steps = 200
    log_steps: Steps = 20
    validation_steps: Steps | None = None
    fsdp: Flag = False
    gradient_checkpointing: Flag = False
    timeout_minutes: Annotated[float, Range(0.01, 100_000)] = 30.0

    def __post_init__(self) -> None:
        """Convert shares to steps, and check combinations of fields."""
        for steps, share in (("warmup_steps", self.warmup_share), ("decay_steps", self.decay_share)):
            if share is not None:
                # Rounding may put a product such as 0.07 * 100 just below the integer.
                object.__setattr__(self, steps, int(share * self.steps + 1e-6))
        if self.batch_size % self.micro_batches:
            raise InputError(
                "batch_size must be a multiple of micro_batches, "
                f"got {self.batch_size} and {self.micro_batches}"
            )
        if self.fsdp and (self.muon_rate is not None or self.optimizer != "adamw"):
            raise InputError(
                "fsdp works with optimizer adamw only: the others and Muon need unsharded weights"
            )

    def share(self, step: int) -> float:
        """Return the factor on the learning rates at a step: warm-up, constant, decay."""
        rising = (step + 1) / max(self.warmup_steps, 1)
        left = min(1.0, (self.steps - step) / max(self.decay_steps, 1))
        return min(1.0, rising, DECAYS[self.decay](left))

    def saves_after(self, steps: int) -> bool:
        """Return whether a checkpoint is due after this number of steps."""
        return steps % self.checkpoint_steps == 0 or steps in (self.steps, self.steps - self.decay_steps)

    def validates_after(self, steps: int) -> bool:
        """Return whether a validation is due after this number of steps: also after none, and after all."""
        if self.validation_steps is None:
            return False
        return steps % self.validation_steps == 0 or steps == self.steps

    def logs_after(self, steps: int) -> bool:
        """Return whether a line of the log is due after this number of steps: also after the last."""
        return steps % self.log_steps == 0 or steps == self.steps
