import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd1b.errors import InputError
from ssd1b.sampler_names import (
    NEAREST_SAMPLER,
    NEAREST_SCHEDULE,
    SAMPLERS,
    SCHEDULES,
    resolve,
    resolve_class,
    resolve_schedule,
)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("DPM++ 2M Karras", ("dpmpp_2m", "karras")),
        ("DPM++ 2M", ("dpmpp_2m", None)),
        ("DPM++ 2M SDE Karras", ("dpmpp_2m_sde", "karras")),
        ("DPM++ 2M SDE Exponential", ("dpmpp_2m_sde", "exponential")),
        ("DPM++ SDE", ("dpmpp_sde", None)),
        ("Euler a", ("euler_ancestral", None)),
        ("Euler", ("euler", None)),
        ("UniPC", ("unipc", None)),
        ("DDIM", ("ddim", None)),
        ("dpmpp_2m", ("dpmpp_2m", None)),
        ("dpmpp_2m_sde_gpu", ("dpmpp_2m_sde", None)),
        ("euler_ancestral", ("euler_ancestral", None)),
        ("uni_pc", ("unipc", None)),
        ("uni_pc_bh2", ("unipc", None)),
        ("DPMSolverMultistepScheduler", ("dpmpp_2m", None)),
        ("EulerAncestralDiscreteScheduler", ("euler_ancestral", None)),
        ("euler karras", ("euler", "karras")),
        ("Euler Automatic", ("euler", None)),
        ("Euler a SGM Uniform", ("euler_ancestral", "sgm_uniform")),
        ("euler beta", ("euler", "beta")),
    ],
)
def test_names_from_every_program(name, expected):
    assert resolve(name) == expected


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("Karras", "karras"),
        ("SGM Uniform", "sgm_uniform"),
        ("sgm_uniform", "sgm_uniform"),
        ("trailing", "trailing"),
        ("Automatic", None),
        ("Uniform", "normal"),
        ("ddim_uniform", "leading"),
        ("use_karras_sigmas", "karras"),
    ],
)
def test_schedules_from_every_program(name, expected):
    assert resolve_schedule(name) == expected


SPELLINGS = [
    (canonical, alias)
    for canonical, names in SAMPLERS.items()
    for alias in (canonical, names.a1111, names.diffusers, *names.also)
    if (canonical, alias) != ("dpmpp_2m_sde", "DPMSolverMultistepScheduler")  # one class, two samplers
]
SCHEDULE_SPELLINGS = [
    (canonical, alias) for canonical, also in SCHEDULES.items() for alias in (canonical, *also)
]


@settings(deadline=None)
@given(
    sampler=st.sampled_from(SPELLINGS),
    schedule=st.sampled_from([(None, ""), *SCHEDULE_SPELLINGS]),
    case=st.sampled_from([str, str.upper, str.lower]),
    gap=st.sampled_from([" ", "_", "-", "  "]),
)
def test_every_spelling_of_every_pair_is_found(sampler, schedule, case, gap):
    name = case(sampler[1] + gap + schedule[1]).replace(" ", gap)
    assert resolve(name) == (sampler[0], schedule[0])


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_name_that_is_written_into_pictures_is_read_back(name):
    assert resolve(SAMPLERS[name].a1111) == (name, None)


@pytest.mark.parametrize("name", SCHEDULES)
def test_the_schedule_that_is_written_into_pictures_is_read_back(name):
    assert resolve_schedule(SCHEDULES[name][0]) == name


@pytest.mark.parametrize("name", NEAREST_SAMPLER)
def test_a_sampler_that_others_have_is_named_with_the_nearest_of_ours(name):
    assert NEAREST_SAMPLER[name] in SAMPLERS
    for asked in (name, f"{name} Karras", name.upper()):
        with pytest.raises(InputError, match=f"nearest that is: '{NEAREST_SAMPLER[name]}'") as error:
            resolve(asked)
        assert repr(asked) in str(error.value)


@pytest.mark.parametrize("name", NEAREST_SCHEDULE)
def test_a_schedule_that_others_have_is_named_with_the_nearest_of_ours(name):
    assert NEAREST_SCHEDULE[name] in SCHEDULES
    for function, asked in ((resolve_schedule, name), (resolve, f"Euler {name}")):
        with pytest.raises(InputError, match=f"nearest that is: '{NEAREST_SCHEDULE[name]}'"):
            function(asked)


@pytest.mark.parametrize(
    ("asked", "meant"), [("eulr", "euler"), ("dpmpp2mm", "dpmpp_2m"), ("Huen", "heun"), ("uniipc", "unipc")]
)
def test_a_slip_gets_the_name_that_was_meant(asked, meant):
    with pytest.raises(InputError, match=f"did you mean '{meant}'"):
        resolve(asked)


@pytest.mark.parametrize("name", ["", " ", "Karras", "++", "Euler a b", "DPM++", "\x00", "é"])
def test_nonsense_is_refused(name):
    with pytest.raises(InputError, match="unknown sampler"):
        resolve(name)


def test_a_scheduler_class_gives_its_sampler_or_the_nearest():
    assert resolve_class("UniPCMultistepScheduler") == "unipc"
    assert resolve_class("PNDMScheduler") == NEAREST_SAMPLER["PNDMScheduler"]
    with pytest.raises(InputError, match="FlowMatchEulerDiscreteScheduler"):
        resolve_class("FlowMatchEulerDiscreteScheduler")
