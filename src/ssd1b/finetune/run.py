"""A fine-tuning: data are encoded, the encoders leave memory, the UNet learns, and files are written."""

import copy
import warnings
from collections.abc import Mapping
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ssd1b.distill.run import join_processes, record_config, write_model
from ssd1b.distill.validation import make_sample_validator
from ssd1b.errors import ConflictError, FailedError, InputError
from ssd1b.finetune.layers import adapt, trained_adapters
from ssd1b.finetune.prior import Pairs, Preservation, loss_terms, weighted_error, without_adapters
from ssd1b.finetune.settings import FinetuneSettings
from ssd1b.finetune.writing import check_names, kohya_metadata, prove_saving, write_adapter
from ssd1b.model import Model
from ssd1b.models.text import Conditioning, TextEncoders
from ssd1b.models.unet import UNet
from ssd1b.models.vae import VAE
from ssd1b.runtime import choose_device
from ssd1b.saving import check_renewable, claim_folder, renewing
from ssd1b.training.batches import Batches, LatentBatch
from ssd1b.training.checkpoints import FOLDER as CHECKPOINTS
from ssd1b.training.data.batches import DataSettings, PictureBatches, open_data
from ssd1b.training.digests import digest_of_modules
from ssd1b.training.kernels import use_fast_cpu_kernels
from ssd1b.training.loop import Validate, train
from ssd1b.training.objective import Objective
from ssd1b.training.precision import computing_in, convert_frozen, training_dtype
from ssd1b.training.processes import Group, check_shares, report_lost_processes
from ssd1b.weights.files import is_finite

CONFIG_FILE, CARD = "finetune.json", "README.md"
ADAPTER = "adapter.safetensors"
_RESULTS = (ADAPTER, CARD, "model", "model.safetensors")
_VALIDATION_BATCHES = 8
_COMPILED_STEPS = 200
"""Fewest steps for which faster steps on a CPU pay for the compiler's minute."""
_RISES = 3
"""Validations in a row above the best one after which a run is said to overfit."""


def finetune(
    model: Model, settings: FinetuneSettings, out: Path, *, device: str | None = None,
    cache: Path | None = None, names: str = "kohya", metadata: bool = True, resume: bool = False,
    overwrite: bool = False,
) -> list[Path]:  # fmt: skip
    """Fine-tune a model's UNet on captioned images, and write an adapter or a model.

    Started by ``torchrun``, each process calls this with the same arguments.

    Args:
        model: to start from.
        settings: of the run.
        out: folder of the run.
        device: to train on; None for the fastest one.
        cache: folder for encoded images and captions, which several runs can share; None for ``out``.
        names: of the adapter's tensors, one of ``writing.FORMATS``.
        metadata: write kohya's ``ss_*`` metadata into the adapter.
        resume: continue the run in ``out``.
        overwrite: also replace files of another origin.

    Returns:
        The files and folders written; nothing in all processes of ``torchrun`` except the first one.

    Raises:
        InputError: the data are unusable, ``out`` contains another run, or the model is not one that
            generates from text alone.
        FailedError: the result has NaN or infinity, or cannot be saved.
    """
    check_model(model)
    check_names(settings, names)
    place = str(choose_device(device))
    group = join_processes(place, [settings.train])
    with report_lost_processes():
        check_shares(settings.train, group.count)
        group.check_shared(out)
        group.decide(partial(_begin, out, model, settings, names, resume=resume, overwrite=overwrite))
        unet, pictures = _train(model, settings, out, cache or out, group, place, names, resume=resume)
        write = partial(
            _write, out, model, settings, unet, pictures, names, metadata=metadata, overwrite=overwrite
        )
        written = group.decide(write)
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


def _begin(
    out: Path, model: Model, settings: FinetuneSettings, names: str, *, resume: bool, overwrite: bool
) -> None:
    """Write the run's configuration, or compare it with that of the run to resume."""
    for name in _RESULTS:
        check_renewable(out / name, overwrite=overwrite)
    left = (CHECKPOINTS, *_RESULTS)  # a run whose data were unusable leaves none of them
    begun = (out / CONFIG_FILE).exists() and any((out / name).exists() for name in left)
    if begun and not resume:
        raise ConflictError(
            f"{out} already contains a run: continue it with --resume, or name another folder"
        )
    if not begun:
        claim_folder(out)
    of = {"model": model.name, "commit": model.commit, "names": names, "settings": asdict(settings)}
    record_config(out / CONFIG_FILE, of, begun=begun)


def _train(
    model: Model, settings: FinetuneSettings, out: Path, cache: Path, group: Group, device: str, names: str,
    *, resume: bool,
) -> tuple[UNet, int]:  # fmt: skip
    dtype = training_dtype(device)
    text: TextEncoders | None = model.text_encoders(partial(model.network, device=device, dtype=dtype))
    vae: VAE | None = model.network("vae", device=device, dtype=torch.float32)
    assert text is not None and vae is not None

    def read(data: DataSettings, report: str) -> PictureBatches:
        return open_data(
            data, vae=vae, text=text, cache=cache / "encoded", report=out / report,
            batch_size=settings.train.batch_size, seed=settings.train.seed,
        )  # fmt: skip

    own = group.first_before_others(partial(read, settings.data, "data.json"))
    batches: Batches[Any] = own
    if settings.prior is not None:
        of_class = replace(settings.data, path=settings.prior)
        batches = Pairs(own, group.first_before_others(partial(read, of_class, "prior.json")))
    others = None
    if settings.validation is not None:
        held_out = replace(settings.data, path=settings.validation, caption_dropout=0.0)
        others = group.first_before_others(partial(read, held_out, "validation.json"))
    objective = Objective(
        text=None if settings.data.cache_captions else text, device=device, dtype=dtype,
        schedule=model.info.noise_schedule, max_weight=settings.min_snr,
        weighting=settings.weighting, noise_offset=settings.noise_offset,
    )  # fmt: skip
    prompts = None
    if settings.prior_prompts:
        # Tensors from inference mode could not take part in a training.
        embeds, pooled = text.encode(text.tokenize(settings.prior_prompts))
        prompts = Conditioning(embeds.clone(), pooled.clone())
    draw = make_sample_validator(model, settings.samples, vae, text) if settings.samples else None
    del read, vae, text  # cached data need no encoders: they leave memory before the UNet enters it

    unet: UNet = model.network("unet", device=device, dtype=torch.float32, copied=True)
    group.check_same(f"the UNet of {model.name}", partial(digest_of_modules, [unet], ""))
    if settings.method == "lora":
        adapt(unet, settings)
        convert_frozen(unet, dtype)
        group.decide(partial(prove_saving, out, trained_adapters(unet), model.layout, names))
        before = partial(_without_adapters, unet)
    else:
        before = None if prompts is None else copy.deepcopy(unet).requires_grad_(False).to(dtype)
        unet.requires_grad_(True)
    # A compiled block cannot be recomputed, and compiling takes a minute.
    compiles = settings.train.steps >= _COMPILED_STEPS and not settings.train.gradient_checkpointing
    if device == "cpu" and compiles:
        use_fast_cpu_kernels(unet, dtype)

    preservation = None if prompts is None or before is None else Preservation(prompts, before)

    def loss(module: nn.Module, batch: Any) -> dict[str, Tensor]:
        return loss_terms(objective, computing_in(dtype, module), batch, preservation, settings.prior_weight)

    checks: list[Validate] = [] if draw is None else [draw]
    if others is not None:
        checks.append(make_loss_validator(objective, others))
    trained = train(
        unet, batches, loss, settings.train, out, resume=resume, label="finetune",
        validate=_together(checks) if checks else None,
    )  # fmt: skip
    assert isinstance(trained, UNet)
    return trained, sum(map(len, own.pictures))


def _without_adapters(unet: UNet, *inputs: Tensor) -> Tensor:
    with without_adapters(unet):
        return unet(*inputs)


def make_loss_validator(objective: Objective, batches: Batches[LatentBatch]) -> Validate:
    """Return a validation of the loss with the same images, noise and timesteps each time.

    It warns once when the loss has been above its minimum three times in a row.
    """
    found: dict[int, float] = {}
    warned = False

    def validate(unet: nn.Module, step: int) -> dict[str, float]:
        nonlocal warned
        predict = computing_in(objective.dtype, unet)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            each = [
                weighted_error(predict, objective(batches[number])) for number in range(_VALIDATION_BATCHES)
            ]
        found[step] = float(sum(each)) / len(each)
        best = min(found, key=lambda step: found[step])
        if not warned and list(found).index(best) + _RISES < len(found):
            warned = True
            warnings.warn(
                f"the validation loss was lowest after step {best} and is higher since: the model overfits; "
                f"train again with --steps {best}",
                stacklevel=2,
            )
        return {"validation_loss": found[step]}

    return validate


def _together(checks: list[Validate]) -> Validate:
    def validate(unet: nn.Module, step: int) -> dict[str, float | Tensor]:
        return {name: value for check in checks for name, value in check(unet, step).items()}

    return validate


def _write(
    out: Path, model: Model, settings: FinetuneSettings, unet: UNet, pictures: int, names: str, *,
    metadata: bool, overwrite: bool,
) -> list[Path]:  # fmt: skip
    if settings.method == "lora":
        about = kohya_metadata(settings, model.name, model.info.family, pictures) if metadata else {}
        adapters = trained_adapters(unet)
        write_adapter(out / ADAPTER, adapters, model.layout, names, about, overwrite=overwrite)
        written = [out / ADAPTER]
    else:
        if broken := next((name for name, each in unet.state_dict().items() if not is_finite(each)), None):
            raise FailedError(f"{broken} is NaN or infinite: not saved; take a lower learning rate")
        made = write_model(out, unet.cpu(), model, overwrite=overwrite)
        written = [path for path in made if path is not None]
    with renewing(out / CARD, overwrite=overwrite) as aside:
        aside.write_text(card(model.name, settings, pictures, written), encoding="utf-8")
    return [*written, out / CARD]


def card(model: str, settings: FinetuneSettings, pictures: int, written: list[Path]) -> str:
    """Return a model card: what was trained, on how many images, with which settings, and how to use it."""
    use = f"--lora {ADAPTER}:1 --model {model}" if settings.method == "lora" else "--model model"
    method = f"A {settings.kind} of rank {settings.rank}" if settings.method == "lora" else "A whole UNet"
    shown = {name: value for name, value in asdict(settings).items() if name not in ("data", "validation")}
    return "\n".join([
        f"# {written[0].parent.absolute().name}", "",
        f"{method}, trained from `{model}` by ssd1b {version('ssd1b')} on {pictures} images for "
        f"{settings.train.steps} steps of {settings.train.batch_size}.", "",
        f'    ssd1b generate "..." {use}', "",
        "## Settings", "", *_rows(shown), "",
    ])  # fmt: skip


def _rows(values: Mapping[str, Any], prefix: str = "") -> list[str]:
    found: list[str] = [] if prefix else ["| setting | value |", "|---|---|"]
    for name, value in values.items():
        nested = isinstance(value, dict)
        found += _rows(value, f"{name}.") if nested else [f"| {prefix}{name} | {value} |"]
    return found
