"""One stage of a distillation: a student is trained on data and on its teacher's outputs."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from ssd1b.distill.features import LEVELS, capture_outputs
from ssd1b.distill.losses import Weights, distillation_terms
from ssd1b.errors import InputError, unknown
from ssd1b.layer_map import LayerMap
from ssd1b.models.unet import UNet
from ssd1b.training.batches import Batches, LatentBatch
from ssd1b.training.kernels import speed_up
from ssd1b.training.loop import Validate, train
from ssd1b.training.objective import Objective
from ssd1b.training.precision import computing_in
from ssd1b.training.settings import LoopSettings


def student_of(teacher: UNet, layers: LayerMap) -> UNet:
    """Build the student from the layers of its teacher that the map names.

    Raises:
        InputError: the map is for another teacher's layout.
    """
    if teacher.layout != layers.teacher:
        raise InputError("the layer map is for another teacher's layout")
    with torch.device("meta"):
        student = UNet(layers.student)
    weights = {key: tensor.clone() for key, tensor in layers.weights(teacher.state_dict()).items()}
    student.load_state_dict(weights, assign=True)
    return student.requires_grad_(True)


def distill(
    out: Path, teacher: UNet, student: UNet, layers: LayerMap, data: Batches[LatentBatch],
    objective: Objective, *, settings: LoopSettings, weights: Weights, level: str = "layer",
    resume: bool = False, validate: Validate | None = None,
    notify: Callable[[str], None] = lambda message: None,
) -> UNet:  # fmt: skip
    """Train a student against its teacher (Gupta et al. 2024, 2401.02677).

    Args:
        out: folder of the run.
        teacher: is frozen, and converted to the objective's number format.
        student: float32, on the objective's device.
        layers: maps the student's layers to the teacher's with which they are compared.
        data: batches of the stage.
        objective: noise, target and loss weights for both.
        settings: of the run.
        weights: of task, output and features.
        level: of the features to compare, a key of ``LEVELS``.
        resume: continue the run in ``out``.
        validate: see ``loop.train``.
        notify: called with a message before slow steps.

    Returns:
        The student with its averaged parameters.

    Raises:
        InputError: there is no such level, or the layer map is for other layouts.
    """
    if level not in LEVELS:
        raise unknown("level of features", level, LEVELS)
    if (student.layout, teacher.layout) != (layers.student, layers.teacher):
        raise InputError("the layer map is for another student's or teacher's layout")
    pairs = LEVELS[level](layers)
    dtype = objective.dtype
    teacher.to(objective.device, dtype).requires_grad_(False).eval()
    if objective.device == "cpu":
        speed_up(teacher, [student], dtype, settings, notify)

    def loss(module: nn.Module, batch: LatentBatch) -> dict[str, Tensor]:
        example = objective(batch)
        with torch.no_grad(), capture_outputs(teacher, pairs.values()) as theirs:
            by_teacher = teacher(*example.inputs)
        with capture_outputs(module, pairs) as ours:
            predicted = computing_in(dtype, module)(*example.inputs)
        return distillation_terms(
            weights,
            target=example.target,
            predicted=predicted,
            predicted_by_teacher=by_teacher,
            features={name: (ours[name], theirs[other]) for name, other in pairs.items()},
            sample_weights=example.weights,
        )

    average = train(student, data, loss, settings, out, resume=resume, label="distill", validate=validate)
    assert isinstance(average, UNet)
    return average
