import json
from dataclasses import asdict, replace
from functools import partial

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from ssd1b.errors import InputError
from ssd1b.recipe import (
    ModelIdentity,
    Parameters,
    Recipe,
    read_json,
    read_parameters,
    write_json,
    write_parameters,
)
from ssd1b.sampler_names import SAMPLERS, SCHEDULES
from ssd1b.settings import resolve_settings
from timing import at_most

MODEL = ModelIdentity(
    name="SSD-1B",
    source="segmind/SSD-1B",
    revision="60987f37e94cd59c36b1cba832b9f97b57395a10",
    layout="ssd-1b",
)


def recipe(prompt: str = "a red cube", model: ModelIdentity = MODEL, **given) -> Recipe:
    return Recipe(
        settings=resolve_settings(
            prompt, family="ssd-1b", model_defaults={}, preset=None, **({"seed": 7} | given)
        ),
        model=model,
        dtype="float16",
        device="cuda",
        batch_size=4,
        threads=2,
        torch_version="2.13.0",
        ssd1b_version="0.1.0",
    )


# Text that is likely to be mistaken for something else, next to any text.
TRICKY = st.sampled_from(
    ["Steps: 20, Sampler: Euler, CFG scale: 7", "Negative prompt: x", '"', "\\", ",", "\n", "\r\n", ": ",
     "日本", "🦊", "\u2028", "\ufeff", " ", "{", "}", "a"]
)  # fmt: skip
TEXT = (st.lists(TRICKY, max_size=8).map("".join) | st.text(max_size=60)).filter(
    lambda text: "\0" not in text
)
PROMPT = TEXT.filter(str.strip)
RECIPES = st.builds(
    partial,  # called in the tests: checking types draws random numbers, which strategies may not
    st.just(recipe),
    PROMPT,
    st.builds(
        replace,
        st.just(MODEL),
        name=TEXT,
        revision=st.none() | TEXT,
    ),
    negative_prompt=st.none() | TEXT,
    guidance_scale=st.floats(0, 100),
    guidance_interval=st.sampled_from([(0.0, 1.0), (0.1, 0.75)]),
    feature_reuse=st.sampled_from([0.0, 0.2]),
    steps=st.integers(1, 1000),
    sampler=st.sampled_from(sorted(SAMPLERS)),
    schedule=st.none() | st.sampled_from(sorted(SCHEDULES)),
    seed=st.integers(0, 2**32 - 1),
    width=st.sampled_from([64, 1024, 1216]),
    crop_top_left=st.tuples(st.integers(0, 99), st.integers(0, 99)),
)


@given(RECIPES)
def test_json_says_everything(make):
    made = make()
    text = write_json(made)
    assert read_json(text) == made
    assert text.isascii()
    assert "\n" not in text
    older = json.loads(text)
    del older["settings"]["feature_reuse"]
    assert read_json(json.dumps(older)).settings.feature_reuse == 0.0


def test_json_tells_no_negative_prompt_from_an_empty_one():
    assert read_json(write_json(recipe(negative_prompt=None))).settings.negative_prompt is None
    assert read_json(write_json(recipe(negative_prompt=""))).settings.negative_prompt == ""


def altered(change) -> str:
    table = json.loads(write_json(recipe()))
    change(table)
    return json.dumps(table)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "recipe is not valid JSON"),
        ("[" * 100_000, "recipe is not valid JSON"),
        ('{"format": ' + "9" * 5000 + "}", "recipe is not valid JSON"),
        ("[]", "recipe has no format"),
        ("{}", "recipe has no format"),
        (altered(lambda table: table.update(format=2)), "recipe has format 2: this version of ssd1b reads"),
        (altered(lambda table: table.update(treads=2)), "recipe: unknown key 'treads': did you mean 'thr"),
        (altered(lambda table: table.pop("dtype")), "recipe: dtype is missing"),
        (altered(lambda table: table.pop("model")), "recipe: model is missing"),
        (altered(lambda table: table.update(model=None)), "recipe: model is None: it must be a table"),
        (altered(lambda table: table.update(threads=0)), "recipe: threads is 0: it must be a whole number"),
        (altered(lambda table: table.update(device=["cpu"])), "recipe: device is ['cpu']: it must be text"),
        (altered(lambda table: table["model"].pop("layout")), "recipe: model: layout is missing"),
        (altered(lambda table: table["model"].update(name="\ud800")), "recipe: model: name is"),
        (altered(lambda table: table["model"].update(revision=5)), "recipe: model: revision is 5: it"),
        (altered(lambda table: table["settings"].update(steps="20")), "recipe: settings: steps is '2"),
        (altered(lambda table: table["settings"].update(guidance_scale=float("nan"))), "recipe: settings"),
        (altered(lambda table: table["settings"].update(cfg=7)), "recipe: settings: unknown key 'cfg'"),
        (altered(lambda table: table["settings"].pop("seed")), "recipe: settings: seed is missing"),
    ],
    ids=range(19),
)  # fmt: skip
def test_json_that_we_did_not_write_is_refused(text, message):
    with pytest.raises(InputError) as refused:
        read_json(text)
    assert str(refused.value).startswith(message)
    assert "\n" not in str(refused.value)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(), max_size=10),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)
PLACES = [(key, None) for key in asdict(recipe())] + [
    (part, key) for part in ("settings", "model") for key in asdict(recipe())[part]
]


@given(st.sampled_from(PLACES), JSON)
def test_junk_in_any_place_of_the_json_is_read_or_refused(place, junk):
    table = json.loads(write_json(recipe()))
    part, key = place
    if key is None:
        table[part] = junk
    else:
        table[part][key] = junk
    try:
        assert read_json(write_json(read_json(json.dumps(table)))) is not None
    except InputError:
        pass


def test_the_text_is_that_of_automatic1111():
    made = recipe(
        "a cat, (asleep:1.2)\non a sofa",
        negative_prompt="blurry,\nugly",
        steps=20,
        sampler="DPM++ 2M Karras",
        guidance_scale=7,
        seed=1,
        width=512,
        height=768,
    )
    assert write_parameters(made) == (
        "a cat, (asleep:1.2)\n"
        "on a sofa\n"
        "Negative prompt: blurry,\n"
        "ugly\n"
        "Steps: 20, Sampler: DPM++ 2M, Schedule type: Karras, CFG scale: 7, Seed: 1, Size: 512x768, "
        "Model: SSD-1B, RNG: CPU, Version: ssd1b 0.1.0"
    )


def test_the_text_quotes_what_would_divide_the_line():
    made = recipe(model=replace(MODEL, name='mine, "new"\nand: best'))
    last = write_parameters(made).split("\n")[-1]
    assert r'Model: "mine, \"new\"\nand: best", RNG: CPU' in last


@given(RECIPES)
def test_the_text_is_read_back(make):
    made = make()
    # The one thing that the format cannot hold: see the module's docstring.
    assume(not any(line.strip().startswith("Negative prompt:") for line in made.settings.prompt.split("\n")))
    read = read_parameters(write_parameters(made))
    assert read.prompt == made.settings.prompt
    assert read.negative_prompt == made.settings.negative_prompt
    assert read.values["Model"] == made.model.name
    again = resolve_settings(
        read.prompt,
        family="ssd-1b",
        model_defaults={},
        preset=None,
        **read.settings(),
        guidance_interval=made.settings.guidance_interval,
        feature_reuse=made.settings.feature_reuse,
        crop_top_left=made.settings.crop_top_left,
    )
    assert again == made.settings


A1111 = """masterpiece, (best quality:1.2), 1girl
Negative prompt: EasyNegative, (low quality:1.4),
 bad hands
Steps: 28, Sampler: DPM++ 2M Karras, CFG scale: 7.5, Seed: 965400086, Size: 512x768, Model hash: 45dee52b, \
Model: anything-v4.5, Denoising strength: 0.45, Clip skip: 2, ENSD: 31337, Hires upscale: 2, \
Lora hashes: "add_detail: 7c6bad76eb54, more: a, b", TI hashes: "EasyNegative: c74b4e810b03", Version: v1.6.0
"""
FORGE = """a fox
Steps: 20, Sampler: Euler, Schedule type: SGM Uniform, CFG scale: 1, Distilled CFG Scale: 3.5, Seed: 12, \
Size: 896x1152, Model hash: 31e35c80fc, Model: sd_xl_base_1.0, Version: f2.0.1v1.10.1"""
COMFY = (
    "a lighthouse\nNegative prompt: blurry\nSteps: 25, Sampler: dpmpp_2m_sde Karras, CFG scale: 8.0, "
    'Seed: 42, Size: 1024x1024, Model: x, Hashes: {"model": "abc", "vae": "d"}, Version: ComfyUI'
)


@pytest.mark.parametrize(
    ("text", "prompt", "settings"),
    [
        (
            A1111,
            "masterpiece, (best quality:1.2), 1girl",
            {"negative_prompt": "EasyNegative, (low quality:1.4),\n bad hands", "steps": 28,
             "sampler": "DPM++ 2M Karras", "guidance_scale": 7.5, "seed": 965400086, "width": 512,
             "height": 768, "hires_scale": 2.0, "hires_strength": 0.45, "hires_upscaler": "latent"},
        ),
        (
            FORGE,
            "a fox",
            {"negative_prompt": None, "steps": 20, "sampler": "Euler", "schedule": "SGM Uniform",
             "guidance_scale": 1.0, "seed": 12, "width": 896, "height": 1152},
        ),
        (
            COMFY,
            "a lighthouse",
            {"negative_prompt": "blurry", "steps": 25, "sampler": "dpmpp_2m_sde Karras",
             "guidance_scale": 8.0, "seed": 42, "width": 1024, "height": 1024},
        ),
    ],
    ids=["a1111", "forge", "comfyui"],
)  # fmt: skip
def test_the_text_of_other_programs_is_read(text, prompt, settings):
    read = read_parameters(text)
    assert read.prompt == prompt
    assert read.settings() == settings
    settled = resolve_settings(prompt, family="sdxl", model_defaults={}, preset=None, **settings)
    assert settled.schedule in {"karras", "sgm_uniform"}


def test_values_come_without_their_quotes():
    values = read_parameters(A1111).values
    assert values["Lora hashes"] == "add_detail: 7c6bad76eb54, more: a, b"
    assert values["Version"] == "v1.6.0"
    assert values["Model"] == "anything-v4.5"


def test_quotes_count_only_around_a_whole_value():
    values = read_parameters('x\nSteps: 1, Model: "big" cat, VAE: "\\ud800", Version: "a, b"').values
    assert values == {"Steps": "1", "Model": '"big" cat', "VAE": '"\\ud800"', "Version": "a, b"}


@pytest.mark.parametrize("text", ["just a prompt", "a prompt\nSteps: 20, but: a story", "a: b, cc: d", ""])
def test_text_without_settings_is_a_prompt(text):
    assert read_parameters(text) == Parameters(prompt=text, negative_prompt=None, values={})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"Steps": "many"}, "Steps is 'many': it must be a whole number"),
        ({"Seed": "1.5"}, "Seed is '1.5': it must be a whole number"),
        ({"Steps": "9" * 5000}, "Steps is '999"),
        ({"Size": "1024"}, "Size is '1024': it must be like 1024x768"),
        ({"Size": "9" * 5000 + "x1"}, "Size is '999"),
    ],
    ids=range(5),
)
def test_values_that_are_no_numbers_are_refused_when_they_are_used(values, message):
    with pytest.raises(InputError) as refused:
        Parameters(prompt="x", negative_prompt=None, values=values).settings()
    assert str(refused.value).startswith(message)
    assert len(str(refused.value)) < 200


@given(
    TEXT
    | st.lists(st.sampled_from(["Steps: 1", ", ", "\n", "Negative prompt:", '"', "\\", ": "])).map("".join)
)
def test_any_text_is_read(text):
    read = read_parameters(text)
    assert read.prompt in text
    for value in read.values.values():
        value.encode()


@pytest.mark.parametrize("piece", ["word ", 'aa:"', 'aa:"\\",', "aa:", ": ,", '\\"', "aa: 1, "])
def test_reading_takes_time_in_proportion_to_the_text(piece):
    # Tenths of a second; were it quadratic, minutes.
    with at_most(20):
        read_parameters(piece * (300_000 // len(piece)))


def test_a_larger_seed_is_read_as_the_one_with_the_same_noise():
    values = {"Seed": str(2**32 + 7)}
    assert Parameters(prompt="x", negative_prompt=None, values=values).settings()["seed"] == 7
    table = json.loads(write_json(recipe()))
    table["settings"]["seed"] = 2**64 - 1
    assert read_json(json.dumps(table)).settings.seed == 2**32 - 1


@pytest.mark.parametrize("seed", ["٧", "1_0", "+5", "nan", "1e3", "9" * 5000, "", "-"])
def test_numbers_in_the_text_are_plain_digits(seed):
    with pytest.raises(InputError, match=r"must be a (whole )?number") as refused:
        Parameters(prompt="x", negative_prompt=None, values={"Seed": seed}).settings()
    assert len(str(refused.value)) < 200
    with pytest.raises(InputError, match="Size is"):
        Parameters(prompt="x", negative_prompt=None, values={"Size": f"{seed}x64"}).settings()
