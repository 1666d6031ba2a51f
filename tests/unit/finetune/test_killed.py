"""A run with text encoders, or of a new word, that is killed again and again ends with the same bits."""

import signal
from contextlib import redirect_stdout
from pathlib import Path

from safetensors.torch import load_file

from killing import kill_often, kills_in_child
from picture_files import smooth
from ssd1b.finetune import run as running
from ssd1b.finetune.settings import make_settings
from ssd1b.model import Model
from ssd1b.training import loop

STEPS = 6
LAST = f"checkpoints/step-{STEPS:08d}.safetensors"
RUNS = {
    "adapter.safetensors": {"text_encoders": True, "rank": 2, "train.text_rate": 0.02},
    "my-cat.safetensors": {"method": "textual-inversion", "token": "my-cat", "template": "subject"},
}


def begin(model: str, pictures: Path, given: dict, out: Path) -> None:
    common = {
        "data.path": str(pictures), "train.steps": STEPS, "train.checkpoint_steps": 1, "train.log_steps": 1,
        "train.learning_rate": 0.01,
    }  # fmt: skip
    settings = make_settings(None, {**common, **given}, size=64)
    running.finetune(Model.find(model), settings, out, device="cpu", metadata=False, resume=True)


def killed_often(model: str, folder: str) -> None:
    """The work of the test's child process."""
    loop._read_ahead = lambda share, start, stop, _: (share[i] for i in range(start, stop))  # type: ignore
    pictures = Path(folder) / "pictures"
    for name, given in RUNS.items():
        out = Path(folder) / name.partition(".")[0]
        begin(model, pictures, given, out / "whole")
        with (out / "lives").open("w") as lives, redirect_stdout(lives):
            kill_often(lambda out, given=given: begin(model, pictures, given, out), out / "cut", LAST)
        begin(model, pictures, given, out / "cut")


def test_a_killed_run_ends_with_the_same_bits(worded_model, tmp_path):
    (tmp_path / "pictures").mkdir()
    for number in range(2):
        smooth(64, 64, seed=number).save(tmp_path / f"pictures/{number}.png")
        (tmp_path / f"pictures/{number}.txt").write_text(f"picture {number}")
    kills_in_child(__file__, f"killed_often({str(worded_model)!r}, {str(tmp_path)!r})")
    for name in RUNS:
        out = tmp_path / name.partition(".")[0]
        assert (out / "lives").read_text().split().count(str(-signal.SIGKILL)) >= 2, name
        whole, cut = (load_file(out / each / LAST) for each in ("whole", "cut"))
        assert whole.keys() == cut.keys() and all(each.equal(cut[key]) for key, each in whole.items()), name
        weights = [key.removeprefix("model.weights.") for key in whole if key.startswith("model.weights.")]
        assert weights and all(".adapter." in key or key.startswith("vectors.") for key in weights), (
            "only what is trained is in a checkpoint"
        )
        assert (out / "whole" / name).read_bytes() == (out / "cut" / name).read_bytes(), name
