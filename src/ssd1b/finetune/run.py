"""A fine-tuning: data are encoded, encoders that learn nothing leave memory, and the rest is trained."""

import copy
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd1b.controls import Control
from ssd1b.distill.run import MODEL_FILE, join_processes, record_config
from ssd1b.errors import ConflictError, InputError
from ssd1b.files import named
from ssd1b.finetune.controlnet import control_layout, new_controlnet, sample_controls, start_of
from ssd1b.finetune.cost import described_networks
from ssd1b.finetune.data import HELD_OUT, OF_CLASS, OWN, check_data, data_of, passes
from ssd1b.finetune.inversion import new_vectors
from ssd1b.finetune.networks import Networks, prepare
from ssd1b.finetune.prior import Pairs, Predict, Preservation, loss_terms, without_adapters
from ssd1b.finetune.results import Results, result_names
from ssd1b.finetune.settings import FinetuneSettings
from ssd1b.finetune.validation import make_drawing, make_loss_validator, together
from ssd1b.finetune.writing import check_names
from ssd1b.model import Model
from ssd1b.models.text import Conditioning, TextEncoder, TextEncoders, Tokens
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.runtime import choose_device
from ssd1b.saving import check_renewable, claim_folder
from ssd1b.training.batches import Batches, LatentBatch
from ssd1b.training.checkpoints import FOLDER as CHECKPOINTS
from ssd1b.training.data.batches import PictureBatches, encode_data, scan_data
from ssd1b.training.digests import digest_of_modules
from ssd1b.training.kernels import (
    COMPILED_STEPS,
    COMPILING,
    use_fast_cpu_kernels,
    use_fast_cpu_text_kernels,
)
from ssd1b.training.logs import FILE as LOG_FILE
from ssd1b.training.loop import Validate, train
from ssd1b.training.objective import Objective
from ssd1b.training.precision import convert_frozen, training_dtype
from ssd1b.training.processes import Group, check_shares, report_lost_processes
from ssd1b.training.records import differences
from ssd1b.weights.files import read_json

CONFIG_FILE = "finetune.json"


def finetune(
    model: Model, settings: FinetuneSettings, out: Path, *, device: str | None = None,
    cache: Path | None = None, names: str = "kohya", metadata: bool = True, resume: bool = False,
    overwrite: bool = False, notify: Callable[[str], None] = lambda message: None,
) -> list[Path]:  # fmt: skip
    """Fine-tune a model on captioned images, and write an adapter, a model, an embedding or a ControlNet.

    Started by ``torchrun``, each process calls this with the same arguments.

    Args:
        model: to start from.
        settings: of the run.
        out: folder of the run.
        device: to train on; None for the fastest one.
        cache: folder for encoded images and captions, which several runs can share; None for ``out``.
        names: of the adapter's tensors, one of ``writing.FORMATS``.
        metadata: write metadata into the adapter, the embedding or the ControlNet.
        resume: continue the run in ``out``.
        overwrite: also replace files of another origin.
        notify: called before the training with the numbers of images, steps and passes, and with a message
            if the first steps will compile.

    Returns:
        The files and folders written; nothing in all processes of ``torchrun`` except the first one.

    Raises:
        InputError: the data are unusable, ``out`` contains another run, the model is not one that generates
            from text alone, or the ControlNet to start from does not fit it.
        FailedError: the result has NaN or infinity, or cannot be saved.
    """
    check_model(model)
    check_names(settings, names)
    controls = sample_controls(settings)
    if settings.method == "controlnet":
        control_layout(model.layout, start_of(settings, model.layout))
    if settings.zero_terminal_snr:
        model = model.with_zero_snr()
    place = str(choose_device(device))
    group = join_processes(place, [settings.train])
    with report_lost_processes():
        check_shares(settings.train, group.count)
        group.check_shared(out)
        config = _config(model, settings, names)
        begun = group.decide(partial(_begin, out, settings, config, resume=resume, overwrite=overwrite))
        results = Results(out=out, model=model, names=names, metadata=metadata, overwrite=overwrite)

        def record() -> None:
            group.decide(partial(record_config, out / CONFIG_FILE, config, begun=begun))

        done = _train(results, settings, controls, cache or out, group, place, notify, record, begun=begun)
        written = group.decide(partial(results.write, *done))
        if settings.method == "full" and group.first and all(path.name != MODEL_FILE for path in written):
            notify(
                f"no {MODEL_FILE}: single files have no place for the model's vocabulary, which is not CLIP's"
            )
    return written if group.first else []


def check_model(model: Model) -> None:
    """Check that a model's UNet takes latents and text only.

    Raises:
        InputError: the UNet embeds the guidance scale, or is for inpainting.
    """
    unet = model.layout.unet
    if unet.inpaints or unet.guidance_embed_dim is not None:
        kind = "is for inpainting" if unet.inpaints else "embeds the guidance scale (LCM)"
        raise InputError(f"{model.name} {kind}: only models that generate from text can be fine-tuned")


def _config(model: Model, settings: FinetuneSettings, names: str) -> dict[str, Any]:
    """Return everything that decides a run, beside its data, as JSON has it."""
    plain = json.dumps({
        "model": model.name, "commit": model.commit, "names": names, "settings": asdict(settings),
    })  # fmt: skip
    return json.loads(plain)


def _begin(
    out: Path, settings: FinetuneSettings, config: Mapping[str, Any], *, resume: bool, overwrite: bool
) -> bool:
    """Check the run's folder; return whether it contains a run that trained, which has these settings."""
    results = result_names(settings)
    for name in results:
        check_renewable(out / name, overwrite=overwrite)
    left = (CHECKPOINTS, *results)  # a run that ended before its first checkpoint leaves none of them
    begun = (out / CONFIG_FILE).exists() and any((out / name).exists() for name in left)
    if begun and not resume:
        raise ConflictError(
            f"{out} already contains a run: continue it with --resume, or name another folder"
        )
    if not begun:
        claim_folder(out)
        return False
    recorded = read_json(out / CONFIG_FILE)
    given, there = ({**each, **each["settings"]} for each in (config, {"settings": {}, **recorded}))
    del given["settings"]
    if other := differences(given, there, f"the run in {named(out)}"):
        raise ConflictError(f"{other}: a run is continued with its own settings; or name another folder")
    return True


def _train(
    results: Results, settings: FinetuneSettings, controls: Sequence[Control], cache: Path, group: Group,
    device: str, notify: Callable[[str], None], record: Callable[[], None], *, begun: bool,
) -> tuple[FinetuneSettings, Networks, PictureBatches]:  # fmt: skip
    """Train; return also the settings with the steps that ``epochs`` are, and the data.

    What a user may have to correct is checked before weights are read and images encoded.
    """
    model, out = results.model, results.out
    prepare(described_networks(model.layout, settings), settings)
    scanned = {
        report: group.first_before_others(
            partial(
                scan_data, data, cache=cache / "encoded", report=out / report, captions=settings.captions,
                resumed=begun,
            )
        )
        for report, data in data_of(settings).items()
    }  # fmt: skip
    check_data(scanned, settings)
    dtype, learns_text = training_dtype(device), settings.learns_text
    load = partial(model.network, device=device)
    text: TextEncoders | None = model.text_encoders(
        partial(load, dtype=torch.float32, copied=True) if learns_text else partial(load, dtype=dtype)
    )
    vae: VAE | None = load("vae", dtype=torch.float32)
    assert text is not None and vae is not None
    vectors = new_vectors(text, settings) if settings.token else {}
    opened = {
        report: group.first_before_others(
            partial(
                encode_data, data, vae=vae, text=text, cache=cache / "encoded", report=out / report,
                batch_size=settings.train.batch_size, seed=settings.train.seed, words=settings.words,
            )
        )
        for report, data in scanned.items()
    }  # fmt: skip
    own, of_class, held_out = (opened.get(report) for report in (OWN, OF_CLASS, HELD_OUT))
    assert own is not None
    settings = settings.for_images(own.seen)
    batches: Batches[Any] = own if of_class is None else Pairs(own, of_class)
    objective = Objective(
        text=None if settings.data.cache_captions or learns_text else text, device=device, dtype=dtype,
        schedule=model.info.noise_schedule, max_weight=settings.min_snr,
        weighting=settings.weighting, noise_offset=settings.noise_offset,
    )  # fmt: skip
    checks: list[Validate] = []
    if settings.samples:
        checks.append(make_drawing(model, settings, vae, text, controls))
    if held_out is not None:
        keep = partial(results.keep_best, settings, own, group) if results.keeps_best(settings) else None
        checks.append(make_loss_validator(objective, held_out, out / LOG_FILE, group, keep))
    kept = text.tokenize(settings.prior_prompts) if settings.prior_prompts else []
    # Tensors from inference mode could not take part in a training.
    prompts = Conditioning(*(part.clone() for part in text.encode(kept))) if kept else None
    encoders = (text.encoder, text.encoder_2) if learns_text else None
    del vae, text  # cached data need no encoders: they leave memory before the UNet enters it

    # Weights that become int8 are read as published: the whole UNet in float32 would need four times as much.
    unet: UNet = load("unet", dtype=None if settings.int8_base else torch.float32, copied=True)
    controlnet = None
    if settings.method == "controlnet":
        controlnet = new_controlnet(model, start_of(settings, model.layout), unet, settings.train.seed)
    networks = Networks(unet, encoders, vectors, controlnet)
    group.check_same(f"the networks of {model.name}", partial(digest_of_modules, [networks], ""))
    preservation = prompts and Preservation(prompts, _before(unet, settings, dtype))
    prepare(networks, settings)
    convert_frozen(networks, dtype)
    group.decide(partial(results.prove, settings, networks))
    compiles = device == "cpu" and _speed_up(networks, settings, dtype)

    def loss(module: Any, batch: Any) -> dict[str, Tensor]:
        def encode(drawn: Tensor) -> Conditioning:
            return module.encode([Tokens(ids[drawn], weights[drawn]) for ids, weights in kept], dtype)

        alone = isinstance(batch, LatentBatch)
        encoded = module.encoded(batch, dtype) if alone else tuple(module.encoded(b, dtype) for b in batch)
        prior = replace(preservation, encode=encode) if preservation and learns_text else preservation
        predict = module.predictor(batch.controls if alone else None, dtype)
        return loss_terms(objective, predict, encoded, prior, settings.prior_weight)

    if group.first:
        notify(f"training on {passes(settings, own)}")
        if compiles:
            notify(COMPILING)
    record()
    trained = train(
        networks, batches, loss, settings.train, out, resume=begun, label="finetune",
        validate=together(checks),
    )  # fmt: skip
    assert isinstance(trained, Networks)
    return settings, trained, own


def _before(unet: UNet, settings: FinetuneSettings, dtype: torch.dtype) -> Predict:
    """Return the UNet as it was before the training: the same without its adapters, or a frozen copy."""
    if settings.method == "full":
        return copy.deepcopy(unet).requires_grad_(False).to(dtype)
    return partial(_without_adapters, unet)


def _speed_up(networks: Networks, settings: FinetuneSettings, dtype: torch.dtype) -> bool:
    """Take the kernels that are fast on a CPU; return whether blocks will be compiled."""
    for network in networks.parts.values():
        if isinstance(network, TextEncoder):
            use_fast_cpu_text_kernels(network)
    # A compiled block cannot be recomputed, and compiling takes a minute.
    if settings.train.steps < COMPILED_STEPS or settings.train.gradient_checkpointing:
        return False
    # Blocks of a ControlNet and of its UNet, with gradients and without, need more compilations than torch
    # allows.
    trained = filter(None, (networks.unet, networks.controlnet))
    compiled = networks.controlnet is None
    return any([use_fast_cpu_kernels(network, dtype, compiled=compiled) for network in trained])


def _without_adapters(unet: UNet, *inputs: Tensor) -> Tensor:
    with without_adapters(unet):
        return unet(*inputs)
