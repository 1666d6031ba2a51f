"""AUTOMATIC1111's text in its own meaning, both ways."""

import itertools
from dataclasses import replace

import pytest

from ssd1b.automatic1111 import HARMLESS, schedule_of, unreproduced, version_of
from ssd1b.diffusion.samplers import SAMPLERS as CODE
from ssd1b.diffusion.schedule import NoiseSchedule, drawn_schedule, steps_for
from ssd1b.errors import InputError
from ssd1b.recipe import ModelIdentity, Recipe, read_json, read_parameters, write_json, write_parameters
from ssd1b.sampler_names import SAMPLERS, SCHEDULES
from ssd1b.settings import resolve_settings

# What the options and the code say in AUTOMATIC1111 1.10, where "normal" is called "Uniform";
# DDPM is Forge's.
AUTOMATIC = {
    "Euler a": "normal",
    "Euler": "normal",
    "Heun": "normal",
    "DDPM": "normal",
    "DPM++ 2M": "karras",
    "DPM++ SDE": "karras",
    "DPM++ 2M SDE": "exponential",
    "DDIM": "leading",
    "UniPC": "sgm_uniform",
    "LCM": "lcm",
    "TCD": "lcm",
}


def recipe(sampler: str, schedule: str | None, drawn: str | None) -> Recipe:
    settings = resolve_settings(
        "a cube", family="sdxl", model_defaults={}, preset=None, seed=1, sampler=sampler, schedule=schedule
    )
    return Recipe(
        settings=settings,
        model=ModelIdentity(name="m", source="m", revision=None, layout="sdxl"),
        dtype="float32",
        device="cpu",
        batch_size=1,
        threads=1,
        torch_version="2",
        ssd1b_version="1.9",
        drawn_schedule=drawn,
    )


def read(text: str) -> tuple[str, str | None]:
    """Sampler and schedule that a text is drawn with."""
    given = read_parameters(text).settings()
    settings = resolve_settings("x", family="sdxl", model_defaults={"seed": 1}, preset=None, **given)
    return settings.sampler, settings.schedule


def text(**values: str) -> str:
    pairs = {
        "Steps": "20",
        "CFG scale": "7",
        **{name.replace("_", " "): each for name, each in values.items()},
    }
    return "a cube\n" + ", ".join(f"{key}: {value}" for key, value in pairs.items())


def test_every_sampler_has_its_schedule_in_the_table():
    assert {names.a1111: names.schedule for names in SAMPLERS.values()} == AUTOMATIC
    assert {name for name, names in SAMPLERS.items() if names.fixed_schedule} == {"ddim", "unipc"}


@pytest.mark.parametrize(
    "version", ["v1.9.4", "1.10.1", "v1.10.1-84-g82a973c0", "f2.0.1v1.10.1-previous-664-g1"]
)
@pytest.mark.parametrize("sampler", AUTOMATIC)
def test_automatic_is_the_samplers_own(sampler, version):
    for more in ({"Schedule_type": "Automatic"}, {}):
        assert read(text(Sampler=sampler, **more, Version=version))[1] == AUTOMATIC[sampler]
    assert read(text(Sampler=sampler, Schedule_type="automatic"))[1] == AUTOMATIC[sampler]


@pytest.mark.parametrize(
    ("values", "schedule"),
    [
        ({"Sampler": "DPM++ 2M Karras", "Version": "v1.6.0"}, "karras"),
        ({"Sampler": "DPM++ 2M Karras"}, "karras"),
        ({"Sampler": "DPM++ 2M SDE Exponential", "Version": "v1.8.0"}, "exponential"),
        ({"Sampler": "Euler a Karras"}, "karras"),
        ({"Sampler": "DPM++ 2M", "Version": "v1.6.0"}, "normal"),  # until 1.9 only the name could say Karras
        ({"Sampler": "DPM++ 2M SDE", "Version": "v1.8.0-RC"}, "normal"),
        ({"Sampler": "DDIM", "Version": "v1.6.0"}, "leading"),
        ({"Sampler": "LCM", "Version": "v1.8.0"}, "lcm"),
        ({"Sampler": "DPM++ 2M"}, None),  # nobody knows which program wrote it
        ({"Sampler": "dpmpp_2m", "Version": "ComfyUI"}, None),
        ({"Sampler": "DPM++ 2M Karras", "Schedule type": "Automatic", "Version": "v1.9.0"}, "karras"),
        ({"Sampler": "DPM++ 2M Karras", "Schedule type": "Exponential", "Version": "v1.9.0"}, "karras"),
        ({"Sampler": "DPM++ 2M", "Schedule type": "Exponential", "Version": "v1.9.0"}, "exponential"),
        ({"Sampler": "DPM++ 2M", "Schedule type": "Uniform", "Version": "v1.9.0"}, "normal"),
        ({"Sampler": "UniPC", "Schedule type": "Karras", "Version": "v1.9.0"}, "sgm_uniform"),
        ({"Sampler": "DDIM", "Schedule type": "Karras", "Version": "v1.10.0"}, "leading"),
        ({"Sampler": "DDIM", "Schedule type": "Karras", "Version": "ssd1b 0.1.0"}, "karras"),
        ({"Sampler": "Euler", "Schedule type": "SGM Uniform", "Version": "f2.0.1v1.10.1"}, "sgm_uniform"),
        ({"Schedule type": "Automatic", "Version": "v1.9.0"}, None),
    ],
)
def test_a_texts_schedule_is_what_its_program_drew_with(values, schedule):
    assert read(text(**values))[1] == schedule


def test_names_that_are_not_here_are_refused_by_whoever_uses_them():
    for values in ({"Sampler": "DPM adaptive"}, {"Sampler": "Euler", "Schedule_type": "KL Optimal"}):
        with pytest.raises(InputError, match="nearest that is"):
            read(text(**values, Version="v1.10.0"))
    assert schedule_of({"Sampler": "nonsense", "Schedule type": "Karras"}) == "Karras"


@pytest.mark.parametrize(("sampler", "schedule"), list(itertools.product(SAMPLERS, SCHEDULES)))
def test_what_is_written_is_read_back(sampler, schedule):
    chosen = recipe(sampler, schedule, schedule)
    left_to_the_model = recipe(sampler, None, schedule)
    for made in (chosen, left_to_the_model):
        assert read(write_parameters(made)) == (sampler, schedule)
        assert read_json(write_json(made)) == made
    automatic = "Schedule type: Automatic" in write_parameters(left_to_the_model)
    assert automatic == (SAMPLERS[sampler].schedule == schedule)
    assert "Automatic" not in write_parameters(chosen)


MODELS = [
    NoiseSchedule(timestep_spacing=spacing, curve=curve)
    for spacing in ("leading", "trailing", "linspace")
    for curve in (None, "karras", "exponential", "beta")
]


@pytest.mark.parametrize("model", MODELS, ids=lambda model: f"{model.timestep_spacing}-{model.curve}")
@pytest.mark.parametrize("sampler", SAMPLERS)
def test_the_models_own_schedule_is_written_so_that_the_same_levels_come_back(sampler, model):
    grid = CODE[sampler].grid
    drawn = drawn_schedule(model, grid, None)
    _, again = read(write_parameters(recipe(sampler, None, drawn)))
    assert again is not None
    for steps in (1, 4, 25):
        own = steps_for(model, steps, grid=grid)
        assert steps_for(model, steps, grid=grid, schedule=again) == own


def test_where_the_schedule_was_not_noted_none_is_named():
    assert "Schedule type" not in write_parameters(recipe("euler", None, None))
    assert read(write_parameters(recipe("euler", None, None))) == ("euler", None)


def test_a_drawn_schedule_is_checked():
    with pytest.raises(InputError, match="drawn_schedule 'karas': did you mean 'karras'"):
        replace(recipe("euler", None, None), drawn_schedule="karas")


@pytest.mark.parametrize(
    ("version", "number"),
    [("v1.6.0", (1, 6)), ("1.10.1", (1, 10)), ("f2.0.1v1.10.1-previous-5-g1a", (1, 10)),
     ("v1.9.4-RC", (1, 9)),
     ("ssd1b 1.2.3", None), ("ComfyUI", None), ("", None), ("v" * 9999, None), ("v1", None), ("v1.5x", None)],
)  # fmt: skip
def test_versions(version, number):
    assert version_of({"Version": version}) == number


PLAIN = {"Steps": "20", "Sampler": "Euler", "CFG scale": "7", "Seed": "1", "Size": "64x64", "RNG": "CPU"}


def test_of_a_plain_text_all_is_reproduced():
    assert unreproduced({**PLAIN, "Schedule type": "Automatic", "Version": "v1.10.0", "Clip skip": "1"}) == []
    assert unreproduced(read_parameters(write_parameters(recipe("euler", None, "normal"))).values) == []
    assert set(PLAIN) - {"RNG"} <= HARMLESS


@pytest.mark.parametrize(
    "field",
    ["Hires steps", "Hires upscaler", "Hires checkpoint", "Denoising strength", "ENSD", "Eta",
     "Clip skip", "Lora hashes", "TI hashes", "Model hash", "VAE", "VAE hash",
     "Refiner", "Refiner switch at", "FreeU Stages",
     "ControlNet 0", "Schedule max sigma", "Schedule min sigma", "Schedule rho", "Discard penultimate sigma",
     "Sigma churn", "Face restoration", "Token merging ratio", "ADetailer model", "Distilled CFG Scale",
     "Tiling", "Image CFG scale", "Mask blur", "Emphasis", "FP8 weight", "NGMS",
     "an extension that nobody knows"],
)  # fmt: skip
def test_what_is_not_reproduced_is_named(field):
    assert unreproduced({**PLAIN, field: "2"}) == [field]


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"RNG": None}, "noise from a GPU"),
        ({"RNG": None, "Version": "v1.10.1"}, "noise from a GPU"),
        ({"RNG": "NV"}, "noise from 'NV'"),
        ({"RNG": "GPU"}, "noise from 'GPU'"),
        ({"RNG": "\x1b[2J"}, r"noise from '\x1b[2J' (here"),  # escaped once
        ({"Seed": "-1"}, "the seed, which is -1"),
        ({"Seed": None}, "the seed, which is not in the text"),
        (
            {"Seed": str(2**32)},
            "the seed 4294967296, unless its noise is the CPU's (there, 0 gives the same)",
        ),
        ({"Seed": str(2**64 - 1)}, "the seed 18446744073709551615"),
    ],
)
def test_noise_that_is_another_is_named(values, words):
    given = {name: value for name, value in {**PLAIN, **values}.items() if value is not None}
    (phrase,) = unreproduced(given)
    assert phrase.startswith(words)


def test_the_noise_of_other_programs_is_not_guessed():
    given = {name: value for name, value in PLAIN.items() if name != "RNG"}
    assert unreproduced(given, "InvokeAI") == unreproduced({**given, "Version": "ComfyUI"}) == []


def test_thousands_of_fields_are_counted():
    phrases = unreproduced({**PLAIN, **{f"field {index}": "\x1b" for index in range(5000)}, "a" * 999: "x"})
    assert len(phrases) == 25
    assert phrases[-1] == "4977 more fields"
