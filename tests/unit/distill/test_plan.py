"""Stages: read strictly, planned whole, and what stays after several is what would stay after one."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from ssd1b.distill.losses import Weights
from ssd1b.distill.plan import PlannedStage, plan, student_layout, with_target
from ssd1b.distill.stages import TRAIN, Depths, Stage, read_stages, with_total_steps
from ssd1b.errors import InputError
from ssd1b.layer_map import LayerMap, inferred, parameters, transformers
from ssd1b.layouts import KOALA_700M, NAMED, SDXL, SDXL_MINI, SSD_1B, SSD_1B_MINI, UNetLayout
from tiny import tiny

TEACHER = tiny(SDXL).unet
IMPORTANCE = {
    f"{name}.transformer_blocks.{block}": float((7 * block + len(name)) % 11 + 1)
    for name, depth in transformers(TEACHER).items()
    for block in range(depth)
}
MIDDLE_GONE = Depths(mid=0, down=((0, 0), (2, 2), (10, 10)), up=((0, 0, 0), (2, 2, 2), (10, 10, 10)))
SIX_ARE_LEFT = Depths(mid=0, down=((0, 0), (2, 2), (6, 6)), up=((0, 0, 0), (2, 2, 2), (6, 6, 10)))


def planned(*stages: Stage, teacher: UNetLayout = TEACHER) -> list[PlannedStage]:
    return plan(teacher, stages, lambda: IMPORTANCE)


def written(folder: Path, text: str) -> str:
    path = folder / "stages.toml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize("teacher", [SDXL, SDXL_MINI], ids=["sdxl", "mini-sdxl"])
def test_the_shipped_stages_end_where_a_single_cut_ends(teacher: UNetLayout) -> None:
    found = plan(teacher, read_stages("ssd-1b"))
    assert [len(each.cut.removed) for each in found] == [2, 14, 12]
    last = found[-1].layers
    assert last.modules == LayerMap.between(student_layout("ssd-1b", teacher), teacher).modules
    assert last.student == (SSD_1B if teacher is SDXL else SSD_1B_MINI)
    for before, after in pairwise(found):
        assert after.cut.teacher == before.layers.student
        assert set(after.layers.removed) > set(before.layers.removed) - {"mid_block.attentions.0"}


@pytest.mark.parametrize("keep", ["inferred", "first", "importance"])
def test_what_stays_after_two_stages_stays_after_one(keep: str) -> None:
    end = Stage(student="ssd-1b", keep=keep)
    *_, last = planned(Stage(student=SIX_ARE_LEFT, keep=keep), end)
    (once,) = planned(end)
    assert last.layers.modules == once.layers.modules
    assert last.layers.keys == once.layers.keys


def test_inferred_blocks_are_among_those_that_more_would_leave() -> None:
    assert inferred("", 10, 4) == (0, 1, 2, 6)
    for number in range(1, 10):
        assert set(inferred("", 10, number)) < set(inferred("", 10, number + 1))
    assert inferred("", 2, 1) == (0,)


def test_named_blocks_are_counted_as_the_teacher_counts() -> None:
    name = "down_blocks.2.attentions.0"
    first = Stage(student=SIX_ARE_LEFT, blocks={name: (0, 2, 4, 6, 8, 9)})
    *_, last = planned(first, Stage(student="ssd-1b", blocks={name: (0, 4, 8, 9)}))
    assert last.layers.kept[name] == [0, 4, 8, 9]
    assert last.layers.kept["up_blocks.0.attentions.0"] == [0, 1, 2, 6]
    with pytest.raises(InputError, match=r"stage 2 .*\[0, 1, 8, 9\].* of \[0, 2, 4, 6, 8, 9\]"):
        planned(first, Stage(student="ssd-1b", blocks={name: (0, 1, 8, 9)}))
    with pytest.raises(InputError, match=r"did you mean 'down_blocks\.2\.attentions\.0'"):
        planned(Stage(student="ssd-1b", blocks={"down_blocks.2.attention.0": (0, 1, 2, 3)}))


def test_budgets_are_of_the_first_teacher_and_each_is_part_of_the_one_before() -> None:
    found = planned(Stage(student="80%"), Stage(student="60%"))
    shares = [parameters(each.layers.student) / parameters(TEACHER) for each in found]
    assert 0.75 < shares[0] <= 0.8 and 0.55 < shares[1] <= 0.6
    kept = [set(each.layers.modules.values()) for each in found]
    assert kept[1] < kept[0]


def test_nothing_is_measured_before_all_else_is_right() -> None:
    def measure() -> dict[str, float]:
        raise AssertionError("measured")

    with pytest.raises(InputError, match="cannot be kept"):
        plan(TEACHER, [Stage(student="2%")], measure)
    with pytest.raises(InputError, match="needs the teacher's weights"):
        plan(TEACHER, [Stage(student="50%")])
    plan(TEACHER, [Stage(student="ssd-1b")], measure)


def test_names_are_topologies_at_the_teachers_widths(tmp_path: Path) -> None:
    for name in ("ssd-1b", "mini-ssd-1b"):
        assert student_layout(name, SDXL_MINI) == SSD_1B_MINI
        assert student_layout(name, SDXL) == SSD_1B
    assert student_layout("koala-700m", SDXL) == KOALA_700M
    file = tmp_path / "layout.toml"
    file.write_text("mid = 0\ndown = [[0, 0], [2, 2], [4, 4]]\nup = [[0, 0, 0], [2, 1, 1], [4, 4, 10]]")
    assert student_layout(str(file), SDXL) == SSD_1B
    file.write_text(file.read_text() + "\nchannels = [320, 640, 1024]")
    with pytest.raises(InputError, match=r"stage 1 .*\(320, 640, 1024\) channels, the teacher's"):
        plan(SDXL, [Stage(student=str(file))])


@pytest.mark.parametrize(
    ("stages", "words"),
    [
        ([Stage(student="ssd-1b"), Stage(student="sdxl")], "stage 2 cannot be cut from the student of"),
        ([Stage(student="koala-1b"), Stage(student="ssd-1b")], "2 resnets in the student, 1 in the teacher"),
        ([Stage(student="sdxl")], "nothing is removed"),
        ([Stage(student="ssd1b")], "unknown layout 'ssd1b': did you mean 'ssd-1b'"),
        ([Stage(student="60%"), Stage(student="70%")], "earlier stages already leave no more than 70%"),
        ([Stage(student=Depths(mid=0, down=((0,),), up=((0, 0),)))], "1 levels, the teacher 3"),
        (
            [Stage(student=replace(MIDDLE_GONE, mid=3))],
            "diffusers cannot represent a middle block of depth 3",
        ),
        ([Stage(student=replace(MIDDLE_GONE, down=((0, 0), (2, 0), (4, 4))))], "invalid depths"),
    ],
)  # fmt: skip
def test_stages_that_cannot_be(stages: list[Stage], words: str) -> None:
    with pytest.raises(InputError) as caught:
        planned(*stages)
    assert words in str(caught.value)


def test_a_file_says_what_each_stage_does(tmp_path: Path) -> None:
    first, second = read_stages(written(tmp_path, """
        [train]
        steps = 100
        betas = [0.9, 0.95]
        [[stages]]
        student = { mid = "none", down = [[0], [2], [5]], up = [[0, 0], [2, 2], [5, 5]] }
        [[stages]]
        student = "40%"
        keep = "importance"
        features = "self-attention"
        teacher = "another"
        weights = { task = 0, normalised = true }
        train = { steps = 50, warmup_steps = 7 }
    """))  # fmt: skip
    assert isinstance(first.student, Depths) and student_layout(first.student, SDXL) == KOALA_700M
    assert (first.train.steps, first.train.warmup_steps, first.train.decay_steps) == (100, 5, 20)
    assert first.train.betas == second.train.betas == (0.9, 0.95)
    assert (second.train.steps, second.train.warmup_steps, second.train.decay_steps) == (50, 7, 10)
    assert second.weights == Weights(task=0.0, normalised=True)
    assert (second.features, second.teacher) == ("self-attention", "another")
    assert (first.features, first.weights, first.keep) == (
        "layer",
        Weights(task=1.0, output=0.5, features=0.5),
        None,
    )
    shared = with_total_steps([first, second], 30)
    assert [(each.train.steps, each.train.decay_steps) for each in shared] == [(20, 4), (10, 2)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no stages"),
        ("stages = []", "has no stages"),
        ("[[stage]]", "unknown key in", ),
        ("[[stages]]\nfeature = 'layer'", "unknown key 'feature'"),
        ("[[stages]]\nfeature = 'layer'", "did you mean 'features'"),
        ("[[stages]]\nfeatures = 'layers'", "did you mean 'layer'"),
        ("[[stages]]\nkeep = 'frist'", "did you mean 'first'"),
        ("[[stages]]\n[[stages]]\nweights = { outptu = 1 }", "weights: unknown key 'outptu'"),
        ("[[stages]]\nweights = { output = -1 }", "weights: output is -1"),
        ("[[stages]]\ntrain = { step = 1 }", "did you mean 'steps'"),
        ("[[stages]]\ntrain = { steps = 0 }", "steps is 0: it must be a whole number from 1"),
        ("[[stages]]\nstudent = 3", "student is 3: it must be text or a table"),
        ("[[stages]]\nstudent = '120%'", "between 0% and 100%"),
        ("[[stages]]\nstudent = '50%'\nkeep = 'first'", "importance chooses"),
        ("[[stages]]\nstudent = { mid = 0, down = [[0]] }", "student: up is missing"),
        ("stages = [1]", "stage 1 of"),
    ],
)  # fmt: skip
def test_files_that_say_something_else(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(InputError) as caught:
        read_stages(written(tmp_path, text))
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_the_target_is_the_last_stages_end() -> None:
    assert with_target([Stage()], "vega", SDXL)[0].student == "vega"
    same = with_target(read_stages("ssd-1b"), "mini-ssd-1b", SDXL)
    assert same[-1].student == "ssd-1b", "the same topology by another name"
    for stages, student, words in (
        ([Stage()], None, "missing option '--student'"),
        ([Stage(), Stage(student="vega")], None, "stage 1 has no student"),
        ([Stage(student="vega")], "ssd-1b", "student is 'vega', not 'ssd-1b'"),
        ([Stage(student="50%")], "ssd-1b", "student is '50%'"),
    ):
        with pytest.raises(InputError, match=words):
            with_target(stages, student, SDXL)


def test_the_defaults_are_the_vendors_and_the_papers() -> None:
    assert (TRAIN.learning_rate, TRAIN.batch_size, TRAIN.warmup_steps) == (1e-4, 16, 500)
    assert "mini-ssd-1b" in NAMED
