"""SSD-1B and the models of SDXL's family: text to image, with the settings that make images good.

The names below are loaded on first use, so ``import ssd1b`` costs nothing.
"""

from importlib import import_module

TYPE_CHECKING = False  # like typing's, whose import would take longer than the rest of this file

if TYPE_CHECKING:
    from ssd1b.actions.bench import benchmark
    from ssd1b.actions.bulk import Bulk, generate_bulk
    from ssd1b.actions.distill import distill_model, make_stages, plan_distillation
    from ssd1b.actions.evaluate import evaluate_folder, evaluate_tabletop
    from ssd1b.actions.inspect import describe_image, describe_model
    from ssd1b.actions.lab import guide, sweep, tune
    from ssd1b.actions.loading import Loading
    from ssd1b.actions.report import write_report
    from ssd1b.actions.rerun import reproduce
    from ssd1b.actions.steps import distill_steps, make_step_stages, plan_steps
    from ssd1b.actions.upscale import upscale
    from ssd1b.advice import advise
    from ssd1b.errors import (
        ConflictError,
        FailedError,
        InputError,
        NotFoundError,
        OutOfSpaceError,
        UnavailableError,
    )
    from ssd1b.execution import Execution
    from ssd1b.images import Picture, read_recipe, save_picture
    from ssd1b.inputs import InputFile
    from ssd1b.lab.axes import parse_axis
    from ssd1b.lab.goal import read_goal
    from ssd1b.lab.sweep import Sweep
    from ssd1b.pipeline import Pipeline
    from ssd1b.presets import load_preset
    from ssd1b.recipe import Parameters, Recipe
    from ssd1b.settings import GenerationSettings, Preset

    __version__: str

__all__ = [
    "Bulk", "ConflictError", "Execution", "FailedError", "GenerationSettings", "InputError", "InputFile",
    "Loading", "NotFoundError", "OutOfSpaceError", "Parameters", "Picture", "Pipeline", "Preset", "Recipe",
    "Sweep", "UnavailableError", "__version__", "advise", "benchmark", "describe_image", "describe_model",
    "distill_model", "distill_steps", "evaluate_folder", "evaluate_tabletop", "generate_bulk", "guide",
    "load_preset", "make_stages", "make_step_stages", "parse_axis", "plan_distillation", "plan_steps",
    "read_goal", "read_recipe", "reproduce", "save_picture", "sweep",
    "tune", "upscale", "write_report",
]  # fmt: skip

_NAMES = {
    "actions.bench": "benchmark",
    "actions.bulk": "Bulk generate_bulk",
    "actions.distill": "distill_model make_stages plan_distillation",
    "actions.evaluate": "evaluate_folder evaluate_tabletop",
    "actions.inspect": "describe_image describe_model",
    "actions.lab": "guide sweep tune",
    "actions.loading": "Loading",
    "actions.report": "write_report",
    "actions.rerun": "reproduce",
    "actions.steps": "distill_steps make_step_stages plan_steps",
    "actions.upscale": "upscale",
    "advice": "advise",
    "errors": "ConflictError FailedError InputError NotFoundError OutOfSpaceError UnavailableError",
    "execution": "Execution",
    "images": "Picture read_recipe save_picture",
    "lab.axes": "parse_axis",
    "lab.goal": "read_goal",
    "lab.sweep": "Sweep",
    "pipeline": "Pipeline",
    "presets": "load_preset",
    "recipe": "Parameters Recipe",
    "inputs": "InputFile",
    "settings": "GenerationSettings Preset",
}
_MODULE = {name: module for module, names in _NAMES.items() for name in names.split()}


def __getattr__(name: str) -> object:
    """Load a public name on first use (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("ssd1b")
    elif name in _MODULE:
        value = getattr(import_module(f"ssd1b.{_MODULE[name]}"), name)
    else:
        raise AttributeError(f"module 'ssd1b' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """Return the public names, loaded or not."""
    return sorted({*globals(), *__all__})
