"""Settings of a fine-tuning: defaults of the method, a preset, a TOML file, and options over them."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ssd1b.embeddings import MOST_VECTORS, Word, Words
from ssd1b.errors import InputError, shown, unknown
from ssd1b.finetune.presets import PRESETS, TABLES, nested
from ssd1b.inputs import SUFFIX
from ssd1b.table_files import read_table
from ssd1b.training.data.batches import DataSettings
from ssd1b.training.data.sources import EDGES
from ssd1b.training.objective import WEIGHTINGS
from ssd1b.training.settings import LoopSettings
from ssd1b.validation import Flag, Items, Name, OneOf, Range, parse, validated

KINDS = ("lora", "dora", "loha", "lokr")
"""Kinds of adapters that can be trained; see ``layers.py``."""

TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": (".to_q", ".to_k", ".to_v", ".to_out.0"),
    "transformer": (
        ".to_q",
        ".to_k",
        ".to_v",
        ".to_out.0",
        ".ff.net.0.proj",
        ".ff.net.2",
        ".proj_in",
        ".proj_out",
    ),
    "all": ("",),
}
"""Modules of the UNet that get an adapter, by the ends of their names: diffusers' default, kohya's default,
and also the convolutions and the linear layers outside of the transformers."""

_TEXT_ATTENTION = (".q_proj", ".k_proj", ".v_proj", ".out_proj")
TEXT_TARGETS: Mapping[str, tuple[str, ...]] = {
    "attention": _TEXT_ATTENTION,
    "transformer": (*_TEXT_ATTENTION, ".fc1", ".fc2"),
    "all": (*_TEXT_ATTENTION, ".fc1", ".fc2"),
}
"""Modules of a text encoder that get an adapter, as ``TARGETS``: diffusers' default, and kohya's."""

TEMPLATES: Mapping[str, tuple[str, ...]] = {
    "subject": (
        "a photo of {}", "a photo of one {}", "a close-up of {}", "a picture of {}, seen from the front",
        "a picture of {} in its surroundings", "a bright photo of {}", "a dark photo of {}",
        "a detailed photo of {}", "a plain picture that shows {}", "{}",
    ),
    "style": (
        "a picture in the style of {}", "a painting in the style of {}", "a drawing in the style of {}",
        "a scene in the style of {}", "a portrait in the style of {}", "a landscape in the style of {}",
        "a detailed work in the style of {}", "in the style of {}",
    ),
}  # fmt: skip
"""Captions with the new word for images that have none (2208.01618, section 3.2 has the idea)."""

_TRAIN: Mapping[str, Mapping[str, Any]] = {
    # diffusers' train_text_to_image_lora_sdxl.py: 1e-4, constant.
    "lora": {"train.learning_rate": 1e-4},
    # SSD-1B's model card: 1e-6.
    "full": {"train.learning_rate": 1e-6},
    # diffusers' README_sdxl.md of textual inversion: 5e-4. A decay would pull the vectors to zero. Only
    # captions teach the word.
    "textual-inversion": {
        "train.learning_rate": 5e-4,
        "train.weight_decay": 0.0,
        "data.cache_captions": False,
        "data.caption_dropout": 0.0,
    },
    # diffusers' README_sdxl.md of ControlNet: 1e-5.
    "controlnet": {"train.learning_rate": 1e-5},
}
_COMMON = {
    "train.steps": 1000,
    "train.batch_size": 1,
    "train.warmup_steps": 0,
    "train.decay_steps": 0,
    "train.betas": (0.9, 0.999),
    "train.ema_decay": 0.0,
    "train.validation_steps": 100,
}

OF_METHOD: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(("kind", "rank", "alpha", "rslora", "targets", "blocks"), ("lora",)),
    **dict.fromkeys(("text_encoders", "train.text_rate"), ("lora", "full")),
    **dict.fromkeys(("prior", "prior_prompts", "prior_weight"), ("lora", "full")),
    **dict.fromkeys(("token", "vectors", "init_word", "template"), ("textual-inversion",)),
    **dict.fromkeys(("init_control", "sample_controls"), ("controlnet",)),
    **dict.fromkeys(("data.controls", "data.control_column"), ("controlnet",)),
    **dict.fromkeys(("train.muon_rate", "train.muon_decay"), ("full", "controlnet")),
    "int8_base": ("lora", "textual-inversion", "controlnet"),
    "train.fsdp": ("full",),
    "data.trigger": ("lora", "full", "textual-inversion"),
}
"""Methods that a setting has an effect with; settings that are not listed have one with all methods."""

NEEDED: Mapping[str, tuple[str, Callable[["FinetuneSettings"], object]]] = {
    "prior_weight": (
        "prior (--prior) or prior_prompts (--prior-prompt)", lambda made: made.prior or made.prior_prompts
    ),
    "min_snr": ("weighting min-snr (--weighting)", lambda made: made.weighting == "min-snr"),
    "train.text_rate": ("text_encoders (--text-encoders)", lambda made: made.text_encoders),
    "train.muon_decay": ("muon_rate", lambda made: made.train.muon_rate),
    "train.betas": ("optimizer adamw or adamw-8bit", lambda made: made.train.optimizer != "adafactor"),
    "train.decay": ("decay_steps or decay_share", lambda made: made.train.decay_steps),
    "train.validation_steps": (
        "validation (--validation) or samples (--sample)", lambda made: made.validation or made.samples
    ),
    "data.unmasked_weight": (
        "masks (--masks)", lambda made: any(each.masks for each in made.data.all_sources)
    ),
    "data.caption_variants": (
        "shuffle_captions or tag_dropout, and cache_captions",
        lambda made: made.data.variation and made.data.cache_captions,
    ),
}  # fmt: skip
"""Conditions under which each setting has an effect."""

_REPLACED = {"train.steps": "epochs", "data.path": "data.sources", "data.sources": "data.path"}
"""Settings that replace another one of a lower layer."""


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneSettings:
    """Settings of a fine-tuning.

    Attributes:
        method: "lora" trains an adapter of the UNet, "full" all of the UNet, "textual-inversion" the vectors
            of a new word, and nothing else, "controlnet" a ControlNet beside the frozen UNet.
        kind: of the adapter, one of ``KINDS``.
        rank: of the adapter's products.
        alpha: the change of a weight is multiplied by ``alpha / rank``; None is the rank. With the same
            learning rate, alpha 1 at rank 16 learns much more slowly than alpha 16.
        rslora: multiply by ``alpha / sqrt(rank)`` instead (2312.03732).
        targets: which modules get an adapter, a key of ``TARGETS``.
        blocks: only modules of the UNet whose names begin with one of these, such as "up_blocks.0"; empty for
            all.
        text_encoders: with "lora" and "full", train both text encoders, too.
        int8_base: with other methods than "full", store frozen weights in int8 during the training, see
            ``int8_base.store_in_int8``.
        token: the new word, for prompts; it need not be one of CLIP's tokens.
        vectors: number of its vectors, each of which takes the place of a token.
        init_word: word whose vectors the new ones start from; None for random ones.
        template: a key of ``TEMPLATES``, captions with the new word; None for the data's own.
        init_control: the ControlNet to start from, as ``controls.find_network`` takes it; None for a copy of
            the UNet's encoder.
        weighting: of the loss over the timesteps, one of ``objective.WEIGHTINGS``; "constant" is the plain
            loss of diffusers and kohya.
        min_snr: gamma of min-SNR (2303.09556), see ``objective.loss_weights``.
        noise_offset: see ``objective.noised``; SDXL's base was trained with 0.0357.
        zero_terminal_snr: train a model that predicts v with a schedule that ends in pure noise, which a
            whole model's files then declare; a LoRA is for models with that schedule.
        epochs: number of passes over the images, which replaces ``train.steps``.
        prior: source of captioned images of the subject's class, which are learned beside it (DreamBooth).
        prior_prompts: prompts of the class, for which the model is to predict what it did before; needs no
            images.
        prior_weight: of the loss of either.
        validation: source of other captioned images, whose loss is measured at fixed noise and timesteps.
        samples: prompts generated at each validation, each with its index as seed.
        sample_controls: pictures that samples of a ControlNet follow, one for all or one for each; with
            control images that are edges, their edges.
        train: settings of the loop.
        data: settings of the data.
    """

    method: Annotated[str, OneOf("method", _TRAIN)] = "lora"
    kind: Annotated[str, OneOf("kind", KINDS)] = "lora"
    rank: Annotated[int, Range(1, 1024)] = 16
    alpha: Annotated[float, Range(1e-6, 1e6)] | None = None
    rslora: Flag = False
    targets: Annotated[str, OneOf("targets", TARGETS)] = "transformer"
    blocks: Annotated[tuple[Name, ...], Items(0, 64)] = ()
    text_encoders: Flag = False
    int8_base: Flag = False
    token: Word | None = None
    vectors: Annotated[int, Range(1, MOST_VECTORS)] = 1
    init_word: Name | None = None
    template: Annotated[str, OneOf("template", TEMPLATES)] | None = None
    init_control: Name | None = None
    weighting: Annotated[str, OneOf("weighting", WEIGHTINGS)] = "min-snr"
    min_snr: Annotated[float, Range(0.1, 1e6)] = 5.0
    noise_offset: Annotated[float, Range(0, 1)] = 0.0
    zero_terminal_snr: Flag = False
    epochs: Annotated[float, Range(0.001, 100_000)] | None = None
    prior: Name | None = None
    prior_prompts: Annotated[tuple[Name, ...], Items(0, 256)] = ()
    prior_weight: Annotated[float, Range(0, 100)] = 1.0
    validation: Name | None = None
    samples: Annotated[tuple[Name, ...], Items(0, 16)] = ()
    sample_controls: Annotated[tuple[Name, ...], Items(0, 16)] = ()
    train: LoopSettings
    data: DataSettings

    def __post_init__(self) -> None:
        """Check combinations of fields."""
        if self.train.fsdp and self.text_encoders:
            raise InputError("fsdp shards the UNet only: leave out text_encoders")
        if self.learns_text and self.data.cache_captions:
            raise InputError("cache_captions is for frozen text encoders: leave it out")
        if self.method == "textual-inversion":
            self._check_inversion()
        if self.method == "controlnet":
            self._check_controls()

    def _check_inversion(self) -> None:
        if self.token is None:
            raise InputError("method textual-inversion needs token (--token): the new word, such as my-cat")
        if not self.embedding_file.removesuffix(SUFFIX) or "/" in self.token:
            raise InputError(
                f"token {shown(self.token)} names the file, too: it needs a letter or a digit, and no /"
            )

    def _check_controls(self) -> None:
        if not all(each.controls for each in self.data.all_sources):
            raise InputError("method controlnet needs controls (--controls): beside, edges or a folder")
        if len(self.sample_controls) not in {min(1, len(self.samples)), len(self.samples)}:
            raise InputError(
                "samples of method controlnet need sample_controls (--sample-control), one for all or one "
                f"for each: got {len(self.samples)} samples with {len(self.sample_controls)}"
            )

    @property
    def learns_text(self) -> bool:
        """Whether captions are encoded in each step, with gradients."""
        return self.text_encoders or self.method == "textual-inversion"

    @property
    def follows_edges(self) -> bool:
        """Whether the control images are edges of images."""
        return {each.controls for each in self.data.all_sources} == {EDGES}

    @property
    def words(self) -> Words:
        """The new word with the number of its vectors, if there is one."""
        return () if self.token is None else ((self.token, self.vectors),)

    @property
    def captions(self) -> tuple[str, ...]:
        """Captions that replace those of the data; none without ``template``."""
        templates = () if self.template is None else TEMPLATES[self.template]
        return tuple(each.format(self.token) for each in templates)

    @property
    def embedding_file(self) -> str:
        """Name of the embedding's file: the word, without signs that names of files cannot have."""
        return re.sub(r"[^\w.-]", "", str(self.token)).strip(".") + SUFFIX

    @property
    def scale(self) -> float:
        """What the adapter's product is multiplied by."""
        alpha = self.rank if self.alpha is None else self.alpha
        return alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def for_images(self, images: int) -> "FinetuneSettings":
        """Return the settings of a training on a number of images, with the steps that ``epochs`` are.

        Validations are at least one, after the last step.

        Args:
            images: number of images in a pass, each as often as it is repeated.
        """
        steps = self.train.steps
        if self.epochs is not None:
            steps = max(1, math.ceil(self.epochs * images / self.train.batch_size - 1e-6))
        validations = min(self.train.validation_steps or steps, steps)
        return replace(self, train=replace(self.train, steps=steps, validation_steps=validations))


def make_settings(
    file: str | None, given: Mapping[str, Any], *, size: int, preset: str | None = None
) -> FinetuneSettings:
    """Combine the method's defaults, a preset, a TOML file, and options.

    What a preset sets for other methods is left out.

    Args:
        file: the TOML file: fields of ``FinetuneSettings``, with the tables ``[train]`` and ``[data]``.
        given: options with their names; those of the tables as ``train.steps`` and ``data.path``.
            None is not given.
        size: of the model's images in pixels.
        preset: one of ``PRESETS``.

    Raises:
        InputError: there is no such preset, the file cannot be read, a setting is unknown or out of range, or
            one of the file or the options has no effect.
    """
    if preset is not None and preset not in PRESETS:
        raise unknown("preset", preset, PRESETS)
    where = file or "settings"
    options = {name: value for name, value in given.items() if value is not None and value != ()}
    preset_layer = {} if preset is None else PRESETS[preset].settings
    file_layer = {} if file is None else _flat(read_table(_toml(file)), where)
    over = {**preset_layer, **file_layer, **options}
    method = str(over.get("method", "lora"))
    if method not in _TRAIN:  # before its defaults are missed
        raise unknown("method", method, _TRAIN)
    preset_layer = {n: each for n, each in preset_layer.items() if method in OF_METHOD.get(n, (method,))}
    defaults = {"data.size": size, **_COMMON, **_TRAIN.get(method, {})}
    if over.get("text_encoders"):
        defaults["data.cache_captions"] = False
    merged: dict[str, Any] = {}
    for layer in (defaults, preset_layer, file_layer, options):
        for name in layer.keys() & _REPLACED:
            if _REPLACED[name] in layer:
                raise InputError(f"{where}: give {name} or {_REPLACED[name]}, not both")
            merged.pop(_REPLACED[name], None)
        merged |= layer
    made = parse(FinetuneSettings, nested(merged), where)
    _check_effects(made, {**file_layer, **options}, where)
    return made


def _check_effects(made: FinetuneSettings, given: Mapping[str, Any], where: str) -> None:
    """Check that each given setting has an effect; one that is False is as good as not given.

    Raises:
        InputError: one has none.
    """
    tables = [each for each in given.get("data.sources", ()) if isinstance(each, Mapping)]
    sources = {f"data.{key}": value for table in tables for key, value in table.items()}
    for name in (name for name, value in {**sources, **given}.items() if value is not False):
        setting = name.rpartition(".")[2]
        methods = OF_METHOD.get(name, (made.method,))
        if made.method not in methods:
            raise InputError(f"{where}: {setting} is for method {' or '.join(methods)}, got {made.method}")
        what, is_there = NEEDED.get(name, ("", lambda made: True))
        if not is_there(made):
            raise InputError(f"{where}: {setting} needs {what}")


def _flat(table: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Name the settings of the tables as ``train.steps``."""
    flat = {name: value for name, value in table.items() if name not in TABLES}
    for name in TABLES:
        inside = table.get(name, {})
        if not isinstance(inside, Mapping):
            raise InputError(f"{name} of {where} is {shown(inside)}: it must be a table")
        flat |= {f"{name}.{key}": each for key, each in inside.items()}
    return flat


def _toml(name: str) -> Path:
    path = Path(name)
    if path.suffix.lower() != ".toml":
        raise InputError(f"settings are read from .toml files, got {shown(name)}")
    return path
