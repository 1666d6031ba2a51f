"""Names of samplers and schedules in all spellings that users know (no torch).

The canonical names are ComfyUI's where it has one. Aliases come from AUTOMATIC1111
(``modules/sd_samplers_kdiffusion.py``, ``sd_schedulers.py``), ComfyUI (``comfy/samplers.py``) and diffusers
(class names; its table "Schedulers", https://huggingface.co/docs/diffusers/api/schedulers/overview).
Case, spaces, hyphens and underscores are ignored.
"""

import re
from dataclasses import dataclass
from functools import lru_cache

from ssd1b.errors import InputError, unknown


@dataclass(frozen=True, slots=True, kw_only=True)
class Names:
    """Names of one sampler in other programs.

    Attributes:
        a1111: AUTOMATIC1111's name, which is written to images.
        diffusers: name of the scheduler class.
        schedule: what "Automatic" means for it in AUTOMATIC1111: the option ``scheduler`` in
            ``sd_samplers_kdiffusion.py``, else "Uniform"; DDIM's, UniPC's and LCM's own; Forge's for DDPM.
        fixed_schedule: AUTOMATIC1111 uses ``schedule`` whichever is chosen.
        also: other aliases.
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
    "tcd": Names(a1111="TCD", diffusers="TCDScheduler", schedule="lcm"),
}
"""Every sampler by canonical name (``diffusion.samplers.SAMPLERS`` has the code)."""

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
"""Aliases of every schedule by canonical name; the first alias is AUTOMATIC1111's."""

AUTOMATIC = "automatic"
"""The default schedule: the one the sampler was made for, otherwise the model's."""

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
}
"""The most similar available sampler (family, order, stochastic or not) for each that is not available."""

NEAREST_SCHEDULE: dict[str, str] = {
    "Polyexponential": "exponential",
    "KL Optimal": "karras",
    "Align Your Steps": "karras",
    "AYS": "karras",
    "Turbo": "trailing",
    "linear_quadratic": "simple",
    "use_lu_lambdas": "exponential",
}
"""The most similar available schedule for each that is not available."""


def _key(name: str) -> str:
    """Normalize spelling: ``DPM++ 2M`` equals ``dpmpp_2m``, and ``Euler a`` equals ``EULER A``."""
    folded = name.lower().replace("++", "pp")
    return re.sub(r"[\s_\-]+", "", folded)


# The first entry wins: diffusers has one class for DPM++ 2M and its SDE variant (algorithm_type differs).
_SAMPLER_OF: dict[str, str] = {}
for _canonical, _names in SAMPLERS.items():
    for _alias in (_canonical, _names.a1111, _names.diffusers, *_names.also):
        _SAMPLER_OF.setdefault(_key(_alias), _canonical)
_SCHEDULE_OF = {_key(alias): name for name, also in SCHEDULES.items() for alias in (name, *also)}
_SCHEDULE_OF[_key(AUTOMATIC)] = AUTOMATIC
_NO_SAMPLER = {_key(name): nearest for name, nearest in NEAREST_SAMPLER.items()}
_NO_SCHEDULE = {_key(name): nearest for name, nearest in NEAREST_SCHEDULE.items()}


@lru_cache(maxsize=1024)
def resolve(name: str) -> tuple[str, str | None]:
    """Find the sampler, and the schedule if the name includes one: "DPM++ 2M Karras" -> (dpmpp_2m, karras).

    Returns:
        Canonical names of the sampler and of the schedule; None for no schedule or "automatic".

    Raises:
        InputError: the name is unknown, or the sampler is not available.
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
    """Find the sampler of a diffusers scheduler class, or the most similar if it is not available.

    Raises:
        InputError: the class is unknown, or for models of another kind (flow matching, EDM).
    """
    found = _SAMPLER_OF.get(_key(name)) or _NO_SAMPLER.get(_key(name))
    if found is None:
        raise unknown("scheduler class", name, {names.diffusers for names in SAMPLERS.values()})
    return found


def nearest_of_class(name: object) -> str | None:
    """Find the replacement for the sampler of a diffusers scheduler class; None if it needs none."""
    return _NO_SAMPLER.get(_key(name)) if isinstance(name, str) else None


@lru_cache(maxsize=1024)
def resolve_schedule(name: str) -> str | None:
    """Find the canonical schedule ("SGM Uniform" -> sgm_uniform); None for "automatic".

    Raises:
        InputError: the name is unknown, or the schedule is not available.
    """
    key = _key(name)
    if key in _NO_SCHEDULE:
        nearest = _NO_SCHEDULE[key]
        raise InputError(f"schedule {name!r} is not available here; the nearest that is: {nearest!r}")
    if key not in _SCHEDULE_OF:
        raise unknown("schedule", name, [*SCHEDULES, AUTOMATIC])
    found = _SCHEDULE_OF[key]
    return None if found == AUTOMATIC else found
