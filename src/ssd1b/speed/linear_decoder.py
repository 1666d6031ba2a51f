"""A cheap decoder for previews, fitted to the autoencoder's output at an earlier step.

Other programs ship colour coefficients for each autoencoder, or a small network trained for it (TAESD). Near
one image a decoder is almost linear, and one decoded step gives thousands of examples, so least squares
fits a linear one instantly for any model.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd1b.tensors import Latents, Pixels

_KERNEL = 3
"""Side of the neighbourhood of latent cells that a cell's pixels are computed from."""

_RIDGE = 1e-2
"""Ridge penalty, against huge coefficients for few or similar cells; latents have a variance of about 1."""


class LinearDecoder(nn.Module):
    """A linear map from changes of latent cells and their neighbours to changes of pixels.

    Args:
        latents: reference latents.
        pixels: the autoencoder's output for them.
    """

    def __init__(self, latents: Latents, pixels: Pixels) -> None:
        super().__init__()
        self.latents, self.pixels, self.factor = latents, pixels, pixels.shape[-1] // latents.shape[-1]
        cells = F.pixel_unshuffle(pixels, self.factor).flatten(2).mT
        examples, targets = (  # on the CPU, since not every device has float64
            (each - each.mean(dim=1, keepdim=True)).flatten(0, 1).cpu().double()
            for each in (_neighbourhoods(latents), cells)
        )
        squares = examples.mT @ examples / len(examples)
        squares.diagonal().add_(_RIDGE)
        self.matrix = torch.linalg.solve(squares, examples.mT @ targets / len(examples)).to(pixels)

    def forward(self, latents: Latents) -> Pixels:
        """Decode latents of the same shape, approximately as the autoencoder would."""
        change = _neighbourhoods(latents - self.latents) @ self.matrix
        return self.pixels + F.pixel_shuffle(change.mT.unflatten(2, latents.shape[-2:]), self.factor)


def _neighbourhoods(latents: Tensor) -> Tensor:
    """Gather each cell with its neighbours, ``[B, C, h, w] -> [B, h * w, C * 9]``."""
    padded = F.pad(latents.float(), [_KERNEL // 2] * 4, mode="replicate")
    return F.unfold(padded, _KERNEL).mT
