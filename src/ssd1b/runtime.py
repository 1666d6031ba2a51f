"""Device, number format, and what the processor supports."""

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
    """Parse a device name ("cpu", "cuda:1"); None is the machine's accelerator, or else the CPU.

    Raises:
        InputError: the name is not a device, or this machine does not have it.
    """
    accelerator = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    if name is None:
        return accelerator if accelerator and accelerator.type in DEVICE_TYPES else torch.device("cpu")
    if name.partition(":")[0] not in DEVICE_TYPES:
        raise unknown("device", name, DEVICE_TYPES)
    try:
        device = torch.device(name)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"device is {shown(name)}: expected a type and an optional index, such as 'cuda:1'"
        ) from error
    same_type = accelerator is not None and accelerator.type == device.type
    count = torch.accelerator.device_count() if same_type else 0
    # torch accepts any index for the CPU.
    if (device.index or 0) >= (1 if device.type == "cpu" else count):
        available = ", ".join(f"{device.type}:{index}" for index in range(count)) or "cpu"
        raise UnavailableError(f"device {shown(name)} is not in this machine: available: {available}")
    return device


def choose_dtype(name: str | None, device: torch.device) -> torch.dtype:
    """Parse a number format ("bf16", "float32"); None is the fastest for the device.

    The fastest is bfloat16 on a CPU with instructions for it (AVX512-BF16, on AMD too, or AMX) and float32 on
    others; on a GPU it is bfloat16, or float16 if it does not support that.

    Raises:
        InputError: the name is not a number format.
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
    """Whether the processor has instructions for bfloat16 products; without them, float32 is faster."""
    features = cpu_capabilities()
    return any(features.get(name) for name in ("avx512_bf16", "amx_bf16", "arm_bf16", "bf16"))


def cpu_multiplies_int8() -> bool:
    """Whether the processor has instructions for int8 products accumulated in 32 bits."""
    features = cpu_capabilities()
    return any(features.get(name) for name in ("avx512_vnni", "avx2_vnni", "avx_vnni", "amx_int8", "vnni"))


def cpu_capabilities() -> Mapping[str, bool]:
    """List the processor's instruction sets by torch's names, as far as this torch reports them."""
    get_capabilities = getattr(torch.cpu, "get_capabilities", None)  # since torch 2.10
    if get_capabilities is not None:
        return get_capabilities()
    known = ("avx512_bf16", "amx_tile", "vnni")
    probes = {name: getattr(torch.cpu, f"_is_{name}_supported", None) for name in known}
    found = {name: bool(probe and probe()) for name, probe in probes.items()}
    return found | {"amx_bf16": found["amx_tile"]}


def cache_folder() -> Path:
    """Give the folder for converted and compiled networks, which can be recreated."""
    return platformdirs.user_cache_path("ssd1b")


def dtype_name(dtype: torch.dtype) -> str:
    """Give the name of a number format in recipes and messages, such as "bfloat16"."""
    return str(dtype).removeprefix("torch.")
