"""Files of a trained adapter: kohya's names with ``ss_*`` metadata, or diffusers' names."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssd1b.adapters.matching import match
from ssd1b.adapters.names import Module, diffusers_name, kohya_name
from ssd1b.adapters.reading import open_adapter
from ssd1b.errors import FailedError, InputError
from ssd1b.finetune.layers import Trained
from ssd1b.finetune.settings import FinetuneSettings
from ssd1b.layouts import ModelLayout
from ssd1b.saving import renewing, temporary_path
from ssd1b.weights.files import is_finite, write_tensors

Adapters = Mapping[Module, Trained]

FORMATS = ("kohya", "diffusers")
"""Names of modules in files; diffusers' have no place for LoHa and LoKr."""

_KOHYA_ARGUMENTS: Mapping[str, Mapping[str, str]] = {
    "lora": {}, "dora": {"dora_wd": "True"}, "loha": {"algo": "loha"}, "lokr": {"algo": "lokr"},
}  # fmt: skip
"""kohya's ``ss_network_args`` for each kind of adapter."""

_KOHYA = {"down": "lora_down.weight", "up": "lora_up.weight", "dora": "dora_scale"}


def adapter_tensors(adapters: Adapters, layout: ModelLayout, names: str) -> dict[str, Tensor]:
    """Return the tensors of a file.

    kohya's files store alpha. diffusers' have none unless a program reads their metadata, so the scale is
    part of ``lora_B`` there.

    Args:
        adapters: of each module.
        layout: of the model.
        names: one of ``FORMATS``.
    """
    found: dict[str, Tensor] = {}
    for module, (tensors, scale) in adapters.items():
        if names == "kohya":
            name = kohya_name(module, layout)
            found |= {f"{name}.{_KOHYA.get(role, role)}": each for role, each in tensors.items()}
            rank = next(
                tensors[role].shape[0] for role in ("down", "hada_w1_b", "lokr_w2_b") if role in tensors
            )
            found[f"{name}.alpha"] = torch.tensor(scale * rank)
        else:
            name = diffusers_name(module)
            found[f"{name}.lora_A.weight"] = tensors["down"]
            found[f"{name}.lora_B.weight"] = scale * tensors["up"]
            if "dora" in tensors:
                found[f"{name}.lora_magnitude_vector"] = tensors["dora"].flatten()
    return found


def check_names(settings: FinetuneSettings, names: str) -> None:
    """Check that a file with these names can contain the adapter.

    Raises:
        InputError: it cannot, or no adapter is trained.
    """
    if names != "kohya" and settings.method != "lora":
        raise InputError(f"names (--names) is for method lora, got {settings.method}")
    if names == "diffusers" and settings.kind not in ("lora", "dora"):
        raise InputError(
            f"diffusers has no names for {settings.kind}: allowed are lora, dora; or kohya's names"
        )


def prove_saving(folder: Path, adapters: Adapters, layout: ModelLayout, names: str) -> None:
    """Write the untrained adapter, read it, match it to the model, and remove it.

    Raises:
        FailedError: the file would not fit the model.
    """
    path = temporary_path(folder).with_suffix(".partial")
    try:
        write_tensors(path, adapter_tensors(adapters, layout, names), {})
        matched = match(open_adapter(path), layout)
        if len(matched.targets) != len(adapters):
            raise FailedError(f"only {len(matched.targets)} of {len(adapters)} adapters could be read again")
    finally:
        path.unlink(missing_ok=True)


def write_adapter(
    path: Path, adapters: Adapters, layout: ModelLayout, names: str, metadata: Mapping[str, str], *,
    overwrite: bool = False,
) -> None:  # fmt: skip
    """Write a trained adapter, in float32.

    Raises:
        FailedError: it contains NaN or infinity; nothing is written.
        InputError: the file cannot be written.
    """
    tensors = adapter_tensors(adapters, layout, names)
    if broken := next((name for name, each in tensors.items() if not is_finite(each)), None):
        raise FailedError(f"{broken} is NaN or infinite: not saved; take a lower learning rate")
    with renewing(path, overwrite=overwrite) as aside:
        write_tensors(aside, tensors, metadata)


def kohya_metadata(
    settings: FinetuneSettings, model: str, family: str, pictures: int, steps: int
) -> dict[str, str]:
    """Return what other programs show of a LoRA, see ``training_metadata``."""
    alpha = settings.rank if settings.alpha is None else settings.alpha
    return {
        "ss_network_module": "networks.lora" if settings.kind in ("lora", "dora") else "lycoris.kohya",
        "ss_network_dim": str(settings.rank),
        "ss_network_alpha": str(alpha),
        "ss_network_args": json.dumps(_KOHYA_ARGUMENTS[settings.kind]),
        **training_metadata(settings, model, family, pictures, steps),
    }


def training_metadata(
    settings: FinetuneSettings, model: str, family: str, pictures: int, steps: int
) -> dict[str, str]:
    """Return how a network was trained, by sd-scripts' keys; all values are text.

    Args:
        settings: of the training.
        model: name of the model it began with.
        family: of the model.
        pictures: number of images in a pass, each as often as it is repeated.
        steps: after which the network is saved.
    """
    data, train = settings.data, settings.train
    values = {
        "ss_sd_model_name": Path(model).name,
        "ss_base_model_version": "sdxl_base_v1-0" if family == "sdxl" else family,
        "ss_v2": False,
        "ss_learning_rate": train.learning_rate,
        "ss_unet_lr": train.learning_rate,
        "ss_text_encoder_lr": (train.text_rate or train.learning_rate) if settings.text_encoders else None,
        "ss_optimizer": train.optimizer,
        "ss_max_train_steps": train.steps,
        "ss_steps": steps,
        "ss_lr_warmup_steps": train.warmup_steps,
        "ss_max_grad_norm": train.max_grad_norm,
        "ss_gradient_checkpointing": train.gradient_checkpointing,
        "ss_total_batch_size": train.batch_size,
        "ss_num_train_images": pictures,
        "ss_prior_loss_weight": settings.prior_weight if settings.prior else None,
        "ss_seed": train.seed,
        "ss_min_snr_gamma": settings.min_snr if settings.weighting == "min-snr" else None,
        "ss_debiased_estimation": settings.weighting == "debiased",
        "ss_noise_offset": settings.noise_offset or None,
        "ss_zero_terminal_snr": settings.zero_terminal_snr,
        "ss_caption_dropout_rate": data.caption_dropout,
        "ss_caption_tag_dropout_rate": data.tag_dropout,
        "ss_shuffle_caption": data.shuffle_captions,
        "ss_keep_tokens": data.keep_tokens,
        "ss_flip_aug": data.flip,
        "ss_resolution": data.size,
    }
    return {key: str(value) for key, value in values.items()}
