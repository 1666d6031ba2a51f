"""Where a model runs and in which number format."""

from collections.abc import Mapping
from pathlib import Path

import platformdirs
import torch

from ssd1b.errors import InputError, UnavailableError, shown, unknown

DTYPES: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "float32": torch.float32,
    "fp16": torch.float16,
    "float16": torch.float16,
    "bf16": torch.bfloat16,
    "bfloat16": torch.bfloat16,
}

DEVICE_TYPES = ("cpu", "cuda", "mps", "xpu")


def choose_device(name: str | None) -> torch.device:
    """Turn a name ("cpu", "cuda:1") into a device; None takes the accelerator there is, else the CPU.

    Raises:
        InputError: no such kind of device, or none of it in this machine.
    """
    found = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        return found if found is not None and found.type in DEVICE_TYPES else torch.device("cpu")
    if name.partition(":")[0] not in DEVICE_TYPES:
        raise unknown("device", name, DEVICE_TYPES)
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise InputError(f"device is {shown(name)}: allowed are a kind and a number, as 'cuda:1'") from error
    count = torch.accelerator.device_count() if found is not None and found.type == device.type else 0
    # torch takes any number for the CPU, of which there is one.
    if (device.index or 0) >= (1 if device.type == "cpu" else count):
        available = [f"{found.type}:{index}" for index in range(count)] if found and count else ["cpu"]
        there = ", ".join(available)
        raise UnavailableError(f"device {shown(name)} is not in this machine: available: {there}")
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Turn a name ("bf16", "float32") into a number format; None takes what the hardware is fast at.

    On a CPU that is bfloat16 where the processor multiplies it in hardware (AVX512-BF16, on AMD too, or AMX),
    float32 elsewhere; on a GPU bfloat16, float16 where it has none.

    Raises:
        InputError: no such number format.
    """
    if name is not None:
        key = name.lower().removeprefix("torch.")
        if key not in DTYPES:
            raise unknown("dtype", name, DTYPES)
        return DTYPES[key]
    if device.type == "cpu":
        return torch.bfloat16 if cpu_multiplies_bfloat16() else torch.float32
    if device.type == "cuda" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return torch.float16
    return torch.bfloat16


def cpu_multiplies_bfloat16() -> bool:
    """Whether the processor has instructions for bfloat16 products; without, float32 is faster."""
    able = cpu_capabilities()
    return any(able.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def cpu_multiplies_int8() -> bool:
    """Whether the processor has instructions for products of eight bits, added in 32."""
    able = cpu_capabilities()
    return any(able.get(name) for name in ("avx512_vnni", "avx2_vnni", "avx_vnni", "amx_int8", "vnni"))


def cpu_capabilities() -> Mapping[str, bool]:
    """The processor's instruction sets by torch's names, as far as this torch tells."""
    told = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.10
    if told is not None:
        return told()
    known = ("avx512_bf16", "amx_tile", "vnni")
    probes = {name: getattr(torch.cpu, f"_is_{name}_supported", None) for name in known}
    found = {name: bool(probe and probe()) for name, probe in probes.items()}
    return found | {"amx_bf16": found["amx_tile"]}


def cache_folder() -> Path:
    """Where this program keeps what it can make again."""
    return platformdirs.user_cache_path("ssd1b")


def dtype_name(dtype: torch.dtype) -> str:
    """The name of a number format as recipes and messages write it, "bfloat16"."""
    return str(dtype).removeprefix("torch.")
