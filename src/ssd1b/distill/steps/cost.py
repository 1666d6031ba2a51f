"""The cost of a stage of step distillation before it is run: forward passes, and memory."""

import torch

from ssd1b.distill.cost import BACKWARD, FLOAT32, OPTIMISER_BYTES, activations
from ssd1b.distill.steps.lora import lora_parameters
from ssd1b.distill.steps.stages import StepStage
from ssd1b.layer_map import parameters
from ssd1b.layouts import UNetLayout


def step_macs(stage: StepStage, teacher: int, student: int) -> int:
    """Return the MACs of a training step for one image, on average over the steps.

    Args:
        stage: its method decides which networks run how often.
        teacher: MACs of the teacher's forward pass; for a stage that learns from the one before, the
            student's counts.
        student: MACs of the student's forward pass.
    """
    source = student if stage.learns_from == "before" else teacher
    guided = source * (1 if stage.scales == (1.0, 1.0) else 2)
    # Without gradients of the weights, a LoRA's backward pass costs half as much.
    learning = (1 + (BACKWARD if stage.rank is None else BACKWARD // 2)) * student
    if stage.method == "guidance":
        return guided + learning
    if stage.method == "progressive":
        steps = 1 if stage.starts == "images" else stage.inference_steps
        drawing = student if stage.starts == "student" else 0
        return steps * (stage.teacher_steps * guided + drawing + learning)
    if stage.method != "dmd":
        return guided + student + learning  # the averaged student's target
    earlier = (stage.inference_steps - 1) * student // 2 if stage.simulate else 0
    critic = teacher if stage.critic == "teacher" else student
    updating_critic = earlier + student + (1 + BACKWARD) * critic
    return updating_critic + (earlier + learning + guided + critic) // stage.critic_updates


def memory(
    stage: StepStage, teacher: UNetLayout, student: UNetLayout, cells: int, dtype: torch.dtype, device: str
) -> dict[str, int]:
    """Return the bytes that a training step needs on its device, by purpose.

    Args:
        stage: method and training settings.
        teacher: layout of the teacher.
        student: layout of the student.
        cells: side of the latents.
        dtype: number format of the computation; trained parameters are float32.
        device: see ``distill.cost.memory``.
    """
    train = stage.train
    source = student if stage.learns_from == "before" else teacher
    critic = (teacher if stage.critic == "teacher" else student) if stage.method == "dmd" else None
    trained = [student, *([critic] if critic else [])]
    learned = parameters(student) if stage.rank is None else lora_parameters(student, stage.rank)
    sizes = [learned, *([parameters(critic)] if critic else [])]
    count = sum(sizes)
    at_once = train.batch_size // train.micro_batches
    if stage.starts != "images":
        at_once *= stage.inference_steps
    per_weight = OPTIMISER_BYTES[train.optimizer] if train.muon_rate is None else FLOAT32
    found = {
        "trained weights": FLOAT32 * count,
        "gradients": FLOAT32 * max(sizes),  # one learner at a time
        "optimisers": per_weight * count,
        "averaged weights": FLOAT32 * learned * (train.ema_decay > 0),
        "teacher's weights": dtype.itemsize * parameters(source),
        "activations": at_once * max(
            activations(each, cells, dtype, device, checkpointed=train.gradient_checkpointing)
            for each in trained
        ),
    }  # fmt: skip
    if stage.rank is not None:
        found["frozen weights"] = dtype.itemsize * parameters(student)
    if dtype.itemsize < FLOAT32:
        found["rounded weights"] = dtype.itemsize * count
    return found
