"""OpenVINO backend for CPUs: UNet and VAE decoder, converted once and cached on disk, optionally in int8.

Importing OpenVINO takes a second, so it is imported on first use.
"""

import hashlib
import sys
import warnings
from collections.abc import Callable, Collection, Sequence
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
from ssd1b.models.unet import Additions, DeepFeatures, UNet
from ssd1b.models.vae import VAE
from ssd1b.runtime import cache_folder, cpu_multiplies_int8
from ssd1b.saving import renewing
from ssd1b.speed.replacement import replace_modules
from ssd1b.tensors import Latents, PromptEmbeds, UNetLatents

PRECISIONS = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}


def check_openvino(device: torch.device, *, quantized: bool) -> None:
    """Check that OpenVINO can be used.

    Raises:
        InputError: OpenVINO, or NNCF for quantization, is not installed, or the device is not a CPU.
    """
    if device.type != "cpu":
        raise InputError(f"backend openvino runs on a CPU, not on {device}: add --device cpu")
    require("backend openvino", "openvino", *(["nncf"] if quantized else []))


def import_library(name: str) -> Any:
    """Import openvino, one of its modules, or nncf, without telemetry, which would use the network."""
    if "openvino_telemetry" not in sys.modules:
        sys.modules["openvino_telemetry"] = cast(Any, None)  # makes it look uninstalled
    return import_module(name)


class CompiledNetwork(nn.Module):
    """A converted network, compiled for the shapes of its inputs and again when they change.

    Args:
        file: the converted network.
        dtype: number format to compute in.
    """

    def __init__(self, file: Path, dtype: torch.dtype) -> None:
        super().__init__()
        openvino = import_library("openvino")
        self._core = openvino.Core()
        self._core.set_property({"CACHE_DIR": str(file.parent / "compiled")})
        self._model = self._core.read_model(file)
        self._precision = PRECISIONS[dtype]
        self._shapes: list[tuple[int, ...]] = []
        self._request: Any = None

    def forward(self, *inputs: Tensor) -> Tensor:
        """Run the network. Inputs are converted to float32; the output is float32."""
        arrays = [each.float().contiguous().numpy() for each in inputs]
        shapes = [each.shape for each in arrays]
        if shapes != self._shapes:
            self._request = None  # freed before the next one is made
            self._model.reshape({index: list(shape) for index, shape in enumerate(shapes)})
            hint = {"INFERENCE_PRECISION_HINT": self._precision}
            self._request = self._core.compile_model(self._model, "CPU", hint).create_infer_request()
            self._shapes = shapes
        return torch.from_numpy(self._request.infer(arrays, share_inputs=True)[0].copy())


class OpenVINOUNet(UNet):
    """A ``UNet`` whose prediction is computed by a converted network.

    Times and sizes are embedded by torch in float32, because bfloat16 is too coarse for their sinusoids.
    """

    def __init__(self, unet: UNet, compiled: CompiledNetwork) -> None:
        nn.Module.__init__(self)
        self.layout, self.compiled = unet.layout, compiled
        self.time_embedding, self.add_embedding = unet.time_embedding.float(), unet.add_embedding.float()

    @property
    def dtype(self) -> torch.dtype:
        """The number format of the embedding."""
        return torch.float32

    def cross_attention_kv(self, prompt_embeds: PromptEmbeds, *, without_text: int = 0) -> Any:
        """Return the embeddings; keys and values are computed in each step."""
        return prompt_embeds

    def predict(
        self,
        latents: UNetLatents,
        embedding: Tensor,
        prompt_embeds: Any,
        deep_features: DeepFeatures | None = None,
        additions: Additions | None = None,
    ) -> Latents:
        """Compute the prediction, as ``UNet.predict``.

        Raises:
            InputError: ``deep_features`` or ``additions`` are given, which a converted network cannot use.
        """
        for rule, given in (("feature_reuse must be 0", deep_features), ("omit controls", additions)):
            if given is not None:
                raise InputError(f"{rule} with backend openvino, which runs the UNet as a whole")
        return self.compiled(latents, embedding, prompt_embeds)


class _Prediction(nn.Module):
    """``UNet.predict`` as a module, for conversion."""

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
        quantized: whether the UNet is quantized to int8.
        notify: called with a message before conversions, which take minutes and are cached.
        load_other: loads text encoders, which run once per image and stay with torch.
        adapt_other: loads some of their tensors again.
    """

    dtype: torch.dtype
    quantized: bool
    notify: Callable[[str], None]
    load_other: Callable[[Model, str], Any]
    adapt_other: Callable[[Model, str, Any, Collection[str]], None]

    def load(self, model: Model, part: str) -> Any:
        """See ``speed.backends.Backend``. UNet and VAE are converted if they are not cached."""
        if part not in ("unet", "vae"):
            return self.load_other(model, part)
        stored = model.checkpoint.part(part)
        network = model.network(part, dtype=stored.half_dtype)
        file = self._file(model, part)
        if not file.exists():
            self.notify(f"converting the {'UNet' if part == 'unet' else 'VAE'} for OpenVINO (only once)")
            half = all(tensor.dtype.itemsize == 2 for tensor in stored.tensors.values())
            (_convert_unet if part == "unet" else _convert_decoder)(network, file, half=half)
        if part == "vae":
            network.decoder = CompiledNetwork(file, self.dtype)
            network.encoder.to(self.dtype)
            network.quant_conv.to(self.dtype)
            network.post_quant_conv.to(self.dtype)
            return network
        if self.quantized and not self.needs_calibration(model):
            file = self._file(model, part, "int8")
        return OpenVINOUNet(network, CompiledNetwork(file, self.dtype)).eval()

    def adapt(self, model: Model, part: str, network: Any, names: Collection[str]) -> None:
        """See ``speed.backends.Backend``. The UNet is converted for each choice of adapters, and cached."""
        if part != "unet":
            self.adapt_other(model, part, network, names)
        elif self.needs_calibration(model):
            raise InputError("adapters exclude quantize int8 with backend openvino: omit one of them")
        else:
            replace_modules(network, self.load(model, part))

    def needs_calibration(self, model: Model) -> bool:
        """See ``speed.backends.Backend``."""
        return self.quantized and not self._file(model, "unet", "int8").exists()

    def calibrate(self, model: Model, unet: OpenVINOUNet, samples: Sequence[tuple[Any, ...]]) -> Any:
        """See ``speed.backends.Backend``."""
        inputs = []
        for latents, timesteps, prompt_embeds, pooled, time_ids, guidance, _ in samples:
            embedding = unet.embed(timesteps, pooled, time_ids, guidance)
            inputs.append([each.float().numpy() for each in (latents, embedding, prompt_embeds)])
        self.notify("quantizing the UNet with NNCF (only once)")
        quantize_file(self._file(model, "unet"), self._file(model, "unet", "int8"), inputs)
        return self.load(model, "unet")

    def _file(self, model: Model, part: str, kind: str = "exact") -> Path:
        """Give the cache file of a converted network; the key identifies the weights and the versions."""
        identity = (model.version(part), version("openvino"), version("ssd1b"), cpu_multiplies_int8())
        key = hashlib.sha256(repr(identity).encode()).hexdigest()[:24]
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
    _convert(_Prediction(unet.float()), inputs, shapes, file, half=half)


def _convert_decoder(vae: VAE, file: Path, *, half: bool) -> None:
    channels = vae.layout.latent_channels
    inputs = (torch.zeros(1, channels, 16, 16),)
    _convert(vae.decoder.float(), inputs, [[-1, channels, -1, -1]], file, half=half)


def _convert(
    network: nn.Module, inputs: tuple[Tensor, ...], shapes: Sequence[list[int]], file: Path, *, half: bool
) -> None:
    openvino = import_library("openvino")
    import_library("openvino.tools.ovc")
    with warnings.catch_warnings():
        # The tracer warns of each comparison of sizes in Python, which hold for all sizes of an image.
        warnings.simplefilter("ignore")
        model = openvino.convert_model(
            network, example_input=inputs, input=[openvino.PartialShape(s) for s in shapes]
        )
    save_network(model, file, half=half)


def save_network(model: Any, file: Path, *, half: bool) -> None:
    """Write a converted network atomically into its own folder.

    Args:
        model: OpenVINO's model.
        file: path that ends with .xml; the weights are written to the same folder.
        half: store weights in 16 bits.
    """
    with renewing(file.parent) as aside:
        aside.mkdir(parents=True)
        import_library("openvino").save_model(model, aside / file.name, compress_to_fp16=half)


def quantize_file(exact: Path, file: Path, samples: Sequence[Sequence[np.ndarray]]) -> None:
    """Quantize matrices, convolutions and their activations, with ranges from samples.

    Args:
        exact: the network that ``save_network`` wrote.
        file: where to write the quantized network.
        samples: inputs of calls, each a pair of rows: the mean of their extremes is a better range than that
            of single rows (docs/log).
    """
    nncf, openvino = import_library("nncf"), import_library("openvino")
    nncf.set_log_level(40)  # errors
    model = openvino.Core().read_model(exact)
    # ``model_type`` stays unset, because the scheme for transformers spoils a UNet's prediction (docs/log).
    # Without VNNI, pairs of products are summed in 16 bits, which overflow unless weights use half the range.
    overflow = nncf.OverflowFix.FIRST_LAYER if cpu_multiplies_int8() else nncf.OverflowFix.ENABLE
    quantized = nncf.quantize(
        model, nncf.Dataset(list(samples)), subset_size=len(samples),
        advanced_parameters=nncf.AdvancedQuantizationParameters(overflow_fix=overflow),
    )  # fmt: skip
    save_network(quantized, file, half=True)
