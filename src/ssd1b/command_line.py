"""The command that generates an image with given settings."""

import shlex
from collections.abc import Mapping
from typing import Any

from ssd1b.editing import is_edited
from ssd1b.inputs import InputFile
from ssd1b.settings import OPTIONS, PICTURE_SETTINGS, Setting


def command_line(prompt: str, settings: Mapping[str, Any], **options: str | None) -> str:
    """Write a call of ``ssd1b generate``.

    Args:
        prompt: text of the image.
        settings: by name; None, settings without an option, without a picture those of pictures, and whether
            prompts are edited if that is plain, are omitted.
        options: values of other options, such as ``model``; None is omitted.
    """
    words = ["ssd1b", "generate"]
    if settings.get("init_image") is None:
        without = {*PICTURE_SETTINGS} - ({"resize_mode"} if settings.get("controls") else set())
        settings = {name: each for name, each in settings.items() if name not in without}
    names = ("negative_prompt", "hires_prompt", "hires_negative_prompt")
    texts = (prompt, *(settings.get(name) or "" for name in names))
    if settings.get("prompt_editing") == ("on" if any(map(is_edited, texts)) else "off"):
        settings = {name: each for name, each in settings.items() if name != "prompt_editing"}
    # Sizes come first, the options of two settings.
    for group in sorted(OPTIONS.values(), key=len, reverse=True):
        values = [settings.get(each.name) for each in group]
        if None not in values:
            words += _option(group[0], values)
    for name, value in options.items():
        words += [] if value is None else [f"--{name}", value]
    return shlex.join([*words, *(["--"] if prompt.startswith("-") else []), prompt])


def _option(setting: Setting, values: list[Any]) -> list[str]:
    flag = setting.flags[0]
    if setting.read:
        return [word for each in values[0] for word in (flag, _item(setting, each))]
    return [flag, *(["x".join(map(_word, values))] if values[1:] else _words(values[0]))]


def _item(setting: Setting, value: object) -> str:
    """Write an item of a list, which is a table if it was read from JSON."""
    assert setting.item is not None
    return str(setting.item(**value) if isinstance(value, Mapping) else value)


def _words(value: object) -> list[str]:
    return [_word(each) for each in (value if isinstance(value, tuple | list) else (value,))]


def _word(value: object) -> str:
    if isinstance(value, Mapping):  # an input as a table
        value = InputFile(**value)
    if isinstance(value, InputFile):
        return value.path
    return repr(value).removesuffix(".0") if isinstance(value, float) else str(value)
