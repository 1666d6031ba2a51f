"""Speed and memory beside peers, on networks of published size with random weights: nothing is downloaded."""

PARTS = ("unet", "vae", "text", "picture")
"""A step of the UNet, decoding a picture, the large text encoder (SDXL's small one is a sixth of it), and the
whole way from a prompt to a picture."""
