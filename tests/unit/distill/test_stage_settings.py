"""What a file of stages asks for is what is trained, or one line that says why not."""

from pathlib import Path

import pytest

from ssd1b.distill.stages import MAX_STAGES, read_stages, with_total_steps
from ssd1b.errors import InputError

SHIPPED = {
    "mini-ssd-1b": [(200, 2, 198), (200, 2, 198), (600, 6, 594)],
    "ssd-1b": [(10_000, 500, 2_000)] * 3,
}
"""Steps, warm-up and decay of each stage, as they were when warm-up and decay were scaled."""


def written(tmp_path: Path, text: str) -> str:
    path = tmp_path / "stages.toml"
    path.write_text(text)
    return str(path)


def times(stages) -> list[tuple[int, int, int]]:
    return [(each.train.steps, each.train.warmup_steps, each.train.decay_steps) for each in stages]


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_stages_keep_their_times(name: str) -> None:
    stages = read_stages(name)
    assert times(stages) == SHIPPED[name]
    for steps in (1, 7, 333, 500, 1_000, 99_999):
        expected = []
        total = sum(before for before, _, _ in SHIPPED[name])
        for before, warmup, decay in SHIPPED[name]:
            own = max(1, steps * before // total)
            expected.append((own, warmup * own // before, decay * own // before))
        assert times(with_total_steps(stages, steps)) == expected


def test_a_number_of_steps_that_was_given_is_kept(tmp_path: Path) -> None:
    file = written(tmp_path, """
        [train]
        warmup_steps = 500
        decay_share = 0.5
        [[stages]]
        student = "75%"
        train = { steps = 1000 }
        [[stages]]
        student = "60%"
        train = { steps = 600, warmup_share = 0.1, decay_steps = 33 }
        [[stages]]
        student = "50%"
    """)  # fmt: skip
    stages = read_stages(file)
    assert times(stages) == [(1000, 500, 500), (600, 60, 33), (10_000, 500, 5_000)]
    assert times(with_total_steps(stages, 23_200)) == [
        (2000, 500, 1000),
        (1200, 120, 33),
        (20_000, 500, 10_000),
    ]
    with pytest.raises(InputError, match=r"warmup_steps is 500 in stage 1 of 1160 steps, .*warmup_share"):
        with_total_steps(stages, 1160)


HEX = "0x" + "f" * 5000

REFUSED = {
    "warmup_steps = 500\nwarmup_share = 0.1": "both warmup_steps and warmup_share",
    "steps = 100\nwarmup_steps = 101": "warmup_steps is 101 in stage 1 of",
    "steps = 100\ndecay_steps = 101": "decay_steps is 101 in stage 1 of",
    "warmup_share = 1.01": "warmup_share is 1.01: it must be a number from 0 to 1",
    "decay_share = -0.01": "decay_share is -0.01",
    "warmup_share = nan": "warmup_share",
    "warmup_share = true": "warmup_share",
    f"seed = {'9' * 5000}": "is not valid TOML",
    f"seed = {HEX}": "seed",
    f"learning_rate = {HEX}": "learning_rate",
    f"betas = [{HEX}, 0.9]": "betas",
    f"optimizer = {HEX}": "optimizer",
    f"{HEX} = 1": "unknown key",
    "betas = [2, -1]": "betas is [2, -1]: it must be two numbers from 0 to 0.999999",
    "betas = [0.9, 0.9, 0.9]": "betas",
    "ema_decay = 5": "ema_decay is 5",
    "weight_decay = -1e300": "weight_decay",
    "timeout_minutes = 1e-9": "timeout_minutes",
    "batch_size = 1000000000000": "batch_size is 1000000000000",
    "batch_size = 10\nmicro_batches = 3": "multiple of micro_batches",
    "learning_rate = inf": "learning_rate",
}


@pytest.mark.parametrize("text", REFUSED, ids=lambda text: text[:30])
def test_settings_of_a_file_that_cannot_be(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as told:
        read_stages(written(tmp_path, f"[train]\n{text}\n[[stages]]\nstudent = '50%'\n"))
    assert REFUSED[text] in str(told.value) and len(str(told.value)) < 900


STAGES = {
    "student = { mid = 0, down = [[1000000000]], up = [[0]] }": "down[0][0] is 1000000000",
    "student = { mid = -1, down = [[0]], up = [[0]] }": "mid is -1",
    "student = { mid = 0, down = [], up = [] }": "down is []: it must have at least 1 items",
    f"student = {{ mid = 0, down = [[{'0,' * 1000}]], up = [[0]] }}": "down[0] is [0",
    "student = { mid = 0, down = [[0]], up = [[0]], channels = [0] }": "channels[0] is 0",
    f"student = {{ mid = {HEX}, down = [[0]], up = [[0]] }}": "mid",
    "weights = { task = 1e300 }": "weights: task is 1e+300",
    "weights = { features = nan }": "features",
    "blocks = { x = [-1] }": "blocks.x[0] is -1",
    f"blocks = {{ x = [{'0,' * 1000}] }}": "blocks.x is [0",
    'captions = ["a\\u0000"]': "captions[0] is 'a",
    "captions = [" + '"a",' * 1000 + "]": "at most 100 items are allowed",
    'teacher = "a\\u0000"': "teacher",
    "captions = 5": "captions",
}


@pytest.mark.parametrize("text", STAGES, ids=lambda text: text[:30])
def test_stages_that_cannot_be(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError) as told:
        read_stages(written(tmp_path, f"[[stages]]\n{text}\n"))
    assert STAGES[text] in str(told.value) and len(str(told.value)) < 900


def test_thousands_of_stages_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=f"has 3000 stages: allowed are {MAX_STAGES}"):
        read_stages(written(tmp_path, "[[stages]]\nstudent = '50%'\n" * 3000))
