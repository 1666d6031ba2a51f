"""Write the included few-step LoRA: that of a distillation, in 8-bit floats, which halve its size.

    python tools/turbo.py RUN/lora.safetensors src/ssd1b/data/mini-ssd-1b-turbo.safetensors

Rounding to float8 e4m3 is an error of 0.15 % of the squares of the LoRA's products, whose numbers are far
above the format's smallest ones, 0.002.
"""

import argparse
from pathlib import Path

import torch

from ssd1b.weights.files import read_header, read_tensors, write_tensors


def main() -> None:
    """Write the file; alphas, which are single numbers, stay as they are."""
    parser = argparse.ArgumentParser()
    parser.add_argument("lora", type=Path)
    parser.add_argument("out", type=Path)
    given = parser.parse_args()
    rounded = {
        name: tensor.to(torch.float8_e4m3fn) if tensor.ndim > 1 else tensor
        for name, tensor in read_tensors(given.lora).items()
    }
    write_tensors(given.out, rounded, read_header(given.lora).metadata)


if __name__ == "__main__":
    main()
