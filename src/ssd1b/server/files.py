"""Files that images are generated from: clients' pictures, and LoRAs and controls of the server's folders.

A client never names a path. A picture is known by the SHA-256 of its content, a LoRA or a control by its
name. The settings of requests have all of them without folders: ``Files.located`` adds them for the worker,
and ``Files.public`` takes them out of error messages.
"""

import os
import re
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from ssd1b.actions.inspect import trigger_words
from ssd1b.adapters.matching import match
from ssd1b.adapters.merging import match_file
from ssd1b.adapters.reading import open_adapter
from ssd1b.controls import BUILT_IN, MAX_BYTES, STEMS, Control, find_network
from ssd1b.decoding import opened
from ssd1b.errors import InputError, NotFoundError, shown, unknown
from ssd1b.files import disk_error, named
from ssd1b.images import FORMATS
from ssd1b.inputs import InputFile, with_paths
from ssd1b.layouts import ModelLayout, T2IAdapterLayout
from ssd1b.loras import SUFFIX, Lora, lora_files, lora_of, only_file, read_tags
from ssd1b.saving import replacing
from ssd1b.settings import GenerationSettings
from ssd1b.speed.controlling import check_t2i_adapter, fitting_control
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.controls import MisfitError
from ssd1b.weights.files import read_header
from ssd1b.weights.other_models import control_kind

FOLDER = "uploads"
"""Folder of clients' pictures in the store."""

KEPT = 3600.0
"""Seconds that a picture is kept which no image needs."""

DIGEST = re.compile("[0-9a-f]{64}")

_OURS = re.compile(r"[0-9a-f]{64}\.\w+|\..+\.partial")
"""Names of uploads, and of files that a killed process left."""

_LONGEST_TEXT = 2000
"""Characters of a text in a LoRA's metadata that is shown."""


class Files:
    """The files of a server.

    The methods about uploads read and write the disk, so the ledger's thread calls them.

    Args:
        store: folder of the store.
        loras: folder with LoRAs; None for a server that offers none.
        controls: folder with ControlNets and T2I-Adapters; None for the built-in ones only.
    """

    def __init__(self, store: Path, loras: Path | None, controls: Path | None = None) -> None:
        self.loras = None if loras is None else Path(os.path.abspath(loras))
        self.controls = None if controls is None else Path(os.path.abspath(controls))
        self._uploads = Path(os.path.abspath(store)) / FOLDER

    @contextmanager
    def public(self) -> Generator[None, None, None]:
        """Name files in errors without the server's folders."""
        try:
            yield
        except InputError as error:
            raise type(error)(self.without_folders(str(error))) from error

    def without_folders(self, message: str) -> str:
        """Take the server's folders out of a message."""
        built_in = next(iter(BUILT_IN.values())).parent
        for folder in (self._uploads, self.loras, self.controls, built_in):
            message = message if folder is None else message.replace(f"{folder}{os.sep}", "")
        return message

    def located(self, settings: GenerationSettings) -> GenerationSettings:
        """Say where the files of an image are."""
        return self._placed(settings, lambda folder, path: str(folder / path))

    def unlocated(self, settings: GenerationSettings) -> GenerationSettings:
        """Name the files of an image without the server's folders; the inverse of ``located``."""
        return self._placed(settings, _below)

    def _placed(self, settings: GenerationSettings, place: Callable[[Path, str], str]) -> GenerationSettings:
        changed: dict[str, Any] = {}
        for name in GenerationSettings.__dataclass_fields__:
            value = getattr(settings, name)
            folder = self.loras or Path() if name == "loras" else self._uploads
            moved = with_paths(value, lambda path, folder=folder: place(folder, path))
            if moved is not value:
                changed[name] = moved
        if settings.controls:  # their networks are in another folder than their pictures
            folder = self.controls or Path()
            changed["controls"] = tuple(
                replace(moved, model=with_paths(each.model, lambda path: place(folder, path)))
                for each, moved in zip(settings.controls, changed["controls"], strict=True)
            )
        return replace(settings, **changed) if changed else settings

    # Uploads

    def keep(self, digest: str, data: bytes) -> InputFile:
        """Keep a client's picture, which was checked.

        Args:
            digest: its SHA-256.
            data: its content.

        Raises:
            InputError: the disk refused.
        """
        path = self._uploads / f"{digest}{FORMATS[picture_format(data)]}"
        try:
            self._uploads.mkdir(exist_ok=True)
        except OSError as error:
            raise disk_error("cannot write the folder of uploads", error) from None
        with replacing(path) as aside:
            aside.write_bytes(data)
        return InputFile(sha256=digest, path=path.name)

    def touch(self, digest: str) -> InputFile:
        """Return the picture with that SHA-256, which is kept from now on as if it was new.

        Raises:
            NotFoundError: there is none.
        """
        for suffix in FORMATS.values() if DIGEST.fullmatch(digest) else ():
            with suppress(FileNotFoundError):
                os.utime(self._uploads / f"{digest}{suffix}")
                return InputFile(sha256=digest, path=f"{digest}{suffix}")
        raise NotFoundError(f"there is no upload {shown(digest)}: send the picture again")

    def path(self, upload: InputFile) -> Path:
        """Where a picture is."""
        return self._uploads / upload.path

    def touch_all(self, settings: GenerationSettings) -> None:
        """As ``touch``, for the pictures of an image."""
        for file in settings.pictures:
            if not Path(file.path).is_absolute():  # those of the operator's preset are
                self.touch(file.sha256)

    def size(self) -> int:
        """Bytes of all pictures that clients sent."""
        with suppress(FileNotFoundError), os.scandir(self._uploads) as entries:
            return sum(entry.stat().st_size for entry in entries)
        return 0

    def purge(self, needed: Collection[str]) -> None:
        """Remove pictures that no image needs, and what killed processes left, after ``KEPT`` seconds.

        Args:
            needed: SHA-256 of the others.
        """
        before = time.time() - KEPT
        with suppress(FileNotFoundError), os.scandir(self._uploads) as entries:
            for entry in entries:
                if not _OURS.fullmatch(entry.name):
                    continue  # somebody else's file
                if entry.name.partition(".")[0] not in needed and entry.stat().st_mtime < before:
                    Path(entry.path).unlink(missing_ok=True)

    # LoRAs

    def lora_names(self) -> list[str]:
        """Names of the LoRAs: their paths in the folder, without suffix. New files are found at once."""
        if self.loras is None or not self.loras.is_dir():
            return []
        found = {path for paths in lora_files(self.loras).values() for path in paths}
        return sorted(path.relative_to(self.loras).with_suffix("").as_posix() for path in found)

    def lora_path(self, name: str) -> Path:
        """Return the file of a LoRA, by its name or by the last part of it.

        Raises:
            NotFoundError: there is none.
            InputError: there are several.
        """
        if self.loras is None:
            raise unknown("lora", name, [], NotFoundError)
        return only_file(name, lora_files(self.loras))

    def lora(self, name: str, unet: Any, text: Any) -> Lora:
        """Identify a LoRA by its name; see ``lora_of``. Strengths may be anything that a client sent.

        Raises:
            InputError: as ``lora_path``, or the file cannot be read, or a strength is not allowed.
        """
        return identified(self.lora_path(name), unet=unet, text=text)

    def tagged(self, prompt: str) -> tuple[str, tuple[Lora, ...]]:
        """Read the tags of LoRAs in a prompt; see ``read_tags``. Without a folder they stay there."""
        return (prompt, ()) if self.loras is None else read_tags(prompt, self.loras, identified)

    def check_loras(self, loras: Iterable[Lora], layout: ModelLayout) -> None:
        """Check that LoRAs, which are located, fit a model.

        Raises:
            InputError: one does not, or is damaged.
        """
        for lora in loras:
            match_file(lora, layout)

    def same_loras(self, loras: Iterable[Lora]) -> list[dict[str, Any]]:
        """Describe LoRAs of a picture for clients; none if files with other contents or names are here."""
        found: list[dict[str, Any]] = []
        for lora in loras:
            try:
                mine = self.lora(lora.name, lora.unet, lora.text)
            except InputError:
                return []
            if mine.file != lora.file or self.loras is None:
                return []
            path = Path(mine.file.path).relative_to(self.loras)
            found.append({"name": path.with_suffix("").as_posix(), "unet": lora.unet, "text": lora.text})
        return found

    # Controls

    def control_paths(self) -> dict[str, tuple[Path, dict[str, Any]]]:
        """Find the networks that follow pictures: the built-in ones, and those of the folder.

        Returns:
            By name, its file and the fields of ``Control`` that its folder decides. A name is a path in the
            folder, of a file without its suffix, or of a folder in diffusers' format.
        """
        found = {name: find_network(name) for name in BUILT_IN}
        files = [] if self.controls is None else sorted(self.controls.rglob(f"*{SUFFIX}"))
        for path in files:
            assert self.controls is not None
            name = _network_name(path.relative_to(self.controls))
            if path.name not in STEMS:
                found[name] = path, {}
            elif name and name not in found:
                with suppress(InputError):
                    found[name] = find_network(str(path.parent))
        return found

    def control(self, name: str, picture: InputFile, options: Mapping[str, Any]) -> Control:
        """Make a control of a network's name, or the last part of it, and a picture, which is located.

        Raises:
            NotFoundError: there is no such network; the message gives the nearest name.
            InputError: several have the name, its file cannot be read, or an option is not allowed.
        """
        paths = self.control_paths()
        same = [each for each in paths if name in (each, Path(each).name)]
        if not same:
            raise unknown("control", name, paths, NotFoundError)
        if len(same) > 1 and name not in paths:
            raise InputError(f"control {shown(name)} is the name of several: write {' or '.join(same)}")
        path, found = paths[name if name in paths else same[0]]
        return Control(model=_network(path, _stamp(path)), picture=picture, **{**found, **options})

    def check_controls(self, settings: GenerationSettings, layout: ModelLayout) -> None:
        """Check that the controls of an image, which are located, fit a model and the image's sizes.

        Raises:
            InputError: one does not, or is damaged.
        """
        for control in settings.controls:
            (part,) = fitting_control(Path(control.model.path), layout).parts.values()
            if isinstance(part.layout, T2IAdapterLayout):
                for run, _ in settings.passes:
                    check_t2i_adapter(control, part.layout, run.layout)

    def same_control(self, control: Control) -> Control | None:
        """Find the network of a picture's control here; None if it is not.

        Only files of the same name are read, because each may have gigabytes.
        """
        for path, _ in self.control_paths().values():
            if path.name == Path(control.model.path).name:
                with suppress(InputError):
                    if (mine := _network(path, _stamp(path))) == control.model:
                        place = _below(self.controls or Path(), mine.path)
                        return replace(control, model=replace(mine, path=place))
        return None


def _below(folder: Path, path: str) -> str:
    """The path below a folder; other files, which the server's own preset may name, keep theirs."""
    return Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else path


def lora_name(lora: Lora) -> str:
    """The name of a LoRA in settings without folders; see ``Files.lora_names``."""
    path = Path(lora.file.path)
    return (path.name if path.is_absolute() else path.as_posix()).removesuffix(SUFFIX)


def control_name(control: Control) -> str:
    """The name of a control's network in settings without folders; see ``Files.control_paths``."""
    path = Path(control.model.path)
    built_in = (name for name, folder in BUILT_IN.items() if path.is_relative_to(folder))
    return next(built_in, _network_name(Path(path.name) if path.is_absolute() else path))


def _network_name(path: Path) -> str:
    if path.name in STEMS:
        return path.parent.as_posix() if path.parent.name else ""
    return path.with_suffix("").as_posix()


@lru_cache(maxsize=1024)
def _network(path: Path, stamp: tuple[int, int]) -> InputFile:
    """Identify a network's file; one that is unchanged is not read again."""
    return InputFile.of(path, most=MAX_BYTES)


def picture_format(data: bytes) -> str:
    """Return the format of a picture, a key of ``images.FORMATS``.

    Raises:
        InputError: it is no picture, is damaged, or too large.
    """
    with opened(data) as image:
        return str(image.format).lower()


def check_picture(data: bytes) -> bytes:
    """Return a client's picture after decoding it.

    Raises:
        InputError: it is no picture, is damaged, or too large.
    """
    if not data:
        raise InputError("the picture is empty: send a PNG, JPEG or WebP")
    with opened(data) as image:
        image.load()
    return data


def _stamp(path: Path) -> tuple[int, int]:
    try:
        status = path.stat()
    except OSError as error:
        raise disk_error(f"cannot read {path}", error) from None
    return status.st_size, status.st_mtime_ns


def identified(path: Path, *, unet: Any = 1.0, text: Any = 1.0) -> Lora:
    """As ``lora_of``, which reads the whole file; a file that is unchanged is not read again."""
    return replace(_identified(path, _stamp(path)), unet=unet, text=text)


@lru_cache(maxsize=1024)
def _identified(path: Path, stamp: tuple[int, int]) -> Lora:
    return lora_of(path)


@dataclass(frozen=True, slots=True, kw_only=True)
class ControlFacts:
    """Description of a ControlNet, Control-LoRA or T2I-Adapter.

    Attributes:
        kind: "controlnet", "control_lora" or "t2i_adapter".
        models: names of the models that it fits.
    """

    kind: str
    models: Sequence[str]


def control_facts(path: Path, models: Mapping[str, ModelInfo]) -> ControlFacts:
    """Read what is known of a network that follows a picture, from its header.

    Raises:
        InputError: it is damaged, or no such network.
    """
    return _control_facts(path, _stamp(path), tuple((name, info.layout) for name, info in models.items()))


@lru_cache(maxsize=1024)
def _control_facts(
    path: Path, stamp: tuple[int, int], models: tuple[tuple[str, ModelLayout], ...]
) -> ControlFacts:
    kind = control_kind(read_header(path).tensors)
    if kind is None:
        raise InputError(f"{named(path)}: no ControlNet or T2I-Adapter")
    fits: list[str] = []
    for name, layout in models:
        with suppress(MisfitError):
            fitting_control(path, layout)
            fits.append(name)
    return ControlFacts(kind=kind, models=fits)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraFacts:
    """What is known of a LoRA.

    Attributes:
        families: the family whose names it has, by the name of each model that it fits.
        trigger_words: the words that it was trained with, by its metadata.
        metadata: the short ones of its texts.
    """

    families: Mapping[str, str]
    trigger_words: Sequence[str]
    metadata: Mapping[str, str]


def lora_facts(path: Path, models: Mapping[str, ModelInfo]) -> LoraFacts:
    """Read what is known of a LoRA; only its header is read, and only once until the file changes.

    Args:
        path: the file.
        models: those that it is compared with, by name.

    Raises:
        InputError: it is damaged, or no adapter.
    """
    described = tuple((name, info.family, info.layout) for name, info in models.items())
    return _lora_facts(path, _stamp(path), described)


@lru_cache(maxsize=1024)
def _lora_facts(
    path: Path, stamp: tuple[int, int], models: tuple[tuple[str, str, ModelLayout], ...]
) -> LoraFacts:
    adapter = open_adapter(path)
    families: dict[str, str] = {}
    for name, family, layout in models:
        with suppress(InputError):
            families[name] = match(adapter, layout).through or family
    return LoraFacts(
        families=families,
        trigger_words=trigger_words(adapter.metadata),
        metadata={name: text for name, text in adapter.metadata.items() if len(text) <= _LONGEST_TEXT},
    )
