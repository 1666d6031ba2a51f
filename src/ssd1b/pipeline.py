"""The way of a prompt to a picture, all of it."""

from collections.abc import Callable, Hashable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ssd1b.batching import SHARED, batch_key, batch_limit
from ssd1b.diffusion.denoiser import Guidance, Predict, PredictPair, denoiser, guided
from ssd1b.diffusion.noise import noise_source
from ssd1b.diffusion.samplers import SAMPLERS, Step
from ssd1b.diffusion.schedule import drawn_schedule, steps_for
from ssd1b.errors import FailedError, InputError
from ssd1b.execution import DEFAULT, Execution
from ssd1b.images import Picture, to_images
from ssd1b.layouts import ModelLayout
from ssd1b.model import Model
from ssd1b.models.layers import guidance_embedding
from ssd1b.models.text import Conditioning, TextEncoders
from ssd1b.models.unet import PromptKV, UNet
from ssd1b.models.vae import VAE
from ssd1b.recipe import ModelIdentity, Recipe
from ssd1b.runtime import choose_device, choose_dtype, dtype_name
from ssd1b.settings import DEFAULT_MODEL, SEEDS, GenerationSettings, Preset, random_seed, resolve_settings
from ssd1b.speed.backends import check_execution, choose_backend, resolve_auto
from ssd1b.speed.reuse import FeatureReuse
from ssd1b.tensors import Latents
from ssd1b.threads import Threads, use_threads
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.files import first_few
from ssd1b.weights.loading import broken_tensors
from ssd1b.weights.vocabulary import calibration_prompts

CALIBRATION_STEPS = 32
"""Steps of pictures that a quantized network's ranges are read off."""

Watch = Callable[[Step], object]
"""Called after each step of a batch. An exception that it raises cancels the drawing."""


def ignore(step: Step) -> None:
    """Watch nothing."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A text-to-image model, ready to draw.

    Attributes:
        identity: which model this is, for the recipe.
        info: its layout, family, noise schedule and recommended settings.
        unet: predicts noise.
        vae: decodes latents.
        text: encodes prompts.
        device: where the networks run.
        dtype: number format that UNet and text encoders compute in.
        execution: how networks compute, beyond that.
        threads: of the CPU; see ``load``.
    """

    identity: ModelIdentity
    info: ModelInfo
    unet: UNet
    vae: VAE
    text: TextEncoders
    device: torch.device
    dtype: torch.dtype
    execution: Execution = DEFAULT
    threads: Threads = None

    @classmethod
    def load(
        cls,
        model: str = DEFAULT_MODEL,
        *,
        device: str | None = None,
        dtype: str | None = None,
        offline: bool = False,
        prediction: str | None = None,
        token: bool = True,
        paths: bool = True,
        execution: Execution = DEFAULT,
        threads: Threads = None,
        notify: Callable[[str], None] = lambda message: None,
    ) -> "Pipeline":
        """Load a model.

        Args:
            model: a name that ``ssd1b models`` lists, a folder in diffusers' format, a single safetensors
                file, or a hub id, ``owner/name`` or ``owner/name@revision``.
            device: "cpu", "cuda", "cuda:1", "mps"; None takes the fastest there is.
            dtype: "fp32", "bf16", "fp16"; None takes what the hardware is fast at.
            offline: never use the network, whatever the name.
            prediction: what the UNet predicts, "epsilon" or "v", for files that do not say it or contradict
                themselves; None believes them.
            token: send the user's token to the hub. False for a name that comes from a stranger's file.
            paths: take ``model`` for a path, where there is one. False for a name that comes from a
                stranger's file; ``hub.known_as`` says whether such a name is a known model's.
            execution: how to compute, beyond that: compiled, in eight bits, in little memory.
            threads: of the CPU: a number, or "auto" for as many as each batch keeps busy. Either sets torch's
                own number, which is the whole process's; None leaves that alone.
            notify: called with a message before steps that take minutes the first time.

        Raises:
            InputError: there is no such model, or its files are damaged or contradict each other; or the
                machine does not support ``execution``.
        """
        where = choose_device(device)
        number = choose_dtype(dtype, where)
        check_execution(execution, where, number)
        half = execution.memory == "low" or number.itemsize == 2
        found = Model.find(model, offline=offline, half=half, prediction=prediction, token=token, paths=paths)
        unet, cells = found.layout.unet, found.layout.size // found.layout.vae.factor
        execution = resolve_auto(execution, unet, where, number)
        use_threads(threads, unet, cells, cells)  # before weights are packed for so many
        backend = choose_backend(execution, where, number, notify)
        load = partial(backend.load, found)
        pipeline = cls(
            identity=found.identity, info=found.info, text=found.text_encoders(load), unet=load("unet"),
            vae=load("vae"), device=where, dtype=number, execution=execution, threads=threads,
        )  # fmt: skip
        if not backend.uncalibrated(found):
            return pipeline
        notify(f"a calibration: {CALIBRATION_STEPS} steps of pictures, once")
        return replace(pipeline, unet=backend.calibrate(found, pipeline.unet, pipeline._unet_inputs()))

    def _unet_inputs(self) -> list[tuple[Any, ...]]:
        """Draw common prompts and record the arguments of each call of the UNet."""
        inputs: list[tuple[Any, ...]] = []
        hook = self.unet.register_forward_pre_hook(lambda unet, given: inputs.append(given))
        side = min(self.layout.size, 512)
        prompts = calibration_prompts(self.layout)
        for seed, prompt in enumerate(prompts):
            steps = CALIBRATION_STEPS // len(prompts)
            for _ in self.steps([self.settings(prompt, seed=seed, steps=steps, width=side, height=side)]):
                pass
        hook.remove()
        return inputs

    @property
    def layout(self) -> ModelLayout:
        """The model's shapes."""
        return self.info.layout

    def settings(self, prompt: str, *, preset: Preset | None = None, **given: Any) -> GenerationSettings:
        """Complete the settings of a picture: what is given, over the preset, over the model's defaults.

        Raises:
            InputError: a setting is unknown or out of range.
        """
        return resolve_settings(
            prompt,
            family=self.info.family,
            model_defaults={"seed": random_seed(), **self.info.defaults},
            preset=preset,
            **given,
        )

    def generate(
        self, prompt: str, *, count: int = 1, preset: Preset | None = None, **given: Any
    ) -> list[Picture]:
        """Draw ``count`` pictures of a prompt, with consecutive seeds.

        Args:
            prompt: what to draw.
            count: how many.
            preset: settings by name, see ``ssd1b.presets``.
            **given: any field of ``GenerationSettings``: ``seed=1, steps=20, guidance_scale=9.0`` ...

        Raises:
            InputError: a setting is unknown or out of range.
        """
        first = self.settings(prompt, preset=preset, **given)
        pictures = []
        for offset in range(count):
            settings = replace(first, seed=(first.seed + offset) % SEEDS)
            pictures += self.draw([settings])
        return pictures

    def draw(self, batch: Sequence[GenerationSettings], watch: Watch = ignore) -> list[Picture]:
        """Draw a batch of pictures to the end.

        Args:
            batch: the settings of each picture; their batch keys must be equal.
            watch: for progress, previews (``preview(step.denoised)``) and cancellation.

        Raises:
            InputError: as ``steps``.
        """
        step = None
        for step in self.steps(batch):
            watch(step)
        assert step is not None
        return self.pictures(step.latents, batch)

    def steps(self, batch: Sequence[GenerationSettings]) -> Iterator[Step]:
        """Draw a batch, one ``Step`` after the other; the last one's latents are the pictures'.

        The caller may stop iterating at any step. ``draw`` iterates to the end and decodes.

        Raises:
            InputError: the pictures have different batch keys: they differ in more than seed,
                micro-conditioning and the words of their prompts.
        """
        common = batch[0]
        keys = [self.batch_key(settings) for settings in batch]
        for name, values in zip((*SHARED, "number of prompt chunks"), zip(*keys, strict=True), strict=True):
            if len(set(values)) > 1:
                raise InputError(f"pictures of one batch must have the same {name}; draw them one by one")
        sampler = SAMPLERS[common.sampler]
        noise_schedule = self.info.noise_schedule
        levels = steps_for(noise_schedule, common.steps, grid=sampler.grid, schedule=common.schedule)
        start, end = common.guidance_interval
        # A UNet that was distilled to embed the guidance scale needs no second pass.
        scale = 1.0 if self.layout.unet.guidance_embed_dim else common.guidance_scale
        guidance = Guidance(scale=scale, rescale=common.guidance_rescale, start=start, end=end)
        predict = guided(*self._predictors(batch), guidance, noise_schedule.num_train_timesteps)
        denoise = denoiser(predict, noise_schedule, levels)

        factor = self.layout.vae.factor
        use_threads(
            self.threads, self.layout.unet, common.height // factor, common.width // factor, len(batch)
        )
        seeds = [settings.seed for settings in batch]
        noise = noise_source(seeds, common.height // factor, common.width // factor, self.device)
        yield from sampler.run(denoise, noise() * levels.initial_scale, levels.sigmas, noise)

    def batch_key(self, settings: GenerationSettings) -> tuple[Hashable, ...]:
        """Give what pictures must have in common to be drawn in one batch; see ``batching.batch_key``."""
        return batch_key(settings, (self.text.tokenizer, self.text.tokenizer_2))

    def batch_limit(self, settings: GenerationSettings, limit: int) -> int:
        """Lower the number of pictures in a batch to 1 where drawing them at once would change them.

        On a CPU eight bits are scaled by the range of a whole tensor. OpenVINO's ranges are calibrated, and
        on GPUs each row has its own.
        """
        how = self.execution
        ranges = how.quantized == "int8" and how.backend != "openvino" and self.device.type == "cpu"
        return 1 if ranges else batch_limit(settings, limit)

    def pictures(self, latents: Latents, batch: Sequence[GenerationSettings]) -> list[Picture]:
        """Decode finished latents and attach to each picture the recipe it was drawn by."""
        images = self.preview(latents)
        return [
            Picture(image=image, recipe=self.recipe(settings, len(batch)))
            for image, settings in zip(images, batch, strict=True)
        ]

    def preview(self, latents: Latents) -> list[Image.Image]:
        """Decode latents, finished ones or ``Step.denoised``.

        Raises:
            InputError: the latents are no numbers because weights of the model are none.
            FloatingPointError: the latents are no numbers for another reason.
        """
        # Above 1024 x 1024 the decoder's feature maps outgrow the UNet: there it works in tiles.
        side = 64 if self.execution.memory == "low" else 128
        tile = side if max(latents.shape[-2:]) > side else None
        try:
            return to_images(self.vae.decode(latents, tile=tile))
        except FloatingPointError:
            self._blame_weights()
            raise

    def _blame_weights(self) -> None:
        networks = {"unet": self.unet, "vae": self.vae, "text_encoder": self.text.encoder,
                    "text_encoder_2": self.text.encoder_2}  # fmt: skip
        for part, network in networks.items():
            if broken := broken_tensors(network):
                what = f"{len(broken)} tensors hold NaN or infinity: {first_few(broken)}"
                raise FailedError(f"{self.identity.source}: {part}: {what}")

    def _predictors(self, batch: Sequence[GenerationSettings]) -> tuple[Predict, PredictPair]:
        """The forward pass for the prompts, and the one for negative prompts and prompts as one batch."""
        negative, positive = self._conditioning(batch)
        sizes = [[*s.original_size, *s.crop_top_left, *s.target_size] for s in batch]
        time_ids = torch.tensor(sizes, dtype=torch.float32, device=self.device)
        both = Conditioning(*(torch.cat(pair) for pair in zip(negative, positive, strict=True)))
        absent = self.info.force_zeros_for_empty_prompt and all(s.negative_prompt is None for s in batch)
        # Read when they are first needed, and never again.
        alone = cache(lambda: self.unet.cross_attention_kv(positive.embeds))
        paired = cache(
            lambda: self.unet.cross_attention_kv(both.embeds, without_text=len(batch) if absent else 0)
        )
        dim = self.layout.unet.guidance_embed_dim
        scales = None
        if dim is not None:
            scale = torch.full((len(batch),), batch[0].guidance_scale, device=self.device)
            scales = guidance_embedding(scale, dim).to(self.dtype)

        deep_features = None
        if tolerance := batch[0].feature_reuse:
            if any(self.layout.unet.levels[0].up):
                raise InputError("feature_reuse needs a UNet whose finest level reads no text: take 0")
            deep_features = FeatureReuse(tolerance)

        def forward(
            x: Tensor, timestep: float, prompts: PromptKV, pooled: Tensor, time_ids: Tensor
        ) -> Tensor:
            timesteps = torch.full((len(x),), timestep, device=x.device)
            return self.unet(x.to(self.dtype), timesteps, prompts, pooled, time_ids, scales, deep_features)

        def predict(x: Latents, timestep: float) -> Latents:
            return forward(x, timestep, alone(), positive.pooled, time_ids)

        def predict_pair(x: Latents, timestep: float) -> tuple[Latents, Latents]:
            twice = x.repeat(2, 1, 1, 1)
            first, second = forward(twice, timestep, paired(), both.pooled, time_ids.repeat(2, 1)).chunk(2)
            return first, second

        return predict, predict_pair

    def _conditioning(self, batch: Sequence[GenerationSettings]) -> tuple[Conditioning, Conditioning]:
        """Encode negative prompts and prompts, all cut into the same number of chunks."""
        prompts = [settings.prompt for settings in batch]
        negatives = [settings.negative_prompt for settings in batch]
        tokens = self.text.tokenize([*(text or "" for text in negatives), *prompts])
        # Copied, because what inference mode made cannot be changed outside of it.
        embeds, pooled = (part.to(self.dtype, copy=True) for part in self.text.encode(tokens))
        if self.info.force_zeros_for_empty_prompt:
            absent = [index for index, text in enumerate(negatives) if text is None]
            embeds[absent], pooled[absent] = 0.0, 0.0
        split = len(batch)
        return Conditioning(embeds[:split], pooled[:split]), Conditioning(embeds[split:], pooled[split:])

    def recipe(self, settings: GenerationSettings, batch_size: int = 1) -> Recipe:
        """Note down what this pipeline would draw a picture by, alone or in a batch."""
        return Recipe.of(
            settings,
            self.identity,
            dtype=dtype_name(self.dtype),
            device=self.device.type,
            batch_size=batch_size,
            computing=self.execution,
            drawn_schedule=drawn_schedule(
                self.info.noise_schedule, SAMPLERS[settings.sampler].grid, settings.schedule
            ),
        )
