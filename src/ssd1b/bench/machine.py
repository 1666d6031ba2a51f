"""Description of the machine on which figures were measured."""

import platform
import re
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_LIBRARIES = (
    "ssd1b", "torch", "torchvision", "safetensors", "tokenizers", "huggingface_hub", "diffusers",
    "transformers",
)  # fmt: skip

_LINUX = Path("/proc/cpuinfo")


def machine(device: torch.device) -> dict[str, Any]:
    """Describe what speed depends on, for JSON."""
    return {
        "device": processor(device),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "ssd1b": version("ssd1b"),
    }


def summary(device: torch.device) -> dict[str, Any]:
    """Describe libraries, system and processors for a report, without anything that identifies the user."""
    versions: list[str] = []
    for name in _LIBRARIES:
        try:
            versions.append(f"{name} {version(name)}")
        except PackageNotFoundError:
            versions.append(f"no {name}")
    system = f"{platform.system()} {platform.release()} {platform.machine()}"
    facts = {
        "libraries": ", ".join(versions),
        "system": f"{system}, Python {platform.python_version()}",
        "processor": processor(torch.device("cpu")),
        "threads": torch.get_num_threads(),
    }
    return facts if device.type == "cpu" else {**facts, "accelerator": processor(device)}


def processor(device: torch.device) -> str:
    """Name the processor or the accelerator."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type == "cpu" and _LINUX.exists():
        found = re.search(r"^model name\s*:\s*(.+)$", _LINUX.read_text(), re.MULTILINE)
        features = torch.backends.cpu.get_cpu_capability()
        return f"{found[1]} ({features})" if found else features
    return platform.processor() or platform.machine()
