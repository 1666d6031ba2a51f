"""OpenVINO as a backend on CPUs: UNet and VAE decoder converted once, kept on disk, in int8 if wanted.

Importing OpenVINO takes a second, so it is imported when it is first used.
"""

import hashlib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import import_module
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from ssd1b.errors import InputError
from ssd1b.extras import require
from ssd1b.model import Model
from ssd1b.models.unet import DeepFeatures, UNet
from ssd1b.models.vae import VAE
from ssd1b.runtime import cache_folder, cpu_multiplies_int8
from ssd1b.saving import renewing
from ssd1b.tensors import Latents, PromptEmbeds

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def check_openvino(device: torch.device, *, quantized: bool) -> None:
    """Check that OpenVINO can be used.

    Raises:
        InputError: it, or NNCF for quantizing, is not installed, or the device is not a CPU.
    """
    if device.type != "cpu":
        raise InputError(f"backend openvino computes on a CPU, not on {device}: add --device cpu")
    require("backend openvino", "openvino", *(["nncf"] if quantized else []))


def library(name: str) -> Any:
    """Import one of OpenVINO's libraries without its telemetry, which would use the network.

    Args:
        name: openvino, one of its modules, or nncf.
    """
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = cast(Any, None)  # as if it were not installed
    return import_module(name)


class Compiled:
    """A converted network, compiled for the shapes of its inputs; other shapes compile it anew."""

    def __init__(self, file: Path, dtype: torch.dtype) -> None:
        openvino = library("openvino")
        self._core = openvino.Core()
        self._core.set_property({"CACHE_DIR": str(file.parent / "compiled")})
        self._model = self._core.read_model(file)
        self._precision = PRECISIONS[dtype]
        self._shapes: list[tuple[int, ...]] = []
        self._request: Any = None

    def __call__(self, *inputs: Tensor) -> Tensor:
        """Compute; inputs and output are float32."""
        arrays = [each.float().contiguous().numpy() for each in inputs]
        shapes = [each.shape for each in arrays]
        if shapes != self._shapes:
            self._request = None  # before the next one takes its memory
            self._model.reshape({place: list(shape) for place, shape in enumerate(shapes)})
            hint = {"INFERENCE_PRECISION_HINT": self._precision}
            self._request = self._core.compile_model(self._model, "CPU", hint).create_infer_request()
            self._shapes = shapes
        return torch.from_numpy(self._request.infer(arrays, share_inputs=True)[0].copy())


class OpenVINOUNet(UNet):
    """A ``UNet`` whose prediction is computed by a converted network.

    The embedding of times and sizes stays with torch, in float32: its sines are what bfloat16 spoils.
    """

    def __init__(self, unet: UNet, compiled: Compiled) -> None:
        nn.Module.__init__(self)
        self.layout, self.compiled = unet.layout, compiled
        self.time_embedding, self.add_embedding = unet.time_embedding.float(), unet.add_embedding.float()

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the embedding."""
        return torch.float32

    def cross_attention_kv(self, prompt_embeds: PromptEmbeds, *, without_text: int = 0) -> Any:
        """Nothing is computed ahead."""
        return prompt_embeds

    def predict(
        self,
        latents: Latents,
        embedding: Tensor,
        prompt_embeds: Any,
        deep_features: DeepFeatures | None = None,
    ) -> Latents:
        """Compute the prediction, as ``UNet.predict``.

        Raises:
            InputError: features are to be kept between steps, which a converted network does not do.
        """
        if deep_features is not None:
            raise InputError("feature_reuse is 0 with backend openvino: its network is one piece")
        return self.compiled(latents, embedding, prompt_embeds)


class OpenVINODecoder(nn.Module):
    """Replaces a VAE's decoder."""

    def __init__(self, vae: VAE, compiled: Compiled, dtype: torch.dtype) -> None:
        super().__init__()
        self.conv_norm_out, self.compiled = vae.decoder.conv_norm_out.to(dtype), compiled

    def forward(self, x: Tensor) -> Tensor:
        """``[B, latent_channels, h, w] -> [B, 3, 8h, 8w]``."""
        return self.compiled(x)


class _Denoise(nn.Module):
    def __init__(self, unet: UNet) -> None:
        super().__init__()
        self.unet = unet

    def forward(self, latents: Tensor, embedding: Tensor, prompt_embeds: Tensor) -> Tensor:
        return self.unet.predict(latents, embedding, prompt_embeds)


@dataclass(frozen=True, slots=True, kw_only=True)
class OpenVINOBackend:
    """Runs UNet and VAE decoder with OpenVINO.

    Attributes:
        dtype: number format to compute in.
        quantized: whether the UNet computes in eight bits.
        notify: called before steps that take minutes, once for each model.
        load_other: loads text encoders, which run once a picture and stay with torch.
    """

    dtype: torch.dtype
    quantized: bool
    notify: Callable[[str], None]
    load_other: Callable[[Model, str], Any]

    def load(self, model: Model, part: str) -> Any:
        """See ``speed.backends.Backend``. UNet and VAE are converted if that was not done before."""
        if part not in ("unet", "vae"):
            return self.load_other(model, part)
        stored = model.checkpoint.part(part)
        network = model.network(part, dtype=stored.half_dtype)
        file = self._file(model, part)
        if not file.exists():
            self.notify(f"OpenVINO converts the {'UNet' if part == 'unet' else 'VAE'}, once")
            half = all(tensor.dtype.itemsize == 2 for tensor in stored.tensors.values())
            (_convert_unet if part == "unet" else _convert_decoder)(network, file, half=half)
        if part == "vae":
            network.decoder = OpenVINODecoder(network, Compiled(file, self.dtype), self.dtype)
            network.post_quant_conv.to(self.dtype)
            return network
        if self.quantized and not self.uncalibrated(model):
            file = self._file(model, part, "int8")
        return OpenVINOUNet(network, Compiled(file, self.dtype)).eval()

    def uncalibrated(self, model: Model) -> bool:
        """See ``speed.backends.Backend``."""
        return self.quantized and not self._file(model, "unet", "int8").exists()

    def calibrate(self, model: Model, unet: OpenVINOUNet, samples: Sequence[tuple[Any, ...]]) -> Any:
        """See ``speed.backends.Backend``. NNCF reads the ranges of activations off the samples."""
        inputs = []
        for latents, timesteps, prompt_embeds, pooled, time_ids, guidance, _ in samples:
            embedding = unet.embed(timesteps, pooled, time_ids, guidance)
            inputs.append([each.float().numpy() for each in (latents, embedding, prompt_embeds)])
        self.notify("NNCF quantizes the UNet, once")
        round_file(self._file(model, "unet"), self._file(model, "unet", "int8"), inputs)
        return self.load(model, "unet")

    def _file(self, model: Model, part: str, kind: str = "exact") -> Path:
        """Where a converted network is kept, by the weights that it was converted from."""
        decides = (model.version(part), version("openvino"), version("ssd1b"), cpu_multiplies_int8())
        key = hashlib.sha256(repr(decides).encode()).hexdigest()[:24]
        return cache_folder() / "openvino" / key / kind / "network.xml"


def _convert_unet(unet: UNet, file: Path, *, half: bool) -> None:
    layout = unet.layout
    side, width = 8 * 2 ** (len(layout.levels) - 1), 4 * layout.levels[0].channels
    inputs = (
        torch.zeros(2, layout.in_channels, side, side),
        torch.zeros(2, width),
        torch.zeros(2, 77, layout.cross_attention_dim),
    )
    shapes = [[-1, layout.in_channels, -1, -1], [-1, width], [-1, -1, layout.cross_attention_dim]]
    _convert(_Denoise(unet.float()), inputs, shapes, file, half=half)


def _convert_decoder(vae: VAE, file: Path, *, half: bool) -> None:
    channels = vae.layout.latent_channels
    inputs = (torch.zeros(1, channels, 16, 16),)
    _convert(vae.decoder.float(), inputs, [[-1, channels, -1, -1]], file, half=half)


def _convert(
    network: nn.Module, inputs: tuple[Tensor, ...], shapes: Sequence[list[int]], file: Path, *, half: bool
) -> None:
    openvino = library("openvino")
    library("openvino.tools.ovc")
    model = openvino.convert_model(
        network, example_input=inputs, input=[openvino.PartialShape(s) for s in shapes]
    )
    save(model, file, half=half)


def save(model: Any, file: Path, *, half: bool) -> None:
    """Write a network into a folder of its own, wholly or not at all.

    Args:
        model: OpenVINO's.
        file: ends with .xml; weights go beside it.
        half: store them in 16 bits.
    """
    with renewing(file.parent) as aside:
        aside.mkdir(parents=True)
        library("openvino").save_model(model, aside / file.name, compress_to_fp16=half)


def round_file(exact: Path, file: Path, samples: Sequence[Sequence[np.ndarray]]) -> None:
    """Quantize matrices, convolutions and their activations, whose ranges are taken from samples.

    Args:
        exact: the network, as ``save`` wrote it.
        file: where to write the rounded one.
        samples: inputs of steps, as pairs: the mean of their extremes is a better range than that of single
            rows' (docs/log).
    """
    nncf, openvino = library("nncf"), library("openvino")
    nncf.set_log_level(40)  # errors
    model = openvino.Core().read_model(exact)
    # Not as a transformer (``model_type``), whose scheme spoils what a UNet predicts (docs/log).
    # Without VNNI pairs of products are added in 16 bits, which overflow unless weights take half the range.
    overflow = nncf.OverflowFix.FIRST_LAYER if cpu_multiplies_int8() else nncf.OverflowFix.ENABLE
    small = nncf.quantize(
        model, nncf.Dataset(list(samples)), subset_size=len(samples),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
    )  # fmt: skip
    save(small, file, half=True)
