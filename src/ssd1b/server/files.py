"""Files that images are generated from: clients' pictures, and those of the server's folders.

A client never names a path. A picture is known by the SHA-256 of its content, a LoRA, control, IP-Adapter,
embedding or upscaler by its name. The settings of requests have all of them without folders:
``Files.located`` adds them for the worker, and ``Files.public`` takes them out of error messages.
"""

import os
import re
import time
from collections.abc import Callable, Collection, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ssd1b.actions.inspect import trigger_words
from ssd1b.adapters.ip_adapters import open_ip_adapter
from ssd1b.adapters.matching import match
from ssd1b.adapters.reading import open_adapter
from ssd1b.composing import Composer
from ssd1b.controls import BUILT_IN, MAX_BYTES, STEMS, Control, find_network
from ssd1b.decoding import opened
from ssd1b.embeddings import Embedding, embedding_of
from ssd1b.errors import InputError, NotFoundError, shown, unknown
from ssd1b.few_steps import Recognised, recognise
from ssd1b.files import disk_error, expand_path, named
from ssd1b.image_prompts import ImagePrompt, find_encoder
from ssd1b.images import FORMATS
from ssd1b.inputs import SUFFIX, InputFile, files_by_name, name_in, only_file, with_paths, without_suffix
from ssd1b.layouts import ModelLayout
from ssd1b.loras import Lora, lora_of, place_of
from ssd1b.saving import replacing
from ssd1b.settings import GenerationSettings
from ssd1b.speed.controlling import fitting_control
from ssd1b.styles import Style, read_styles
from ssd1b.upscalers import UPSCALERS, identify_network, is_upscaler, resolve_upscaler
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.controls import MisfitError
from ssd1b.weights.files import read_header
from ssd1b.weights.other_models import control_kind
from ssd1b.wildcards import Wildcards

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
        folders: those of the files that clients name, by setting; see ``ServerOptions.folders``.
        styles: file with styles.
        wildcards: folder with words that are drawn; None draws none.
    """

    def __init__(
        self,
        store: Path,
        folders: Mapping[str, Path] = MappingProxyType({}),
        styles: str | None = None,
        wildcards: Path | None = None,
    ) -> None:
        self.folders = {name: Path(os.path.abspath(folder)) for name, folder in folders.items()}
        self._uploads = Path(os.path.abspath(store)) / FOLDER
        self._styles = None if styles is None else Path(os.path.abspath(expand_path(styles)))
        self._wildcards = None if wildcards is None else Path(os.path.abspath(wildcards))

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
        others = (self._wildcards, None if self._styles is None else self._styles.parent)
        for folder in (self._uploads, *self.folders.values(), *others, built_in):
            message = message if folder is None else message.replace(f"{folder}{os.sep}", "")
        return message

    def located(self, settings: GenerationSettings) -> GenerationSettings:
        """Say where the files of an image are."""

        def place(folder: Path, path: str) -> str:
            return str((self._uploads if _UPLOAD.fullmatch(path) else folder) / path)

        return self._placed(settings, place)

    def unlocated(self, settings: GenerationSettings) -> GenerationSettings:
        """Name the files of an image without the server's folders; the inverse of ``located``."""
        return self._placed(settings, lambda folder, path: _below(folder, _below(self._uploads, path)))

    def _placed(self, settings: GenerationSettings, place: Callable[[Path, str], str]) -> GenerationSettings:
        changed: dict[str, Any] = {}
        for name in GenerationSettings.__dataclass_fields__:
            value = getattr(settings, name)
            folder = self.folders.get(name, Path())
            moved = with_paths(value, lambda path, folder=folder: place(folder, path))
            if moved is not value:
                changed[name] = moved
        return replace(settings, **changed) if changed else settings

    # Prompts

    def composer(self, styles: Sequence[str] = ()) -> Composer:
        """Return how prompts are composed.

        Args:
            styles: names of those that are put around the prompt.

        Raises:
            InputError: the files of styles or wildcards are gone or damaged.
        """
        return Composer(
            names=tuple(styles), styles=self.styles(),
            wildcards=None if self._wildcards is None else Wildcards.of(str(self._wildcards)),
            lora_folder=self.folders.get("loras"), embedding_folder=self.folders.get("embeddings"),
            identify_lora=identified, identify_embedding=embedding,
        )  # fmt: skip

    def styles(self) -> Mapping[str, Style]:
        """Return the styles by name. The file is read again when it has changed."""
        return {} if self._styles is None else _read_styles(self._styles, _stamp(self._styles))

    # Files by name

    def names(self, setting: str) -> dict[str, Path]:
        """List the files of a setting's folder by their names in it. New ones count, too."""
        folder = self.folders.get(setting)
        if folder is None or not folder.is_dir():
            return {}
        place = _place(setting)
        return {name_in(folder, path, place): path for path in _weights(folder)}

    def path_of(self, setting: str, name: str) -> Path:
        """Return the file of a name, or of the last part of one.

        Raises:
            NotFoundError: there is none; the message gives the nearest name.
            InputError: there are several.
        """
        folder = self.folders.get(setting)
        kind = KINDS[setting]
        files = {} if folder is None else files_by_name(folder, f"{kind}s", _place(setting))
        return only_file(kind, name, files)

    def same_file(self, setting: str, wanted: InputFile) -> InputFile | None:
        """Find a file with the name and content of one from elsewhere; None if there is none.

        Only files of the same name are read, because each may have gigabytes.
        """
        for path in self.names(setting).values():
            if path.name == Path(wanted.path).name:
                with suppress(InputError):
                    if (mine := _network(path, _stamp(path))) == wanted:
                        return replace(mine, path=_below(self.folders[setting], mine.path))
        return None

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

    def lora(self, name: str, unet: Any, text: Any) -> Lora:
        """Identify a LoRA by its name; see ``lora_of``. Strengths may be anything that a client sent.

        Raises:
            InputError: as ``path_of``, or the file cannot be read, or a strength is not allowed.
        """
        return identified(self.path_of("loras", name), unet=unet, text=text)

    def same_loras(self, loras: Iterable[Lora]) -> list[dict[str, Any]]:
        """Describe LoRAs of a picture for clients; none if files with other contents or names are here."""
        found: list[dict[str, Any]] = []
        for lora in loras:
            try:
                mine = self.lora(lora.name, lora.unet, lora.text)
            except InputError:
                return []
            if mine.file != lora.file:
                return []
            name = name_in(self.folders["loras"], Path(mine.file.path), place_of)
            found.append({"name": name, "unet": lora.unet, "text": lora.text})
        return found

    # Controls

    def control_paths(self) -> dict[str, tuple[Path, dict[str, Any]]]:
        """Find the networks that follow pictures: the built-in ones, and those of the folder.

        Returns:
            By name, its file and the fields of ``Control`` that its folder decides. A name is a path in the
            folder, of a file without its suffix, or of a folder in diffusers' format.
        """
        found = {name: find_network(name) for name in BUILT_IN}
        folder = self.folders.get("controls", Path())
        for path in self.names("controls").values():
            name = _network_name(path.relative_to(folder))
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

    def same_control(self, control: Control) -> Control | None:
        """Find the network of a picture's control here; None if it is not.

        Only files of the same name are read, because each may have gigabytes.
        """
        for path, _ in self.control_paths().values():
            if path.name == Path(control.model.path).name:
                with suppress(InputError):
                    if (mine := _network(path, _stamp(path))) == control.model:
                        place = _below(self.folders.get("controls", Path()), mine.path)
                        return replace(control, model=replace(mine, path=place))
        return None

    # Image prompts

    def image_prompt(self, name: str, picture: InputFile, options: Mapping[str, Any]) -> ImagePrompt:
        """Make an image prompt of an IP-Adapter's name and a picture, which is located.

        Raises:
            NotFoundError: there is no such IP-Adapter, or no image encoder beside it.
            InputError: several have the name, a file cannot be read, or an option is not allowed.
        """
        path = self.path_of("image_prompts", name)
        encoder = find_encoder(path)
        inside = Path(os.path.abspath(encoder))
        if not inside.is_relative_to(self.folders["image_prompts"]):
            raise NotFoundError(f"ip-adapter {shown(name)}: there is no image encoder in its folder")
        return ImagePrompt(
            adapter=_network(path, _stamp(path)), picture=picture, encoder=_network(inside, _stamp(inside)),
            **options,
        )  # fmt: skip

    # Upscalers

    def upscaler(self, name: Any, allowed: Collection[str] = UPSCALERS) -> str | InputFile:
        """Return an upscaler by the name of one of ``allowed``, of AUTOMATIC1111, or of a network's file.

        Raises:
            InputError: there is none of that name, or the file cannot be read.
        """
        if not isinstance(name, str):
            raise InputError(f"upscaler is {shown(name)}: it must be a name")
        if is_upscaler(name):
            return resolve_upscaler(name, allowed, self.names("hires_upscaler"))
        if name not in (files := self.names("hires_upscaler")) and len(Path(name).parts) == 1:
            name = next((each for each in files if Path(each).name == name), name)
        if name not in files:
            raise unknown("upscaler", name, [*allowed, *files])
        return _upscaler(files[name], _stamp(files[name]))


KINDS = {"loras": "lora", "image_prompts": "ip-adapter", "embeddings": "embedding"}
"""Names for messages, by setting."""

_UPLOAD = re.compile(rf"[0-9a-f]{{64}}(?:{'|'.join(map(re.escape, FORMATS.values()))})")
"""The name of a client's picture."""


def _place(setting: str) -> Callable[[Path], Path]:
    return place_of if setting == "loras" else without_suffix


def _weights(folder: Path) -> list[Path]:
    return sorted(folder.rglob(f"*{SUFFIX}"))


def _below(folder: Path, path: str) -> str:
    """The path below a folder; other files, which the server's own preset may name, keep theirs."""
    return Path(path).relative_to(folder).as_posix() if Path(path).is_relative_to(folder) else path


def file_name(file: InputFile) -> str:
    """The name of an IP-Adapter, embedding or upscaler in settings without folders."""
    path = Path(file.path)
    return (path.name if path.is_absolute() else path.as_posix()).removesuffix(SUFFIX)


def lora_name(lora: Lora) -> str:
    """The name of a LoRA in settings without folders: the file's, or that of PEFT's folder."""
    folder = Path(lora.file.path).parent
    is_folder = lora.config is not None and folder.name
    return file_name(replace(lora.file, path=str(folder)) if is_folder else lora.file)


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


def embedding(path: Path, word: str | None = None) -> Embedding:
    """As ``embedding_of``; a file that is unchanged is not read again."""
    return _embedding(path, word, _stamp(path))


@lru_cache(maxsize=1024)
def _embedding(path: Path, word: str | None, stamp: tuple[int, int]) -> Embedding:
    return embedding_of(path, word)


@lru_cache(maxsize=64)
def _upscaler(path: Path, stamp: tuple[int, int]) -> InputFile:
    return identify_network(path)


@lru_cache(maxsize=8)
def _read_styles(path: Path, stamp: tuple[int, int]) -> Mapping[str, Style]:
    return read_styles(str(path))


def ip_adapter_models(path: Path, models: Mapping[str, ModelInfo]) -> list[str]:
    """Name the models that an IP-Adapter fits; only its header is read.

    Raises:
        InputError: it is damaged, or no IP-Adapter.
    """
    layouts = tuple((name, info.layout) for name, info in models.items())
    return list(_ip_adapter_models(path, _stamp(path), layouts))


@lru_cache(maxsize=1024)
def _ip_adapter_models(
    path: Path, stamp: tuple[int, int], models: tuple[tuple[str, ModelLayout], ...]
) -> list[str]:
    fits: list[str] = []
    for name, layout in models:
        with suppress(MisfitError):
            open_ip_adapter(path, layout.unet)
            fits.append(name)
    return fits


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
        few_steps: what it is, if it makes a model a few-step one.
    """

    families: Mapping[str, str]
    trigger_words: Sequence[str]
    metadata: Mapping[str, str]
    few_steps: Recognised | None


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
        few_steps=recognise(str(path), adapter.metadata),
    )
