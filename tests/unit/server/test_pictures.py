"""No client can make a server read a file: settings that name files are unknown to its APIs."""

import pytest

from ssd1b.errors import InputError
from ssd1b.server.routes.openai import Generation
from ssd1b.server.schemas import CLIENT_SETTINGS, JobBody
from ssd1b.settings import PICTURE_SETTINGS, SETTINGS

LOCAL = [name for name, each in SETTINGS.items() if each.local]


@pytest.mark.parametrize("body", [JobBody, Generation])
@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("value", ["/etc/hostname", {"sha256": "0" * 64, "path": "/etc/hostname"}])
def test_a_file_is_an_unknown_setting(body: type, name: str, value: object) -> None:
    with pytest.raises(InputError, match=f"unknown (setting|parameter) '{name}'"):
        body(prompt="x", **{name: value}).given()


def test_all_other_settings_are_known() -> None:
    assert LOCAL == ["loras", "embeddings", "init_image", "mask"]
    assert {*CLIENT_SETTINGS} == {*SETTINGS} - {*PICTURE_SETTINGS, *LOCAL}
