"""Options whose value is a network, a picture, numbers and words: what may be wrong with any of them."""

from collections.abc import Callable

import pytest

from ssd1b.errors import InputError


def wrong_texts(option: str, form: str) -> list[tuple[str, str]]:
    """Texts that are wrong in the fixture ``here``, and what is said of them.

    Args:
        option: the option's name.
        form: how its value begins.
    """
    return [
        ("net.safetensors", f"{option} is 'net.safetensors': write {form}"),
        ("", f"write {form}"),
        ("net.safetensors:", f"write {form}"),
        (":::", f"write {form}"),
        ("net.safetensors:a.png:0.5:0.2:1:4", "too many numbers"),
        ("net.safetensors:a.png:11", "scale is 11.0: it must be a number from 0 to 10"),
        ("net.safetensors:a.png:1:0.5:0.5", "start 0.5 must be less than end 0.5"),
        ("net.safetensors:no.png:0.5", "no.png"),
        ("no.safetensors:a.png:0.5", "no.safetensors"),
        ("net.safetensors:net.safetensors", "not a readable PNG, JPEG or WebP"),
        (":".join(["net.safetensors"] * 1000), "net.safetensors"),
    ]


def check_wrong(read: Callable[[str], object], text: str, message: str) -> None:
    """Check that a text is refused in one line with these words."""
    with pytest.raises(InputError) as error:
        read(text)
    assert message in str(error.value) and "\n" not in str(error.value)
