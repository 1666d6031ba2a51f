"""Reconstruction: what comes back is what the autoencoder alone makes of a picture."""

import numpy as np
import pytest
import torch

from ssd1b import Pipeline
from ssd1b.evaluate.reconstruction import psnr, reconstruct
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import scene


def test_the_ratio_is_that_of_the_textbook() -> None:
    black = np.zeros((2, 8, 8, 3), np.uint8)
    other = black.copy()
    other[1] = 255
    assert psnr(black, other).tolist() == [np.inf, 0.0]
    assert psnr(black, black + np.uint8(25)) == pytest.approx([20.172, 20.172], abs=1e-3)


def test_batches_make_no_difference() -> None:
    vae = Pipeline.load("mini-sdxl", dtype="fp32").vae
    pictures = np.stack([render(scene(9, index)) for index in range(3)])
    together = reconstruct(vae, pictures)
    apart = np.concatenate([reconstruct(vae, pictures[[index]]) for index in range(3)])
    assert abs(together.astype(int) - apart).max() <= 1
    pixels = torch.from_numpy(pictures).permute(0, 3, 1, 2) / 127.5 - 1
    direct = vae.decode(vae.encode(pixels).mean).clamp(-1, 1).permute(0, 2, 3, 1).numpy()
    assert abs((direct + 1) * 127.5 - together).max() <= 0.51
    assert psnr(pictures, together).mean() > 28
