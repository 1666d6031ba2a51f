"""Optional libraries, and the command that installs them; no torch."""

from collections.abc import Iterable
from importlib.util import find_spec

from ssd1b.errors import UnavailableError

EXTRAS: dict[str, tuple[str, ...]] = {
    "eval": ("matplotlib", "scipy", "torch_fidelity"),
    "bulk": ("fsspec", "pyarrow"),
    "lab": ("jinja2", "matplotlib", "optuna", "pyarrow", "scipy"),
    "train": ("accelerate", "datasets", "tensorboard"),
    "server": ("fastapi", "prometheus_client", "psutil", "python_multipart", "uvicorn"),
    "cluster": ("ray",),
    "openvino": ("nncf", "openvino"),
    "quantize": ("torchao",),
    "upscale": ("spandrel",),
    "bench": ("accelerate", "diffusers", "matplotlib", "openvino", "psutil"),
}
"""Libraries of each extra, by import name (``pyproject.toml`` has the package names)."""

WITHOUT_EXTRA = {"bitsandbytes": "bitsandbytes", "stable_diffusion_cpp": "stable-diffusion-cpp-python"}
"""Package names of libraries that are not in any extra, by import name."""


def require(what: str, *libraries: str) -> None:
    """Check that libraries are installed, before any work is done.

    Args:
        what: what needs them, such as "ssd1b guide".
        libraries: import names.

    Raises:
        InputError: some are missing; the message names them and the command that installs them.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        names = ", ".join(missing)
        raise UnavailableError(f"{what} needs {names}, which {verb} not installed: {install(missing)}")


def install(libraries: Iterable[str]) -> str:
    """Build the command that installs libraries, with a single extra if one has them all.

    It pins the installed version of torch. Otherwise pip may replace torch by another build, which takes
    gigabytes and rounds differently.
    """
    from importlib.metadata import PackageNotFoundError, version

    names = set(libraries)
    try:
        torch = [f"torch=={version('torch').partition('+')[0]}"]
    except PackageNotFoundError:
        torch = []
    for extra, members in EXTRAS.items():
        if names <= set(members):
            return " ".join(["pip install", f"'ssd1b[{extra}]'", *torch])
    owners = [next((extra for extra, members in EXTRAS.items() if name in members), None) for name in names]
    extras = sorted({owner for owner in owners if owner is not None})
    alone = sorted(
        WITHOUT_EXTRA.get(name, name) for name, owner in zip(names, owners, strict=True) if owner is None
    )
    return " ".join(["pip install", *([f"'ssd1b[{','.join(extras)}]'"] if extras else []), *alone, *torch])
