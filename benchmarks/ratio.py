"""Compare a step of SSD-1B's UNet with one of SDXL's, both run by this package in turn.

    python benchmarks/ratio.py --latents 64,128 --rounds 3

``ssd1b bench --layout ssd-1b --layout sdxl`` measures both, too, but one after the other and with two copies
of each in memory.
"""

import argparse
import json
import time

import numpy as np
import torch

from ssd1b.bench.case import make_case
from ssd1b.bench.machine import machine
from ssd1b.layouts import model_layout
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import UNetInputs
from ssd1b.runtime import choose_device, choose_dtype
from ssd1b.speed.backends import prepare


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description="Compare a step of SSD-1B's UNet with one of SDXL's.")
    parser.add_argument("--latents", default="64,128")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--dtype")
    given = parser.parse_args()
    device = choose_device(None)
    dtype = choose_dtype(given.dtype, device)
    networks: dict[str, UNet] = {}
    for latent in map(int, given.latents.split(",")):
        works = []
        for name in ("ssd-1b", "sdxl"):
            case = make_case("unet", model_layout(name), latent=latent, batch=1, dtype=dtype, device=device)
            if name not in networks:
                assert isinstance(case.network, UNet)
                networks[name] = case.network
                prepare(case.network)
            assert isinstance(case.inputs, UNetInputs)
            latents, times, embeds, pooled, sizes = case.inputs.to(device, dtype)
            network = networks[name]
            texts = network.cross_attention_kv(embeds, without_text=1)
            works.append((network, latents, times, texts, pooled, sizes))
            del case
        seconds = np.empty((given.rounds, 2))
        for number in range(given.rounds):
            for index, (network, *inputs) in enumerate(works):
                start = time.perf_counter()
                network(*inputs).sum().item()
                seconds[number, index] = time.perf_counter() - start
        ratios = seconds[:, 1] / seconds[:, 0]
        row = {"latent": latent, "dtype": str(dtype), **machine(device)}
        row |= {"ssd-1b": float(np.median(seconds[:, 0])), "sdxl": float(np.median(seconds[:, 1]))}
        row |= {"ratio": float(np.median(ratios)), "low": float(ratios.min()), "high": float(ratios.max())}
        print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
