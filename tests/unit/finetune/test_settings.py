"""Presets hold what their sources say, and layers of settings replace each other as documented."""

import pytest

from ssd1b.errors import InputError
from ssd1b.finetune.presets import PRESETS
from ssd1b.finetune.settings import FinetuneSettings, make_settings


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
    assert settings(train__steps=30, train__validation_steps=7).for_images(9).train.validation_steps == 7
