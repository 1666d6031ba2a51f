"""What is shipped as evidence is whole, and says what the code says."""

import json
from pathlib import Path

import pytest

from ssd1b.lab.claims import CLAIMS, CONFIRMED, CONTRADICTED, ENOUGH, UNDECIDED
from ssd1b.lab.guide import EXPERIMENTS
from ssd1b.presets import load_preset
from ssd1b.sampler_names import resolve

DOCS = Path(__file__).parents[2] / "docs"
GUIDES = DOCS / "guide/settings"


@pytest.mark.parametrize("model", ["mini-sdxl", "mini-ssd-1b"])
def test_a_guide_of_each_miniature_with_every_claim(model: str) -> None:
    folder = GUIDES / model
    facts = json.loads((folder / "guide.json").read_text())
    page = (folder / "guide.md").read_text()
    assert facts["model"] == model
    assert sorted(claim["name"] for claim in facts["claims"]) == sorted(claim.name for claim in CLAIMS)
    for claim in facts["claims"]:
        found = claim["estimate"]
        assert claim["word"] in (CONFIRMED, CONTRADICTED, UNDECIDED)
        assert found["low"] <= found["mean"] <= found["high"] and found["size"] >= ENOUGH
        assert f"| {claim['name']}: *{claim['says']}* | **{claim['word']}** | {claim['told']} |" in page
    for experiment in EXPERIMENTS:
        assert facts["pictures"][experiment.name] > 0
        for suffix in ("svg", "webp"):
            assert (folder / f"{experiment.name}.{suffix}").stat().st_size > 1000
            assert f"({experiment.name}.{suffix})" in page


def test_the_tuned_preset_is_what_tuning_found() -> None:
    facts = json.loads((DOCS / "log/tuning/mini-ssd-1b.json").read_text())
    preset = load_preset("mini-ssd-1b-tuned")
    found = facts["winner"]["settings"]
    assert dict(preset.settings) == found | {"sampler": resolve(found["sampler"])[0]}
    assert facts["gain"]["low"] > 0, "told from zero"
    gain, score = facts["gain"], facts["winner"]["score"]
    for each in (score["mean"], score["low"], score["high"], gain["mean"], gain["low"], gain["high"]):
        assert f"{each:.3g}" in preset.source
    assert f"{score['size']} fresh pairs" in preset.source
