"""What is shipped as evidence is whole, and says what the code says."""

import json
from pathlib import Path

import pytest

from ssd1b.lab.claims import CLAIMS, CONFIRMED, CONTRADICTED, ENOUGH, UNDECIDED
from ssd1b.lab.guide import EXPERIMENTS

GUIDES = Path(__file__).parents[2] / "docs/guide/settings"


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
