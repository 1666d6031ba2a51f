import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor

from ssd1b.images import to_images, to_pixels


def test_images_equal_diffusers_to_the_last_bit():
    pixels = torch.randn(2, 3, 64, 48, generator=torch.Generator().manual_seed(0))
    theirs = VaeImageProcessor().postprocess(pixels, output_type="pil")
    for our, their in zip(to_images(pixels), theirs, strict=True):
        assert np.array_equal(np.asarray(our), np.asarray(their))


def test_pixels_equal_diffusers():
    (image,) = to_images(torch.randn(1, 3, 64, 48, generator=torch.Generator().manual_seed(1)))
    torch.testing.assert_close(to_pixels(image), VaeImageProcessor().preprocess(image), rtol=0, atol=1e-6)
