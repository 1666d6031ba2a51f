"""Presets hold what their sources say, layers replace each other, and a given setting has an effect."""

from collections.abc import Mapping
from dataclasses import fields

import pytest

from ssd1b.errors import InputError
from ssd1b.finetune.presets import PRESETS
from ssd1b.finetune.settings import NEEDED, OF_METHOD, FinetuneSettings, make_settings
from ssd1b.training.data.batches import DataSettings
from ssd1b.training.settings import LoopSettings


def settings(preset: str | None = None, file: str | None = None, /, **given: object) -> FinetuneSettings:
    dotted = {name.replace("__", "."): each for name, each in given.items()}
    return make_settings(file, {"data.path": "x", **dotted}, size=1024, preset=preset)


SOURCES = {
    # The model card's commands: pixels, batch x accumulation, steps or epochs, rate, what else they say.
    "ssd-1b-lora": {"size": 1024, "batch": (1, 1), "epochs": 2, "rate": 1e-4, "seed": 42, "flip": True},
    "ssd-1b-dreambooth": {
        "size": 1024, "batch": (4, 4), "steps": 500, "rate": 1e-5, "seed": 0, "flip": False,
    },
    "ssd-1b-full": {
        "size": 512, "batch": (4, 4), "steps": 10_000, "rate": 1e-6, "optimizer": "adamw-8bit",
        "checkpointing": True, "dropout": 0.2, "flip": True, "crop": "centre",
    },
    # The READMEs of diffusers' examples, and the defaults of its scripts.
    "diffusers-lora": {
        "size": 1024, "batch": (1, 1), "epochs": 2, "rate": 1e-4, "rank": (4, 4.0), "decay": 1e-2,
    },
    "diffusers-dreambooth": {
        "size": 1024, "batch": (4, 4), "steps": 500, "rate": 1e-4, "rank": (4, 4.0), "decay": 1e-4,
    },
    "diffusers-full": {"size": 512, "batch": (4, 4), "steps": 10_000, "rate": 1e-6, "dropout": 0.2},
    "diffusers-controlnet": {
        "size": 1024, "batch": (4, 4), "steps": 15_000, "rate": 1e-5, "seed": 42, "crop": "centre",
        "dropout": 0.0, "decay": 1e-2, "flip": False,
    },
    # sd-scripts' docs.
    "kohya-lora": {
        "rank": (32, 16.0), "rate": 1e-4, "optimizer": "adamw-8bit", "epochs": 10, "checkpointing": True,
        "targets": "transformer", "batch": (1, 1), "dropout": 0.0,
    },
    "kohya-full": {
        "rate": 4e-7, "optimizer": "adafactor", "warmup": 100, "batch": (1, 1), "checkpointing": True,
        "dropout": 0.0,
    },
    # OneTrainer's preset and its defaults.
    "onetrainer-lora": {"rank": (16, 1.0), "rate": 3e-4, "warmup": 200, "batch": (4, 1), "dropout": 0.0},
}  # fmt: skip


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_what_their_sources_say(name: str) -> None:
    made = settings(name, **({"data__controls": "edges"} if "controlnet" in name else {}))
    train, data = made.train, made.data
    found = {
        "size": data.size, "batch": (train.batch_size, train.micro_batches), "epochs": made.epochs,
        "steps": train.steps, "rate": train.learning_rate, "seed": train.seed, "flip": data.flip,
        "optimizer": train.optimizer, "checkpointing": train.gradient_checkpointing,
        "dropout": data.caption_dropout, "crop": data.crop, "rank": (made.rank, made.alpha),
        "decay": train.weight_decay, "warmup": train.warmup_steps, "targets": made.targets,
    }  # fmt: skip
    expected = SOURCES[name]
    assert {key: found[key] for key in expected} == expected
    # None of them weighs timesteps, offsets noise, averages weights or lets the rate fall.
    assert (made.weighting, made.noise_offset, train.ema_decay, train.decay_steps) == ("constant", 0, 0, 0)
    assert train.max_grad_norm == 1 and ("full" in name) == (made.method == "full")
    assert PRESETS[name].source
    if made.method == "lora":
        assert made.alpha is not None, "alpha is always stated"
        assert made.targets == ("attention" if name.startswith(("ssd", "diffusers")) else "transformer")


def test_a_file_goes_over_a_preset_and_options_over_both(tmp_path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("rank = 8\n[train]\nlearning_rate = 2e-5\nseed = 1\n[data]\npath = 'y'\n")
    made = settings("kohya-lora", str(file), train__seed=7)
    assert (made.rank, made.alpha, made.train.learning_rate, made.train.seed) == (8, 16, 2e-5, 7)
    assert (made.epochs, made.data.path) == (10, "x")
    sources = make_settings(str(file), {"data.sources": [{"path": "z", "repeats": 2}]}, size=64).data
    assert sources.path is None and sources.all_sources[0].repeats == 2, "sources replace a path below them"
    with pytest.raises(InputError, match=r"unknown preset 'kohya-lor': did you mean 'kohya-lora'"):
        settings("kohya-lor")


def test_steps_replace_epochs_of_a_lower_layer_and_epochs_are_steps_of_the_images(tmp_path) -> None:
    assert settings("kohya-lora").for_images(25).train.steps == 250
    assert (
        settings("kohya-lora", train__batch_size=4, train__micro_batches=1).for_images(25).train.steps == 63
    )
    assert settings("kohya-lora", train__steps=30).for_images(25).train.steps == 30
    assert settings("ssd-1b-full", epochs=0.5).for_images(8).train.steps == 1
    assert settings(epochs=3, train__warmup_share=0.1).for_images(100).train.warmup_steps == 30
    assert settings().for_images(25) == settings().for_images(99)
    file = tmp_path / "run.toml"
    file.write_text("epochs = 2\n[train]\nsteps = 3\n")
    with pytest.raises(InputError, match=r"give train\.steps or epochs, not both"):
        settings(None, str(file))


def test_a_run_is_validated_at_least_once() -> None:
    assert settings(train__steps=1000).for_images(9).train.validation_steps == 100
    assert settings(train__steps=30).for_images(9).train.validation_steps == 30
    often = settings(train__steps=30, train__validation_steps=7, validation="y")
    assert often.for_images(9).train.validation_steps == 7


METHODS: Mapping[str, dict[str, object]] = {
    "lora": {}, "full": {}, "textual-inversion": {"token": "my-cat"},
    "controlnet": {"data.controls": "edges"},
}  # fmt: skip
"""What each method cannot do without."""

VALUES: Mapping[str, object] = {
    "kind": "lora", "rank": 16, "alpha": 16.0, "rslora": True, "targets": "all", "blocks": ("mid_block",),
    "text_encoders": True, "train.text_rate": 1e-5, "int8_base": True, "prior": "x", "prior_prompts": ("x",),
    "prior_weight": 1.0, "token": "my-cat", "vectors": 1,
    "init_word": "cat", "template": "subject", "init_control": "x", "sample_controls": ("x",),
    "data.controls": "edges", "data.control_column": "c", "data.trigger": "sks", "train.muon_rate": 0.01,
    "train.muon_decay": 0.1, "train.fsdp": True, "min_snr": 5.0, "train.betas": (0.9, 0.99),
    "train.decay": "cosine", "train.validation_steps": 100, "data.unmasked_weight": 0.1,
    "data.caption_variants": 8,
}  # fmt: skip
"""A value of each setting in the tables, often its default: what counts is that it is given."""

REASONS: Mapping[str, tuple[dict[str, object], dict[str, object]]] = {
    "prior_weight": ({}, {"prior_prompts": ("x",)}),
    "min_snr": ({"weighting": "debiased"}, {}),
    "train.text_rate": ({}, {"text_encoders": True}),
    "train.muon_decay": ({"method": "full"}, {"method": "full", "train.muon_rate": 0.01}),
    "train.betas": ({"train.optimizer": "adafactor"}, {}),
    "train.decay": ({}, {"train.decay_share": 0.1}),
    "train.validation_steps": ({}, {"samples": ("x",)}),
    "data.unmasked_weight": ({}, {"data.masks": "alpha"}),
    "data.caption_variants": ({"data.tag_dropout": 0.1, "text_encoders": True}, {"data.tag_dropout": 0.1}),
}
"""What else is given where a setting has no effect, and where it has."""


def test_the_tables_of_effects_name_settings() -> None:
    tables = (("", FinetuneSettings), ("train.", LoopSettings), ("data.", DataSettings))
    known = {f"{table}{field.name}" for table, of in tables for field in fields(of)}
    assert {*OF_METHOD, *NEEDED} == {*VALUES} <= known and {*NEEDED} == {*REASONS}
    assert {method for methods in OF_METHOD.values() for method in methods} == {*METHODS}


@pytest.mark.parametrize("name", OF_METHOD)
def test_a_setting_is_for_its_methods(name: str) -> None:
    with_reason = REASONS.get(name, ({}, {}))[1] | {name: VALUES[name]}
    with_reason |= {"samples": ("a",)} if name == "sample_controls" else {}
    for method, needs in METHODS.items():
        given = {"data.path": "x", **needs, **with_reason, "method": method}
        if method in OF_METHOD[name]:
            assert make_settings(None, given, size=64)
        else:
            alone = {"data.path": "x", **needs, name: VALUES[name], "method": method}
            what = rf"{name.rpartition('.')[2]} is for method {' or '.join(OF_METHOD[name])}, got {method}"
            with pytest.raises(InputError, match=what):
                make_settings(None, alone, size=64)


@pytest.mark.parametrize("name", NEEDED)
def test_a_setting_without_what_it_needs_is_refused(name: str) -> None:
    without, having = REASONS[name]
    with pytest.raises(InputError, match=rf"{name.rpartition('.')[2]} needs "):
        make_settings(None, {"data.path": "x", **without, name: VALUES[name]}, size=64)
    assert make_settings(None, {"data.path": "x", **having, name: VALUES[name]}, size=64)


def test_a_file_is_checked_for_effects_as_options_are_and_false_is_not_given(tmp_path) -> None:
    file = tmp_path / "run.toml"
    file.write_text("method = 'full'\nrank = 16\n")
    with pytest.raises(InputError, match=r"run\.toml: rank is for method lora, got full"):
        settings(None, str(file))
    file.write_text("method = 'full'\nrslora = false\nint8_base = false\n[[data.sources]]\npath = 'x'\n")
    assert make_settings(str(file), {}, size=64).method == "full"


@pytest.mark.parametrize("method", METHODS)
def test_what_a_preset_sets_for_other_methods_is_left_out(method: str) -> None:
    for name, preset in PRESETS.items():
        made = make_settings(
            None, {"data.path": "x", **METHODS[method], "method": method}, size=64, preset=name
        )
        assert made.train.learning_rate == preset.settings["train.learning_rate"]
        assert method == "lora" or (made.rank, made.alpha) == (16, None)
