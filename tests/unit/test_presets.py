import json

import pytest

from ssd1b.errors import InputError
from ssd1b.few_steps import KINDS
from ssd1b.presets import NEGATIVE_PROMPTS, PRESETS, load_preset
from ssd1b.settings import resolve_settings


def settled(preset):
    return resolve_settings("x", family="ssd-1b", model_defaults={}, preset=preset, seed=1)


@pytest.mark.parametrize("name", PRESETS)
def test_each_preset_is_allowed_and_says_where_it_comes_from(name):
    preset = load_preset(name)
    assert preset.name == name
    assert preset.source
    settings = settled(preset)
    assert {key: getattr(settings, key) for key in preset.settings} == dict(preset.settings)


@pytest.mark.parametrize(
    ("name", "entries", "first", "last"),
    [
        ("basic", 23, "worst quality", "disgusting"),
        ("adult-content", 3, "NSFW", "censored"),
        ("realistic-people", 22, "extra fingers", "long neck"),
    ],
)
def test_the_articles_negative_prompts_are_complete(name, entries, first, last):
    words = NEGATIVE_PROMPTS[name].split(", ")
    assert (len(words), words[0], words[-1]) == (entries, first, last)
    assert len(set(words)) == entries
    assert settled(PRESETS[name]).negative_prompt == NEGATIVE_PROMPTS[name]


def test_the_articles_preset_for_detail_lies_within_its_advice():
    settings = settled(PRESETS["article-detail"])
    assert 12 <= settings.guidance_scale <= 17
    assert 15 <= settings.steps <= 25
    assert settings.sampler in {"unipc", "euler", "ddpm"}


TABLE = {
    "name": "crisp",
    "source": "a sweep",
    "settings": {"guidance_scale": 11, "sampler": "DPM++ 2M Karras"},
}
TOML = 'name = "crisp"\nsource = "a sweep"\n[settings]\nguidance_scale = 11\nsampler = "DPM++ 2M Karras"\n'


@pytest.mark.parametrize(
    ("suffix", "text"), [(".toml", TOML), (".json", json.dumps(TABLE)), (".JSON", json.dumps(TABLE))]
)
def test_a_preset_is_read_from_a_file(tmp_path, suffix, text):
    path = tmp_path / f"mine{suffix}"
    path.write_text(text)
    preset = load_preset(str(path))
    assert (preset.name, preset.source) == ("crisp", "a sweep")
    settings = settled(preset)
    assert (settings.guidance_scale, settings.sampler, settings.schedule) == (11.0, "dpmpp_2m", "karras")


def test_a_file_without_a_name_gives_its_own(tmp_path):
    path = tmp_path / "mine.toml"
    path.write_text("[settings]\nsteps = 15\n")
    assert load_preset(str(path)).name == "mine"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[settings]\nstep = 15\n", "preset {}: unknown setting 'step': did you mean 'steps'?"),
        ("[settings]\nsteps = 0\n", "preset {}: steps is 0: it must be"),
        ('[settings]\nprompt = "x"\n', "preset {}: unknown setting 'prompt'"),
        ("[setting]\nsteps = 15\n", "preset {}: it must have a table 'settings'"),
        ("settings = 5\n", "preset {}: it must have a table 'settings'"),
        ("steps = \n", "{} is not valid TOML"),
        ('nmae = "x"\n[settings]\n', "preset {}: unknown key 'nmae': did you mean 'name'?"),
        ("name = 5\n[settings]\n", "preset {}: name is 5: it must be text"),
        ("# " + "x" * 300_000, "{} is too large"),
        ("x = " + "[" * 30_000, "{} is not valid TOML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line_that_names_it(tmp_path, text, message):
    path = tmp_path / "mine.toml"
    path.write_text(text)
    with pytest.raises(InputError) as refused:
        load_preset(str(path))
    assert str(refused.value).startswith(message.format(path))
    assert "\n" not in str(refused.value)


def test_json_too_is_read_with_care(tmp_path):
    path = tmp_path / "mine.json"
    for text in (b"[" * 60_000, b'{"settings": {"steps": ' + b"9" * 5000 + b"}}", b"\xff", b"[]"):
        path.write_bytes(text)
        with pytest.raises(InputError, match=r"mine\.json( is not valid (JSON|UTF-8))?: "):
            load_preset(str(path))


def test_what_is_neither_preset_nor_file_is_refused(tmp_path):
    with pytest.raises(InputError, match="unknown preset 'artcle-detail': did you mean 'article-detail'"):
        load_preset("artcle-detail")
    with pytest.raises(InputError, match=r"cannot read .*none\.toml: No such file"):
        load_preset(str(tmp_path / "none.toml"))


def test_each_published_kind_of_few_step_file_has_a_preset():
    few = {name: each for name, each in PRESETS.items() if each.source in {kind.source for kind in KINDS}}
    assert len(few) == len(KINDS)
    assert settled(few["dmd2"]).timesteps == "999,749,499,249"
    assert (settled(few["sdxl-lightning"]).sampler, settled(few["sdxl-lightning"]).schedule) == (
        "euler",
        "trailing",
    )


def test_steps_beside_a_few_step_preset_win():
    settings = resolve_settings(
        "x", family="sdxl", model_defaults={}, preset=PRESETS["dmd2"], steps=8, seed=1
    )
    assert (settings.steps, settings.timesteps) == (8, None)
