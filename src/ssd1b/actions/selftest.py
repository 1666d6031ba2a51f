"""Check a model on this machine: its files, its weights, and images compared with those of diffusers."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from ssd1b.actions.loading import Notify
from ssd1b.bench.machine import summary
from ssd1b.bench.selftest import Check, Trial, checks, targets
from ssd1b.errors import printable
from ssd1b.model import Model
from ssd1b.runtime import DTYPES, choose_device, choose_dtype
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.weights.hub import ALIASES, BUILT_IN, LORAS
from ssd1b.weights.opening import check_is_model


class Selftest(NamedTuple):
    """A selftest that was started.

    Attributes:
        title: of the model, without its path.
        machine: libraries, system and processors.
        checks: runs the next check when it is advanced; see also ``bench.selftest.verdict``.
    """

    title: str
    machine: dict[str, Any]
    checks: Iterator[Check]


def start_selftest(
    model: str = DEFAULT_MODEL,
    *,
    device: str | None = None,
    dtype: str | None = None,
    steps: int = 4,
    size: int | None = None,
    minutes: float = 30.0,
    offline: bool = False,
    notify: Notify = lambda message: None,
) -> Selftest:
    """Find a model, and prepare its checks.

    Args:
        model: its name.
        device: generate only on this one; None for all.
        dtype: generate only in this number format; None for all that the device supports.
        steps: denoising steps of each image.
        size: side of the images in pixels; None for the model's, at most 512.
        minutes: time limit of each image.
        offline: never use the network.
        notify: called with the name of each check before it runs.

    Raises:
        InputError: there is no such model, device or number format.
    """
    where = choose_device(device)
    number = choose_dtype(dtype, where)
    short = None if dtype is None else next(name for name, each in DTYPES.items() if each == number)
    found = Model.find(model, offline=offline, half=number.itemsize == 2)
    check_is_model(found.path)
    title, expected = _identify(found)
    trial = Trial(
        model=found, expected=expected, steps=steps, size=size, seconds=60 * minutes,
        targets=targets(None if device is None else where, short),
    )  # fmt: skip
    return Selftest(title, summary(where), checks(trial, notify))


def _identify(model: Model) -> tuple[str, str | None]:
    """Return a title without the model's path, and the layout that its name promises."""
    if model.is_local:
        return printable(model.path.resolve().name), None
    plain = model.source
    promised = {alias.lower(): alias for alias in ALIASES}
    promised |= {hub_id.lower(): alias for alias, hub_id in ALIASES.items()}
    promised |= {each: each for each in BUILT_IN} | {each: BUILT_IN[each].name for each in LORAS}
    title = f"{plain} at commit {model.commit}" if model.commit else plain
    return title, promised.get(plain.lower())
