"""The pipeline from a prompt to images."""

from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache, lru_cache, partial
from typing import Any, NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ssd1b.adapters.vectors import read_vectors
from ssd1b.batching import SHARED, batch_key, batch_limit, texts_of
from ssd1b.canvas import Layout, Source, put_back
from ssd1b.decoding import read_source
from ssd1b.diffusion.denoiser import Denoise, Guidance, Predict, PredictPair, denoiser, guided
from ssd1b.diffusion.inpainting import Mask, cell_mask, inpainting
from ssd1b.diffusion.noise import centred, noise_source, slerp
from ssd1b.diffusion.samplers import SAMPLERS, Step
from ssd1b.diffusion.schedule import NoiseSchedule, StepSchedule, drawn_schedule, lower_levels, steps_for
from ssd1b.diffusion.upscaling import Enlarged, covering, cut, enlarge_latents
from ssd1b.embeddings import words_of
from ssd1b.enlarging import enlarge, load_network
from ssd1b.errors import FailedError, InputError
from ssd1b.execution import DEFAULT, Execution
from ssd1b.images import Picture, to_images, to_levels, to_pixels
from ssd1b.inputs import InputFile
from ssd1b.layouts import ModelLayout
from ssd1b.model import Model
from ssd1b.models.layers import guidance_embedding
from ssd1b.models.text import Conditioning, TextEncoders, chunk_count
from ssd1b.models.unet import PromptKV, UNet
from ssd1b.models.vae import VAE
from ssd1b.numerals import counted
from ssd1b.recipe import ModelIdentity, NetworkFile, Recipe
from ssd1b.runtime import choose_device, choose_dtype, dtype_name
from ssd1b.settings import (
    DEFAULT_MODEL,
    Count,
    GenerationSettings,
    Preset,
    Start,
    numbered,
    random_seed,
    resolve_settings,
)
from ssd1b.speed.adapting import Adapting
from ssd1b.speed.backends import TorchBackend, check_execution, choose_backend, resolve_auto
from ssd1b.speed.controlling import Controlling, Guide
from ssd1b.speed.image_prompting import ImageGuide, ImagePrompting
from ssd1b.speed.reuse import FeatureReuse
from ssd1b.tensors import Latents, Pixels
from ssd1b.threads import Threads, use_threads
from ssd1b.upscalers import DEFAULT_UPSCALER, UPSCALERS
from ssd1b.validation import check
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.files import first_few
from ssd1b.weights.loading import broken_tensors
from ssd1b.weights.vocabulary import calibration_prompts

CALIBRATION_STEPS = 32
"""Denoising steps from which a quantized network's activation ranges are measured."""

_KEPT_PROMPTS = 4
"""Number of changing prompts whose keys and values are kept; for SDXL each takes about 60 MB in 16 bits."""

Texts = Sequence[tuple[str, str | None]]
"""Prompt and negative prompt of each image of a batch."""

Watch = Callable[[Step], object]
"""Called after each denoising step of a batch. An exception that it raises cancels the generation."""


def ignore(step: Step) -> None:
    """Do nothing with a step."""


def reads_half(execution: Execution, dtype: torch.dtype) -> bool:
    """Whether a model is read from its fp16 files, if it has some; see ``Model.half``."""
    return execution.memory == "low" or dtype.itemsize == 2


@dataclass(slots=True)
class _Clock:
    """The step that is being computed, from 0, on which prompts with editing depend."""

    step: int = 0


class _Original(NamedTuple):
    """The encoded pictures and masks of a batch.

    Attributes:
        latents: of the pictures; None if there are none.
        mask: where a UNet of 4 channels may change them; None is everywhere.
        beside: ``[B, 5, H/8, W/8]``, what a UNet for inpainting takes beside the noisy latents; None for
            others.
    """

    latents: Latents | None
    mask: Mask | None
    beside: Tensor | None

    def keeping(self, denoise: Denoise, noise: Latents, sigmas: Sequence[float]) -> Denoise:
        """Wrap a denoiser so that it keeps what the mask does."""
        if self.mask is None or self.latents is None:
            return denoise
        return inpainting(denoise, self.latents, noise, self.mask, sigmas)


def _source(settings: GenerationSettings) -> Source:
    assert settings.init_image is not None
    return read_source(settings.init_image, settings.mask, settings.layout)


def _kept(image: Image.Image, settings: GenerationSettings) -> Image.Image:
    """Restore what the settings' mask keeps."""
    return image if settings.init_image is None else put_back(image, _source(settings))


def levels_of(settings: GenerationSettings, start: Start, noise_schedule: NoiseSchedule) -> StepSchedule:
    """Return the noise levels of one run of the sampler.

    Args:
        settings: of the run.
        start: the part of the schedule that is run.
        noise_schedule: of the model.

    Raises:
        InputError: as ``steps_for``: the schedule has fewer levels, or a timestep is none of the model's.
    """
    found = steps_for(
        noise_schedule, start.schedule_steps, grid=SAMPLERS[settings.sampler].grid,
        schedule=settings.schedule, timesteps=settings.timestep_list,
    )  # fmt: skip
    return found.last(start.steps)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """A text-to-image model, ready to generate.

    Attributes:
        identity: identifies the model in recipes.
        info: layout, family, noise schedule and recommended settings.
        unet: predicts noise.
        vae: decodes latents.
        text: encodes prompts.
        device: device of the networks.
        dtype: number format of UNet and text encoders.
        execution: execution options.
        threads: number of CPU threads; see ``load``.
        adapting: merges adapters into the networks; None for networks that no file holds.
        controlling: loads networks that follow pictures; None if the backend cannot use them.
        image_prompting: reads pictures with IP-Adapters; None if the backend cannot use them.
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
    adapting: Adapting | None = None
    controlling: Controlling | None = None
    image_prompting: ImagePrompting | None = None

    @classmethod
    def load(
        cls,
        model: str | Model = DEFAULT_MODEL,
        *,
        device: str | None = None,
        dtype: str | None = None,
        offline: bool = False,
        prediction: str | None = None,
        token: bool = True,
        paths: bool = True,
        networks: Mapping[str, str] | Sequence[NetworkFile] = (),
        execution: Execution = DEFAULT,
        threads: Threads = None,
        notify: Callable[[str], None] = lambda message: None,
    ) -> "Pipeline":
        """Load a model.

        Args:
            model: a name that ``ssd1b models`` lists, a folder in diffusers' format, a single safetensors
                file, or a hub id, ``owner/name`` or ``owner/name@revision``; or one that was found already,
                for which the other arguments that find it are not used.
            device: "cpu", "cuda", "cuda:1", "mps"; None is the accelerator, or else the CPU.
            dtype: "fp32", "bf16", "fp16"; None is the fastest on the device.
            offline: never use the network.
            prediction: what the UNet predicts, "epsilon" or "v", if the files do not state it or contradict
                themselves; None follows the files.
            token: send the user's token to the hub. False for a name from an untrusted file.
            paths: allow ``model`` to be a path. False for a name from an untrusted file; ``hub.known_source``
                tells whether such a name is a known model's.
            networks: files with networks that replace the model's own, in Python as
                ``{"vae": "sdxl_vae.safetensors"}``; the names are those of ``recipe.NETWORKS``.
            execution: execution options: compilation, quantization, memory mode.
            threads: number of CPU threads, or "auto" to choose it for each batch. Both change torch's
                setting for the whole process; None leaves it unchanged.
            notify: called with a message before work that takes minutes the first time.

        Raises:
            InputError: the model does not exist, its files are damaged or contradict each other, or the
                machine does not support ``execution``.
        """
        target = choose_device(device)
        number_format = choose_dtype(dtype, target)
        check_execution(execution, target, number_format)
        half = reads_half(execution, number_format)
        if isinstance(networks, Mapping):
            networks = [NetworkFile.of(network, path) for network, path in networks.items()]
        found = model if isinstance(model, Model) else Model.find(
            model, offline=offline, half=half, prediction=prediction, token=token, paths=paths,
            networks=networks,
        )  # fmt: skip
        unet, side = found.layout.unet, found.layout.size // found.layout.vae.factor
        execution = resolve_auto(execution, unet, target, number_format)
        use_threads(threads, unet, side, side)  # before weights are packed for that number
        backend = choose_backend(execution, target, number_format, notify)
        load = partial(backend.load, found)
        text, unet_network = found.text_encoders(load), load("unet")
        loaded = {"unet": unet_network, "text_encoder": text.encoder, "text_encoder_2": text.encoder_2}
        adapting = Adapting(model=found, backend=backend, networks=loaded)
        controlling, image_prompting = None, None
        if isinstance(backend, TorchBackend):
            base = found.checkpoint.part("unet").tensors
            controlling = Controlling(backend=backend, layout=found.layout, base=base)
            image_prompting = ImagePrompting(backend=backend, unet=unet)
        pipeline = cls(
            identity=found.identity, info=found.info, text=text, unet=unet_network, vae=load("vae"),
            device=target, dtype=number_format, execution=execution, threads=threads, adapting=adapting,
            controlling=controlling, image_prompting=image_prompting,
        )  # fmt: skip
        if not backend.needs_calibration(found):
            return pipeline
        notify(f"calibrating int8 on {CALIBRATION_STEPS} denoising steps (only once)")
        loaded["unet"] = backend.calibrate(found, pipeline.unet, pipeline._unet_inputs())
        return replace(pipeline, unet=loaded["unet"])

    def _unet_inputs(self) -> list[tuple[Any, ...]]:
        """Generate images for the calibration prompts and record the arguments of each call of the UNet."""
        inputs: list[tuple[Any, ...]] = []
        hook = self.unet.register_forward_pre_hook(lambda unet, arguments: inputs.append(arguments))
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
        """The layouts of the networks."""
        return self.info.layout

    def settings(self, prompt: str, *, preset: Preset | None = None, **overrides: Any) -> GenerationSettings:
        """Complete the settings of an image: ``overrides``, then the preset, then the model's defaults.

        Raises:
            InputError: a setting is unknown or out of range.
        """
        return resolve_settings(
            prompt,
            family=self.info.family,
            model_defaults={"seed": random_seed(), **self.info.defaults},
            preset=preset,
            **overrides,
        )

    def generate(
        self, prompt: str, *, count: int = 1, preset: Preset | None = None, **overrides: Any
    ) -> list[Picture]:
        """Generate images for a prompt, with consecutive seeds or variation seeds.

        Args:
            prompt: the prompt.
            count: number of images.
            preset: named settings, see ``ssd1b.presets``.
            **overrides: any field of ``GenerationSettings``: ``seed=1, steps=20, guidance_scale=9.0`` ...

        Raises:
            InputError: a setting is unknown or out of range.
        """
        count = check("count", count, Count)
        first = self.settings(prompt, preset=preset, **overrides)
        pictures: list[Picture] = []
        for number in range(count):
            pictures += self.draw([numbered(first, number)])
        return pictures

    def draw(self, batch: Sequence[GenerationSettings], watch: Watch = ignore) -> list[Picture]:
        """Generate a batch of images.

        Args:
            batch: the settings of each image; their batch keys must be equal.
            watch: called after each step, for progress, previews (``preview(step.denoised)``) and
                cancellation.

        Raises:
            InputError: see ``steps``.
        """
        step = None
        for step in self.steps(batch):
            watch(step)
        assert step is not None
        return self.pictures(step.latents, batch)

    def steps(self, batch: Sequence[GenerationSettings]) -> Iterator[Step]:
        """Denoise a batch, yielding after each step; the last step has the final latents.

        The caller may stop iterating at any step. ``draw`` iterates to the end and decodes.

        Raises:
            InputError: the batch keys differ: images of a batch may differ only in seed, picture, mask,
                micro-conditioning and the words of their prompts. Or a picture or mask is gone, has changed,
                or cannot be read; see ``decoding.read_source``.
        """
        common = batch[0]
        keys = [self.batch_key(settings) for settings in batch]
        for name, values in zip((*SHARED, "number of prompt chunks"), zip(*keys, strict=True), strict=True):
            if len(set(values)) > 1:
                raise InputError(f"images of one batch must have the same {name}: generate them one by one")
        self._use_loras(common)
        latents, done = None, 0
        for turn in zip(*(settings.passes for settings in batch), strict=True):
            run, start = [each.settings for each in turn], turn[0].start
            if latents is not None:
                latents = self._enlarged(latents, common)
            step = None
            for step in self._denoise(run, start, latents):
                yield replace(step, index=done + step.index)
            assert step is not None
            latents, done = step.latents, done + start.steps

    def _denoise(
        self, batch: Sequence[GenerationSettings], start: Start, before: Latents | None
    ) -> Iterator[Step]:
        """Run the sampler once.

        Args:
            batch: the settings of each image.
            start: the part of the schedule that is run.
            before: what an earlier pass made, at the size of this one.
        """
        common = batch[0]
        sampler = SAMPLERS[common.sampler]
        noise_schedule = self.info.noise_schedule
        levels = levels_of(common, start, noise_schedule)
        begin, end = common.guidance_interval
        # A UNet that embeds the guidance scale (guidance distillation) needs no second pass.
        scale = 1.0 if self.layout.unet.guidance_embed_dim else common.guidance_scale
        guidance = Guidance(scale=scale, rescale=common.guidance_rescale, start=begin, end=end)
        factor = self.layout.vae.factor
        size = (common.height // factor, common.width // factor)
        use_threads(self.threads, self.layout.unet, *size, len(batch))
        noise = noise_source([settings.seed for settings in batch], *size, self.device)
        first = self._chosen(noise(), batch)
        original = self._original(batch, before, first)
        guide = self._guide(common, levels.timesteps)
        pictures = self._image_guide(common, start.steps)
        clock = _Clock()
        predictors = self._predictors(batch, original, guide, pictures, clock)
        predict = guided(*predictors, guidance, noise_schedule.num_train_timesteps)
        denoise = denoiser(predict, noise_schedule, levels)
        latents = first * levels.initial_scale
        if original is not None and original.latents is not None:
            if not start.from_noise:
                latents = original.latents + levels.sigmas[0] * first
            if not self.layout.unet.inpaints:
                denoise = original.keeping(denoise, first, levels.sigmas)
        more = {"lower": lower_levels(noise_schedule, levels, common.gamma)} if sampler.gamma else {}
        for step in sampler.run(denoise, latents, levels.sigmas, noise, **more):
            clock.step = step.index + 1
            yield step

    def _chosen(self, noise: Latents, batch: Sequence[GenerationSettings]) -> Latents:
        """Turn each image's noise towards that of its variation seed, and take it from another size."""
        return torch.cat([self._varied(*each) for each in zip(noise.split(1), batch, strict=True)])

    def _varied(self, own: Latents, settings: GenerationSettings) -> Latents:
        sides = (settings.seed_resize_height or settings.height, settings.seed_resize_width or settings.width)
        height, width = (side // self.layout.vae.factor for side in sides)

        def of(seed: int) -> Latents:
            return noise_source([seed], height, width, self.device)()

        resized = own.shape[2:] != (height, width)
        noise = of(settings.seed) if resized else own
        if share := settings.variation_strength:
            noise = slerp(noise, of(settings.variation_seed), torch.tensor([share]))
        return centred(noise, own) if resized else noise

    def _enlarged(self, latents: Latents, settings: GenerationSettings) -> Enlarged:
        """Enlarge the latents of the first pass to the size of the second, for the hires fix."""
        factor = self.layout.vae.factor
        upscaler = settings.hires_upscaler or DEFAULT_UPSCALER
        width, height = settings.final_size
        cells = (height // factor, width // factor)
        cover = covering((latents.shape[2], latents.shape[3]), cells)
        if isinstance(upscaler, str) and UPSCALERS[upscaler].latent:
            return cut(enlarge_latents(latents, cover, UPSCALERS[upscaler]), cells)
        by = load_network(upscaler, self.device) if isinstance(upscaler, InputFile) else upscaler
        images = [
            enlarge(image, (cover[1] * factor, cover[0] * factor), by) for image in self.preview(latents)
        ]
        return cut(torch.cat([self._encode(to_pixels(image)) for image in images]), cells)

    def _use_loras(self, settings: GenerationSettings) -> None:
        """Merge the adapters of a batch.

        Raises:
            InputError: see ``Adapting.use``; or the networks are no model's.
        """
        if self.adapting is not None:
            self.adapting.use(settings.loras)
        elif settings.loras:
            raise InputError("loras need a model that was loaded from files: omit them")

    def _guide(self, settings: GenerationSettings, timesteps: Sequence[float]) -> Guide | None:
        """Load the networks that follow pictures, and let them read these.

        Raises:
            InputError: see ``Controlling.guide``; or the backend cannot use them.
        """
        if not settings.controls:
            return None
        if self.controlling is None:
            raise InputError("controls need a model from files and backend torch: omit --backend openvino")
        fitting = Layout(settings.width, settings.height, settings.resize_mode)
        return self.controlling.guide(settings.controls, fitting, timesteps)

    def _image_guide(self, settings: GenerationSettings, steps: int) -> ImageGuide | None:
        """Let IP-Adapters read the pictures of image prompts.

        Raises:
            InputError: see ``ImagePrompting.guide``; or the backend cannot use them.
        """
        if not settings.image_prompts:
            return None
        if self.image_prompting is None:
            raise InputError(
                "image prompts need a model from files and backend torch: omit --backend openvino"
            )
        return self.image_prompting.guide(settings.image_prompts, steps)

    def batch_key(self, settings: GenerationSettings) -> tuple[Hashable, ...]:
        """Return what images of one batch must have in common; see ``batching.batch_key``."""
        return batch_key(settings, (self.text.tokenizer, self.text.tokenizer_2))

    def batch_limit(self, settings: GenerationSettings, limit: int) -> int:
        """Return the largest batch size up to ``limit`` that does not change the images.

        It is 1 for int8 on a CPU, whose scale depends on the range of the whole batch. OpenVINO's ranges are
        calibrated, and GPUs scale each row separately.
        """
        int8 = self.execution.quantized == "int8" and self.execution.backend != "openvino"
        return 1 if int8 and self.device.type == "cpu" else batch_limit(settings, limit)

    def pictures(self, latents: Latents, batch: Sequence[GenerationSettings]) -> list[Picture]:
        """Decode final latents, and attach to each image the recipe that reproduces it.

        What a mask keeps is copied from the picture, whose pixels decoding would change.
        """
        images = self.preview(latents)
        return [
            Picture(image=_kept(image, settings), recipe=self.recipe(settings, len(batch)))
            for image, settings in zip(images, batch, strict=True)
        ]

    def preview(self, latents: Latents) -> list[Image.Image]:
        """Decode latents, final ones or ``Step.denoised``.

        Raises:
            InputError: the latents contain NaN or infinity because weights of the model do.
            FloatingPointError: the latents contain NaN or infinity for another reason.
        """
        try:
            return to_images(self.vae.decode(latents, tile=self._tile))
        except FloatingPointError:
            self._check_weights()
            raise

    @property
    def _tile(self) -> int:
        """Side in latent cells of the VAE's tiles; beyond it, feature maps take more memory than the UNet."""
        return 64 if self.execution.memory == "low" else 128

    def _original(
        self, batch: Sequence[GenerationSettings], before: Latents | None, noise: Latents
    ) -> "_Original | None":
        """Encode the pictures that a batch starts from, and what else a UNet for inpainting takes.

        Args:
            batch: the settings of each image.
            before: latents to start from if there are no pictures.
            noise: the first noise of each image, with which a mask's content may be replaced.

        Returns:
            None without pictures and latents, if the UNet needs none.
        """
        inpaints = self.layout.unet.inpaints
        if batch[0].init_image is None:
            beside = self._nothing_kept(batch) if inpaints else None
            return None if before is beside is None else _Original(before, None, beside)
        sources = [_source(settings) for settings in batch]
        pixels = [to_pixels(source.picture) for source in sources]
        latents = torch.cat([self._encode(each) for each in pixels])
        if not inpaints and all(source.mask is None for source in sources):
            return _Original(latents, None, None)
        levels = torch.cat([to_levels(source.mask, source.picture.size) for source in sources]).to(
            self.device
        )
        factor = self.layout.vae.factor
        if batch[0].mask_content in ("noise", "nothing"):
            content = noise if batch[0].mask_content == "noise" else torch.zeros_like(noise)
            latents = torch.where(cell_mask(levels, factor) >= 0.5, content, latents)
        if not inpaints:
            return _Original(latents, cell_mask(levels, factor), None)
        hidden = (levels >= 0.5).float()
        masked = [each.to(self.device) * (1 - mask) for each, mask in zip(pixels, hidden, strict=True)]
        masked_latents = torch.cat([self._encode(each) for each in masked])
        return _Original(latents, None, torch.cat([cell_mask(hidden, factor), masked_latents], dim=1))

    def _nothing_kept(self, batch: Sequence[GenerationSettings]) -> Tensor:
        """Make the mask and picture with which a UNet for inpainting generates from text: all hidden."""
        height, width = batch[0].height, batch[0].width
        masked = self._encode(torch.zeros(1, 3, height, width))
        return torch.cat([torch.ones_like(masked[:, :1]), masked], dim=1).expand(len(batch), -1, -1, -1)

    def _encode(self, pixels: Pixels) -> Latents:
        try:
            return self.vae.encode_mean(pixels.to(self.device), tile=self._tile)
        except FloatingPointError:
            self._check_weights()
            raise

    def _check_weights(self) -> None:
        networks = {"unet": self.unet, "vae": self.vae, "text_encoder": self.text.encoder,
                    "text_encoder_2": self.text.encoder_2}  # fmt: skip
        for part, network in networks.items():
            if broken := broken_tensors(network):
                what = f"NaN or infinity in {counted(len(broken), 'tensor')}: {first_few(broken)}"
                raise FailedError(f"{self.identity.source}: {part}: {what}")

    def _predictors(
        self,
        batch: Sequence[GenerationSettings],
        original: "_Original | None",
        guide: Guide | None,
        pictures: ImageGuide | None,
        clock: _Clock,
    ) -> tuple[Predict, PredictPair]:
        """Make the forward pass for the prompts, and the one for negative prompts and prompts together.

        Those of each step are encoded when it begins, if they differ from the last ones.
        """
        schedules = [settings.prompts() for settings in batch]
        make = lru_cache(maxsize=_KEPT_PROMPTS)(
            partial(self._predictors_of, batch, original, guide, pictures, clock)
        )

        def current() -> tuple[Predict, PredictPair]:
            return make(tuple(prompts[min(clock.step, len(prompts) - 1)] for prompts in schedules))

        return lambda x, timestep: current()[0](x, timestep), lambda x, timestep: current()[1](x, timestep)

    def _predictors_of(
        self,
        batch: Sequence[GenerationSettings],
        original: "_Original | None",
        guide: Guide | None,
        pictures: ImageGuide | None,
        clock: _Clock,
        texts: Texts,
    ) -> tuple[Predict, PredictPair]:
        """Make the forward passes for a prompt and negative prompt of each image."""
        negative, positive = self._conditioning(texts, batch)
        pair = Conditioning(*(torch.cat(parts) for parts in zip(negative, positive, strict=True)))
        # Without text there is nothing to attend to, except pictures.
        unconditional = (
            self.info.force_zeros_for_empty_prompt
            and pictures is None
            and all(text is None for _, text in texts)
        )
        # Computed by the first step that needs them, for all steps.
        prompt_kv = cache(lambda: self.unet.cross_attention_kv(positive.embeds))
        pair_kv = cache(
            lambda: self.unet.cross_attention_kv(pair.embeds, without_text=len(batch) if unconditional else 0)
        )
        sizes = [[*s.original_size, *s.crop_top_left, *s.target_size] for s in batch]
        time_ids = torch.tensor(sizes, dtype=torch.float32, device=self.device)
        guidance_embeds = self._guidance_embeds(batch)
        deep_features = self._feature_reuse(batch[0].feature_reuse)
        beside = None if original is None else original.beside

        def forward(x: Tensor, timestep: float, prompts: PromptKV, pooled: Tensor) -> Tensor:
            timesteps = torch.full((len(x),), timestep, device=x.device)
            copies = len(x) // len(batch)
            ids = time_ids.repeat(copies, 1)
            extra: list[Any] = [guidance_embeds, deep_features]
            if guide is not None:
                extra.append(guide(x.to(self.dtype), timesteps, prompts, pooled, ids, pair=copies == 2))
            if pictures is not None:
                prompts = pictures(prompts, clock.step, len(batch), pair=copies == 2)
            if beside is not None:
                x = torch.cat([x, beside.repeat(copies, 1, 1, 1)], dim=1)
            return self.unet(x.to(self.dtype), timesteps, prompts, pooled, ids, *extra)

        def predict(x: Latents, timestep: float) -> Latents:
            return forward(x, timestep, prompt_kv(), positive.pooled)

        def predict_pair(x: Latents, timestep: float) -> tuple[Latents, Latents]:
            first, second = forward(x.repeat(2, 1, 1, 1), timestep, pair_kv(), pair.pooled).chunk(2)
            return first, second

        return predict, predict_pair

    def _guidance_embeds(self, batch: Sequence[GenerationSettings]) -> Tensor | None:
        """Embed the guidance scale, for layouts that take it as an input."""
        dim = self.layout.unet.guidance_embed_dim
        if dim is None:
            return None
        scales = torch.full((len(batch),), batch[0].guidance_scale, device=self.device)
        return guidance_embedding(scales, dim).to(self.dtype)

    def _feature_reuse(self, tolerance: float) -> FeatureReuse | None:
        """Make the cache of deep features, if the settings ask for one."""
        if tolerance and any(self.layout.unet.levels[0].up):
            raise InputError(
                "feature_reuse needs a UNet without cross-attention in its finest level: set it to 0"
            )
        return FeatureReuse(tolerance) if tolerance else None

    def _conditioning(
        self, texts: Texts, batch: Sequence[GenerationSettings]
    ) -> tuple[Conditioning, Conditioning]:
        """Encode negative prompts and prompts, padded to the most chunks that any step of the batch needs."""
        prompts, negatives = [text for text, _ in texts], [text for _, text in texts]
        embeddings = batch[0].embeddings
        words = words_of(embeddings)
        chunks = max(
            chunk_count((self.text.tokenizer, self.text.tokenizer_2), texts_of(settings), words)
            for settings in batch
        )
        tokens = self.text.tokenize([*(text or "" for text in negatives), *prompts], words, chunks)
        vectors = read_vectors(embeddings, self.layout) if embeddings else (None, None)
        # A copy, because tensors made in inference mode cannot be modified outside it.
        embeds, pooled = (part.to(self.dtype, copy=True) for part in self.text.encode(tokens, vectors))
        if self.info.force_zeros_for_empty_prompt:
            absent = [index for index, text in enumerate(negatives) if text is None]
            embeds[absent], pooled[absent] = 0.0, 0.0
        split = len(batch)
        return Conditioning(embeds[:split], pooled[:split]), Conditioning(embeds[split:], pooled[split:])

    def recipe(self, settings: GenerationSettings, batch_size: int = 1) -> Recipe:
        """Make the recipe of an image that this pipeline generates in a batch of ``batch_size``."""
        return Recipe.of(
            settings,
            self.identity,
            dtype=dtype_name(self.dtype),
            device=self.device.type,
            batch_size=batch_size,
            computing=self.execution,
            drawn_schedule=None
            if settings.timesteps is not None
            else drawn_schedule(self.info.noise_schedule, SAMPLERS[settings.sampler].grid, settings.schedule),
        )
