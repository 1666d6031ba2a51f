"""The server without HTTP: what may be asked for, by whom and how much, and the life of a request."""

import asyncio
import base64
import binascii
import hashlib
import logging
import math
import re
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager, nullcontext, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import torch

from ssd1b.actions.upscale import Enlarged
from ssd1b.adapters.merging import fit_advice
from ssd1b.advice import advise
from ssd1b.composing import HIRES_PROMPTS, Composed
from ssd1b.controls import Control
from ssd1b.decoding import MAX_FILE_BYTES, picture_size, read_source
from ssd1b.embeddings import MOST_EMBEDDINGS, Embedding
from ssd1b.errors import (
    ConflictError,
    FailedError,
    InputError,
    NotFoundError,
    OutOfSpaceError,
    line,
    prefix_errors,
    shown,
    unknown,
)
from ssd1b.execution import DEFAULT
from ssd1b.files import read_file
from ssd1b.image_prompts import ENCODER_FILES, ImagePrompt
from ssd1b.inputs import InputFile, files_in
from ssd1b.jobs.job import Job, environment, make_job, seeded_job
from ssd1b.jobs.queue import (
    CANCELLED,
    FAILED,
    FINISHED,
    MAX_RESTARTS,
    QUEUED,
    Image,
    Picture,
    Request,
    Search,
)
from ssd1b.jobs.worker import Worker
from ssd1b.loras import MOST, Lora
from ssd1b.model import Model
from ssd1b.numerals import byte_size
from ssd1b.pipeline import levels_of
from ssd1b.presets import PRESETS, load_preset
from ssd1b.prompts import NETWORK, unsupported
from ssd1b.runtime import choose_device, choose_dtype
from ssd1b.server.errors import DeadlineError, DrainingError, QueueFullError, QuotaError
from ssd1b.server.files import (
    DIGEST,
    KINDS,
    ControlFacts,
    Files,
    LoraFacts,
    check_picture,
    control_facts,
    embedding,
    ip_adapter_models,
    lora_facts,
)
from ssd1b.server.ledger import Ledger, Listener, left
from ssd1b.server.metrics import Metrics
from ssd1b.server.options import ServerOptions, read_keys
from ssd1b.server.scheduler import Scheduler
from ssd1b.server.schemas import FILE_SETTINGS, PICTURED, client_settings, sent
from ssd1b.server.upscaling import Upscaling
from ssd1b.server.workers import StartWorker
from ssd1b.settings import (
    DEFAULTS,
    INPUTS,
    SEED_SETTINGS,
    SEEDS,
    SETTINGS,
    GenerationSettings,
    Preset,
    Seed,
    numbered,
    random_seed,
    resolve_settings,
    with_drawn_seed,
)
from ssd1b.speed.checking import check_networks
from ssd1b.styles import Style
from ssd1b.upscalers import PIXEL_UPSCALERS
from ssd1b.validation import Text, check

log = logging.getLogger("ssd1b.server")

HOUR = 3600.0

COUNTS = {"native": "count", "openai": "n", "sdapi": "batch_size * n_iter"}
"""Names of the number of images in each dialect, for errors."""

T = TypeVar("T")

ENCODER_STEMS = frozenset(name.removesuffix(".safetensors") for name in ENCODER_FILES)
"""Names of image encoders, which are beside IP-Adapters."""

IMAGE_ID = re.compile("[0-9a-f]{32}")

DELETED_AFTER = 24 * HOUR
"""Seconds after which a deleted image is removed."""


class Service:
    """Accepts requests, and knows what became of them.

    Args:
        options: of the server.
        start: see ``Workers``.
        most: see ``Workers``.
        platform: device and number format of the workers; None for those of this machine.

    Raises:
        InputError: the device cannot be used, or the file of keys is wrong.
    """

    def __init__(
        self,
        options: ServerOptions,
        start: StartWorker = Worker,
        most: int | None = None,
        platform: tuple[torch.device, torch.dtype] | None = None,
    ) -> None:
        self.options = options
        self.keys = {} if options.api_key_file is None else read_keys(options.api_key_file)
        self.models: dict[str, Model] = {}
        self._given = options.models
        self.default = next(iter(self._given))
        """The model for clients that name none."""
        self.checkpoint = self.default
        """The same for AUTOMATIC1111's clients, which can change it."""
        self.draining = False
        self._preset = None if options.preset is None else load_preset(options.preset)
        self.metrics = Metrics()
        if platform is None:
            device = choose_device(options.device)
            platform = device, choose_dtype(options.dtype, device)
        self._environment = environment(*platform, options.execution)
        self._digests: dict[str, str] = {}
        self.files = Files(options.folder, options.folders, options.styles, options.wildcards)
        self.files.composer()  # here, so that a damaged file of styles ends the start
        self._decoding = asyncio.Lock()
        """Held while a client's picture is decoded, so that many clients take no more memory than one."""
        self._ledger = Ledger(options.folder, self.metrics, self._watched)
        self._scheduler = Scheduler(self._ledger, self.models, self.files, options, self.metrics, start, most)
        self.upscaling = Upscaling(options.device, options.max_pending, options.max_seconds)
        self._number = 0
        self._requested: dict[str, deque[tuple[float, int]]] = {}
        """When each client with a quota requested how many images, in the last hour."""

    async def start(self) -> None:
        """Open the store, find the models, and queue again what an earlier process left.

        Raises:
            InputError: a model does not exist or is damaged, or the folder is not a store.
        """
        await self._ledger.start()
        for name, given in self._given.items():
            await self._ledger.keep(partial(self._describe, name, given))
        self._number = await self._ledger.keep(self._ledger.queue.last_number)
        for request in await self._ledger.keep(partial(self._ledger.queue.unfinished, self._job)):
            await self._restore(request)
        self._scheduler.start()
        self._clock = asyncio.create_task(self._watch_clock())
        self._scheduler.workers.preload(self.default)

    def _describe(self, name: str, given: str) -> None:
        model = Model.find(given, offline=self.options.offline, prediction=self.options.prediction)
        _ = model.info, model.tokenizers  # read now, so that a damaged model ends the start
        self._digests[name] = model.digest(self._ledger.store.file_digest)
        self.models[name] = model

    async def _restore(self, request: Request) -> None:
        self._ledger.reopen(request)
        if request.model not in self.models:
            error = NotFoundError(f"the model {shown(request.model)} is not offered any more")
            await self._ledger.finish([request], FAILED, error)
        elif request.starts >= MAX_RESTARTS:
            error = FailedError(f"the server ended {request.starts} times while it generated this")
            await self._ledger.finish([request], FAILED, error)
        else:
            request.state = QUEUED

    def drain(self) -> None:
        """Accept no more requests, begin no more batches, and end the streams."""
        self.draining = True
        self._scheduler.stop()
        for request in self._ledger.open.values():
            if request.state == QUEUED:
                self._ledger.give_up(request)
        self._ledger.end_listeners()

    def hurry(self) -> None:
        """Do not wait for the batches that are being generated."""
        self._scheduler.hurry()

    async def drained(self) -> None:
        """Wait for the batches that are being generated, at most as long as the options allow."""
        await self._scheduler.drain(self.options.drain_seconds)
        for request in self._ledger.open.values():
            self._ledger.give_up(request)

    async def close(self) -> None:
        """Finish the batches that are being generated, and end. What waits is kept for the next start."""
        self.drain()
        self._clock.cancel()
        await self.drained()
        await self._scheduler.close(0)
        self.upscaling.close()
        await self._ledger.close()

    # Requests

    async def settings(
        self,
        model: str,
        prompt: str,
        preset: str | None,
        given: Mapping[str, Any],
        *,
        styles: Sequence[str] = (),
        count: int = 1,
        counted: str = "count",
    ) -> list[GenerationSettings]:
        """Complete the settings of images: given ones over the preset's over the model's.

        Args:
            model: one of ``models``.
            prompt: what to generate; may have tags of LoRAs, words of embeddings, and wildcards.
            preset: a built-in one. Others are files, and no file that a client names is opened.
            given: settings by name. Pictures are what ``receive`` returned, or texts as ``_picture_of``
                takes them. LoRAs, embeddings, controls and image prompts are tables with names, and
                the latter two with pictures.
            styles: names of styles that are put around the prompt.
            count: number of images, whose seeds are consecutive, and for each of which words are drawn.
            counted: what the client calls it.

        Returns:
            The settings of each image, whose files have no folders; see ``Files``.

        Raises:
            InputError: there is no such model, preset, style, picture or file, a setting is unknown or out
                of range, a file does not fit, or the images are beyond the server's limits.
        """
        if preset is not None and preset not in PRESETS:
            raise unknown("preset", preset, PRESETS, NotFoundError)
        self.options.check_count(count, counted)
        layers = {"seed": random_seed(), **self.defaults(model)}
        chosen = None if preset is None else PRESETS[preset]
        # First, so that an error states the limits of this server and not those of all.
        self.options.check({**DEFAULTS, **layers, **(chosen.settings if chosen else {}), **given})
        pictures: dict[str, Any] = {
            name: await self._picture_of(name, given[name]) for name in INPUTS if given.get(name) is not None
        }
        for name in PICTURED:
            if name in given:
                pictures[name] = await self._pictured(name, given[name])
        complete = partial(
            self._completed, self.model(model), prompt, layers, chosen, {**given, **pictures}, styles, count
        )
        async with self._decoding if pictures else nullcontext():
            with self.files.public():
                return await asyncio.to_thread(complete)

    def _completed(
        self,
        model: Model,
        prompt: str,
        layers: Mapping[str, Any],
        preset: Preset | None,
        given: dict[str, Any],
        styles: Sequence[str],
        count: int,
    ) -> list[GenerationSettings]:
        """Complete settings, and look into their files."""
        self._find_files(given)
        below = {**layers, **(preset.settings if preset else {}), **given}
        seed = check("seed", with_drawn_seed({"seed": below["seed"]})["seed"], Seed)
        negative, *others = (
            check(name, below.get(name), Text | None) for name in ("negative_prompt", *HIRES_PROMPTS)
        )
        hires: dict[str, str | None] = dict(zip(HIRES_PROMPTS, others, strict=True))
        composer = self.files.composer(styles)
        found: list[GenerationSettings] = []
        first: Composed | None = None
        for number in range(count):
            drawn = (seed + number) % SEEDS
            made = composer.compose(prompt, negative, drawn, given.get("embeddings") or (), hires)
            if first == made:
                found.append(numbered(found[0], number))
                continue
            settings = resolve_settings(
                made.prompt, family=model.info.family, model_defaults=layers, preset=preset,
                **{
                    **given, **made.hires, "seed": seed, "negative_prompt": made.negative,
                    **_named(given, made),
                },
            )  # fmt: skip
            self._check(settings, model)
            settings = self.files.unlocated(settings)
            first = first or made
            found.append(numbered(settings, number) if number else settings)
        return found

    def _find_files(self, given: dict[str, Any]) -> None:
        """Replace what clients send of files by the files, located."""
        for name in INPUTS:
            if isinstance(file := given.get(name), InputFile):
                given[name] = self._located(file)
        finders: Mapping[str, Callable[[Any], Any]] = {
            "loras": self._loras,
            "embeddings": self._embeddings,
            "controls": lambda each: [self.files.control(*self._with_located(one)) for one in each],
            "image_prompts": lambda each: [self.files.image_prompt(*self._with_located(one)) for one in each],
            "hires_upscaler": self.files.upscaler,
        }
        for name, find in finders.items():
            if given.get(name) is not None:
                given[name] = find(given[name])

    def advice(
        self, model: str, settings: GenerationSettings, given: Mapping[str, Any] | None = None
    ) -> list[str]:
        """Say what to expect of settings outside the recommended ranges, and of LoRAs with unknown keys.

        Nothing is said of a model that is gone.

        Args:
            model: name of the model.
            settings: of an image, whose files have no folders.
            given: what the client set, by name; None takes what differs from the defaults.
        """
        if (found := self.models.get(model)) is None:
            return []
        if given is None:
            defaults = {**DEFAULTS, **self.defaults(model)}
            values = {name: getattr(settings, name) for name in SETTINGS}
            given = {name: value for name, value in values.items() if value != defaults.get(name)}
        located = self.files.located(settings)
        return [
            *advise(located, found.layout.size, found.info.family, found.few_steps, given),
            *fit_advice(located.loras, found.layout, model),
        ]

    def _with_located(
        self, given: tuple[str, InputFile, dict[str, Any]]
    ) -> tuple[str, InputFile, dict[str, Any]]:
        name, picture, options = given
        return name, self._located(picture), options

    def _check(self, found: GenerationSettings, model: Model) -> None:
        """Check an image against the server's limits, and its files, which are located, against the model.

        Raises:
            InputError: it cannot be generated here.
        """
        for name in ("prompt", "negative_prompt", *HIRES_PROMPTS):
            if network := unsupported(getattr(found, name) or "").get(NETWORK):
                why = "not available here" if "loras" in self.files.folders else "this server has no LoRAs"
                raise InputError(f"{why}: leave {shown(network)} out of the prompt")
        for number, (run, start) in enumerate(found.passes):
            with prefix_errors("second pass") if number else nullcontext():
                self.options.check({name: getattr(run, name) for name in self.options.ranges})
                levels_of(run, start, model.info.noise_schedule)
        if found.init_image is not None:
            # Past the cache, which would keep clients' pictures in the server's memory.
            read_source.__wrapped__(found.init_image, found.mask, found.layout)
        if (found.controls or found.image_prompts) and self.options.backend != DEFAULT.backend:
            what = "controls" if found.controls else "image prompts"
            raise InputError(f"{what} are not available on this server, which uses {self.options.backend}")
        check_networks(found, model.layout)

    def _located(self, upload: InputFile) -> InputFile:
        return replace(upload, path=str(self.files.path(upload)))

    async def _pictured(self, setting: str, given: Any) -> list[tuple[str, InputFile, dict[str, Any]]]:
        """Receive the pictures of controls or image prompts: a list of tables with a name and a picture.

        Returns:
            Name of the network, picture, and further fields, for each.
        """
        named, fields = PICTURED[setting]
        most = FILE_SETTINGS[setting]["maxItems"]
        wrong = InputError(
            f"{setting} is {shown(given)}: it must be a list of objects with {named} and picture, at most "
            f"{most}"
        )
        if not isinstance(given, list | tuple) or len(given) > most:
            raise wrong
        found: list[tuple[str, InputFile, dict[str, Any]]] = []
        for each in given:
            if not isinstance(each, dict) or not isinstance(each.get(named), str):
                raise wrong
            known = _known(setting, each, fields)
            options = {name: value for name, value in known.items() if value is not None}
            name, picture = options.pop(named), options.pop("picture", None)
            if picture is None:
                raise InputError(f"{KINDS.get(setting, 'control')} {shown(name)} has no picture")
            found.append((name, await self._picture_of(f"picture of {setting}", picture), options))
        return found

    def _loras(self, given: Any) -> list[Lora]:
        """Find the LoRAs that a client names: a list of tables with ``name``, ``unet`` and ``text``.

        The last two are strengths, 1 by default; the text encoders' is by default the UNet's.
        """
        return [
            self.files.lora(each["name"], unet := each.get("unet", 1.0), each.get("text", unet))
            for each in _tables("loras", given, ("name", "unet", "text"), MOST)
        ]

    def _embeddings(self, given: Any) -> tuple[Embedding, ...]:
        """Find the embeddings that a client names: a list of tables with ``name`` and ``word``."""
        return tuple(
            embedding(
                self.files.path_of("embeddings", each["name"]), check("word", each.get("word"), Text | None)
            )
            for each in _tables("embeddings", given, ("name", "word"), MOST_EMBEDDINGS)
        )

    async def _picture_of(self, name: str, given: Any) -> InputFile:
        """Find or receive a picture.

        Args:
            name: the setting's name.
            given: a picture as ``receive`` returned it, the id of an upload or of an image of the gallery, or
                base64 with or without a prefix "data:...,".
        """
        if isinstance(given, InputFile):
            return given
        if not isinstance(given, str):
            raise InputError(f"{name} is {shown(given)}: it must be a text: base64, or the id of a picture")
        if DIGEST.fullmatch(given):
            return await self._ledger.keep(partial(self.files.touch, given))
        return await self.receive(await self.picture_data(name, given))

    async def picture_data(self, name: str, given: str) -> bytes:
        """Return the file of a picture, which is given as in ``_picture_of``; it is not decoded."""
        path: Path | None = None
        if DIGEST.fullmatch(given):
            path = self.files.path(await self.upload(given))
        elif IMAGE_ID.fullmatch(given):
            path = self.file((await self.picture(given)).key)
        if path is not None:
            return await asyncio.to_thread(read_file, path, most=MAX_FILE_BYTES)
        return await asyncio.to_thread(from_base64, name, given)

    async def receive(self, data: bytes, change: Callable[[bytes], bytes] = lambda data: data) -> InputFile:
        """Keep a picture that a client sent, for an hour or as long as an image needs it.

        Args:
            data: the file.
            change: makes of it the file that is kept.

        Raises:
            InputError: it is no picture, is damaged or too large, or the disk refused.
        """
        async with self._decoding:
            data = await asyncio.to_thread(lambda: change(check_picture(data)))
            digest = (await asyncio.to_thread(hashlib.sha256, data)).hexdigest()
        with suppress(NotFoundError):  # one that is there already is kept for longer
            return await self.upload(digest)
        size, most = await self._ledger.keep(self.files.size), self.options.max_uploads * 1e9
        if size + len(data) > most:
            self.metrics.refused.labels("uploads_full").inc()
            raise OutOfSpaceError(
                f"clients' pictures take {byte_size(size)}, and at most {byte_size(int(most))} may be kept: "
                "try again in an hour, or delete images that were made from pictures"
            )
        return await self._ledger.write(partial(self.files.keep, digest, data))

    async def size(self, upload: InputFile) -> tuple[int, int]:
        """Width and height of a picture that a client sent, in pixels."""
        async with self._decoding:
            return await asyncio.to_thread(picture_size, self._located(upload))

    async def upload(self, id: str) -> InputFile:
        """Return a picture that a client sent, by its SHA-256.

        Raises:
            NotFoundError: there is none.
        """
        return await self._ledger.keep(partial(self.files.touch, id))

    async def available(self, settings: GenerationSettings) -> tuple[dict[str, Any], list[str]]:
        """Return the settings of somebody's picture as clients send them.

        Returns:
            The settings without files that are not here, and what these were.
        """
        found, missing = client_settings(settings), list[str]()
        missing += await asyncio.to_thread(self._find_same, settings, found)
        try:
            for name in INPUTS:
                if found[name] is not None:
                    await self.upload(found[name])
        except NotFoundError:  # a mask means nothing without the picture, nor the other way round
            files = [Path(file.path).name for name in INPUTS for file in files_in(getattr(settings, name))]
            missing.append(f"pictures that are not on this server: {', '.join(files)}")
            found |= dict.fromkeys((*INPUTS, "strength"))
        for name in PICTURED:
            found[name] = []
            for each in getattr(settings, name):
                here = await asyncio.to_thread(self._same_network, each)
                try:
                    await self.upload(each.picture.sha256)
                except NotFoundError:
                    here = None
                if here is None:
                    file = each.model if isinstance(each, Control) else each.adapter
                    kind = "a control" if isinstance(each, Control) else "an image prompt"
                    missing.append(f"{kind} that is not on this server: {Path(file.path).name}")
                else:
                    found[name] += sent([here])
        return found, missing

    def _same_network(self, each: Control | ImagePrompt) -> Control | ImagePrompt | None:
        """Find the network of a control or image prompt of a picture here."""
        if isinstance(each, Control):
            return self.files.same_control(each)
        here = self.files.same_file("image_prompts", each.adapter)
        return None if here is None else replace(each, adapter=here)

    def _find_same(self, settings: GenerationSettings, found: dict[str, Any]) -> list[str]:
        """Find the LoRAs, embeddings and upscaler of a picture here, and say which there are not."""
        missing: list[str] = []
        if settings.loras:
            found["loras"] = self.files.same_loras(settings.loras)
            if not found["loras"]:
                names = ", ".join(each.name for each in settings.loras)
                missing.append(f"LoRAs that are not on this server: {names}")
        found["embeddings"] = []
        for each in settings.embeddings:
            if (here := self.files.same_file("embeddings", each.file)) is None:
                missing.append(f"an embedding that is not on this server: {Path(each.file.path).name}")
            else:
                found["embeddings"] += sent([replace(each, file=here)])
        if isinstance(upscaler := settings.hires_upscaler, InputFile):
            here = self.files.same_file("hires_upscaler", upscaler)
            found["hires_upscaler"] = None if here is None else sent(here, network=True)
            if here is None:
                missing.append(f"an upscaler that is not on this server: {Path(upscaler.path).name}")
        return missing

    async def controls(self) -> dict[str, ControlFacts | InputError]:
        """Return the description of each control network, or the error in its file, by name."""
        return await asyncio.to_thread(self._describe_controls)

    def _describe_controls(self) -> dict[str, ControlFacts | InputError]:
        models = {name: model.info for name, model in self.models.items()}
        found: dict[str, ControlFacts | InputError] = {}
        for name, (path, _) in self.files.control_paths().items():
            try:
                with self.files.public():
                    found[name] = control_facts(path, models)
            except InputError as error:
                found[name] = error
        return found

    async def loras(self) -> dict[str, LoraFacts | InputError]:
        """What is known of each LoRA of the folder, or what is wrong with it, by name."""
        return await asyncio.to_thread(self._describe_loras)

    def _describe_loras(self) -> dict[str, LoraFacts | InputError]:
        models = {name: model.info for name, model in self.models.items()}
        found: dict[str, LoraFacts | InputError] = {}
        for name, path in self.files.names("loras").items():
            try:
                with self.files.public():
                    found[name] = lora_facts(path, models)
            except InputError as error:
                found[name] = error
        return found

    async def embeddings(self) -> dict[str, Embedding | InputError]:
        """Identify each embedding of the folder by name, or say what is wrong with it."""
        return await asyncio.to_thread(self._described, "embeddings", embedding)

    async def ip_adapters(self) -> dict[str, list[str] | InputError]:
        """Name the models that each IP-Adapter fits, by its name, or say what is wrong with it."""
        models = {name: model.info for name, model in self.models.items()}
        found = await asyncio.to_thread(
            self._described, "image_prompts", lambda path: ip_adapter_models(path, models)
        )
        return {name: each for name, each in found.items() if Path(name).name not in ENCODER_STEMS}

    def styles(self) -> list[Style]:
        """Return the styles of the server's file."""
        with self.files.public():
            return [*self.files.styles().values()]

    def _described(self, setting: str, describe: Callable[[Path], T]) -> dict[str, T | InputError]:
        found: dict[str, T | InputError] = {}
        for name, path in self.files.names(setting).items():
            try:
                with self.files.public():
                    found[name] = describe(path)
            except InputError as error:
                found[name] = error
        return found

    async def submit(
        self,
        model: str,
        settings: Sequence[GenerationSettings],
        *,
        client: str = "",
        priority: int = 0,
        dialect: str = "native",
        idempotency: str | None = None,
    ) -> Request:
        """Accept a request for images.

        Images whose results are stored already are not generated again.

        Args:
            model: one of ``models``.
            settings: of each image.
            client: whom to be fair to.
            priority: see ``Request``.
            dialect: see ``Request``.
            idempotency: see ``Request``. An earlier request of the client with it is returned instead.

        Raises:
            InputError: there are too many images, the server is shutting down, or the disk refused.
        """
        if self.draining:
            raise DrainingError("the server is shutting down")
        await self._ledger.keep(partial(self.files.touch_all, settings[0]))
        if idempotency is not None and (earlier := await self._repeated(client, idempotency)):
            if _differs(earlier, model, settings):
                raise ConflictError("the idempotency key was used for another request")
            return earlier
        if client in self.keys and client not in self._requested:  # since the start of this process
            recent = await self._ledger.keep(partial(self._ledger.queue.recent, client, time.time() - HOUR))
            self._requested.setdefault(client, deque(recent))
        # Nothing is awaited between the check and the entry, so that a burst cannot pass the limit together.
        self._check_room(client, len(settings), COUNTS.get(dialect, "count"))
        self._number += 1
        images = [Image(id=uuid4().hex, job=each) for each in self._jobs(model, settings)]
        request = Request(
            id=uuid4().hex, number=self._number, client=client, model=model, images=images,
            priority=priority, dialect=dialect, idempotency=idempotency,
        )  # fmt: skip
        await self._ledger.add(request)
        self._log(request)
        self._scheduler.wake()
        return request

    def _log(self, request: Request) -> None:
        fields: dict[str, Any] = {
            "job": request.id, "client": request.client, "model": request.model,
            "images": len(request.images),
        }  # fmt: skip
        if self.options.log_prompts:
            fields["prompt"] = line(request.images[0].job.settings.prompt)
        log.info(" ".join(f"{name} {value}" for name, value in fields.items()), extra={"fields": fields})

    async def _repeated(self, client: str, idempotency: str) -> Request | None:
        id = await self._ledger.keep(partial(self._ledger.queue.repeated, client, idempotency))
        if id is not None:
            return await self.request(id)
        # After the look at the disk: one that came at the same time is not there yet.
        same = (client, idempotency)
        return next(
            (each for each in self._ledger.open.values() if (each.client, each.idempotency) == same), None
        )

    def _check_room(self, client: str, count: int, name: str) -> None:
        """Refuse images beyond the limits of the server and of the client's key."""
        try:
            self.options.check_count(count, name)
            self._check_queue(client, count, name)
        except QueueFullError:
            self.metrics.refused.labels("queue_full").inc()
            raise

    def _check_queue(self, client: str, count: int, name: str) -> None:
        waiting, most = len(self.waiting()), self.options.max_pending
        if waiting and waiting + count > most:
            message = f"{waiting} images are waiting, and at most {most} may: try again later"
            raise QueueFullError(message, self._seconds())
        if (key := self.keys.get(client)) is None:
            return
        most = min(key.max_pending, key.images_per_hour)
        if count > most:  # at no time would it be accepted
            raise InputError(f"{name} is {count}: your key allows at most {most} images at once")
        mine = len(self.waiting(client))
        if mine + count > key.max_pending:
            message = f"{mine} of your images are waiting, and at most {key.max_pending} may: try again later"
            raise QueueFullError(message, self._seconds())
        now, requested = time.time(), self._requested[client]
        while requested and requested[0][0] < now - HOUR:
            requested.popleft()
        if sum(images for _, images in requested) + count > key.images_per_hour:
            wait = requested[0][0] + HOUR - now
            raise QuotaError(f"you may request {key.images_per_hour} images in an hour", wait)
        requested.append((now, count))

    def _jobs(self, model: str, settings: Sequence[GenerationSettings]) -> list[Job]:
        """Make the jobs of images; those that differ from the first in seeds alone are not tokenized."""
        decisive: dict[str, Any] = {"fingerprint": self._digests[model], "environment": self._environment}
        first = self._job(model, settings[0])
        seeds = dict.fromkeys(SEED_SETTINGS, 0)
        return [
            seeded_job(first, each, **decisive)
            if replace(each, **seeds) == replace(settings[0], **seeds)
            else self._job(model, each)
            for each in settings
        ]

    def _job(self, model: str, settings: GenerationSettings) -> Job:
        if model not in self.models:  # an earlier process accepted it
            return Job("", model, settings, ())
        return make_job(
            model, settings, fingerprint=self._digests[model], tokenizers=self.models[model].tokenizers,
            environment=self._environment,
        )  # fmt: skip

    async def request(self, id: str) -> Request:
        """Return a request, also one that is finished.

        Raises:
            NotFoundError: there is none of that id, or it is deleted.
        """
        found = await self._ledger.load(id, self._job)
        if found is None:
            raise NotFoundError(f"there is no job {shown(id)}")
        return found

    async def recent(
        self, states: Sequence[str] = (), *, limit: int, before: int | None = None
    ) -> list[Request]:
        """Return requests, the newest first; see ``Queue.newest``."""
        load = partial(self._ledger.queue.newest, self._job, states, limit=limit, before=before)
        found = [self._ledger.current(each) for each in await self._ledger.keep(load)]
        return [each for each in found if not states or each.state in states]

    async def wait(self, request: Request) -> None:
        """Wait until a request is finished, or will not be before the next start."""
        await self._ledger.wait(request)

    async def cancel(self, request: Request) -> None:
        """Cancel a request. Its batch stops after the current step, unless it is others' batch, too.

        Raises:
            ConflictError: it is finished.
        """
        if request.state in FINISHED:
            raise ConflictError(f"the job is {request.state}")
        await self._ledger.finish([request], CANCELLED)
        self._scheduler.stop_finished()

    async def delete(self, request: Request) -> None:
        """Delete a request and its images, which are removed a day later. An unfinished one is cancelled."""
        if request.state not in FINISHED:
            await self.cancel(request)
        await self._ledger.keep(partial(self._ledger.queue.delete, request.id))

    async def move(self, request: Request, priority: int) -> None:
        """Change a request's priority.

        Raises:
            ConflictError: it is finished.
        """
        if request.state in FINISHED:
            raise ConflictError(f"the job is {request.state}")
        request.priority = priority
        await self._ledger.update([request])

    # Images

    async def pictures(
        self, search: Search, *, limit: int, before: tuple[float, str] | None = None
    ) -> list[Picture]:
        """Return finished images, the newest first; see ``Queue.pictures``."""
        load = partial(self._ledger.queue.pictures, search, limit=limit, before=before)
        return await self._ledger.keep(load)

    async def picture(self, id: str) -> Picture:
        """Return a finished image.

        Raises:
            NotFoundError: there is no such image, or its file is gone.
        """
        found = await self._ledger.keep(partial(self._ledger.queue.picture, id))
        if found is None:
            raise NotFoundError(f"there is no image {shown(id)}")
        if not self.file(found.key).is_file():
            raise NotFoundError(f"the file of the image {shown(id)} is gone")
        return found

    def file(self, key: str) -> Path:
        """The PNG of a job."""
        return self._ledger.store.picture(key)

    async def mark(self, id: str, *, favourite: bool | None = None, deleted: bool | None = None) -> Picture:
        """Change what the user says of an image; see ``Queue.mark``.

        Raises:
            NotFoundError: there is no such image.
        """
        await self.picture(id)
        await self._ledger.keep(partial(self._ledger.queue.mark, id, favourite=favourite, deleted=deleted))
        return await self.picture(id)

    async def enlarge(self, data: bytes, upscaler: Any, scale: Any = None, **options: Any) -> Enlarged:
        """Enlarge an image that a client sent; see ``Upscaling.enlarge``.

        Args:
            data: the file.
            upscaler: name of one of pixels, or of a network of the server's folder.
            scale: 1 to 16; None is that of the network.
            options: of ``Upscaler.enlarged``.
        """
        if self.draining:
            raise DrainingError("the server is shutting down")
        with self.files.public():
            by = await asyncio.to_thread(self.files.upscaler, upscaler, PIXEL_UPSCALERS)
            return await self.upscaling.enlarge(data, by, scale, **options)

    # What is going on

    def model(self, name: str) -> Model:
        """Return a model.

        Raises:
            NotFoundError: this server does not offer it.
        """
        if name not in self.models:
            raise unknown("model", name, self.models, NotFoundError)
        return self.models[name]

    def defaults(self, model: str) -> dict[str, Any]:
        """The settings of an image that a client does not set: the preset's over the model's."""
        return {**self.model(model).info.defaults, **(self._preset.settings if self._preset else {})}

    def digest(self, model: str) -> str:
        """The hash of a model's files."""
        return self._digests[model]

    def passes(self, model: str, settings: GenerationSettings) -> int:
        """Estimate the UNet passes of an image."""
        return round(self._job(model, settings).cost / (settings.width * settings.height))

    @property
    def loaded(self) -> list[str]:
        """Names of the models that are loaded."""
        return self._scheduler.workers.loaded

    def unfinished(self, client: str | None = None) -> list[Request]:
        """The requests that are queued or running, in the order of the queue.

        Args:
            client: only this client's.
        """
        found = [each for each in self._ledger.open.values() if client in (None, each.client)]
        return sorted(found, key=_order)

    def waiting(self, client: str | None = None) -> list[Image]:
        """The images without a result."""
        return left(self.unfinished(client))

    def position(self, request: Request) -> int | None:
        """How many requests are ahead of a queued one."""
        if request.state != QUEUED:
            return None
        return sum(_order(each) < _order(request) for each in self._ledger.open.values())

    def eta(self, request: Request) -> float | None:
        """Estimate the seconds until a request is done; None if it is, or while nothing was timed."""
        if request.state in FINISHED:
            return None
        ahead = [each for each in self._ledger.open.values() if _order(each) < _order(request)]
        seconds = self._scheduler.seconds_left(request, ahead)
        return None if seconds is None else round(seconds, 2)

    def _seconds(self) -> float:
        """Estimate the seconds until the queue is empty."""
        pace = self._scheduler.seconds_per_cost
        return 1.0 if pace is None else pace * sum(image.job.cost for image in self.waiting())

    def listen(
        self, request: Request | None = None, *, previews: bool = False
    ) -> AbstractAsyncContextManager[Listener]:
        """Hear of changes in requests; see ``Ledger.listen``."""
        return self._ledger.listen(request, previews=previews)

    def _watched(self) -> None:
        self._scheduler.show_previews()

    @property
    def is_healthy(self) -> bool:
        """Whether requests are still being worked on."""
        return self.draining or (self._scheduler.is_healthy and not self._clock.done())

    def measured(self) -> Metrics:
        """The metrics, with those that are read off now."""
        self.metrics.waiting.set(len(self.waiting()))
        self.metrics.running.set(self._scheduler.generating)
        self.metrics.memory.set(self._scheduler.workers.memory())
        return self.metrics

    async def _watch_clock(self) -> None:
        """Once a second, end what takes too long, unload idle models, and remove what was deleted."""
        purged = -math.inf
        while True:
            # By the monotonic clock an hour is an hour, even if the time of day is changed.
            late = time.time() - self.options.max_seconds
            if overdue := [each for each in self.unfinished() if each.created < late]:
                error = DeadlineError(f"the job took longer than {self.options.max_seconds:g} seconds")
                await self._ledger.finish(overdue, FAILED, error)
                self._scheduler.stop_finished()
            self.upscaling.end_idle()
            self._scheduler.workers.end_lost()
            if self.options.idle_minutes:
                self._scheduler.workers.end_idle(60 * self.options.idle_minutes)
            if time.monotonic() - purged > HOUR:
                purged = time.monotonic()
                await self._ledger.keep(self._purge)
            await asyncio.sleep(1)

    def _purge(self) -> None:
        for key in self._ledger.queue.purge(time.time() - DELETED_AFTER):
            self.file(key).unlink(missing_ok=True)
        self.files.purge(self._ledger.queue.inputs())


def from_base64(name: str, text: str) -> bytes:
    """Decode base64, with or without a prefix "data:...,".

    Args:
        name: what it is, for errors.
        text: the text.

    Raises:
        InputError: it is not valid.
    """
    try:
        return base64.b64decode(text.partition(",")[2] if text.startswith("data:") else text, validate=True)
    except (binascii.Error, ValueError):
        raise InputError(
            f"{name} is {shown(text)}: it is no valid base64, perhaps cut off, and no id of a picture"
        ) from None


def _named(given: Mapping[str, Any], made: Composed) -> dict[str, Any]:
    """Add the files that a prompt names to those that were given."""
    found = {"loras": made.loras, "embeddings": made.embeddings}
    return {name: (*(given.get(name) or ()), *more) for name, more in found.items() if more}


def _tables(setting: str, given: Any, fields: Sequence[str], most: int) -> list[dict[str, Any]]:
    """Check a list of tables with a name each."""
    if (
        not isinstance(given, list | tuple) or len(given) > most
        or not all(isinstance(each, dict) and isinstance(each.get("name"), str) for each in given)
    ):  # fmt: skip
        raise InputError(
            f"{setting} is {shown(given)}: it must be a list of objects with {', '.join(fields[:-1])} and "
            f"{fields[-1]}, at most {most}"
        )
    return [_known(setting, each, fields) for each in given]


def _known(setting: str, table: dict[str, Any], fields: Sequence[str]) -> dict[str, Any]:
    for key in table:
        if key not in fields:
            raise unknown(f"field of {setting}", str(key), fields)
    return table


def _order(request: Request) -> tuple[int, int]:
    return (-request.priority, request.number)


def _differs(earlier: Request, model: str, settings: Sequence[GenerationSettings]) -> bool:
    """Whether a request asks for something else. Seeds may differ: one that is not given is random."""
    before = earlier.images[0].job.settings
    return (earlier.model, len(earlier.images), replace(before, seed=0)) != (
        model, len(settings), replace(settings[0], seed=0)
    )  # fmt: skip
