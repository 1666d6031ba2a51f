"""Muon: momentum whose matrices are orthogonalised before each step (Jordan et al. 2024).

kellerjordan.github.io/posts/muon. ``torch.optim.Muon`` takes one matrix at a time; with the hundreds of small
matrices of a narrow UNet that costs as much as the step itself. Here all matrices of one shape are
orthogonalised at once (figures in docs/log).
"""

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from ssd1b.training.precision import training_dtype

_COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Coefficients of the quintic that brings singular values between 0.7 and 1.2, chosen for speed."""

_ITERATIONS = 5


class Muon(torch.optim.Optimizer):
    """Muon with Nesterov momentum and decoupled weight decay, for weights of two axes or more.

    A convolution is a matrix of output channels by all other axes. The step of a matrix with more rows than
    columns is larger by ``sqrt(rows / columns)``, as in the reference implementation.

    Args:
        parameters: contiguous tensors.
        lr: singular values of a step.
        momentum: decay of the averaged gradient.
        weight_decay: bounds the weights' singular values by about its inverse.
    """

    def __init__(
        self,
        parameters: Iterable[nn.Parameter],
        *,
        lr: float,
        momentum: float = 0.95,
        weight_decay: float = 0.1,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: None = None) -> None:  # type: ignore[override]
        """Move every weight that has a gradient."""
        for group in self.param_groups:
            shapes: dict[tuple[int, int], list[nn.Parameter]] = defaultdict(list)
            for parameter in group["params"]:
                if parameter.grad is not None:
                    shapes[len(parameter), parameter[0].numel()].append(parameter)
            for (rows, columns), parameters in shapes.items():
                directions = orthogonalised(torch.stack([self._direction(p, group) for p in parameters]))
                reach = group["lr"] * max(1.0, rows / columns) ** 0.5
                for parameter, direction in zip(parameters, directions, strict=True):
                    parameter.mul_(1 - group["lr"] * group["weight_decay"])
                    parameter.add_(direction.view_as(parameter), alpha=-reach)

    def _direction(self, parameter: nn.Parameter, group: dict[str, Any]) -> Tensor:
        """Update the momentum of a weight, and return the Nesterov direction as a matrix."""
        assert parameter.grad is not None
        state = self.state[parameter]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        momentum = state["momentum_buffer"].lerp_(parameter.grad, 1 - group["momentum"])
        return parameter.grad.lerp(momentum, group["momentum"]).flatten(1)


def orthogonalised(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices ``[count, rows, columns]`` near 1 (Newton-Schulz)."""
    a, b, c = _COEFFICIENTS
    x = matrices.to(training_dtype(matrices.device))
    wide = x.shape[1] <= x.shape[2]
    x = x if wide else x.mT
    x = x / (x.norm(dim=(1, 2), keepdim=True) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return (x if wide else x.mT).to(matrices.dtype)
