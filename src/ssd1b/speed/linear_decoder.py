"""A decoder that costs next to nothing, for previews: fitted to what the autoencoder made of an earlier step.

Others ship a table of colours for each autoencoder, or a small network that was trained for it (TAESD). Near
one picture a decoder is almost linear, and one decoded step holds thousands of examples of it, so least
squares find it for any model, at once.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssd1b.tensors import Latents, Pixels

_SIDE = 3
"""Cells that a cell's pixels are made of, across and down."""

_RIDGE = 1e-2
"""Keeps few or similar cells from being explained by enormous numbers; latents have a variance of about 1."""


class LinearDecoder(nn.Module):
    """What was decoded, changed as much as a matrix makes of the change of each cell and its neighbours.

    Args:
        latents: of which ``pixels`` were decoded.
        pixels: by the autoencoder.
    """

    def __init__(self, latents: Latents, pixels: Pixels) -> None:
        super().__init__()
        self.latents, self.pixels, self.factor = latents, pixels, pixels.shape[-1] // latents.shape[-1]
        cells = F.pixel_unshuffle(pixels, self.factor).flatten(2).mT
        examples, wanted = (  # not every device has float64
            (each - each.mean(dim=1, keepdim=True)).flatten(0, 1).cpu().double()
            for each in (_neighbourhoods(latents), cells)
        )
        squares = examples.mT @ examples / len(examples)
        squares.diagonal().add_(_RIDGE)
        self.matrix = torch.linalg.solve(squares, examples.mT @ wanted / len(examples)).to(pixels)

    def forward(self, latents: Latents) -> Pixels:
        """Decode latents of the same shape, about as the autoencoder would."""
        change = _neighbourhoods(latents - self.latents) @ self.matrix
        return self.pixels + F.pixel_shuffle(change.mT.unflatten(2, latents.shape[-2:]), self.factor)


def _neighbourhoods(latents: Tensor) -> Tensor:
    """Each cell with its neighbours, ``[B, C, h, w] -> [B, h * w, C * 9]``."""
    padded = F.pad(latents.float(), [_SIDE // 2] * 4, mode="replicate")
    return F.unfold(padded, _SIDE).mT
