"""Published few-step files: recognised by their names, and used with the settings they were made for."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ssd1b.advice import advise, advised
from ssd1b.errors import InputError
from ssd1b.few_steps import GUIDANCE_EMBEDDED, KINDS, STUDENTS, recognise, recognise_file, recognise_model
from ssd1b.files import METADATA, read_metadata
from ssd1b.inputs import InputFile
from ssd1b.loras import Lora
from ssd1b.presets import NEGATIVE_PROMPTS
from ssd1b.sampler_names import SAMPLERS
from ssd1b.settings import GenerationSettings, Preset, over, resolve_settings

PUBLISHED = {
    "sdxl_lightning_4step_lora.safetensors": ("SDXL-Lightning", {"sampler": "euler", "steps": 4}),
    "sdxl_lightning_8step.safetensors": ("SDXL-Lightning", {"schedule": "trailing", "steps": 8}),
    "Hyper-SDXL-4steps-lora.safetensors": ("Hyper-SD", {"sampler": "ddim", "steps": 4}),
    "Hyper-SDXL-1step-lora.safetensors": ("Hyper-SD, one step", {"sampler": "tcd", "gamma": 1.0}),
    "Hyper-SDXL-1step-Unet.safetensors": ("Hyper-SD, one step, UNet", {"timesteps": "800"}),
    "Hyper-SDXL-12steps-CFG-lora.safetensors": (
        "Hyper-SD with guidance", {"steps": 12, "guidance_scale": 5.0},
    ),
    "dmd2_sdxl_4step_lora_fp16.safetensors": ("DMD2", {"timesteps": "999,749,499,249", "sampler": "lcm"}),
    "dmd2_sdxl_1step_unet_fp16.safetensors": ("DMD2, one step", {"timesteps": "399"}),
    "pcm_sdxl_smallcfg_2step_converted.safetensors": ("PCM", {"steps": 2, "sampler": "ddim"}),
    "pcm_sdxl_normalcfg_8step_converted.safetensors": ("PCM, normal guidance", {"guidance_scale": 4.0}),
    "pcm_sdxl_lcmlike_lora_converted.safetensors": ("PCM, like LCM", {"sampler": "lcm"}),
    "lcm-lora-sdxl/pytorch_lora_weights.safetensors": ("LCM", {"sampler": "lcm", "steps": 4}),
    "segmind/Segmind-VegaRT": ("LCM", {"sampler": "lcm"}),
    "jabir/TCD-SDXL-LoRA/pytorch_lora_weights.safetensors": ("TCD", {"sampler": "tcd", "gamma": 0.3}),
    "sd_xl_turbo_1.0_fp16.safetensors": ("SDXL-Turbo", {"steps": 1, "guidance_scale": 1.0}),
    "stabilityai/sdxl-turbo@0123abc": ("SDXL-Turbo", {"schedule": "trailing"}),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_names_are_recognised(name: str) -> None:
    kind, settings = PUBLISHED[name]
    found = recognise(name)
    assert found is not None and found.kind.name == kind
    assert settings.items() <= found.settings.items()


@pytest.mark.parametrize(
    "name",
    ["ssd-1b", "lightning-bolts.safetensors", "hyperrealism-xl.safetensors", "turbocharged-cars.safetensors",
     "sdxl_lightning/pixel-art.safetensors", "malcolm.safetensors", "tcdesign.safetensors",
     "model.safetensors", "mini-ssd-1b", "stabilityai/stable-diffusion-xl-base-1.0", ""],
)  # fmt: skip
def test_other_names_are_not(name: str) -> None:
    assert recognise(name) is None


METHODS = {
    "progressive": {"sampler": "ddim", "schedule": "trailing", "steps": 4, "guidance_scale": 1.0},
    "lcm": {"sampler": "lcm", "timesteps": "999,499", "steps": 2, "guidance_scale": 1.0},
}  # fmt: skip


def _own(kind: object, settings: object) -> dict[str, str]:
    return {METADATA: json.dumps({"few_steps": kind, "settings": settings})}


@pytest.mark.parametrize("method", METHODS)
def test_own_metadata_bring_the_settings_whatever_the_name(method: str) -> None:
    found = recognise("mine.safetensors", _own(STUDENTS[method].name, METHODS[method]))
    assert found is not None and found.settings == METHODS[method]
    assert recognise("sdxl_lightning_8step", _own(STUDENTS[method].name, METHODS[method])) == replace(
        found, file="sdxl_lightning_8step"
    ), "what this package wrote is more reliable than a name"


@pytest.mark.parametrize("key", ["modelspec.title", "ss_output_name"])
def test_the_name_that_a_trainer_wrote_counts_after_the_files(key: str) -> None:
    found = recognise("mine.safetensors", {key: "DMD2 SDXL 4step LoRA"})
    assert found is not None and (found.kind.name, found.file) == ("DMD2", "mine")
    other = recognise("Hyper-SDXL-8steps-lora.safetensors", {key: "dmd2"})
    assert other is not None and (other.kind.name, other.settings["steps"]) == ("Hyper-SD", 8)
    assert recognise("mine.safetensors", {key: "oil paintings"}) is None


@pytest.mark.parametrize(
    "metadata",
    [{METADATA: "no JSON"}, {METADATA: "[1]"}, {METADATA: "[" * 100_000}, {METADATA: "{}"},
     _own(["LCM"], {}), _own("of a later version", {})],
)  # fmt: skip
def test_metadata_that_say_nothing_are_ignored(metadata: dict[str, str]) -> None:
    assert recognise("mine.safetensors", metadata) is None
    found = recognise("lcm.safetensors", metadata)
    assert found is not None and found.kind.name == "LCM"


@pytest.mark.parametrize(
    "settings",
    [None, 3, {"steps": float("nan")}, {"steps": [4]}, {"sampler": "\ud800"},
     {"sampler": "a" * 10_000, "gamma": 10**400, "width": 64, "prompt": "x"}],
)  # fmt: skip
def test_what_cannot_be_a_setting_is_left_out_of_metadata(settings: object) -> None:
    found = recognise("mine.safetensors", _own("DMD2", settings))
    assert found is not None and found.own == {} and found.settings["sampler"] == "lcm"


def test_long_metadata_are_read_quickly() -> None:
    """Some patterns take quadratic time."""
    found = recognise("mine", {"modelspec.title": "hyper-sd " * 300_000, METADATA: "[" * 2**24})
    assert found is not None and found.kind.name == "Hyper-SD"


def test_a_lora_is_recognised_by_its_file_and_its_settings_are_checked(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"

    def settle(settings: dict[str, Any], **given: Any) -> GenerationSettings:
        about = _own("progressive student", settings)
        save_file({"x": torch.zeros(1)}, path, metadata=about)
        assert read_metadata(path) == about
        return _settings(loras=(Lora(file=InputFile(sha256="0" * 64, path=str(path))),), **given)

    found = settle({**METHODS["progressive"], "steps": 2})
    assert (found.sampler, found.schedule, found.steps, found.guidance_scale) == ("ddim", "trailing", 2, 1.0)
    assert advise(found, 1024, "ssd-1b") == []
    (line,) = advise(settle({"steps": 2}, steps=4, guidance_scale=1.0, sampler="ddim"), 1024, "ssd-1b")
    assert line == "steps 4: mine is made for exactly 2 (what the student was trained for)"
    with pytest.raises(InputError, match=r"lora 'mine': unknown sampler 'dimm'"):
        settle({"sampler": "dimm"})
    with pytest.raises(InputError, match=r"lora 'mine': steps is 5000"):
        settle({"steps": 5000})
    path.unlink()
    assert recognise_file(str(path)) is None, "reported where it is opened"


def test_ranges_of_each_kind_are_advice() -> None:
    for kind in (*KINDS, *STUDENTS.values(), GUIDANCE_EMBEDDED):
        found = recognise_model("x", embeds_guidance=False, few_steps=kind.name)
        assert found is not None
        ranges = {each.setting: (each.low, each.high) for each in advised("ssd-1b", found).ranges}
        assert ranges == {"guidance_scale": kind.guidance, "steps": found.steps}
    lightning = recognise("sdxl_lightning_4step")
    assert lightning is not None and lightning.steps == (4, 4)


@pytest.mark.parametrize("kind", [*KINDS, GUIDANCE_EMBEDDED], ids=lambda kind: kind.name)
def test_settings_of_a_kind_are_valid_and_need_no_advice_of_its_own(kind: Any) -> None:
    settings = _settings(model_defaults=dict(kind.settings))
    low, high = kind.guidance
    assert low <= settings.guidance_scale <= high
    assert kind.steps[0] <= settings.steps <= kind.steps[1]
    assert settings.sampler in kind.samplers and {*kind.samplers} <= SAMPLERS.keys()


def _settings(
    model_defaults: dict[str, Any] | None = None, preset: Preset | None = None, **given: Any
) -> GenerationSettings:
    return resolve_settings(
        "x", family="sdxl", model_defaults={"seed": 1, **(model_defaults or {})}, preset=preset, **given
    )


def _lora(name: str, unet: float = 1.0) -> Lora:
    return Lora(file=InputFile(sha256="0" * 64, path=f"/{name}.safetensors"), unet=unet)


def test_a_few_step_lora_brings_its_settings_and_explicit_ones_win() -> None:
    loras = (_lora("sdxl_lightning_4step_lora"),)
    found = _settings(loras=loras)
    assert (found.sampler, found.schedule, found.steps, found.guidance_scale) == ("euler", "trailing", 4, 1.0)
    assert _settings(loras=loras, steps=8, sampler="ddim").steps == 8
    crisp = Preset(name="crisp", source="", settings={"guidance_scale": 1.5})
    assert _settings(loras=loras, preset=crisp).guidance_scale == 1.5
    assert _settings(loras=(_lora("sdxl_lightning_4step_lora", unet=0.0),)).steps == 25


def test_a_few_step_lora_that_visits_timesteps() -> None:
    loras = (_lora("dmd2_sdxl_4step_lora_fp16"),)
    found = _settings(loras=loras)
    assert (found.timestep_list, found.steps, found.schedule) == ((999, 749, 499, 249), 4, None)
    other = _settings(loras=loras, steps=8)
    assert (other.timesteps, other.steps) == (None, 8), "the user's steps replace its timesteps"


@pytest.mark.parametrize(
    ("given", "line"),
    [
        (
            {"guidance_scale": 7.0},
            "guidance_scale 7: SDXL-Lightning was distilled with guidance; above 1.5 col",
        ),
        ({"steps": 20}, "steps 20: sdxl_lightning_4step_lora is made for exactly 4"),
        ({"sampler": "dpmpp_2m"}, "sampler DPM++ 2M: SDXL-Lightning is made for Euler, DDIM, TCD"),
        ({"schedule": "leading"}, "schedule leading: it starts below the top, and greys the image"),
        ({"negative_prompt": "blurry"}, "negative prompt: it is ignored"),
        ({"loras": (_lora("lcm"), _lora("sdxl_lightning_4step_lora"))}, "each makes a model a few-step one"),
    ],
)
def test_wrong_combinations_get_advice(given: dict[str, Any], line: str) -> None:
    loras = (_lora("sdxl_lightning_4step_lora"),)
    assert advise(_settings(loras=loras), 1024, "ssd-1b") == []
    lines = advise(_settings(**{"loras": loras, **given}), 1024, "ssd-1b")
    assert any(line in each for each in lines), lines


def test_a_model_that_embeds_guidance_is_recognised_by_its_weights() -> None:
    found = recognise_model("folder/anything", embeds_guidance=True)
    assert found is not None and found.settings["guidance_scale"] == 8.0 and "anything" in found.note
    settings = _settings(model_defaults=found.settings, negative_prompt=NEGATIVE_PROMPTS["basic"])
    (line,) = advise(settings, 1024, "ssd-1b", found)
    assert "negative prompt: it is ignored" in line


# Timesteps as a setting


@pytest.mark.parametrize("written", ["999,749,499,249", " 999 749  499, 249 "])
def test_timesteps_have_one_spelling_and_set_the_steps(written: str) -> None:
    found = _settings(timesteps=written)
    assert (found.timesteps, found.steps) == ("999,749,499,249", 4)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ({"timesteps": "1,2"}, "timesteps is '1,2': it must be up to 1000 falling numbers"),
        ({"timesteps": "999,999"}, "falling numbers"),
        ({"timesteps": "5,-1"}, "falling numbers"),
        ({"timesteps": ""}, "not a whole number"),
        ({"timesteps": "999;249"}, "not a whole number"),
        ({"timesteps": "999,249", "steps": 4}, "steps is 4, but there are 2 timesteps"),
        ({"timesteps": "999,249", "schedule": "karras"}, "timesteps replace the schedule 'karras'"),
        ({"gamma": 1.5}, "gamma is 1.5: it must be a number from 0 to 1"),
    ],
)
def test_wrong_timesteps_are_refused_in_one_line(given: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputError, match=problem) as caught:
        _settings(**given)
    assert "\n" not in str(caught.value)


def test_a_layer_that_sets_some_of_the_steps_replaces_all_of_them() -> None:
    few = {"timesteps": "999,499", "steps": 2, "schedule": None}
    assert over(few, {"schedule": "karras"})["timesteps"] is None
    assert over({"steps": 25, "schedule": "karras"}, {"timesteps": "999,499"}) == few
    assert over(few, {"sampler": "tcd"}) == {**few, "sampler": "tcd"}


def test_a_folder_named_after_a_kind_does_not_make_a_model_one(tmp_path: Path) -> None:
    assert recognise(str(tmp_path / "lcm" / "mine.safetensors")) is None
