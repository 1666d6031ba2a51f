"""A ControlNet in training (2302.05543): where it starts, how it is tried on samples, and its files."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssd1b.adapters.control_loras import is_control_lora
from ssd1b.controls import Control, find_network
from ssd1b.decoding import identify_picture
from ssd1b.errors import FailedError, InputError, shown
from ssd1b.execution import DEFAULT
from ssd1b.finetune.settings import FinetuneSettings
from ssd1b.finetune.writing import training_metadata
from ssd1b.inputs import InputFile
from ssd1b.layouts import ControlNetLayout, ModelLayout, encoder_of
from ssd1b.model import Model
from ssd1b.models.controlnet import ControlNet
from ssd1b.models.unet import Encoder
from ssd1b.saving import renewing, temporary_path
from ssd1b.speed.backends import TorchBackend
from ssd1b.speed.controlling import Controlling, fitting_control
from ssd1b.weights.checkpoint import Checkpoint
from ssd1b.weights.controls import CONTROLNET, open_control
from ssd1b.weights.files import is_finite, write_tensors
from ssd1b.weights.loading import load_component
from ssd1b.weights.writing import CONTROLNET_FILE, save_controlnet

_UNSAVED = InputFile(sha256="0" * 64, path="controlnet")
"""Stands for the network in training, which no file has."""


def start_of(settings: FinetuneSettings, model: ModelLayout) -> Checkpoint | None:
    """Describe the ControlNet that a training starts from; None if it starts from the UNet's encoder.

    Raises:
        InputError: there is no such ControlNet, or it does not fit the model.
    """
    if settings.init_control is None:
        return None
    path, _ = find_network(settings.init_control)
    if is_control_lora(path):
        raise InputError(f"init_control is {shown(settings.init_control)}: a Control-LoRA cannot be trained")
    found = fitting_control(path, model)
    if CONTROLNET not in found.parts:
        raise InputError(f"init_control is {shown(settings.init_control)}: it is not a ControlNet")
    return found


def control_layout(model: ModelLayout, start: Checkpoint | None) -> ControlNetLayout:
    """Return the layout of a new ControlNet: that of the one to start from, or the encoder of the model.

    Raises:
        InputError: the model's latents are not an eighth of its images.
    """
    if start is not None:
        layout = start.parts[CONTROLNET].layout
        assert isinstance(layout, ControlNetLayout)
        return layout
    layout = ControlNetLayout(encoder=encoder_of(model.unet))
    if layout.factor != model.vae.factor:
        raise InputError(
            f"a new ControlNet has {layout.factor} pixels per latent cell, {model.name} {model.vae.factor}"
        )
    return layout


def new_controlnet(model: Model, start: Checkpoint | None, unet: Encoder, seed: int) -> ControlNet:
    """Make the ControlNet to train, in float32 on the UNet's device.

    A copy of the UNet's encoder adds nothing to the UNet before the first step.

    Args:
        model: that it is added to.
        start: see ``start_of``.
        unet: of the model.
        seed: of the convolutions that read the control image.
    """
    device = unet.conv_in.weight.device
    layout = control_layout(model.layout, start)
    if start is not None:
        with torch.device("meta"):
            network = ControlNet(layout)
        load_component(network, start, CONTROLNET, dtype=torch.float32, device=device, copied=True)
        return network
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = ControlNet(layout)
    network.copy_encoder(unet)
    return network.to(device)


def sample_controls(settings: FinetuneSettings) -> list[Control]:
    """Return the control of each sample.

    Raises:
        InputError: a picture cannot be read.
    """
    preprocess = "canny" if settings.follows_edges else "none"
    found = [
        Control(model=_UNSAVED, picture=identify_picture(path), preprocess=preprocess)
        for path in settings.sample_controls
    ]
    return found * len(settings.samples) if len(found) == 1 else found


def controlling(network: ControlNet, model: Model, device: torch.device, dtype: torch.dtype) -> Controlling:
    """Let ``sample_controls`` guide images with the network as it is now."""
    with torch.device("meta"):
        rounded = ControlNet(network.control_layout)
    state = {name: each.detach().to(device, dtype) for name, each in network.state_dict().items()}
    rounded.load_state_dict(state, assign=True)
    return Controlling(
        backend=TorchBackend(device=device, dtype=dtype, execution=DEFAULT),
        layout=model.layout,
        base={},
        networks={_UNSAVED.sha256: rounded.eval()},
    )


def prove_controlnet(folder: Path, network: ControlNet, model: Model) -> None:
    """Write the untrained network, describe it from the file, and remove it.

    Raises:
        FailedError: the file would not be the network.
    """
    path = temporary_path(folder).with_suffix(".partial")
    try:
        write_tensors(path, _tensors(network, model), {})
        if open_control(path, model.layout.unet).parts[CONTROLNET].layout != network.control_layout:
            raise FailedError("the ControlNet could not be read again")
    finally:
        path.unlink(missing_ok=True)


def write_controlnet(
    path: Path, network: ControlNet, model: Model, metadata: Mapping[str, str], *, overwrite: bool
) -> None:
    """Write a trained network in the number format of the model's UNet.

    Args:
        path: a safetensors file, or else a folder in diffusers' format.
        network: the network.
        model: that it was trained on.
        metadata: of the file with the weights.
        overwrite: also replace files of another origin.

    Raises:
        FailedError: it contains NaN or infinity; nothing is written.
        InputError: the file cannot be written.
    """
    tensors = _tensors(network, model)
    if broken := next((name for name, each in tensors.items() if not is_finite(each)), None):
        raise FailedError(f"{broken} is NaN or infinite: not saved; take a lower learning rate")
    with renewing(path, overwrite=overwrite) as aside:
        if path.suffix == Path(CONTROLNET_FILE).suffix:
            write_tensors(aside, tensors, metadata)
        else:
            save_controlnet(aside, network.control_layout, tensors, metadata)


def _tensors(network: ControlNet, model: Model) -> dict[str, Tensor]:
    dtype = model.checkpoint.part("unet").dtype
    return {name: each.detach().to("cpu", dtype) for name, each in network.state_dict().items()}


def control_metadata(
    settings: FinetuneSettings, model: str, family: str, pictures: int, steps: int
) -> dict[str, str]:
    """Return what ``ssd1b inspect`` and other programs show of a ControlNet; see ``training_metadata``."""
    return {
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": "stable-diffusion-xl-v1-base/controlnet",
        "modelspec.title": f"ControlNet for {Path(model).name}",
        "modelspec.description": f"follows {'Canny edges' if settings.follows_edges else 'control images'}",
        **training_metadata(settings, model, family, pictures, steps),
    }
