"""Speed and memory compared with peers, on full-size networks with random weights: nothing is downloaded."""

PARTS = ("unet", "vae", "text", "picture")
"""A denoising step, decoding an image, the large text encoder (SDXL's small one is a sixth of it), and the
whole pipeline from prompt to image."""
