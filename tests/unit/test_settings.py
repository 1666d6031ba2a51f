import math
from dataclasses import FrozenInstanceError, asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ssd1b.errors import InputError
from ssd1b.layouts import UNETS
from ssd1b.sampler_names import SAMPLERS, SCHEDULES
from ssd1b.settings import (
    GUIDANCE_DEFAULTS,
    HIRES_SETTINGS,
    GenerationSettings,
    Preset,
    check_overrides,
    equal_seed,
    random_seed,
    resolve_settings,
)
from ssd1b.validation import MAX_TEXT


def settings(prompt: str = "a red cube", family: str = "ssd-1b", **given) -> GenerationSettings:
    return resolve_settings(prompt, family=family, model_defaults={}, preset=None, **({"seed": 7} | given))


def test_defaults_of_ssd_1b_are_those_of_its_model_card():
    assert asdict(settings()) == {
        "prompt": "a red cube",
        "negative_prompt": None,
        "guidance_scale": 9.0,
        "guidance_rescale": 0.0,
        "guidance_interval": (0.0, 1.0),
        "feature_reuse": 0.0,
        "loras": (),
        "controls": (),
        "image_prompts": (),
        "embeddings": (),
        "prompt_editing": "off",
        "steps": 25,
        "sampler": "euler",
        "schedule": None,
        "timesteps": None,
        "gamma": 0.3,
        "seed": 7,
        "variation_strength": 0.0,
        "variation_seed": 0,
        "seed_resize_width": None,
        "seed_resize_height": None,
        "width": 1024,
        "height": 1024,
        "original_size": (1024, 1024),
        "crop_top_left": (0, 0),
        "init_image": None,
        "mask": None,
        "strength": None,
        "strength_steps": "diffusers",
        "resize_mode": "crop",
        "mask_change": "white",
        "mask_blur": None,
        "mask_content": "original",
        "mask_area": "whole",
        "mask_padding": 32,
        "outpaint": None,
        "outpaint_fill": "edge",
        **dict.fromkeys(HIRES_SETTINGS),
        "target_size": (1024, 1024),
    }


def test_every_published_family_has_a_default_guidance():
    assert GUIDANCE_DEFAULTS.keys() == UNETS.keys()
    assert settings(family="sdxl").guidance_scale == 5.0


def test_micro_conditioning_follows_the_size_unless_it_is_set():
    wide = settings(width=1216, height=832)
    assert (wide.original_size, wide.crop_top_left, wide.target_size) == ((832, 1216), (0, 0), (832, 1216))
    cropped = settings(width=1216, height=832, original_size=(4000, 3000), crop_top_left=[16, 0])
    assert (cropped.original_size, cropped.crop_top_left) == ((4000, 3000), (16, 0))
    assert cropped.target_size == (832, 1216)


def test_choice_wins_over_preset_over_model_over_family():
    layers = {
        "model_defaults": {"guidance_scale": 4.0, "steps": 30, "sampler": "DDIM"},
        "preset": Preset(name="p", source="", settings={"steps": 15, "sampler": "UniPC"}),
    }
    chosen = resolve_settings("x", family="ssd-1b", seed=1, sampler="Heun", **layers)
    assert (chosen.guidance_scale, chosen.steps, chosen.sampler) == (4.0, 15, "heun")
    assert resolve_settings("x", family="ssd-1b", seed=1, **layers).sampler == "unipc"


def test_no_negative_prompt_is_a_choice_and_is_not_the_empty_one():
    layers = {"model_defaults": {"negative_prompt": "ugly"}, "preset": None, "family": "sdxl", "seed": 1}
    assert resolve_settings("x", **layers).negative_prompt == "ugly"
    assert resolve_settings("x", **layers, negative_prompt=None).negative_prompt is None
    assert resolve_settings("x", **layers, negative_prompt="").negative_prompt == ""


@pytest.mark.parametrize(
    ("given", "sampler", "schedule"),
    [
        ({"sampler": "DPM++ 2M Karras"}, "dpmpp_2m", "karras"),
        ({"sampler": "DPM++ 2M", "schedule": "Karras"}, "dpmpp_2m", "karras"),
        ({"sampler": "DPM++ 2M Karras", "schedule": "Exponential"}, "dpmpp_2m", "exponential"),
        ({"sampler": "EulerAncestralDiscreteScheduler", "schedule": "Automatic"}, "euler_ancestral", None),
        ({"schedule": "SGM Uniform"}, "euler", "sgm_uniform"),
    ],
)
def test_sampler_and_schedule_may_have_anybodys_name(given, sampler, schedule):
    chosen = settings(**given)
    assert (chosen.sampler, chosen.schedule) == (sampler, schedule)


def test_schedule_in_a_sampler_name_wins_over_lower_layers():
    chosen = resolve_settings(
        "x",
        family="ssd-1b",
        seed=1,
        model_defaults={"schedule": "trailing"},
        preset=Preset(name="p", source="", settings={"sampler": "DPM++ 2M Karras"}),
    )
    assert chosen.schedule == "karras"


REFUSED = {
    "steps": [0, -1, 1001, 2.5, 20.0, "20", True, None, math.nan, 10**5000],
    "guidance_scale": [math.nan, math.inf, -math.inf, -0.1, 100.1, "7", True, None, [7], 10**400, 1j],
    "guidance_rescale": [-0.1, 1.1, math.nan],
    "feature_reuse": [-0.1, 1.1, math.nan, "0", None],
    "guidance_interval": [(0.5, 0.5), (0.6, 0.4), (-0.1, 1), (0, math.nan), 0.5, (0, 0.5, 1), "01", None],
    "seed": [-1, 2**32, 2**64, 1.0, "1", None, False],
    "width": [0, 56, 63, 65, 1001, 1024.0, 4104, -64, "1024", None],
    "height": [8, 1023, 10**9],
    "original_size": [(0, 1024), (1024, -1), (1024,), 1024, ("1024", 1024), (1.5, 2)],
    "crop_top_left": [(-1, 0), (0, 65_537)],
    "target_size": [(1024, None)],
    "sampler": ["euler z", "", 5, None, ["euler"]],
    "schedule": ["karass", "", 5],
    "negative_prompt": [5, "a\0b", "\ud800", "x" * (MAX_TEXT + 1)],
    "prompt": ["", "  \n", 5, None, b"bytes", "a\0b", "half \udfff", "x" * (MAX_TEXT + 1)],
}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "index"), [(name, index) for name in REFUSED for index in range(len(REFUSED[name]))]
)
def test_what_is_not_allowed_is_refused_in_one_line_that_names_it(name, index):
    with pytest.raises(InputError) as refused:
        replace(settings(), **{name: REFUSED[name][index]})
    message = str(refused.value)
    assert name in message
    assert "\n" not in message
    assert len(message) < 400
    message.encode()  # a terminal can print it


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"steps": 0}, "steps is 0: it must be a whole number from 1 to 1000"),
        ({"guidance_scale": math.nan}, "guidance_scale is nan: it must be a number from 0 to 100"),
        ({"width": 1001}, "width is 1001: it must be a multiple of 8 from 64 to 4096"),
        ({"width": 4096}, "size is 4096x1024: at most 4194304 pixels are allowed"),
        ({"seed": "x"}, "seed is 'x': it must be a whole number from 0 to 4294967295 (torch takes 32 bits"),
        ({"original_size": 5}, "original_size is 5: it must be two whole numbers from 1 to 65536"),
        ({"step": 20}, "unknown setting 'step': did you mean 'steps'?"),
        ({"guidance": 20}, "unknown setting 'guidance': did you mean 'guidance_scale'?"),
        ({"sampler": "eulr"}, "unknown sampler 'eulr': did you mean 'euler'?"),
    ],
)
def test_the_message_says_what_is_allowed(given, message):
    given = {"height": 1032, **given} if given == {"width": 4096} else given
    message = message.replace("4096x1024", "4096x1032")
    with pytest.raises(InputError) as refused:
        settings(**given)
    assert str(refused.value).startswith(message)


@pytest.mark.parametrize(
    "given",
    [{"model_defaults": {"stepz": 20}}, {"model_defaults": {"prompt": "x"}}, {"family": "ssd1b"}],
)
def test_unknown_names_in_any_layer_are_refused(given):
    with pytest.raises(InputError, match="unknown"):
        resolve_settings("x", **({"family": "ssd-1b", "model_defaults": {}, "preset": None} | given))


def test_a_preset_with_an_unknown_setting_cannot_be_made():
    with pytest.raises(InputError, match="unknown setting 'cfg'"):
        Preset(name="p", source="", settings={"cfg": 7})


def test_numbers_of_numpy_become_plain_ones():
    chosen = settings(steps=np.int64(20), guidance_scale=np.float32(7.5), width=np.int32(512))
    assert [type(value) for value in (chosen.steps, chosen.guidance_scale, chosen.width)] == [int, float, int]
    assert type(settings(guidance_scale=7).guidance_scale) is float


@pytest.mark.parametrize("name", sorted(REFUSED.keys() - {"prompt"}))
def test_a_few_settings_are_checked_by_themselves(name):
    for value in REFUSED[name]:
        if name == "seed" and value == -1 and value is not True:
            continue  # a random one
        with pytest.raises(InputError) as refused:
            check_overrides({name: value})
        assert name in str(refused.value)


def test_overrides_that_are_allowed_come_back_in_canonical_names():
    overrides = {"sampler": "DPM++ 2M Karras", "guidance_scale": 7, "negative_prompt": None, "width": 4096}
    assert check_overrides(overrides) == {
        "sampler": "dpmpp_2m", "schedule": "karras", "guidance_scale": 7.0, "negative_prompt": None,
        "width": 4096,
    }  # fmt: skip
    assert 0 <= check_overrides({"seed": -1})["seed"] < 2**32
    for wrong, message in (({"width": 4096, "height": 1032}, "size is 4096x1032"), ({"cfg": 7}, "unknown")):
        with pytest.raises(InputError, match=message):
            check_overrides(wrong)


def test_settings_cannot_change_and_stay_checked():
    with pytest.raises(FrozenInstanceError):
        settings().steps = 3  # type: ignore[misc]
    with pytest.raises(InputError, match="steps is 0"):
        replace(settings(), steps=0)


@given(
    st.text(min_size=1, max_size=50).filter(str.strip),
    st.none() | st.text(max_size=50),
    st.floats(0, 100),
    st.integers(1, 1000),
    st.sampled_from(sorted(SAMPLERS)),
    st.none() | st.sampled_from(sorted(SCHEDULES)),
    st.integers(0, 2**32 - 1),
    st.integers(8, 256).map(lambda n: 8 * n),
)
def test_whatever_is_allowed_is_kept(prompt, negative, guidance, steps, sampler, schedule, seed, side):
    try:
        chosen = settings(
            prompt,
            negative_prompt=negative,
            guidance_scale=guidance,
            steps=steps,
            sampler=sampler,
            schedule=schedule,
            seed=seed,
            width=side,
        )
    except InputError as refused:
        assert "invalid character" in str(refused)
        assert "\0" in f"{prompt}{negative}"
        return
    assert (chosen.prompt, chosen.negative_prompt) == (prompt, negative)
    assert (chosen.guidance_scale, chosen.steps, chosen.seed) == (guidance, steps, seed)
    assert (chosen.sampler, chosen.schedule) == (sampler, schedule)
    assert GenerationSettings(**asdict(chosen)) == chosen


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=20),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@pytest.mark.parametrize("settle", [lambda junk: replace(settings(), **junk), lambda junk: settings(**junk)])
@given(junk=st.dictionaries(st.sampled_from(sorted(REFUSED.keys() - {"prompt"})), JUNK, max_size=4))
def test_junk_is_settled_or_refused_and_nothing_else(settle, junk):
    try:
        chosen = settle(junk)
    except InputError as refused:
        assert "\n" not in str(refused)
    else:
        assert math.isfinite(chosen.guidance_scale)
        assert 1 <= chosen.steps <= 1000


def test_random_seeds_have_32_bits_and_differ():
    seeds = {random_seed() for _ in range(20)}
    assert len(seeds) > 1
    assert all(0 <= seed < 2**32 for seed in seeds)


def test_a_seed_of_minus_one_is_drawn_wherever_it_comes_from():
    layers = [
        {"model_defaults": {"seed": -1}, "preset": None},
        {"model_defaults": {}, "preset": Preset(name="p", source="", settings={"seed": -1})},
        {"model_defaults": {"seed": 5}, "preset": None, "seed": np.int64(-1)},
    ]
    for layer in layers:
        drawn = {resolve_settings("x", family="ssd-1b", **layer).seed for _ in range(4)}
        assert len(drawn) > 1
        assert all(0 <= seed < 2**32 for seed in drawn)


def test_only_the_whole_number_minus_one_is_random():
    for seed in (-1.0, "-1", True, -2, None):
        with pytest.raises(InputError, match="seed is"):
            settings(seed=seed)


def test_larger_seeds_are_those_within_32_bits():
    assert [equal_seed(seed) for seed in (7, 2**32 + 7, 2**64 - 1)] == [7, 7, 2**32 - 1]
    assert [equal_seed(seed) for seed in (-5, 2**64, 1e20, "x", None, True)] == [
        -5,
        2**64,
        1e20,
        "x",
        None,
        True,
    ]


def test_a_masked_area_needs_a_mask() -> None:
    with pytest.raises(InputError, match="mask_area masked needs mask"):
        settings(mask_area="masked")
