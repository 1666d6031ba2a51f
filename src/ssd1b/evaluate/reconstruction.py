"""Reconstruction by an autoencoder: an upper bound on the quality of any model that uses it."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from ssd1b.images import to_images, to_pixels
from ssd1b.models.vae import VAE


@torch.inference_mode()
def reconstruct(
    vae: VAE, pictures: UInt8[np.ndarray, "pictures height width 3"], batch_size: int = 16
) -> UInt8[np.ndarray, "pictures height width 3"]:
    """Encode images and decode the means of their latents.

    Args:
        vae: the autoencoder, on any device and in any number format.
        pictures: images whose sides are multiples of the autoencoder's factor.
        batch_size: images per batch.
    """
    decoded = []
    for start in range(0, len(pictures), batch_size):
        batch = pictures[start : start + batch_size]
        pixels = torch.cat([to_pixels(Image.fromarray(picture)) for picture in batch]).to(
            vae.device, vae.dtype
        )
        decoded += [np.asarray(image) for image in to_images(vae.decode(vae.encode(pixels).mean))]
    return np.stack(decoded)


def psnr(
    first: UInt8[np.ndarray, "pictures height width 3"], second: UInt8[np.ndarray, "pictures height width 3"]
) -> Float[np.ndarray, " pictures"]:
    """Peak signal-to-noise ratio of each pair of images in dB; infinite for equal images."""
    errors = np.square(first.astype(np.float64) - second).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / errors)
