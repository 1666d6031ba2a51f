"""SSD-1B and the models of SDXL's family: text to image, with the settings that make pictures good.

The names below are loaded when they are first used, so that ``import ssd1b`` costs nothing.
"""

from importlib import import_module

TYPE_CHECKING = False  # as in typing, whose import would take longer than all else here

if TYPE_CHECKING:
    from ssd1b.advice import advise
    from ssd1b.errors import InputError
    from ssd1b.images import Picture, read_recipe, save_picture
    from ssd1b.pipeline import Pipeline
    from ssd1b.presets import load_preset
    from ssd1b.recipe import Parameters, Recipe
    from ssd1b.settings import GenerationSettings, Preset

    __version__: str

__all__ = [
    "GenerationSettings", "InputError", "Parameters", "Picture", "Pipeline", "Preset", "Recipe",
    "__version__", "advise", "load_preset", "read_recipe", "save_picture",
]  # fmt: skip

_HOME = {
    "GenerationSettings": "settings",
    "InputError": "errors",
    "Parameters": "recipe",
    "Picture": "images",
    "Pipeline": "pipeline",
    "Preset": "settings",
    "Recipe": "recipe",
    "advise": "advice",
    "load_preset": "presets",
    "read_recipe": "images",
    "save_picture": "images",
}
"""The module that each name comes from."""


def __getattr__(name: str) -> object:
    """Load a public name when it is first used (PEP 562)."""
    if name == "__version__":
        from importlib.metadata import version

        value: object = version("ssd1b")
    elif name in _HOME:
        value = getattr(import_module(f"ssd1b.{_HOME[name]}"), name)
    else:
        raise AttributeError(f"module 'ssd1b' has no attribute {name!r}")
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    """The public names, loaded or not."""
    return sorted({*globals(), *__all__})
