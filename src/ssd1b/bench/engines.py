"""Engines to benchmark: this package's, its unprepared networks, and peers that are installed.

All get the same weights and inputs. Peers are imported on demand, and nowhere else in the package.
"""

from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MappingProxyType
from typing import Any, cast

import torch
from PIL import Image
from torch import Tensor, nn

from ssd1b.bench import PARTS, ggml
from ssd1b.bench.case import Case
from ssd1b.diffusion.noise import noise_source
from ssd1b.diffusion.samplers import SAMPLERS
from ssd1b.diffusion.schedule import NoiseSchedule, steps_for
from ssd1b.errors import InputError, unknown
from ssd1b.extras import require
from ssd1b.images import to_pixels
from ssd1b.layouts import ModelLayout, TextLayout
from ssd1b.models.text import TextEncoder, TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.models.unet_inputs import UNetInputs
from ssd1b.models.vae import VAE
from ssd1b.pipeline import Pipeline
from ssd1b.recipe import ModelIdentity
from ssd1b.runtime import DTYPES, choose_dtype
from ssd1b.settings import DEFAULT_MODEL
from ssd1b.speed.backends import prepare
from ssd1b.speed.compiling import compile_network
from ssd1b.speed.openvino import PRECISIONS, import_library, quantize_file, save_network
from ssd1b.speed.torchao_quant import check_quantization
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.configs import text_config, unet_config, vae_config
from ssd1b.weights.vocabulary import DATA, PADDING, VOCABULARY_SIZE, load_tokenizers, tokenizer_folder

Work = Callable[[], Tensor]
"""Runs a case once, and returns its output."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """A way to run a case.

    Attributes:
        prepare: ``prepare(case, dtype, device)`` does everything that happens once, and returns the work.
        needs: libraries that it needs beyond our dependencies.
        copies: number of copies of the weights that it makes in its number format.
        quantized: one of ``execution.QUANTIZATIONS``.
        parts: those of ``bench.PARTS`` that it supports.
        layouts: names of the layouts that it supports; empty for all.
        on_cpu: whether it supports only CPUs.
    """

    prepare: Callable[[Case, torch.dtype, torch.device], Work]
    needs: tuple[str, ...] = ()
    copies: int = 0
    quantized: str | None = None
    parts: tuple[str, ...] = PARTS
    layouts: tuple[str, ...] = ()
    on_cpu: bool = False


def _ours(
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
    *,
    compiled: bool = False,
    quantized: str | None = None,
) -> Work:
    network = _copy_structure(_network(case, dtype, device))
    for each in network.values() if isinstance(network, nn.ModuleDict) else (network,):
        prepare(each, compiled=compiled, quantized=quantized)
    if isinstance(network, nn.ModuleDict):
        return _pipeline_work(case, network)
    inputs = _inputs(case, dtype, device)
    if isinstance(network, UNet):
        latents, timesteps, embeds, pooled, sizes = inputs
        # Computed once per image, so not part of a step.
        context = network.cross_attention_kv(embeds, without_text=case.batch)
        return lambda: network(latents, timesteps, context, pooled, sizes)
    return _network_work(network, inputs)


def _plain(case: Case, dtype: torch.dtype, device: torch.device) -> Work:
    network = _network(case, dtype, device)
    if isinstance(network, nn.ModuleDict):
        return _pipeline_work(case, network)
    return _network_work(network, _inputs(case, dtype, device))


def _network_work(network: nn.Module, inputs: tuple[Tensor, ...]) -> Work:
    if isinstance(network, VAE):
        return lambda: network.decode(*inputs)
    if isinstance(network, TextEncoder):
        return lambda: network(*inputs)[0]
    return lambda: network(*inputs)


def _pipeline_work(case: Case, networks: nn.ModuleDict) -> Work:
    pipeline = _pipeline(case, networks)
    batch = [pipeline.settings(**case.settings)] * case.batch
    return lambda: _pixels([picture.image for picture in pipeline.draw(batch)])


def _pipeline(case: Case, networks: nn.ModuleDict) -> Pipeline:
    """Make a pipeline of random networks, with CLIP's tokenizers or, for fewer tokens, the miniatures'."""
    parts, layout = cast(Any, networks), case.layout
    miniature = {part: DATA / DEFAULT_MODEL / tokenizer_folder(part) for part in PADDING}
    clip = layout.text_encoder.vocab_size == VOCABULARY_SIZE
    info = ModelInfo(layout=layout, tokenizers={} if clip else miniature)
    tokenizer, tokenizer_2 = load_tokenizers(info)
    return Pipeline(
        identity=ModelIdentity(name="random", source="random", revision=None, layout=layout.name),
        info=info, unet=parts["unet"], vae=parts["vae"],
        text=TextEncoders(
            encoder=parts["text_encoder"], encoder_2=parts["text_encoder_2"],
            tokenizer=tokenizer, tokenizer_2=tokenizer_2,
        ),
        device=parts["vae"].device, dtype=parts["unet"].dtype,
    )  # fmt: skip


def _pixels(images: Sequence[Image.Image]) -> Tensor:
    return torch.cat([to_pixels(image) for image in images])


def _diffusers(case: Case, dtype: torch.dtype, device: torch.device) -> Work:
    if case.part == "picture":
        return _diffusers_pipeline_work(case, dtype, device)
    return _peer_work(case, dtype, device, _peer_network(case.part, case, dtype, device))


def _compile(network: nn.Module) -> None:
    """Compile a network as diffusers' guide recommends, with the same options as our own networks."""
    cast(Any, network).to(memory_format=torch.channels_last)
    compile_network(network)


def _diffusers_compiled(case: Case, dtype: torch.dtype, device: torch.device) -> Work:
    if case.part == "picture":
        return _diffusers_pipeline_work(case, dtype, device, compiled=True)
    network = deepcopy(_peer_network(case.part, case, dtype, device))  # the memory format will change
    _compile(network)
    return _peer_work(case, dtype, device, network)


def _diffusers_pipeline_work(
    case: Case, dtype: torch.dtype, device: torch.device, *, compiled: bool = False
) -> Work:
    """Use diffusers' pipeline, with texts encoded by our encoders, which are as fast (docs/log)."""
    diffusers: Any = import_module("diffusers")
    ours = _pipeline(case, cast(nn.ModuleDict, _network(case, dtype, device)))
    unet, vae = (_peer_network(part, case, dtype, device) for part in ("unet", "vae"))
    if compiled:
        unet, vae = deepcopy(unet), deepcopy(vae)  # the memory format will change
        unet.fuse_qkv_projections()
        _compile(unet)
        _compile(vae.decoder)
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler.from_config(ours.info.noise_schedule.to_config()),
        add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    settings = case.settings
    latent = settings["width"] // case.layout.vae.factor

    def generate() -> Tensor:
        embeds, pooled = ours.text.encode(ours.text.tokenize([settings["prompt"]] * case.batch))
        # The same noise as ours; diffusers would draw different noise for each dtype.
        noise = noise_source([settings["seed"]] * case.batch, latent, latent, device)()
        output = pipe(
            prompt_embeds=embeds.to(dtype), pooled_prompt_embeds=pooled.to(dtype),
            latents=noise.to(dtype), num_inference_steps=settings["steps"],
            guidance_scale=settings["guidance_scale"], width=settings["width"], height=settings["height"],
        )  # fmt: skip
        return _pixels(output.images)

    return generate


def _peer_work(case: Case, dtype: torch.dtype, device: torch.device, network: nn.Module) -> Work:
    inputs = _inputs(case, dtype, device)
    if case.part == "vae":
        scaled = inputs[0] / case.layout.vae.scaling_factor
        return lambda: network(scaled)
    if case.part == "text":
        return lambda: network(input_ids=inputs[0], output_hidden_states=True).hidden_states[-2]
    latents, timesteps, embeds, pooled, sizes = inputs
    added = {"text_embeds": pooled, "time_ids": sizes}
    return lambda: network(latents, timesteps[0], embeds, added_cond_kwargs=added, return_dict=False)[0]


def _peer_network(part: str, case: Case, dtype: torch.dtype, device: torch.device) -> Any:
    """Build the peer's module on our weights; for part ``vae`` only its decoder."""
    ours: Any = _network(case, dtype, device)
    if part == "text":
        return _transformers_text_encoder(case.layout.text_encoder_2, ours.text_model.state_dict())
    diffusers: Any = import_module("diffusers")
    side = case.layout.size
    config, kind = (
        (unet_config(case.layout.unet, side // case.layout.vae.factor), diffusers.UNet2DConditionModel)
        if part == "unet"
        else (vae_config(case.layout.vae, side), diffusers.AutoencoderKL)
    )
    with torch.device("meta"):
        network = kind.from_config(config)
    weights = ours[part] if isinstance(ours, nn.ModuleDict) else ours
    network.load_state_dict(weights.state_dict(), assign=True)
    network.requires_grad_(False).eval()
    return _Decoder(network) if case.part == "vae" else network


def _transformers_text_encoder(layout: TextLayout, weights: Mapping[str, Tensor]) -> nn.Module:
    """Build transformers' text encoder, which diffusers uses, on our weights."""
    transformers: Any = import_module("transformers")
    config = transformers.CLIPTextConfig.from_dict(text_config(layout))
    with torch.device("meta"):
        model = transformers.CLIPTextModel(config)
    network = getattr(model, "text_model", model)  # absent in newer versions
    positions = {name: buffer.shape for name, buffer in network.named_buffers() if buffer.is_meta}
    network.load_state_dict(weights, assign=True)
    device = next(iter(weights.values())).device
    for name, shape in positions.items():
        owner, _, leaf = name.rpartition(".")
        indices = torch.arange(shape[-1], device=device).expand(shape)
        network.get_submodule(owner).register_buffer(leaf, indices, persistent=False)
    return model.requires_grad_(False).eval()


class _Decoder(nn.Module):
    """The decoder of diffusers' autoencoder or ours, which have the same modules."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = cast(Any, vae).post_quant_conv, cast(Any, vae).decoder

    def forward(self, scaled: Tensor) -> Tensor:
        """Decode latents divided by the scaling factor."""
        return self.decoder(self.post_quant_conv(scaled))


def _openvino(case: Case, dtype: torch.dtype, device: torch.device, *, quantized: bool = False) -> Work:
    openvino = import_library("openvino")
    network = _Decoder(case.network) if case.part == "vae" else case.network
    inputs = _inputs(case, torch.float32, torch.device("cpu"))
    if case.part == "vae":
        inputs = (inputs[0] / case.layout.vae.scaling_factor,)
    arrays = [each.numpy() for each in inputs]
    model = openvino.convert_model(network, example_input=inputs)
    if quantized:
        with TemporaryDirectory() as folder:
            exact, int8 = (Path(folder, name, "network.xml") for name in ("exact", "int8"))
            save_network(model, exact, half=True)
            del model  # NNCF needs the memory
            quantize_file(exact, int8, [arrays])  # calibrated on the inputs to be timed: the best case
            model = openvino.Core().read_model(int8)
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": PRECISIONS[dtype]})
    return lambda: torch.from_numpy(compiled(arrays)[0])


def _ggml(case: Case, dtype: torch.dtype, device: torch.device, *, quantized: str | None = None) -> Work:
    levels = steps_for(NoiseSchedule(), case.settings["steps"], grid=SAMPLERS[case.settings["sampler"]].grid)
    generate = ggml.load(case, levels.sigmas, dtype, quantized=quantized)
    return lambda: _pixels(generate())


def _quantized(name: str) -> Engine:
    def prepare_quantized(case: Case, dtype: torch.dtype, device: torch.device) -> Work:
        own_kernels = name == "int8" and device.type == "cpu"
        return _ours(case, dtype, device, compiled=not own_kernels, quantized=name)

    return Engine(prepare=prepare_quantized, copies=1, quantized=name)


def _stable_diffusion_cpp(quantized: str | None = None) -> Engine:
    return Engine(
        prepare=partial(_ggml, quantized=quantized), needs=("stable_diffusion_cpp",), copies=1,
        parts=("picture",), layouts=("sdxl", "ssd-1b", "vega"), on_cpu=True,
    )  # fmt: skip


ENGINES: Mapping[str, Engine] = MappingProxyType({
    "ssd1b": Engine(prepare=_ours, copies=1),
    "ssd1b-compiled": Engine(prepare=partial(_ours, compiled=True), copies=1),
    "ssd1b-fp8": _quantized("fp8"),
    "ssd1b-int8": _quantized("int8"),
    "ssd1b-plain": Engine(prepare=_plain),
    "diffusers": Engine(prepare=_diffusers, needs=("diffusers",)),
    "diffusers-compiled": Engine(prepare=_diffusers_compiled, needs=("diffusers",), copies=1),
    "openvino": Engine(
        prepare=_openvino, needs=("openvino",), copies=2, parts=("unet", "vae", "text"), on_cpu=True
    ),
    "openvino-int8": Engine(
        prepare=partial(_openvino, quantized=True), needs=("openvino", "nncf"), copies=2,
        parts=("unet", "vae", "text"), on_cpu=True,
    ),
    "stable-diffusion.cpp": _stable_diffusion_cpp(),
    "stable-diffusion.cpp-q8": _stable_diffusion_cpp("q8_0"),
})  # fmt: skip
"""This package with default options, compiled and quantized, and its networks unprepared; diffusers eager and
compiled; our networks converted by OpenVINO and quantized by NNCF; stable-diffusion.cpp, also quantized."""


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """An engine in a number format."""

    name: str
    dtype: torch.dtype

    def __str__(self) -> str:
        formats = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return f"{self.name}:{formats[self.dtype]}"


def read_choice(text: str, dtype: str | None, device: torch.device) -> EngineChoice:
    """Parse "diffusers" or "diffusers:bf16".

    Args:
        text: name of an engine, and optionally a number format.
        dtype: number format if ``text`` has none; None is the fastest on the device.
        device: device to run on.

    Raises:
        InputError: the engine or format is unknown, or not supported on this machine.
    """
    name, _, suffix = text.partition(":")
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    require(f"engine {name}", *ENGINES[name].needs)
    if suffix and suffix not in DTYPES:
        raise unknown("dtype", suffix, DTYPES)
    number_format = choose_dtype(suffix or dtype, device)
    if (quantized := ENGINES[name].quantized) is not None:
        check_quantization(quantized, device, number_format)
    return EngineChoice(name, number_format)


def check_engine(name: str, part: str, layout: ModelLayout, device: torch.device) -> None:
    """Check that an engine supports a part, layout and device.

    Raises:
        InputError: it does not.
    """
    engine = ENGINES[name]
    if part not in engine.parts:
        raise InputError(f"engine {name} does not support part {part}: allowed are {', '.join(engine.parts)}")
    if engine.layouts and layout.name not in engine.layouts:
        raise InputError(
            f"engine {name} does not support layout {layout.name}: allowed are {', '.join(engine.layouts)}"
        )
    if engine.on_cpu and device.type != "cpu":
        raise InputError(f"engine {name} runs on a CPU, not on {device}: add --device cpu")


def needed_bytes(parameters: int, choices: Sequence[EngineChoice]) -> int:
    """Sum the memory for all engines' weights, and for the case's own in float32."""
    formats = {choice.dtype for choice in choices} - {torch.float32}
    copies = [choice.dtype.itemsize * ENGINES[choice.name].copies for choice in choices]
    return parameters * (torch.float32.itemsize + sum(each.itemsize for each in formats) + sum(copies))


def _network(case: Case, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Return the case's network in a number format and on a device; engines share these copies."""
    key = (dtype, device)
    if key not in case.copies:
        case.copies[key] = deepcopy(case.network).to(device, dtype)
    return case.copies[key]


def _copy_structure(network: nn.Module) -> nn.Module:
    """Copy a network so that its layers can be replaced; on a CPU the copy shares the weights."""
    weights = [*network.parameters(), *network.buffers()]
    shared = {id(weight): weight for weight in weights if weight.device.type == "cpu"}
    return deepcopy(network, shared)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Move a case's inputs to an engine's device and number format; token ids stay integers."""
    if isinstance(case.inputs, UNetInputs):
        return tuple(case.inputs.to(device, dtype))
    return tuple(each.to(device, dtype if each.is_floating_point() else each.dtype) for each in case.inputs)
