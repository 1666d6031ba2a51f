"""Settings of a small landscape, for tests of sizes."""

from typing import Any

from ssd1b.settings import GenerationSettings, resolve_settings


def settings(**given: Any) -> GenerationSettings:
    """Make settings of 512x384 pixels with seed 7."""
    common = {"seed": 7, "width": 512, "height": 384}
    return resolve_settings("x", family="sdxl", model_defaults={}, preset=None, **(common | given))
