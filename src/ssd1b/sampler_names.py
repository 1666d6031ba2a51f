"""Samplers and schedules under all the names that users know, as data (no torch here).

The canonical names are ComfyUI's spelling where it has one. Aliases come from AUTOMATIC1111
(``modules/sd_samplers_kdiffusion.py``, ``sd_schedulers.py``), ComfyUI (``comfy/samplers.py``) and diffusers
(class names; its table "Schedulers", https://huggingface.co/docs/diffusers/api/schedulers/overview).
Spelling does not matter: case, spaces, hyphens and underscores are ignored.
"""

import re
from dataclasses import dataclass

from ssd1b.errors import InputError, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """What the others call one sampler; the first of each is the one we write.

    Attributes:
        schedule: what "Automatic" means for it in AUTOMATIC1111: the option ``scheduler`` in
            ``sd_samplers_kdiffusion.py``, else "Uniform"; DDIM's, UniPC's and LCM's own; Forge's for DDPM.
        fixed_schedule: AUTOMATIC1111 draws with no other, whatever is chosen.
    """

    a1111: str
    diffusers: str
    schedule: str = "normal"
    fixed_schedule: bool = False
    also: tuple[str, ...] = ()


SAMPLERS: dict[str, Names] = {
    "euler": Names(a1111="Euler", diffusers="EulerDiscreteScheduler"),
    "euler_ancestral": Names(a1111="Euler a", diffusers="EulerAncestralDiscreteScheduler"),
    "heun": Names(a1111="Heun", diffusers="HeunDiscreteScheduler"),
    "ddim": Names(a1111="DDIM", diffusers="DDIMScheduler", schedule="leading", fixed_schedule=True),
    "ddpm": Names(a1111="DDPM", diffusers="DDPMScheduler"),
    "dpmpp_2m": Names(a1111="DPM++ 2M", diffusers="DPMSolverMultistepScheduler", schedule="karras"),
    "dpmpp_2m_sde": Names(
        a1111="DPM++ 2M SDE",
        diffusers="DPMSolverMultistepScheduler",
        schedule="exponential",
        also=("dpmpp_2m_sde_gpu",),
    ),
    "dpmpp_sde": Names(
        a1111="DPM++ SDE", diffusers="DPMSolverSDEScheduler", schedule="karras", also=("dpmpp_sde_gpu",)
    ),
    "unipc": Names(
        a1111="UniPC",
        diffusers="UniPCMultistepScheduler",
        schedule="sgm_uniform",
        fixed_schedule=True,
        also=("uni_pc", "uni_pc_bh2"),
    ),
    "lcm": Names(a1111="LCM", diffusers="LCMScheduler", schedule="lcm"),
}
"""Canonical name of every sampler there is (``diffusion.samplers.SAMPLERS`` holds the code)."""

SCHEDULES: dict[str, tuple[str, ...]] = {
    "leading": ("DDIM", "ddim_uniform"),
    "trailing": ("Trailing",),
    "linspace": ("Linspace",),
    "normal": ("Normal", "Uniform"),
    "simple": ("Simple",),
    "sgm_uniform": ("SGM Uniform",),
    "karras": ("Karras", "use_karras_sigmas"),
    "exponential": ("Exponential", "use_exponential_sigmas"),
    "beta": ("Beta", "use_beta_sigmas"),
    "lcm": ("LCM",),
}
"""Canonical name of every schedule, with its other names; the first is what AUTOMATIC1111 would show."""

AUTOMATIC = "automatic"
"""The schedule of whoever asks for none: the model's own, or the one that its sampler was made for."""

NEAREST_SAMPLER: dict[str, str] = {
    "LMS": "dpmpp_2m",
    "LMSDiscreteScheduler": "dpmpp_2m",
    "PLMS": "dpmpp_2m",
    "PNDMScheduler": "dpmpp_2m",
    "iPNDM": "dpmpp_2m",
    "ipndm_v": "dpmpp_2m",
    "IPNDMScheduler": "dpmpp_2m",
    "DEIS": "unipc",
    "DEISMultistepScheduler": "unipc",
    "DPM2": "heun",
    "KDPM2DiscreteScheduler": "heun",
    "DPM2 a": "dpmpp_sde",
    "dpm_2_ancestral": "dpmpp_sde",
    "KDPM2AncestralDiscreteScheduler": "dpmpp_sde",
    "DPM fast": "dpmpp_2m",
    "DPM adaptive": "dpmpp_2m",
    "DPM++ 2S": "dpmpp_2m",
    "DPMSolverSinglestepScheduler": "dpmpp_2m",
    "DPM++ 2S a": "dpmpp_sde",
    "dpmpp_2s_ancestral": "dpmpp_sde",
    "DPM++ 3M SDE": "dpmpp_2m_sde",
    "dpmpp_3m_sde_gpu": "dpmpp_2m_sde",
    "DPM++ 2M SDE Heun": "dpmpp_2m_sde",
    "heunpp2": "heun",
    "Restart": "heun",
    "DDIM CFG++": "ddim",
    "euler_cfg_pp": "euler",
    "euler_ancestral_cfg_pp": "euler_ancestral",
    "dpmpp_2m_cfg_pp": "dpmpp_2m",
    "res_multistep": "dpmpp_2m",
    "res_multistep_ancestral": "dpmpp_2m_sde",
    "gradient_estimation": "euler",
    "er_sde": "dpmpp_2m_sde",
    "seeds_2": "dpmpp_sde",
    "seeds_3": "dpmpp_sde",
    "sa_solver": "dpmpp_2m_sde",
    "SASolverScheduler": "dpmpp_2m_sde",
    "TCD": "lcm",
    "TCDScheduler": "lcm",
}
"""Samplers that users know and we lack, with the nearest of ours: same family, same order, noise or none."""

NEAREST_SCHEDULE: dict[str, str] = {
    "Polyexponential": "exponential",
    "KL Optimal": "karras",
    "Align Your Steps": "karras",
    "AYS": "karras",
    "Turbo": "trailing",
    "linear_quadratic": "simple",
    "use_lu_lambdas": "exponential",
}
"""Schedules that users know and we lack, with the nearest of ours."""


def _key(name: str) -> str:
    """Fold the spellings of one name together: ``DPM++ 2M`` and ``dpmpp_2m``, ``Euler a`` and ``EULER A``."""
    folded = name.lower().replace("++", "pp")
    return re.sub(r"[\s_\-]+", "", folded)


# The first entry wins: diffusers has one class for DPM++ 2M with and without noise (algorithm_type tells).
_SAMPLER_OF: dict[str, str] = {}
for _canonical, _names in SAMPLERS.items():
    for _alias in (_canonical, _names.a1111, _names.diffusers, *_names.also):
        _SAMPLER_OF.setdefault(_key(_alias), _canonical)
_SCHEDULE_OF = {_key(alias): name for name, also in SCHEDULES.items() for alias in (name, *also)}
_SCHEDULE_OF[_key(AUTOMATIC)] = AUTOMATIC
_NO_SAMPLER = {_key(name): nearest for name, nearest in NEAREST_SAMPLER.items()}
_NO_SCHEDULE = {_key(name): nearest for name, nearest in NEAREST_SCHEDULE.items()}


def resolve(name: str) -> tuple[str, str | None]:
    """Find the sampler, and the schedule if the name carries one: "DPM++ 2M Karras" -> (dpmpp_2m, karras).

    Returns:
        The canonical sampler; the canonical schedule, None where the name has none or says "automatic".

    Raises:
        InputError: nobody knows the name, or it is a sampler that others have and we do not.
    """
    key, schedule = _key(name), None
    known = _SAMPLER_OF.keys() | _NO_SAMPLER.keys()
    if key not in known:
        endings = (end for end in (*_SCHEDULE_OF, *_NO_SCHEDULE) if key.endswith(end))
        if ending := next((end for end in endings if key.removesuffix(end) in known), None):
            key, schedule = key.removesuffix(ending), resolve_schedule(ending)
    if key in _NO_SAMPLER:
        raise InputError(f"sampler {name!r} is not available here; the nearest that is: {_NO_SAMPLER[key]!r}")
    if key not in _SAMPLER_OF:
        raise unknown("sampler", name, SAMPLERS)
    return _SAMPLER_OF[key], schedule


def resolve_class(name: str) -> str:
    """Find the sampler of a diffusers scheduler class, or the nearest where that sampler is missing here.

    Raises:
        InputError: no such class, or one for models of another kind (flow matching, EDM).
    """
    found = _SAMPLER_OF.get(_key(name)) or _NO_SAMPLER.get(_key(name))
    if found is None:
        raise unknown("scheduler class", name, {names.diffusers for names in SAMPLERS.values()})
    return found


def nearest_of_class(name: object) -> str | None:
    """The sampler that stands in for that of a diffusers scheduler class; None where it is not missing."""
    return _NO_SAMPLER.get(_key(name)) if isinstance(name, str) else None


def resolve_schedule(name: str) -> str | None:
    """Find the canonical schedule ("SGM Uniform" -> sgm_uniform); None for "automatic".

    Raises:
        InputError: nobody knows the name, or it is a schedule that others have and we do not.
    """
    key = _key(name)
    if key in _NO_SCHEDULE:
        nearest = _NO_SCHEDULE[key]
        raise InputError(f"schedule {name!r} is not available here; the nearest that is: {nearest!r}")
    if key not in _SCHEDULE_OF:
        raise unknown("schedule", name, [*SCHEDULES, AUTOMATIC])
    found = _SCHEDULE_OF[key]
    return None if found == AUTOMATIC else found
