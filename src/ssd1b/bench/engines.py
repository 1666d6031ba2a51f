"""Who computes: our own engine, the same network without it, and peers where they are installed.

Each gets the same weights and inputs. Peers are imported when they are asked for, and nowhere else in the
package.
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
from ssd1b.speed.openvino import library, round_file, save
from ssd1b.speed.torchao_quant import check_quantization
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.configs import text_config, unet_config, vae_config
from ssd1b.weights.vocabulary import DATA, PADDING, VOCABULARY_SIZE, tokenizer_folder, tokenizers

Work = Callable[[], Tensor]
"""Computes once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """What computes a case.

    Attributes:
        needs: libraries beyond our own.
        prepare: ``prepare(case, dtype, device)``: everything that happens once.
        copies: of the weights that it makes in its number format.
        quantized: one of ``execution.QUANTIZATIONS``.
        parts: of ``bench.PARTS``, that it computes here.
        layouts: whose names it knows; empty for all.
        on_cpu: and nowhere else.
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
    network = _shell(_converted(case, dtype, device))
    for each in network.values() if isinstance(network, nn.ModuleDict) else (network,):
        prepare(each, compiled=compiled, quantized=quantized)
    if isinstance(network, nn.ModuleDict):
        return _drawn(case, network)
    inputs = _inputs(case, dtype, device)
    if isinstance(network, UNet):
        latents, timesteps, embeds, pooled, sizes = inputs
        # Once a picture, and so no part of a step.
        context = network.cross_attention_kv(embeds, without_text=case.batch)
        return lambda: network(latents, timesteps, context, pooled, sizes)
    return _called_ours(network, inputs)


def _plain(case: Case, dtype: torch.dtype, device: torch.device) -> Work:
    network = _converted(case, dtype, device)
    if isinstance(network, nn.ModuleDict):
        return _drawn(case, network)
    return _called_ours(network, _inputs(case, dtype, device))


def _called_ours(network: nn.Module, inputs: tuple[Tensor, ...]) -> Work:
    if isinstance(network, VAE):
        return lambda: network.decode(*inputs)
    if isinstance(network, TextEncoder):
        return lambda: network(*inputs)[0]
    return lambda: network(*inputs)


def _drawn(case: Case, networks: nn.ModuleDict) -> Work:
    """From the prompt to the picture, as ``ssd1b generate`` goes."""
    pipeline = _pipeline(case, networks)
    chosen = [pipeline.settings(**case.settings)] * case.batch

    def draw() -> Tensor:
        return _pixels([picture.image for picture in pipeline.draw(chosen)])

    return draw


def _pipeline(case: Case, networks: nn.ModuleDict) -> Pipeline:
    """A pipeline of random networks, with CLIP's tokenizers, or for fewer tokens the miniatures'."""
    parts, layout = cast(Any, networks), case.layout
    own = {part: DATA / DEFAULT_MODEL / tokenizer_folder(part) for part in PADDING}
    clip = layout.text_encoder.vocab_size == VOCABULARY_SIZE
    info = ModelInfo(layout=layout, tokenizers={} if clip else own)
    tokenizer, tokenizer_2 = tokenizers(info)
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
        return _drawn_by_diffusers(case, dtype, device)
    return _called(case, dtype, device, _diffusers_network(case.part, case, dtype, device))


def _compile(network: nn.Module) -> None:
    """As diffusers' guide has it, by the same compiler with the same options as our own networks."""
    cast(Any, network).to(memory_format=torch.channels_last)
    compile_network(network)


def _compiled(case: Case, dtype: torch.dtype, device: torch.device) -> Work:
    if case.part == "picture":
        return _drawn_by_diffusers(case, dtype, device, compiled=True)
    network = deepcopy(_diffusers_network(case.part, case, dtype, device))  # layouts in memory will change
    _compile(network)
    return _called(case, dtype, device, network)


def _drawn_by_diffusers(
    case: Case, dtype: torch.dtype, device: torch.device, *, compiled: bool = False
) -> Work:
    """Its pipeline; texts are encoded by our own encoders, which are as fast as transformers' (docs/log)."""
    diffusers: Any = import_module("diffusers")
    networks = cast(nn.ModuleDict, _converted(case, dtype, device))
    ours = _pipeline(case, networks)
    unet, vae = (_diffusers_network(part, case, dtype, device) for part in ("unet", "vae"))
    if compiled:
        unet, vae = deepcopy(unet), deepcopy(vae)  # layouts in memory will change
        unet.fuse_qkv_projections()
        _compile(unet)
        _compile(vae.decoder)
    pipe = diffusers.StableDiffusionXLPipeline(
        vae=vae, text_encoder=None, text_encoder_2=None, tokenizer=None, tokenizer_2=None, unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler.from_config(ours.info.noise_schedule.to_config()),
        add_watermarker=False,
    )  # fmt: skip
    pipe.set_progress_bar_config(disable=True)
    given = case.settings

    cells = given["width"] // case.layout.vae.factor

    def draw() -> Tensor:
        embeds, pooled = ours.text.encode(ours.text.tokenize([given["prompt"]] * case.batch))
        # The same noise as ours; left to itself it would draw other numbers in each number format.
        noise = noise_source([given["seed"]] * case.batch, cells, cells, device)()
        pictures = pipe(
            prompt_embeds=embeds.to(dtype), pooled_prompt_embeds=pooled.to(dtype),
            latents=noise.to(dtype), num_inference_steps=given["steps"],
            guidance_scale=given["guidance_scale"], width=given["width"], height=given["height"],
        )  # fmt: skip
        return _pixels(pictures.images)

    return draw


def _called(case: Case, dtype: torch.dtype, device: torch.device, network: nn.Module) -> Work:
    inputs = _inputs(case, dtype, device)
    if case.part == "vae":
        scaled = inputs[0] / case.layout.vae.scaling_factor
        decoder = cast(Any, network)
        return lambda: decoder(scaled)
    if case.part == "text":
        texts = cast(Any, network)
        return lambda: texts(input_ids=inputs[0], output_hidden_states=True).hidden_states[-2]
    latents, timesteps, embeds, pooled, sizes = inputs
    added = {"text_embeds": pooled, "time_ids": sizes}
    return lambda: network(latents, timesteps[0], embeds, added_cond_kwargs=added, return_dict=False)[0]


def _diffusers_network(part: str, case: Case, dtype: torch.dtype, device: torch.device) -> Any:
    """The peer's own module, sharing our weights; of the VAE alone its second half."""
    ours: Any = _converted(case, dtype, device)
    if part == "text":
        return _transformers_text(case.layout.text_encoder_2, ours.text_model.state_dict())
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


def _transformers_text(layout: TextLayout, weights: Mapping[str, Tensor]) -> nn.Module:
    """What diffusers leaves texts to, sharing our weights."""
    transformers: Any = import_module("transformers")
    config = transformers.CLIPTextConfig.from_dict(text_config(layout))
    with torch.device("meta"):
        model = transformers.CLIPTextModel(config)
    network = getattr(model, "text_model", model)  # newer versions have no such module
    positions = {name: buffer.shape for name, buffer in network.named_buffers() if buffer.is_meta}
    network.load_state_dict(weights, assign=True)
    device = next(iter(weights.values())).device
    for name, shape in positions.items():
        owner, _, leaf = name.rpartition(".")
        numbers = torch.arange(shape[-1], device=device).expand(shape)
        network.get_submodule(owner).register_buffer(leaf, numbers, persistent=False)
    return model.requires_grad_(False).eval()


class _Decoder(nn.Module):
    """An autoencoder's second half, as a picture needs it; diffusers' and ours have the same parts."""

    def __init__(self, vae: nn.Module) -> None:
        super().__init__()
        self.post_quant_conv, self.decoder = cast(Any, vae).post_quant_conv, cast(Any, vae).decoder

    def forward(self, scaled: Tensor) -> Tensor:
        """Decode latents that were divided by the scaling factor."""
        return self.decoder(self.post_quant_conv(scaled))


def _openvino(case: Case, dtype: torch.dtype, device: torch.device, *, quantized: bool = False) -> Work:
    openvino = library("openvino")
    network = _Decoder(case.network) if case.part == "vae" else case.network
    inputs = _inputs(case, torch.float32, torch.device("cpu"))
    if case.part == "vae":
        inputs = (inputs[0] / case.layout.vae.scaling_factor,)
    given = [each.numpy() for each in inputs]
    model = openvino.convert_model(network, example_input=inputs)
    if quantized:
        with TemporaryDirectory() as folder:
            exact, rounded = (Path(folder, name, "network.xml") for name in ("exact", "int8"))
            save(model, exact, half=True)
            del model  # NNCF needs the memory
            round_file(exact, rounded, [given])  # read off what is about to be computed: its best case
            model = openvino.Core().read_model(rounded)
    hint = {torch.float32: "f32", torch.bfloat16: "bf16", torch.float16: "f16"}[dtype]
    compiled = openvino.compile_model(model, "CPU", {"INFERENCE_PRECISION_HINT": hint})
    return lambda: torch.from_numpy(compiled(given)[0])


def _ggml(case: Case, dtype: torch.dtype, device: torch.device, *, quantized: str | None = None) -> Work:
    levels = steps_for(NoiseSchedule(), case.settings["steps"], grid=SAMPLERS[case.settings["sampler"]].grid)
    draw = ggml.load(case, levels.sigmas, dtype, quantized=quantized)
    return lambda: _pixels(draw())


def _quantized(name: str) -> Engine:
    def prepared(case: Case, dtype: torch.dtype, device: torch.device) -> Work:
        kernels = name == "int8" and device.type == "cpu"  # of its own
        return _ours(case, dtype, device, compiled=not kernels, quantized=name)

    return Engine(prepare=prepared, copies=1, quantized=name)


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
    "diffusers-compiled": Engine(prepare=_compiled, needs=("diffusers",), copies=1),
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
"""This package as it draws, compiled, and with its matrices in eight bits; its networks as they are written;
diffusers as it is loaded, and compiled as its guide has it; our network converted by OpenVINO, and rounded to
eight bits by NNCF; stable-diffusion.cpp, and with its matrices in eight bits."""


@dataclass(frozen=True, slots=True)
class Choice:
    """An engine in a number format."""

    name: str
    dtype: torch.dtype

    def __str__(self) -> str:
        formats = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
        return f"{self.name}:{formats[self.dtype]}"


def read_choice(text: str, dtype: str | None, device: torch.device) -> Choice:
    """Read "diffusers" or "diffusers:bf16".

    Args:
        text: an engine, and perhaps a number format.
        dtype: the format where ``text`` has none; None is what the hardware is fast at.
        device: where it is to run.

    Raises:
        InputError: no such engine or format, or the machine lacks what it needs.
    """
    name, _, own = text.partition(":")
    if name not in ENGINES:
        raise unknown("engine", name, ENGINES)
    require(f"engine {name}", *ENGINES[name].needs)
    if own and own not in DTYPES:
        raise unknown("dtype", own, DTYPES)
    number = choose_dtype(own or dtype, device)
    if (quantized := ENGINES[name].quantized) is not None:
        check_quantization(quantized, device, number)
    return Choice(name, number)


def check_engine(name: str, part: str, layout: ModelLayout, device: torch.device) -> None:
    """See that an engine computes such a case.

    Raises:
        InputError: it has no such part, does not know the layout, or computes elsewhere.
    """
    engine = ENGINES[name]
    if part not in engine.parts:
        raise InputError(f"engine {name} does not do part {part} here: allowed are {', '.join(engine.parts)}")
    if engine.layouts and layout.name not in engine.layouts:
        raise InputError(
            f"engine {name} does not know the layout {layout.name}: allowed are {', '.join(engine.layouts)}"
        )
    if engine.on_cpu and device.type != "cpu":
        raise InputError(f"engine {name} computes on a CPU here, not on {device}: add --device cpu")


def needed_bytes(parameters: int, choices: Sequence[Choice]) -> int:
    """What the weights of all engines take together, ours in float32 among them."""
    formats = {choice.dtype for choice in choices} - {torch.float32}
    copies = [choice.dtype.itemsize * ENGINES[choice.name].copies for choice in choices]
    return parameters * (torch.float32.itemsize + sum(each.itemsize for each in formats) + sum(copies))


def _converted(case: Case, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """The case's network in a format and place, which all engines of that share."""
    where = (dtype, device)
    if where not in case.copies:
        case.copies[where] = deepcopy(case.network).to(device, dtype)
    return case.copies[where]


def _shell(network: nn.Module) -> nn.Module:
    """A copy whose layers may be changed; on a CPU it shares its weights, which are replaced, not changed."""
    weights = [*network.parameters(), *network.buffers()]
    shared = {id(weight): weight for weight in weights if weight.device.type == "cpu"}
    return deepcopy(network, shared)


def _inputs(case: Case, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    """Move a case's inputs to an engine's device and number format; token ids stay integers."""
    if isinstance(case.inputs, UNetInputs):
        return tuple(case.inputs.to(device, dtype))
    return tuple(each.to(device, dtype if each.is_floating_point() else each.dtype) for each in case.inputs)
