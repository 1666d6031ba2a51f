"""Networks that follow a picture: loaded for a run, and called in each of its steps."""

from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ssd1b.adapters.control_loras import is_control_lora, open_control_lora
from ssd1b.canvas import Layout
from ssd1b.controls import MAX_BYTES, Control
from ssd1b.decoding import read_source
from ssd1b.edges import canny
from ssd1b.errors import InputError
from ssd1b.files import named
from ssd1b.layouts import ControlNetLayout, ModelLayout, T2IAdapterLayout
from ssd1b.models.controlnet import ControlNet
from ssd1b.models.unet import Additions, PromptKV
from ssd1b.speed.backends import TorchBackend
from ssd1b.tensors import Latents, PooledEmbeds, TimeIds
from ssd1b.weights.checkpoint import Checkpoint
from ssd1b.weights.controls import MisfitError, open_control
from ssd1b.weights.stored import StoredTensor


@dataclass(slots=True, kw_only=True)
class Controlling:
    """The control networks of a loaded model.

    Attributes:
        backend: prepares the networks.
        layout: of the model.
        base: the tensors of the model's UNet, which Control-LoRAs change.
        networks: those that are loaded, by the digests of their files.
    """

    backend: TorchBackend
    layout: ModelLayout
    base: Mapping[str, StoredTensor]
    networks: dict[str, Any] = field(default_factory=dict)

    def guide(self, controls: Sequence[Control], fitting: Layout, timesteps: Sequence[float]) -> "Guide":
        """Load the networks of a run, free those of earlier runs, and read the pictures.

        Raises:
            InputError: a file is gone, has changed, or is no network for this model, or a picture cannot be
                read.
        """
        wanted = {each.model.sha256: each for each in controls}
        self.networks = {digest: each for digest, each in self.networks.items() if digest in wanted}
        for digest, control in wanted.items():
            if digest not in self.networks:
                self.networks[digest] = self._load(control)
        active = [
            _Active(each, self.networks[each.model.sha256], *self._read(each, fitting)) for each in controls
        ]
        return Guide(active, timesteps)

    def _load(self, control: Control) -> Any:
        path = control.model.verified(most=MAX_BYTES)
        return self.backend.load_control(fitting_control(path, self.layout, self.base))

    @torch.inference_mode()
    def _read(self, control: Control, fitting: Layout) -> tuple[Tensor | None, list[Tensor]]:
        """Let a network read its picture: the hint of a ControlNet, or the features of a T2I-Adapter."""
        network = self.networks[control.model.sha256]
        device, dtype = self.backend.device, self.backend.dtype
        picture = control_picture(control, fitting)
        if isinstance(network, ControlNet):
            return network.hint(picture.to(device, dtype)), []
        layout: T2IAdapterLayout = network.layout
        check_t2i_adapter(control, layout, fitting)
        if layout.picture_channels == 1:
            picture = _grey(picture)  # before it is rounded to the number format
        return None, network(picture.to(device, dtype))


def fitting_control(
    path: Path, model: ModelLayout, base: Mapping[str, StoredTensor] | None = None
) -> Checkpoint:
    """Describe a network that follows a picture, from its header.

    Args:
        path: its file.
        model: that it is added to.
        base: the tensors of its UNet; without them a Control-LoRA cannot be loaded, only described.

    Raises:
        InputError: it is no such network, is damaged, or does not fit the model.
    """
    if is_control_lora(path):
        checkpoint = open_control_lora(path, model.unet, base)
    else:
        checkpoint = open_control(path, model.unet)
    (part,) = checkpoint.parts.values()
    layout = part.layout
    if isinstance(layout, ControlNetLayout) and layout.factor != model.vae.factor:
        raise MisfitError(
            f"{named(path)}: it has {layout.factor} pixels per latent cell, the model {model.vae.factor}"
        )
    return checkpoint


def check_t2i_adapter(control: Control, layout: T2IAdapterLayout, fitting: Layout) -> None:
    """Check what a T2I-Adapter cannot do.

    Raises:
        InputError: it is to guess, or the size is no multiple of its factor.
    """
    if control.guess:
        raise InputError("guess is for ControlNets: a T2I-Adapter sees no prompt")
    if fitting.width % layout.factor or fitting.height % layout.factor:
        raise InputError(
            f"size is {fitting.width}x{fitting.height}: with a T2I-Adapter both sides must be multiples "
            f"of {layout.factor}"
        )


def control_picture(control: Control, fitting: Layout) -> Tensor:
    """Decode, fit and preprocess a control's picture, ``[1, 3, height, width]`` from 0 to 1, float32.

    Raises:
        InputError: see ``decoding.read_source``.
    """
    pixels = np.asarray(read_source(control.picture, None, fitting).picture)
    if control.preprocess == "canny":
        pixels = np.repeat(canny(pixels)[:, :, None], 3, axis=2)
    if control.order == "bgr":
        pixels = pixels[:, :, ::-1]
    return torch.from_numpy(pixels.transpose(2, 0, 1).copy())[None].float() / 255


def _grey(picture: Tensor) -> Tensor:
    """Weigh the channels as Pillow does for grey (ITU-R 601-2), ``[B, 3, H, W] -> [B, 1, H, W]``."""
    weights = picture.new_tensor([0.299, 0.587, 0.114]).view(1, 3, 1, 1)
    return (picture * weights).sum(dim=1, keepdim=True)


_MOST_TEXTS = 4
"""Most texts whose keys and values a control keeps; a prompt that changes during the steps has several."""


class _Active(NamedTuple):
    """A control with its network and what that read in the picture."""

    control: Control
    network: Any
    hint: Tensor | None
    features: list[Tensor]


class Guide:
    """What controls add to the UNet's features in the steps of one run.

    Args:
        active: the controls.
        timesteps: of the run's steps, falling.
    """

    def __init__(self, active: Sequence[_Active], timesteps: Sequence[float]) -> None:
        self._active = active
        self._rising = [-each for each in timesteps]
        self._texts_of: dict[tuple[int, int, bool], tuple[PromptKV, PromptKV]] = {}

    @torch.inference_mode()
    def __call__(
        self,
        x: Latents,
        timesteps: Tensor,
        prompts: PromptKV,
        pooled: PooledEmbeds,
        time_ids: TimeIds,
        *,
        pair: bool,
    ) -> Additions | None:
        """Run the networks that are active at a time, and sum up what they add.

        Args:
            x: latents as the UNet takes them, for the negative prompts first if ``pair``.
            timesteps: the diffusion time of each image, all equal.
            prompts: the texts, with the UNet's keys and values.
            pooled: pooled texts.
            time_ids: sizes and crops.
            pair: whether there are two prompts for each image.

        Returns:
            None if no control is active.
        """
        steps = len(self._rising)
        step = min(max(bisect_right(self._rising, -float(timesteps[0])) - 1, 0), steps - 1)
        total: Additions | None = None
        for index, each in enumerate(self._active):
            control, hint = each.control, each.hint
            if not control.active(step, steps):
                continue
            if hint is None:
                levels = [(feature * control.scale).expand(len(x), -1, -1, -1) for feature in each.features]
                added = Additions(levels=levels)
            else:
                skipped = len(x) // 2 if pair and control.guess else 0
                texts = self._texts(index, each.network, prompts, skipped)
                found = each.network(
                    x[skipped:], timesteps[skipped:], texts, pooled[skipped:], time_ids[skipped:],
                    hint.expand(len(x) - skipped, -1, -1, -1),
                )  # fmt: skip
                added = _scaled(found, control, skipped)
            total = added if total is None else _sum(total, added)
        return total

    def _texts(self, index: int, network: Any, prompts: PromptKV, skipped: int) -> PromptKV:
        """Return a network's own keys and values, computed once for all steps."""
        key = (index, id(prompts), bool(skipped))
        if key not in self._texts_of:
            if len(self._texts_of) >= _MOST_TEXTS * len(self._active):
                del self._texts_of[next(iter(self._texts_of))]
            embeds = prompts.prompt_embeds
            # The UNet's keys and values lack the images without text.
            without = len(embeds) - len(prompts.keys_values[0][0])
            own = network.cross_attention_kv(embeds[skipped:], without_text=0 if skipped else without)
            self._texts_of[key] = prompts, own  # while the prompts are kept, no others get their id
        return self._texts_of[key][1]


def _scaled(found: Additions, control: Control, skipped: int) -> Additions:
    """Apply a control's scale. The first ``skipped`` images get nothing.

    With "guess", the scale rises from a tenth at the first feature map to the whole at the middle.
    """
    assert found.middle is not None
    maps = [*found.skips, found.middle]
    factors = torch.logspace(-1, 0, len(maps)).tolist() if control.guess else [1.0] * len(maps)
    *skips, middle = (
        _below(each * (factor * control.scale), skipped) for each, factor in zip(maps, factors, strict=True)
    )
    return Additions(skips, middle)


def _below(addition: Tensor, skipped: int) -> Tensor:
    return torch.cat([addition.new_zeros(skipped, *addition.shape[1:]), addition]) if skipped else addition


def _sum(first: Additions, second: Additions) -> Additions:
    """Add what several controls add."""

    def added(one: Sequence[Tensor], other: Sequence[Tensor]) -> Sequence[Tensor]:
        return [a + b for a, b in zip(one, other, strict=True)] if one and other else one or other

    middles = [each for each in (first.middle, second.middle) if each is not None]
    middle = sum(middles[1:], middles[0]) if middles else None
    return Additions(added(first.skips, second.skips), middle, added(first.levels, second.levels))
