"""Description of the installation and the machine for bug reports: no secrets, no paths."""

import os
from collections.abc import Iterable
from importlib.util import find_spec
from typing import Any

import torch

from ssd1b.bench.machine import processor, summary
from ssd1b.extras import EXTRAS
from ssd1b.runtime import choose_device, choose_dtype, cpu_capabilities, dtype_name
from ssd1b.weights.hub import available_models

VARIABLES = (
    "OMP_NUM_THREADS", "MKL_NUM_THREADS", "GOMP_SPINCOUNT", "OMP_WAIT_POLICY", "CUDA_VISIBLE_DEVICES",
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "HF_HUB_OFFLINE",
)  # fmt: skip
"""Environment variables that change results or speed; their values are not secret."""

HIDDEN = ("HF_TOKEN", "HF_ENDPOINT", "HF_HOME", "HF_HUB_CACHE")
"""Environment variables whose values are secrets or paths; only whether they are set is reported."""


def environment() -> dict[str, Any]:
    """Describe the installation: versions, devices, number formats, threads, extras, models in the cache."""
    device = choose_device(None)
    default = dtype_name(choose_dtype(None, device))
    return {
        **summary(device),
        "instructions": ", ".join(sorted(name for name, has in cpu_capabilities().items() if has is True)),
        "cores": os.cpu_count(),
        "memory": _memory(),
        "draws on": f"{device.type} in {default}, unless --device or --dtype is given",
        "accelerators": _accelerators(),
        "variables": [
            *(f"{name}={os.environ[name]}" for name in VARIABLES if os.environ.get(name)),
            *(f"{name} is set" for name in HIDDEN if os.environ.get(name)),
        ],
        "extras": [f"{name}: {_state(libraries)}" for name, libraries in EXTRAS.items()],
        "cached models": [
            each.name for each in available_models() if each.ready and each.source != "built-in"
        ],
    }


def _accelerators() -> list[str]:
    """Name every accelerator, with its memory if torch reports it."""
    if not torch.accelerator.is_available():
        return []
    kind = torch.accelerator.current_accelerator()
    count = torch.accelerator.device_count()
    devices = [torch.device(kind.type, index) for index in range(count)] if kind is not None else []
    return [f"{device}: {processor(device)}{_device_memory(device)}" for device in devices]


def _device_memory(device: torch.device) -> str:
    if device.type != "cuda":
        return ""
    return f", {_gigabytes(torch.cuda.get_device_properties(device).total_memory)}"


def _memory() -> str:
    try:
        return _gigabytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    except (AttributeError, ValueError, OSError):
        return "not reported by this system"


def _gigabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB"


def _state(libraries: Iterable[str]) -> str:
    missing = [name for name in libraries if find_spec(name) is None]
    return f"missing {', '.join(missing)}" if missing else "installed"
