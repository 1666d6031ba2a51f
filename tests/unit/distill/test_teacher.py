"""What a teacher may be."""

from dataclasses import replace
from pathlib import Path

import pytest

from ssd1b.distill.teacher import find_teacher
from ssd1b.errors import InputError
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder
from tiny import DRAWABLE, random_weights


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"guidance_embed_dim": 8},
            r"embeds the guidance scale \(LCM\): use the model from which it was distilled",
        ),
        ({"in_channels": 9}, "the teacher is for inpainting: only models that generate from text"),
    ],
    ids=["LCM", "inpainting"],
)
def test_a_teacher_whose_inputs_are_others_is_refused(
    tmp_path: Path, changes: dict[str, int], message: str
) -> None:
    layout = replace(DRAWABLE, unet=replace(DRAWABLE.unet, **changes))  # type: ignore[arg-type]
    save_folder(tmp_path / "model", ModelInfo(layout=layout), random_weights(layout))
    with pytest.raises(InputError, match=message):
        find_teacher(str(tmp_path / "model"), offline=True)
