"""The stages of a step distillation, and their TOML files.

[train]                          # defaults of all stages: fields of LoopSettings
batch_size = 32

[[stages]]                       # each goes on with the student of the one before
method = "lcm"                   # or "guidance", "progressive", "tcd", "dmd"
inference_steps = 4
guidance = 7.0                   # or [3, 9], drawn and embedded as a input of the student
train = { steps = 2000 }

[[stages]]
method = "dmd"
inference_steps = 4
critic_updates = 5
train = { steps = 5000, learning_rate = 1e-5 }
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Literal

from ssd1b.diffusion.spacing import LCM_TIMESTEPS
from ssd1b.distill.stage_files import read_stage_tables
from ssd1b.distill.stages import MAX_STAGES, fitting, with_changes
from ssd1b.distill.steps.names import METHOD_NAMES
from ssd1b.errors import InputError, shown
from ssd1b.training.settings import LoopSettings, Rate
from ssd1b.validation import Flag, Items, Name, OneOf, Range, parse, prefix_errors, validated

TRAIN = LoopSettings(
    steps=2_000, batch_size=16, learning_rate=1e-5, betas=(0.9, 0.999), warmup_share=0.05,
    decay_steps=400, decay_share=0.2, ema_decay=0.95, checkpoint_steps=500,
)  # fmt: skip
"""The average decays as in the reference script of latent consistency models, whose target it is."""

Scale = Annotated[float, Range(1, 100)]

SMALLEST_GRID = 2

USED_BY: Mapping[str, tuple[str, ...]] = {
    "inference_steps": ("progressive", "lcm", "tcd", "dmd"),
    "teacher_steps": ("progressive",),
    "starts": ("progressive",),
    "solver_steps": ("lcm", "tcd"),
    "ends": ("tcd",),
    "loss": ("lcm", "tcd"),
    "critic_updates": ("dmd",),
    "critic_rate": ("dmd",),
    "critic": ("dmd",),
    "simulate": ("dmd",),
}
"""The methods that use a setting; all use the others."""


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class StepStage:
    """One stage of a step distillation.

    Attributes:
        method: one of ``METHOD_NAMES``.
        inference_steps: number of steps for which the student is made; ``guidance`` keeps the teacher's.
        guidance: guidance scale of the teacher, or lowest and highest one, which the student then embeds;
            None is what the teacher recommends.
        guidance_rescale: against overexposure by the teacher's guidance, see ``GenerationSettings``.
        learns_from: "teacher", or "before" for the student of the stage before, without guidance.
        teacher_steps: of ``progressive``: steps of the teacher for one of the student's.
        starts: of ``progressive``: "images", to which noise is added; "noise", from which the teacher draws
            an image for each caption; or "student", which draws it itself. In the last two cases the student
            learns ``inference_steps`` steps per image.
        solver_steps: of ``lcm`` and ``tcd``: number of points on the trajectory between which the teacher
            steps.
        ends: of ``tcd``: where jumps end: "any" point, or the end of their "phases".
        loss: of ``lcm`` and ``tcd``: "huber" or "l2".
        critic_updates: of ``dmd``: updates of the critic for one of the student.
        critic_rate: of ``dmd``: learning rate of the critic; None is the student's.
        critic: of ``dmd``: network from which the critic starts, the "teacher" or the "student" as given.
        rank: of a LoRA that is trained beside the student's linear and convolution layers, the same for all
            stages; None trains the student itself.
        start_lora: of the first stage: file of a LoRA of that rank from which the training starts, such as
            one of ``ssd1b lora extract``.
        simulate: of ``dmd``: train the student at latents from its own earlier steps, not at noised images.
        train: settings of the training loop.
    """

    method: Annotated[str, OneOf("method", METHOD_NAMES)]
    inference_steps: Annotated[int, Range(1, LCM_TIMESTEPS)] = 4
    guidance: Scale | Annotated[tuple[Scale, Scale], Items(2, 2)] | None = None
    guidance_rescale: Annotated[float, Range(0, 1)] = 0.0
    learns_from: Literal["teacher", "before"] = "teacher"
    teacher_steps: Annotated[int, Range(1, 1000)] = 2
    starts: Literal["images", "noise", "student"] = "images"
    solver_steps: Annotated[int, Range(SMALLEST_GRID, 1000)] = LCM_TIMESTEPS
    ends: Literal["any", "phases"] = "any"
    loss: Literal["huber", "l2"] = "huber"
    critic_updates: Annotated[int, Range(1, 1000)] = 5
    critic_rate: Rate | None = None
    critic: Literal["teacher", "student"] = "teacher"
    simulate: Flag = True
    rank: Annotated[int, Range(1, 1024)] | None = None
    start_lora: Name | None = None
    train: LoopSettings = TRAIN

    def __post_init__(self) -> None:
        """Check combinations of fields."""
        defaults = {each.name: each.default for each in fields(self)}
        check_used(self.method, [name for name in USED_BY if getattr(self, name) != defaults[name]])
        if isinstance(self.guidance, tuple) and self.guidance[0] >= self.guidance[1]:
            raise InputError(f"guidance is {list(self.guidance)}: the first scale must be the smaller one")
        if self.learns_from == "before" and self.guidance not in (None, 1.0):
            raise InputError("a stage that learns from the one before has no guidance: leave it out")
        unguided = self.learns_from == "before" or self.guidance == 1.0  # None is what the teacher recommends
        if self.guidance_rescale and unguided:
            raise InputError("guidance_rescale changes guidance, and this stage has none: leave it out")
        if self.start_lora is not None and self.rank is None:
            raise InputError("start_lora needs rank: that of the file")
        if self.rank is not None and self.embeds_guidance:
            raise InputError("a LoRA (rank) cannot embed a range of guidance: give one scale")
        if self.method in ("lcm", "tcd") and self.inference_steps > self.solver_steps:
            raise InputError(
                f"inference_steps is {self.inference_steps}: at most the {self.solver_steps} solver_steps"
            )
        if self.method == "dmd" and self.train.steps < self.critic_updates:
            raise InputError(
                f"{self.train.steps} steps with {self.critic_updates} critic_updates never update the student"
            )

    @property
    def scales(self) -> tuple[float, float]:
        """Lowest and highest guidance scale of the teacher."""
        if self.learns_from == "before" or self.guidance is None:
            return 1.0, 1.0
        return self.guidance if isinstance(self.guidance, tuple) else (self.guidance, self.guidance)

    @property
    def embeds_guidance(self) -> bool:
        """Whether the student takes the guidance scale as an input."""
        return isinstance(self.guidance, tuple)


def check_used(method: str, names: Iterable[str]) -> None:
    """Check that a method uses the settings that are given for it.

    Raises:
        InputError: it does not use one of them, which would have no effect.
    """
    for name in names:
        if method not in (methods := USED_BY.get(name, (method,))):
            raise InputError(f"{name} has no effect with the method {method}: it is for {', '.join(methods)}")


def read_step_stages(path: Path) -> list[StepStage]:
    """Read the stages of a TOML file from its first method on; those before it cut layers.

    Raises:
        InputError: the file is invalid, a later stage has no method or a setting that its method does not
            use, or the first one learns from the one before.
    """
    tables = read_stage_tables(path)
    if not tables.methods:
        raise InputError(f"{path} has no stages with a method")
    common = with_changes(TRAIN, tables.train, f"train of {path}")
    stages: list[StepStage] = []
    for number, each in enumerate(tables.methods[: MAX_STAGES + 1], 1 + len(tables.cut)):
        where = f"stage {number} of {path}"
        if not isinstance(each, Mapping):
            raise InputError(f"{where} is {shown(each)}: it must be a table")
        if "method" not in each:
            raise InputError(f"{where} has no method: stages that cut layers come first")
        train = with_changes(common, each.get("train", {}), f"train of {where}")
        stage = parse(StepStage, {**each, "train": fitting(train, where)}, where)
        with prefix_errors(where):
            check_used(stage.method, each)  # also those that are the default
        stages.append(stage)
    return checked(stages)


def checked(stages: list[StepStage]) -> list[StepStage]:
    """Return the stages if they can follow each other.

    Raises:
        InputError: there are too many; the first one learns from the one before; a later one has a start; or
            their students are different networks: some embed the guidance scale, or ranks differ.
    """
    if len(stages) > MAX_STAGES:
        raise InputError(f"there are {len(stages)} stages: allowed are {MAX_STAGES}")
    if stages[0].learns_from == "before":
        raise InputError('stage 1 learns from the one before, and there is none: set learns_from = "teacher"')
    if len({each.embeds_guidance for each in stages}) > 1:
        raise InputError("either all stages or none must have a range of guidance, which the student embeds")
    if any(each.start_lora is not None for each in stages[1:]):
        raise InputError("start_lora is for the first stage: the others go on with the LoRA before them")
    if len({each.rank for each in stages}) > 1:
        raise InputError("all stages must have the same rank, or none: they train one LoRA")
    return stages


def with_total_steps(stages: list[StepStage], steps: int) -> list[StepStage]:
    """Distribute a total number of optimiser steps in proportion to the stages' own."""
    before = sum(each.train.steps for each in stages)
    shares = [max(1, steps * each.train.steps // before) for each in stages]
    return [
        replace(each, train=fitting(replace(each.train, steps=share), f"stage {number} of {steps} steps"))
        for number, (each, share) in enumerate(zip(stages, shares, strict=True), 1)
    ]


def with_teachers_guidance(stages: list[StepStage], recommended: float) -> list[StepStage]:
    """Set the guidance of stages that leave it to the teacher."""
    return [
        each if each.guidance is not None or each.learns_from == "before"
        else replace(each, guidance=float(recommended))
        for each in stages
    ]  # fmt: skip
