"""Whether the files that an image is generated from fit a model, before its weights are read."""

from pathlib import Path

from ssd1b.adapters.merging import match_file
from ssd1b.adapters.vectors import read_vectors
from ssd1b.layouts import ModelLayout, T2IAdapterLayout
from ssd1b.settings import GenerationSettings
from ssd1b.speed.controlling import check_t2i_adapter, fitting_control
from ssd1b.speed.image_prompting import check_image_prompt


def check_networks(settings: GenerationSettings, layout: ModelLayout) -> None:
    """Check that the adapters, controls, image prompts and embeddings of an image fit a model.

    Of adapters and networks only headers are read.

    Args:
        settings: of the image.
        layout: of the model.

    Raises:
        InputError: one does not fit, is damaged, gone or changed; or a T2I-Adapter does not fit the size.
    """
    for lora in settings.loras:
        match_file(lora, layout)
    for control in settings.controls:
        (part,) = fitting_control(Path(control.model.path), layout).parts.values()
        if isinstance(part.layout, T2IAdapterLayout):
            for run, _ in settings.passes:
                check_t2i_adapter(control, part.layout, run.layout)
    for prompt in settings.image_prompts:
        check_image_prompt(prompt, layout.unet)
    if settings.embeddings:
        read_vectors(settings.embeddings, layout)
