"""A ControlNet in training, whose outputs are no longer zero."""

import torch

from ssd1b.finetune.networks import Networks, prepare
from ssd1b.finetune.settings import FinetuneSettings
from ssd1b.layouts import ControlNetLayout, UNetLayout, encoder_of
from ssd1b.models.controlnet import ControlNet
from ssd1b.models.unet import UNet


def control_in_training(layout: UNetLayout, settings: FinetuneSettings) -> Networks:
    """Make a UNet and a ControlNet with its encoder, as they are after some steps."""
    torch.manual_seed(0)
    unet, control = UNet(layout), ControlNet(ControlNetLayout(encoder=encoder_of(layout)))
    control.copy_encoder(unet)
    for layer in (*control.controlnet_down_blocks, control.controlnet_mid_block):
        torch.nn.init.normal_(layer.weight, std=0.1)  # type: ignore[arg-type]
    networks = Networks(unet, None, {}, control)
    prepare(networks, settings)
    return networks
