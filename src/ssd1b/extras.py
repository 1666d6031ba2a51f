"""Libraries that the base installation leaves out, and the command that installs them; no torch."""

from collections.abc import Iterable
from importlib.util import find_spec

from ssd1b.errors import UnavailableError

EXTRAS: dict[str, tuple[str, ...]] = {
    "eval": ("matplotlib", "scipy", "torch_fidelity"),
    "lab": ("jinja2", "matplotlib", "optuna", "pyarrow", "scipy"),
    "train": ("accelerate", "datasets", "tensorboard"),
    "openvino": ("nncf", "openvino"),
    "quantize": ("torchao",),
    "bench": ("accelerate", "diffusers", "matplotlib", "openvino", "psutil"),
}
"""What each extra brings, by the names that are imported (``pyproject.toml`` has those of the index)."""

WITHOUT_EXTRA = {"bitsandbytes": "bitsandbytes", "stable_diffusion_cpp": "stable-diffusion-cpp-python"}
"""Libraries that no extra brings, with their names in the index."""


def require(what: str, *libraries: str) -> None:
    """See that libraries are installed, before any work is done.

    Args:
        what: needs them, as "ssd1b guide".
        libraries: by the names that are imported.

    Raises:
        InputError: some are missing: all of them, and the one command that installs them.
    """
    missing = [name for name in libraries if find_spec(name) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        names = ", ".join(missing)
        raise UnavailableError(f"{what} needs {names}, which {verb} not installed: {install(missing)}")


def install(libraries: Iterable[str]) -> str:
    """Give the command that installs libraries: with one extra, if one brings them all.

    It names the version of torch that is installed. Otherwise pip may replace torch by another build, which
    takes gigabytes and rounds differently.
    """
    from importlib.metadata import PackageNotFoundError, version

    names = set(libraries)
    try:
        torch = [f"torch=={version('torch').partition('+')[0]}"]
    except PackageNotFoundError:
        torch = []
    for extra, brought in EXTRAS.items():
        if names <= set(brought):
            return " ".join(["pip install", f"'ssd1b[{extra}]'", *torch])
    owners = [next((extra for extra, brought in EXTRAS.items() if name in brought), None) for name in names]
    extras = sorted({owner for owner in owners if owner is not None})
    alone = sorted(
        WITHOUT_EXTRA.get(name, name) for name, owner in zip(names, owners, strict=True) if owner is None
    )
    return " ".join(["pip install", *([f"'ssd1b[{','.join(extras)}]'"] if extras else []), *alone, *torch])
