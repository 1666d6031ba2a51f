"""What an autoencoder keeps of pictures: the best that a model which uses it can draw."""

import numpy as np
import torch
from jaxtyping import Float, UInt8
from PIL import Image

from ssd1b.images import to_images, to_pixels
from ssd1b.models.vae import VAE


@torch.inference_mode()
def reconstructed(
    vae: VAE, pictures: UInt8[np.ndarray, "pictures height width 3"], batch_size: int = 16
) -> UInt8[np.ndarray, "pictures height width 3"]:
    """Encode pictures and decode the latents' means again.

    Args:
        vae: on any device, in any number format.
        pictures: sides are multiples of the autoencoder's factor.
        batch_size: how many at a time.
    """
    back = []
    for start in range(0, len(pictures), batch_size):
        few = pictures[start : start + batch_size]
        pixels = torch.cat([to_pixels(Image.fromarray(picture)) for picture in few]).to(vae.device, vae.dtype)
        back += [np.asarray(image) for image in to_images(vae.decode(vae.encode(pixels).mean))]
    return np.stack(back)


def psnr(
    first: UInt8[np.ndarray, "pictures height width 3"], second: UInt8[np.ndarray, "pictures height width 3"]
) -> Float[np.ndarray, " pictures"]:
    """Peak signal-to-noise ratio of each pair of pictures in dB; infinite for equal ones."""
    errors = np.square(first.astype(np.float64) - second).mean(axis=(1, 2, 3))
    with np.errstate(divide="ignore"):
        return 10 * np.log10(255.0**2 / errors)
