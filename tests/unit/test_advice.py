import pytest

from ssd1b.advice import CONDITIONS, SIZES, advise, without_effect
from ssd1b.inputs import InputFile
from ssd1b.layouts import UNETS
from ssd1b.presets import PRESETS
from ssd1b.settings import ARTICLE, CARD, SETTINGS, check_needs, resolve_settings


def settings(family="ssd-1b", **given):
    return resolve_settings("x", family=family, model_defaults={}, preset=None, seed=1, **given)


@pytest.mark.parametrize("family", UNETS)
def test_defaults_need_no_advice(family):
    assert advise(settings(family), 1024, family) == []


PUBLISHED = [name for name, each in PRESETS.items() if each.source.startswith((ARTICLE, CARD))]
"""The others were measured, and may well contradict what is advised."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_presets_of_the_article_and_the_card_need_no_advice(name):
    assert len(PUBLISHED) >= 6
    assert advise(settings(**PRESETS[name].settings), 1024, "ssd-1b") == []


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"guidance_scale": 1}, "guidance_scale 1: near 1 artistic quality suffers"),
        ({"guidance_scale": 1.99}, "guidance_scale 1.99: near 1"),
        ({"guidance_scale": 19.5}, "guidance_scale 19.5: above 19 the image follows the prompt strictly"),
        ({"steps": 14}, "steps 14: high quality is reached between 15 and 25 steps"),
        ({"steps": 26}, "steps 26: beyond 25 steps shapes keep changing without new details"),
        ({"sampler": "DPM++ 2M"}, "sampler DPM++ 2M: highly recommended are UniPC, Euler, DDPM"),
        ({"width": 1000}, "size 1000x1024: the model was trained on 1024x1024, 1152x896,"),
    ],
)
def test_leaving_the_advice_gives_one_line_with_its_source(given, line):
    (advice,) = advise(settings(**given), 1024, "ssd-1b")
    assert advice.startswith(line)
    assert advice.endswith(("crafting compelling images')", "(model card of segmind/SSD-1B)"))
    assert "\n" not in advice


@pytest.mark.parametrize(
    "given",
    [{"guidance_scale": 2}, {"guidance_scale": 19}, {"steps": 15}, {"steps": 25}, {"sampler": "ddpm"}],
)
def test_the_edges_of_the_advice_belong_to_it(given):
    assert advise(settings(**given), 1024, "ssd-1b") == []


@pytest.mark.parametrize(("sampler", "name"), [("lcm", "LCM"), ("tcd", "TCD")])
@pytest.mark.parametrize("family", ["ssd-1b", "sdxl"])
def test_a_sampler_for_few_step_models_on_another_one(sampler, name, family):
    """The advice for many steps would be of no help."""
    (advice,) = advise(settings(sampler=sampler, steps=4, guidance_scale=1), 1024, family)
    assert advice.startswith(f"sampler {name}: it is made for few-step models and LoRAs, and this model")


def test_several_departures_give_a_line_each():
    far = settings(guidance_scale=25, steps=5, sampler="DDIM", width=512)
    assert [line.split()[0] for line in advise(far, 1024, "ssd-1b")] == [
        "guidance_scale",
        "steps",
        "sampler",
        "size",
    ]


def test_what_is_known_of_ssd_1b_is_not_said_of_others():
    assert advise(settings("sdxl", guidance_scale=1, steps=5, sampler="DDIM"), 1024, "sdxl") == []


@pytest.mark.parametrize("size", SIZES)
def test_the_nine_sizes_of_the_model_card_are_advised(size):
    width, height = size
    assert advise(settings(width=width, height=height), 1024, "ssd-1b") == []
    assert (height, width) in SIZES
    assert width % 64 == height % 64 == 0
    assert 0.93 < width * height / 1024**2 <= 1.0 or size in {(1024, 1024)}


def test_nine_sizes():
    assert len(set(SIZES)) == 9


def test_a_miniature_has_a_size_of_its_own():
    assert advise(settings(width=128, height=128), 128, "ssd-1b") == []
    (advice,) = advise(settings(), 128, "ssd-1b")
    assert advice.startswith("size 1024x1024: the model was trained on 128x128;")


@pytest.mark.parametrize(("width", "height", "smaller"), [(512, 768, True), (512, 1536, False)])
def test_a_second_pass_that_is_smaller_is_said(width, height, smaller):
    lines = advise(settings(hires_width=width, hires_height=height), 1024, "ssd-1b")
    line = f"hires size {width}x{height}: the second pass is smaller than the first, of 1024x1024, whose "
    assert lines == [f"{line}detail is lost"] * smaller


PICTURE = InputFile(path="picture.png", sha256="0" * 64)
SIZE = {"width": 128, "height": 128}
START: dict[str, object] = {"init_image": PICTURE, **SIZE}
MASKED = {**START, "mask": PICTURE}


@pytest.mark.parametrize(
    ("given", "enough"),
    [
        ({"variation_seed": 7}, {"variation_strength": 0.1}),
        ({"seed_resize_width": 128, "seed_resize_height": 128, **SIZE}, {"width": 256}),
        ({"guidance_rescale": 0.5, "guidance_scale": 1}, {"guidance_scale": 2}),
        ({"guidance_interval": [0.2, 0.8], "guidance_scale": 1},
         {"hires_scale": 2, "hires_guidance_scale": 5}),
        ({"hires_negative_prompt": "blur", "hires_scale": 2, "hires_guidance_scale": 1},
         {"hires_guidance_scale": 5}),
        ({"gamma": 0.5}, {"sampler": "tcd"}),
        ({"gamma": 0.5, "hires_scale": 2}, {"hires_sampler": "tcd"}),
        ({"resize_mode": "stretch"}, START),
        ({"resize_mode": "stretch", **MASKED, "mask_area": "masked"}, {"mask_area": "whole"}),
        ({"strength_steps": "a1111"}, START),
        ({"mask_change": "black"}, MASKED),
        ({"mask_content": "fill", **START}, {"outpaint": "left=64"}),
        ({"mask_padding": 8, **MASKED}, {"mask_area": "masked"}),
        ({"outpaint_fill": "reflect", **START}, {"outpaint": "left=64"}),
    ],
)  # fmt: skip
def test_a_setting_without_effect_is_said_until_what_it_needs_is_set(given, enough):
    (line,) = without_effect(settings(**given), given)
    name = next(iter(given))
    assert line.startswith(name)
    assert ": no effect without " in line
    assert not without_effect(settings(**given), {}), "what the user did not set"
    both = given | enough
    assert without_effect(settings(**both), both) == []


def test_a_model_that_embeds_the_guidance_scale_does_not_rescale_it():
    given = {"guidance_rescale": 0.5}
    assert without_effect(settings(**given), given) == []
    (line,) = without_effect(settings(**given), given, guidance_embedded=True)
    assert line.startswith("guidance_rescale: no effect without classifier-free guidance")


def test_defaults_and_random_seeds_that_are_spelled_out_are_quiet():
    given = {"variation_seed": -1, "gamma": 0.3, "guidance_interval": [0, 1], "mask_content": "original"}
    assert without_effect(settings(), given) == []


ALWAYS = {
    "negative_prompt", "prompt_editing", "guidance_scale", "feature_reuse", "loras", "controls",
    "image_prompts", "embeddings", "steps", "sampler", "schedule", "timesteps", "seed", "variation_strength",
    "width", "height", "init_image", "mask_area", "hires_scale", "hires_width", "hires_height",
    "original_size", "crop_top_left", "target_size",
}  # fmt: skip
"""Settings that have an effect alone, are refused otherwise, or have advice of their own."""


def test_every_setting_has_an_effect_or_says_why_not():
    conditional = {name for each in CONDITIONS for name in each.settings}
    refused = set()
    for name in SETTINGS:
        try:
            check_needs({name: "given"})
        except ValueError:
            refused.add(name)
    assert {*SETTINGS} == ALWAYS | conditional | refused
    assert not ALWAYS & (conditional | refused)


@pytest.mark.parametrize("name", PRESETS)
def test_every_setting_of_a_preset_has_an_effect(name):
    given = PRESETS[name].settings
    assert without_effect(settings(**given), given) == []
