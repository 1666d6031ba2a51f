"""Every field of every dataclass of settings has a range: a new one without a range fails here."""

import math
from dataclasses import MISSING, fields, replace
from typing import Any, get_type_hints

import pytest

from ssd1b.distill.losses import Weights
from ssd1b.distill.stages import Depths, Stage
from ssd1b.errors import InputError
from ssd1b.training.data.batches import DataSettings
from ssd1b.training.settings import LoopSettings
from ssd1b.validation import Range, parse, plain_type

LOOP = LoopSettings(steps=10, batch_size=8, learning_rate=1e-3, decay_steps=2)
GOOD: dict[type, Any] = {
    LoopSettings: LOOP,
    DataSettings: DataSettings(path="pictures"),
    Weights: Weights(),
    Depths: Depths(mid=0, down=((0,),), up=((0,),)),
    Stage: Stage(),
}
ALL = [(kind, field.name) for kind in GOOD for field in fields(kind)]

NO_NUMBERS = (math.nan, math.inf, -math.inf, -1e300, 1e300, -5, 10**4000, 10**6000, "x\0", [], {}, object())
"""Wrong for a field of any kind; one of a text or a list of any length is below."""


@pytest.mark.parametrize(("kind", "name"), ALL)
@pytest.mark.parametrize(
    "value",
    NO_NUMBERS,
    ids=lambda value: (
        f"{type(value).__name__}-{str(value)[:9]}"
        if not isinstance(value, int) or value < 100
        else f"10^{round(math.log10(value))}"
    ),
)
def test_every_field_has_a_range(kind: type, name: str, value: object) -> None:
    if kind is Stage and (name, value) in (("blocks", {}), ("weights", {}), ("captions", [])):
        return
    if kind is DataSettings and (name, value) == ("sources", []):
        return
    with pytest.raises(InputError) as told:
        replace(GOOD[kind], **{name: value})
    assert len(str(told.value)) < 500 and "\n" not in str(told.value)


@pytest.mark.parametrize(("kind", "name"), ALL)
def test_true_is_no_number_and_numbers_are_not_true(kind: type, name: str) -> None:
    given = getattr(GOOD[kind], name)
    with pytest.raises(InputError):
        replace(GOOD[kind], **{name: 1 if isinstance(given, bool) else True})


RANGES = {
    name: (kind, each)
    for name, hint in get_type_hints(LoopSettings, include_extras=True).items()
    for kind, metadata in [plain_type(hint)]
    for each in metadata
    if isinstance(each, Range) and kind is not tuple
}


@pytest.mark.parametrize("name", RANGES)
def test_numbers_of_the_loop_keep_to_both_ends(name: str) -> None:
    kind, allowed = RANGES[name]
    for value in (math.nextafter(allowed.low, -math.inf), allowed.low - 1, allowed.high + 1):
        with pytest.raises(InputError, match=f"{name} is "):
            replace(LOOP, **{name: value})
    # Of a micro-batch and a batch neither may be more than the other.
    others = {"batch_size": 100_000, "micro_batches": 1}
    for value in (kind(allowed.low), kind(allowed.high)):
        assert getattr(replace(LOOP, **others | {name: value}), name) in (value, int(value * LOOP.steps))
    if kind is int:
        with pytest.raises(InputError, match=name):
            replace(LOOP, **{name: 1.5})


NAMED = {
    "betas": [2, -1], "ema_decay": 5.0, "decay_steps": -999, "warmup_steps": -5, "seed": -5,
    "weight_decay": -1e300, "timeout_minutes": 1e-9, "batch_size": 10**12, "micro_batches": 3,
    "steps": 10**12, "learning_rate": 10**400, "spike_factor": 0.5, "max_skipped": -1, "muon_rate": 0,
    "muon_decay": -0.1, "warmup_share": 1.5, "decay_share": -0.1, "seeds": 1, "betas ": [0.9],
}  # fmt: skip


@pytest.mark.parametrize("name", NAMED)
def test_tables_with_values_that_cannot_be(name: str) -> None:
    table = {"steps": 10, "batch_size": 8, "learning_rate": 1e-3, "decay_steps": 2}
    with pytest.raises(InputError) as told:
        parse(LoopSettings, table | {name.strip(): NAMED[name]}, "train")
    assert name.strip() in str(told.value) and len(str(told.value)) < 700


def test_a_share_decides_the_steps_and_follows_them() -> None:
    settings = replace(LOOP, steps=100, warmup_share=0.07, decay_share=0.29)
    assert (settings.warmup_steps, settings.decay_steps) == (7, 29)
    longer = replace(settings, steps=1000)
    assert (longer.warmup_steps, longer.decay_steps) == (70, 290)
    assert replace(longer, warmup_share=None, warmup_steps=5).warmup_steps == 5


def test_every_field_is_documented() -> None:
    for kind in GOOD:
        assert all(f"{field.name}:" in (kind.__doc__ or "") for field in fields(kind)), kind
    assert {field.name for field in fields(LoopSettings) if field.default is MISSING} == {
        "steps", "batch_size", "learning_rate", "decay_steps"
    }  # fmt: skip
