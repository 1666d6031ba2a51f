"""Write the results of a fine-tuning: adapter, embedding, ControlNet or model, the best so far, a card."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ssd1b.distill.run import write_model
from ssd1b.errors import FailedError, InputError, shown
from ssd1b.finetune.controlnet import control_metadata, prove_controlnet, write_controlnet
from ssd1b.finetune.inversion import embedding_metadata, prove_embedding, write_embedding
from ssd1b.finetune.layers import trained_adapters
from ssd1b.finetune.networks import Networks
from ssd1b.finetune.settings import OF_METHOD, FinetuneSettings
from ssd1b.finetune.validation import BEST, best_step, losses_in
from ssd1b.finetune.writing import Adapters, kohya_metadata, prove_saving, write_adapter
from ssd1b.model import Model
from ssd1b.numerals import counted
from ssd1b.saving import renewing
from ssd1b.training.data.batches import PictureBatches
from ssd1b.training.logs import FILE as LOG_FILE
from ssd1b.training.processes import Group, full_tensor
from ssd1b.weights.files import is_finite
from ssd1b.weights.writing import save_unet

ADAPTER, CONTROLNET, CARD = "adapter.safetensors", "controlnet", "README.md"


def result_names(settings: FinetuneSettings) -> tuple[str, ...]:
    """Return the names of files and folders that a run may write as results.

    Raises:
        InputError: the new word would name a file that has another meaning.
    """
    others = (ADAPTER, BEST, CARD, CONTROLNET, "model", "model.safetensors")
    if settings.token is None:
        return others
    if settings.embedding_file.lower() in others:
        raise InputError(
            f"token {shown(settings.token)} would name the file {settings.embedding_file}, which has another "
            "meaning in a run: take another word"
        )
    return (settings.embedding_file, *others)


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Writes what a run learned into its folder.

    Attributes:
        out: the folder.
        model: that the run began with.
        names: of an adapter's tensors, one of ``writing.FORMATS``.
        metadata: write metadata into an adapter, an embedding or a ControlNet.
        overwrite: also replace files of another origin.
    """

    out: Path
    model: Model
    names: str
    metadata: bool
    overwrite: bool

    def prove(self, settings: FinetuneSettings, networks: Networks) -> None:
        """Write an untrained adapter, embedding or ControlNet, read it again, and remove it.

        Raises:
            FailedError: the file would not give what was trained.
        """
        if settings.token is not None:
            prove_embedding(self.out, networks.word, self.model.layout, settings.token)
        elif networks.controlnet is not None:
            prove_controlnet(self.out, networks.controlnet, self.model)
        elif settings.method == "lora":
            prove_saving(self.out, _adapters(networks), self.model.layout, self.names)

    def keeps_best(self, settings: FinetuneSettings) -> bool:
        """Whether the best model so far is one file: not if whole text encoders are trained, too."""
        return not (settings.method == "full" and settings.text_encoders)

    def keep_best(
        self, settings: FinetuneSettings, data: PictureBatches, group: Group, networks: Networks, step: int
    ) -> None:
        """Write the best result so far: an adapter, an embedding, a ControlNet, or a whole model's UNet."""
        path = self.out / BEST
        if settings.method != "full":
            group.decide(lambda: self._save(path, settings, networks, data, step))
            return
        tensors = {name: full_tensor(each).cpu() for name, each in networks.unet.state_dict().items()}

        def write() -> None:
            with renewing(path, overwrite=self.overwrite) as aside:
                dtype = self.model.checkpoint.part("unet").dtype
                save_unet(aside, self.model.info, tensors, dtype=dtype)

        group.decide(write)

    def write(self, settings: FinetuneSettings, networks: Networks, data: PictureBatches) -> list[Path]:
        """Write the result and its card, and return the files and folders.

        Raises:
            FailedError: the result has NaN or infinity.
            InputError: a file cannot be written.
        """
        if settings.method == "full":
            written = self._write_model(networks)
        else:
            written = [self.out / _result(settings)]
            self._save(written[0], settings, networks, data, settings.train.steps)
        losses = losses_in(self.out / LOG_FILE)
        best = best_step(losses) if (self.out / BEST).exists() else None
        with renewing(self.out / CARD, overwrite=self.overwrite) as aside:
            about = card(self.model.name, settings, data.different, written, losses, best)
            aside.write_text(about, encoding="utf-8")
        return [*written, *([self.out / BEST] if best is not None else []), self.out / CARD]

    def _save(
        self, path: Path, settings: FinetuneSettings, networks: Networks, data: PictureBatches, step: int
    ) -> None:
        if settings.token is not None:
            about = embedding_metadata(settings.token) if self.metadata else {}
            write_embedding(path, networks.word, about, overwrite=self.overwrite)
            return
        how = (settings, self.model.name, self.model.info.family, data.seen, step)
        if networks.controlnet is not None:
            about = control_metadata(*how) if self.metadata else {}
            write_controlnet(path, networks.controlnet, self.model, about, overwrite=self.overwrite)
            return
        about = kohya_metadata(*how) if self.metadata else {}
        adapters = _adapters(networks)
        write_adapter(path, adapters, self.model.layout, self.names, about, overwrite=self.overwrite)

    def _write_model(self, networks: Networks) -> list[Path]:
        state = networks.state_dict()
        if broken := next((name for name, each in state.items() if not is_finite(each)), None):
            raise FailedError(f"{broken} is NaN or infinite: not saved; take a lower learning rate")
        text = {part: each for part, each in networks.parts.items() if part != "unet"}
        made = write_model(self.out, networks.unet, self.model, text=text, overwrite=self.overwrite)
        return [path for path in made if path is not None]


def _result(settings: FinetuneSettings) -> str:
    """Return the name of the file or folder that a training of less than a whole model writes."""
    if settings.token is not None:
        return settings.embedding_file
    return CONTROLNET if settings.method == "controlnet" else ADAPTER


def _adapters(networks: Networks) -> Adapters:
    return {
        module: each
        for part, network in networks.parts.items()
        for module, each in trained_adapters(network, part).items()
    }


def card(
    model: str, settings: FinetuneSettings, pictures: int, written: list[Path], losses: Mapping[int, float],
    best: int | None,
) -> str:  # fmt: skip
    """Return a model card: what was trained, on how many images, with which settings, and how to use it."""
    both = " of the UNet and both text encoders" if settings.text_encoders else ""
    what, word, use = {
        "lora": (f"A {settings.kind} of rank {settings.rank}{both}", None, f"--lora {{}} --model {model}"),
        "full": ("The UNet and both text encoders" if both else "A whole UNet", None, "--model {}"),
        "textual-inversion": (
            f"An embedding of {counted(settings.vectors, 'vector')} for the word `{settings.token}`",
            f"... {settings.token}",
            f'--embedding "{{}}:{settings.token}" --model {model}',
        ),
        "controlnet": (
            "A ControlNet that follows " + ("edges" if settings.follows_edges else "control images"), None,
            f"--control {{}}:photo.png{':canny' if settings.follows_edges else ''} --model {model}",
        ),
    }[settings.method]  # fmt: skip
    prompt = word or (f"{settings.data.trigger}, ..." if settings.data.trigger else "...")
    use_best = f"--unet {BEST} --model {model}" if settings.method == "full" else use.format(BEST)
    ends = [losses.get(step, math.nan) for step in (0, settings.train.steps)]
    changed = [] if not all(map(math.isfinite, ends)) else [
        f"Its loss on held-out images was {ends[0]:.5g} before the training and {ends[1]:.5g} after it.", "",
    ]  # fmt: skip
    validated = [] if best is None else [
        f"`{BEST}` is of step {best}, whose loss on held-out images was the lowest, {losses[best]:.5g}.", "",
        f'    ssd1b generate "{prompt}" {use_best}', "",
    ]  # fmt: skip
    listed = {name: value for name, value in asdict(settings).items() if name not in ("data", "validation")}
    listed["alpha"] = settings.rank if settings.alpha is None else settings.alpha
    return "\n".join([
        f"# {written[0].parent.absolute().name}", "",
        f"{what}, trained from `{model}` by ssd1b {version('ssd1b')} on {counted(pictures, 'image')} for "
        f"{counted(settings.train.steps, 'step')} of {settings.train.batch_size}.", "",
        f'    ssd1b generate "{prompt}" {use.format(written[0].name)}', "",
        *changed,
        *validated,
        "## Settings", "", *_rows(listed, settings.method), "",
    ])  # fmt: skip


def _rows(values: Mapping[str, Any], method: str, prefix: str = "") -> list[str]:
    """Return the rows of the settings that the method has and that are not empty, as a file has them."""
    found: list[str] = [] if prefix else ["| setting | value |", "|---|---|"]
    for key, value in values.items():
        name = prefix + key
        if isinstance(value, dict):
            found += _rows(value, method, f"{name}.")
        elif value not in (None, ()) and method in OF_METHOD.get(name, (method,)):
            several = isinstance(value, tuple | list)
            text = ", ".join(map(str, value)) if several else str(value)
            found.append(f"| {name} | {text.lower() if isinstance(value, bool) else text} |")
    return found
