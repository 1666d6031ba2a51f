"""The guide's claims: planted truths are found, planted ties are not; the pages say what was found."""

import json
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from PIL import Image

from lab_cells import FAKE, Fake, drawing, run
from ssd1b.jobs.store import Store
from ssd1b.lab.claims import CLAIMS, CONFIRMED, CONTRADICTED, UNDECIDED
from ssd1b.lab.guide import (
    COMPARED_SAMPLERS,
    EXPERIMENTS,
    FAULTS,
    Chapter,
    Experiment,
    default_settings,
    sweep_of,
    write_guide,
)
from ssd1b.lab.results import load_results
from ssd1b.presets import NEGATIVE_PROMPTS
from ssd1b.settings import GenerationSettings

OWN = default_settings(FAKE, {})
PROMPTS = [f"a cube {number}" for number in range(64)]
NAMED = {each.name: each for each in EXPERIMENTS}


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store(tmp_path / "cells")) as opened:
        yield opened


def found(
    store: Store, name: str, attempt: object, *, pairs: int = 64, prompts: list[str] = PROMPTS
) -> dict[str, str]:
    """The verdicts of an experiment's claims."""
    sweep = sweep_of(NAMED[name], prompts, pairs, model="fake", model_settings=OWN, base={})
    run(store, sweep, attempt)
    return {
        claim.name: finding.verdict
        for claim, finding in Chapter(NAMED[name], load_results(store)).findings(OWN)
    }


def test_each_experiment_has_claims_and_each_claim_an_experiment():
    assert {claim.experiment for claim in CLAIMS} == set(NAMED)
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)


def test_a_model_as_the_article_describes_it_confirms_what_it_says_of_guidance(store):
    chances = {
        "flawless": lambda s: 0.2 if s.guidance_scale < 2 else 0.9 if s.guidance_scale < 19 else 0.5,
        "material": lambda s: 0.9 if 12 <= s.guidance_scale <= 17 else 0.4,
        **dict.fromkeys(("shape", "color", "size", "number", "background"), lambda s: s.guidance_scale / 26),
    }
    shade = lambda s: s.seed * (60 if s.guidance_scale < 10 else 5)  # noqa: E731
    assert set(found(store, "guidance", drawing(chances, shade)).values()) == {CONFIRMED}


def test_a_model_that_does_the_contrary_contradicts_it(store):
    chances = {
        "flawless": lambda s: 0.9 if s.guidance_scale < 2 or s.guidance_scale > 19 else 0.2,
        "material": lambda s: 0.2 if 12 <= s.guidance_scale <= 17 else 0.9,
        **dict.fromkeys(
            ("shape", "color", "size", "number", "background"), lambda s: 1 - s.guidance_scale / 26
        ),
    }
    shade = lambda s: s.seed * (60 if s.guidance_scale > 10 else 5)  # noqa: E731
    assert set(found(store, "guidance", drawing(chances, shade)).values()) == {CONTRADICTED}


def test_what_makes_no_difference_is_not_decided(store):
    always = dict.fromkeys(
        ("flawless", "material", "shape", "color", "size", "number", "background"), lambda s: 0.7
    )
    assert set(found(store, "guidance", drawing(always)).values()) == {UNDECIDED}
    assert set(found(store, "negative", drawing(always)).values()) == {UNDECIDED}
    assert set(found(store, "sampler", drawing(always)).values()) == {UNDECIDED}
    assert set(found(store, "faults", drawing({"clean": lambda s: 0.7})).values()) == {UNDECIDED}


def test_chance_is_seldom_taken_for_a_difference(store):
    """Of 13 claims at 95 %, in 4 worlds without any difference, about 2 or 3 are decided."""
    names = ("flawless", "material", "shape", "color", "size", "number", "background", "clean")
    decided = 0
    for world in range(4):
        luck = random.Random(world)
        attempt = drawing(dict.fromkeys(names, lambda s, luck=luck: luck.random()))
        prompts = [f"a cube {world} {number}" for number in range(64)]
        for experiment in ("guidance", "negative", "faults", "sampler"):
            told = found(store, experiment, attempt, prompts=prompts)
            told.pop("more guidance costs diversity", None)
            decided += sum(word != UNDECIDED for word in told.values())
    assert decided <= 5


def test_a_few_pairs_decide_nothing(store):
    chances = {"flawless": lambda s: float(s.guidance_scale > 1)}
    told = found(store, "guidance", drawing(chances), pairs=4, prompts=["a cube"])
    assert set(told.values()) == {UNDECIDED}


def test_steps_that_settle_and_go_on_changing(store):
    settled = {"flawless": lambda s: min(1.0, s.steps / 25)}
    assert set(found(store, "steps", drawing(settled, lambda s: s.steps)).values()) == {CONFIRMED}
    few = found(store, "steps", drawing(settled, lambda s: s.steps), pairs=32, prompts=PROMPTS[:32])
    assert few["quality is stable beyond 25 steps"] == UNDECIDED, "that 32 pairs agree proves little"
    rising = {"flawless": lambda s: s.steps / 60}
    told = found(store, "steps", drawing(rising), prompts=[f"a cone {number}" for number in range(64)])
    assert told["quality is stable beyond 25 steps"] == CONTRADICTED
    assert told["the form changes beyond 25 steps"] == CONTRADICTED


def test_one_negative_prompt_helps_and_another_harms(store):
    chance = {NEGATIVE_PROMPTS["basic"]: 0.9, NEGATIVE_PROMPTS["adult-content"]: 0.2}
    told = found(store, "negative", drawing({"flawless": lambda s: chance.get(s.negative_prompt or "", 0.5)}))
    assert [*told.values()] == [CONFIRMED, CONTRADICTED, UNDECIDED]


def test_faults_are_asked_for_and_then_named(store):
    def asked(settings: GenerationSettings) -> float:
        assert [word for word in FAULTS if settings.prompt.endswith(f", {word}")]
        assert settings.negative_prompt in (None, settings.prompt.rpartition(", ")[2])
        return 0.1 if settings.negative_prompt is None else 0.8

    assert set(found(store, "faults", drawing({"clean": asked})).values()) == {CONFIRMED}


def test_a_sampler_that_is_beaten_is_not_recommended(store):
    chance = {"unipc": 0.9, "euler": 0.5, "ddpm": 0.7, "heun": 0.3}
    told = found(store, "sampler", drawing({"flawless": lambda s: chance.get(s.sampler, 0.7)}))
    assert [*told.values()] == [CONFIRMED, CONTRADICTED, CONTRADICTED]


def test_models_of_which_nothing_is_known_are_told_so(store):
    told = found(store, "negative", Fake())
    assert set(told.values()) == {UNDECIDED}


@pytest.mark.parametrize(
    ("name", "prompts", "pairs", "expected"),
    [
        ("steps", 64, 64, (64, 1)),
        ("guidance", 64, 64, (32, 2)),
        ("faults", 64, 64, (16, 1)),
        ("steps", 3, 64, (3, 22)),
    ],
)
def test_pairs_are_shared_out_between_prompts_and_seeds(name, prompts, pairs, expected):
    sweep = sweep_of(NAMED[name], PROMPTS[:prompts], pairs, model="fake", model_settings=OWN, base={})
    (seeds,) = (axis for axis in sweep.axes if axis.name == "seed")
    assert (len(sweep.prompts), len(seeds.values)) == expected


def test_the_models_own_guidance_is_among_those_that_are_drawn():
    own = default_settings(FAKE, {"guidance_scale": 6.5})
    (axis, _) = sweep_of(NAMED["guidance"], PROMPTS, 64, model="fake", model_settings=own, base={}).axes
    labels = [value.label for value in axis.values]
    assert labels == ["1", "2", "3", "5", "6.5", "7", "9", "12", "14.5", "17", "20", "25"]
    assert {"UniPC", "Euler", "DDPM"} < set(COMPARED_SAMPLERS)


def chapters(store: Store, experiment: Experiment) -> list[Chapter]:
    sweep = sweep_of(experiment, PROMPTS, 8, model="fake", model_settings=OWN, base={})
    run(store, sweep, Fake())
    return [Chapter(experiment, load_results(store)), Chapter(NAMED["faults"], None)]


def test_the_pages(store, tmp_path):
    evil = "<script>alert(1)</script>"
    paths = write_guide(
        tmp_path / "guide", chapters(store, NAMED["steps"]), store, model=evil, model_settings=OWN
    )
    html, markdown, facts = (path.read_text() for path in paths)
    assert "<script" not in html and "&lt;script&gt;" in html
    assert 'src="http' not in html and 'href="http' not in html, "the page fetches nothing"
    assert "| quality is stable beyond 25 steps:" in markdown
    told = json.loads(facts)
    assert [claim["word"] for claim in told["claims"]] == [UNDECIDED, UNDECIDED, CONFIRMED, UNDECIDED]
    assert told["claims"][-1]["estimate"] is None
    for name in ("steps.svg", "steps.webp"):
        assert (tmp_path / "guide" / name).exists() and f"({name})" in markdown
    with Image.open(tmp_path / "guide/steps.webp") as sheet:
        assert sheet.width > 8 * 112
