"""``ssd1b tune``: what it leaves, and what it refuses."""

import json

import pytest

QUICK = ("--pairs", 8, "--fresh", 8, "--trials", 3, "--metric", "sharpness", "--steps", 1)


@pytest.fixture
def tune(run, tiny_model):
    def call(*arguments):
        # Of an option that is given twice the last one counts: what is tested.
        return run("tune", *QUICK, "--model", tiny_model, "--out", "tuned", *arguments)

    return call


def test_a_preset_that_generate_takes(run, tune, tiny_model, tmp_path):
    done = tune("a cube", "a cone", "--axis", "guidance=1,5,9", "--negative", "ugly")
    assert done.code == 0, done.err
    assert "winner" in done.out
    assert "against the model's default settings with negative_prompt ugly, steps 1" in done.out
    told = json.loads((tmp_path / "tuned/tuned.json").read_text())
    preset = json.loads((tmp_path / "tuned/preset.json").read_text())
    assert preset["settings"] == {"negative_prompt": "ugly", "steps": 1, **told["winner"]["settings"]}
    assert "8 fresh pairs" in preset["source"]
    assert {rival["verdict"] for rival in told["rivals"]} <= {"worse", "not distinguishable", "better"}
    drawn = run("generate", "a cube", "--model", tiny_model, "--preset", "tuned/preset.json", "--json")
    assert drawn.code == 0, drawn.err

    pictures = len([*(tmp_path / "tuned/pictures").rglob("*.png")])
    again = tune("a cube", "a cone", "--axis", "guidance=1,5,9", "--negative", "ugly")
    assert again.out == done.out
    assert len([*(tmp_path / "tuned/pictures").rglob("*.png")]) == pictures, "nothing is drawn again"


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], ["no prompt"]),
        (["a cube", "--metric", "right"], ["metric 'right' was not measured", "a model of Tabletop"]),
        (["a cube", "--metric", "pickscore"], ["it needs yuvalkirstain/PickScore_v1 in the hub's cache"]),
        (["a cube", "--metric", "sharp ness"], ["is not a sum", "right + 0.5*clip"]),
        (["a cube", "--guard", "clipping<1"], ["is not a bound", "clipping<=0.05"]),
        (["a cube", "--guard", "clippin<=1"], ["unknown metric 'clippin'", "did you mean 'clipping'"]),
        (["a cube", "--guard", "sharpness>=2000"], ["keeps every guard"]),
        (["a cube", "--guard", "sharpness>=100000"], ["sharpness>=100000 cannot hold", "0 and 2040"]),
        (["a cube", "--guard", "clean>=0.9", "--guard", "clean<=0.1"], ["cannot both hold"]),
        (["a cube", "--metric", "1000000*sharpness"], ["the weight of sharpness is 1e+06", "-1000 to 1000"]),
        (["a cube", "--metric", f"1{300 * '0'}*sharpness"], ["is not a sum"]),
        (["a cube", "--metric", "0*sharpness"], ["is always 0"]),
        (["a cube", "--metric", "sharpnes"], ["unknown metric", "did you mean 'sharpness'"]),
        *(
            (["a cube", "--budget", each], ["budget", "1 to 1000000"])
            for each in ("0.000001", "0", "-1", "1e9")
        ),
        *((["a cube", "--budget", each], ["budget"]) for each in ("nan", "inf", "-inf", "x", "")),
        (
            ["a cube", "--budget", "3", "--steps", "4"],
            ["budget is 3 UNet passes", "the cheapest settings of these axes take 4"],
        ),
        *((["a cube", "--minutes", each], ["minutes"]) for each in ("nan", "inf", "-5", "0", "1e99")),
        (["a cube", "--axis", "seed=1-4"], ["axis seed is no setting"]),
        (["a cube", "--axis", "guidance=1", "--axis", "guidance=2"], ["axis guidance is given twice"]),
        (["a cube", "--seed", "3"], ["seed is no setting"]),
        (["a cube", "--trials", "0"], ["trials is 0"]),
        (["a cube", "--pairs", "4"], ["pairs is 4"]),
    ],
)
def test_wrong_calls(tune, tmp_path, arguments, words):
    axis = () if "--axis" in arguments else ("--axis", "guidance=1,5")
    done = tune(*axis, *arguments)
    assert done.code == 2 and done.out == ""
    drawn = {"right", "pickscore", "sharpness>=2000"} & {*arguments}
    assert drawn or not (tmp_path / "tuned").exists(), "what is refused leaves nothing"
    assert all(word in done.err for word in words), done.err
