"""Reproducing an image, called as a notebook calls it."""

from contextlib import nullcontext

import pytest

from ssd1b import InputError, describe_image, reproduce


def test_an_image_is_reproduced_with_the_model_that_its_recipe_names(picture_of):
    path = str(picture_of("png"))
    seen = []
    result = reproduce(
        path, trust_recipe=True, inspect=seen.append,
        start=lambda pipeline, settings: nullcontext(lambda step: seen.append(settings)),
    )  # fmt: skip
    assert (result.largest_difference, result.changes) == (0, [])
    assert seen == [result.source, *[result.source.settings] * result.source.settings.steps]


def test_the_caller_may_look_before_a_model_is_loaded(picture_of):
    def refuse(source):
        raise InputError("not this one")

    with pytest.raises(InputError, match="not this one"):
        reproduce(str(picture_of("png")), trust_recipe=True, inspect=refuse)
    with pytest.raises(InputError, match="allow this one with --trust-recipe"):
        reproduce(str(picture_of("png")))
    assert not describe_image(str(picture_of("png")))["model_is_known"]
