"""Generate an image again from the recipe in its file, and compare the pixels.

A recipe may come from a stranger. Its model is used without asking only if it is built in, published under a
short name, or in the hub's cache. A picture, or a network beside the model, at a recorded path is used only
if its SHA-256 is the recorded one.
"""

import os
import re
import shlex
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, UnidentifiedImageError

from ssd1b import controls, loras, upscalers
from ssd1b.actions.loading import AUTO, Loading
from ssd1b.command_line import command_line
from ssd1b.controls import BUILT_IN
from ssd1b.decoding import MAX_FILE_BYTES
from ssd1b.errors import InputError, NotFoundError, printable
from ssd1b.execution import DEFAULT
from ssd1b.files import disk_error, expand_path, named, open_regular, reason
from ssd1b.images import Picture, read_recipe
from ssd1b.inputs import InputFile
from ssd1b.pipeline import Pipeline, Watch, ignore
from ssd1b.recipe import MAX_CONFIG_BYTES, MAX_NETWORK_BYTES, ModelIdentity, NetworkFile, Parameters, Recipe
from ssd1b.runtime import choose_device
from ssd1b.sampler_names import AUTOMATIC
from ssd1b.settings import DEFAULT_MODEL, INPUTS, SETTINGS, GenerationSettings, Prompt, check_overrides
from ssd1b.validation import check
from ssd1b.weights import hub

CIRCUMSTANCES = ("device", "dtype", "threads", "computing", "batch_size", "torch_version", "ssd1b_version")
"""Fields of a recipe, besides settings and model, that can change the last bits of an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reproduction:
    """An image that was generated again.

    Attributes:
        picture: the new image with its recipe.
        source: what the file said: our recipe, or another program's parameters.
        original: the file's image; None for JPEG and WebP, which do not store exact pixels.
    """

    picture: Picture
    source: Recipe | Parameters
    original: Image.Image | None

    @property
    def largest_difference(self) -> int | None:
        """Largest difference of a pixel, 0 to 255; None without an original of the same size."""
        if self.original is None or self.original.size != self.picture.image.size:
            return None
        return max(ImageChops.difference(self.original, self.picture.image).tobytes())

    @property
    def changes(self) -> list[str]:
        """Differences from the recipe that can change pixels, as "device cuda, now cpu"."""
        if not isinstance(self.source, Recipe):
            return []
        old, new = self.source, self.picture.recipe
        pairs: list[tuple[str, Any, Any]]
        pairs = [(name, getattr(old, name), getattr(new, name)) for name in CIRCUMSTANCES]
        pairs += [
            (f"model {name}", getattr(old.model, name), getattr(new.model, name))
            for name in ("source", "revision", "layout", "networks")
        ]
        return [f"{name.replace('_', ' ')} {was}, now {now}" for name, was, now in pairs if was != now]


def reproduce(
    path: str,
    model: str | None = None,
    loading: Loading = AUTO,
    *,
    trust_recipe: bool = False,
    inputs: str | None = None,
    inspect: Callable[[Recipe | Parameters], object] = lambda source: None,
    start: Callable[
        [Pipeline, GenerationSettings], AbstractContextManager[Watch]
    ] = lambda pipeline, settings: nullcontext(ignore),
) -> Reproduction:
    """Generate an image again from the recipe, or another program's parameters, in its file.

    Args:
        path: a PNG, JPEG or WebP file.
        model: overrides the recipe's model.
        loading: options set here override those of the recipe. A device or a number of threads that this
            machine does not have is replaced.
        trust_recipe: use the recipe's model, whatever it is: a path is opened, a repository downloaded
            without the user's token.
        inputs: folder with the files that the image was generated from; see ``find_inputs``.
        inspect: called with what the file says before a model is loaded. It may raise to stop.
        start: called before generation; its context yields a function that is called after each step.

    Raises:
        NotFoundError: a file that the image was generated from is missing.
        InputError: the file holds no settings or is damaged, its model may not be used without
            ``trust_recipe``, or the model cannot be loaded.
    """
    source = read_recipe(path)
    if isinstance(source, Recipe):
        model, loading = _resolve_model(source.model, model, loading, trusted=trust_recipe)
        networks = loading.networks or find_networks(source.model.networks, path, inputs)
        loading = _resolve_loading(source, replace(loading, networks=networks))
        source = replace(source, settings=find_inputs(source.settings, path, inputs))
    original = _read_exact_pixels(path)
    inspect(source)
    pipeline = loading.load(model or DEFAULT_MODEL)
    if isinstance(source, Recipe):
        settings = source.settings
    else:
        settings = pipeline.settings(source.prompt, **source.settings())
    with start(pipeline, settings) as watch:
        (picture,) = pipeline.draw([settings], watch)
    return Reproduction(picture=picture, source=source, original=original)


def find_inputs(settings: GenerationSettings, image: str, folder: str | None = None) -> GenerationSettings:
    """Find the files that an image was generated from: pictures, adapters, embeddings, networks, upscalers.

    Each is looked for under its name in ``folder``, beside the image and in the package, then at the
    recorded path; a picture also under any name in ``folder``. Only a file with the recorded content is
    taken.

    Args:
        settings: the image's settings.
        image: path of the image.
        folder: an additional folder.

    Returns:
        The settings with the paths where the files were found.

    Raises:
        NotFoundError: a file is in none of these places, and the message names it; or there is no such
            folder.
    """
    places = _Places(image, folder)
    found: dict[str, Any] = {}
    for name in SETTINGS:
        value = getattr(settings, name)
        if isinstance(value, InputFile):
            most = MAX_FILE_BYTES if name in INPUTS else upscalers.MAX_BYTES
            found[name] = places.find(name, value, most)
        elif value and name in _LISTED:
            found[name] = tuple(
                replace(each, **{
                    inner: places.find(f"{_LISTED[name]} {inner}", getattr(each, inner), most)
                    for inner, most in _LIMITS.items() if hasattr(each, inner)
                })
                for each in value
            )  # fmt: skip
    return replace(settings, **found)


def find_networks(
    networks: Iterable[NetworkFile], image: str, folder: str | None = None
) -> tuple[NetworkFile, ...]:
    """Find the files that replaced networks of a model; arguments, places and errors as ``find_inputs``."""
    places = _Places(image, folder)
    return tuple(
        replace(
            each, file=places.find(each.network, each.file, MAX_NETWORK_BYTES),
            config=each.config and places.find(f"{each.network} config", each.config, MAX_CONFIG_BYTES),
        )
        for each in networks
    )  # fmt: skip


_LISTED = {"loras": "lora", "embeddings": "embedding", "controls": "control", "image_prompts": "ip-adapter"}
"""Settings that are lists of tables with files, and what one of them is called."""

_LIMITS = {
    "file": loras.MAX_BYTES, **dict.fromkeys(("model", "adapter", "encoder"), controls.MAX_BYTES),
    "picture": MAX_FILE_BYTES,
}  # fmt: skip
"""Files in such a table, and their maximum sizes in bytes."""


class _Places:
    """Where files of an image are looked for, see ``find_inputs``."""

    def __init__(self, image: str, folder: str | None) -> None:
        self._given = None if folder is None else Path(expand_path(folder))
        self._others: list[str] = []
        if self._given is not None:
            try:
                self._others = sorted(map(str, self._given.iterdir()))
            except (FileNotFoundError, NotADirectoryError):
                raise NotFoundError(
                    f"{named(self._given)}: no such folder, in which inputs are looked for"
                ) from None
            except OSError as error:
                raise disk_error(f"cannot read {named(self._given)}", error) from None
        self._folders = [*([self._given] if self._given else []), Path(image).parent, *BUILT_IN.values()]

    def find(self, name: str, wanted: InputFile, most: int) -> InputFile:
        """Return the file with the content that is wanted.

        Args:
            name: of the setting, for the error.
            wanted: the file as it was.
            most: maximum size in bytes.

        Raises:
            NotFoundError: it is nowhere.
        """
        file = re.split(r"[\\/]", wanted.path)[-1]  # the recipe may come from another system
        places = [*(str(folder / file) for folder in self._folders if file), wanted.path]
        if most == MAX_FILE_BYTES:  # networks would take minutes to read
            places += self._others
        for place in places:
            try:
                candidate = InputFile.of(place, most=most)
            except InputError:
                continue
            if candidate == wanted:
                return candidate
        where = "beside the image and at its recorded path: name its folder with --inputs"
        if self._given is not None:
            where = f"in {named(self._given)}, beside the image and at its recorded path"
        raise NotFoundError(
            f"{name} {named(file)} (SHA-256 {wanted.sha256[:12]}...) is missing or has changed, {where}"
        )


def _resolve_model(
    recorded: ModelIdentity, model: str | None, loading: Loading, *, trusted: bool
) -> tuple[str, Loading]:
    """Choose the model that the user names, or else the recipe's.

    The hub gets the user's token only for a model that the user names, however far the recipe is trusted.

    Raises:
        InputError: the recipe's model may not be used without asking.
    """
    if model is not None:
        return model, loading
    name = model_name(recorded)
    match hub.known_source(name):
        case "cached":
            return name, replace(loading, paths=False, offline=True)
        case None if not trusted:
            raise InputError(
                f"the image names the model '{printable(name)}', which is not built in, published under a "
                "short name or in the cache: choose one with --model, or allow this one with --trust-recipe"
            )
        case None:
            return name, replace(loading, token=False)
        case _:
            return name, replace(loading, paths=False, token=False)


def _resolve_loading(recipe: Recipe, loading: Loading) -> Loading:
    """Fill in the recipe's device, number format, threads and execution options."""
    threads = loading.threads
    # OMP_NUM_THREADS is the user's choice, too.
    if threads == "auto" and recipe.threads <= (os.cpu_count() or 1) and "OMP_NUM_THREADS" not in os.environ:
        threads = recipe.threads
    return replace(
        loading, device=loading.device or _available(recipe.device), dtype=loading.dtype or recipe.dtype,
        prediction=loading.prediction or recipe.model.prediction, threads=threads,
        execution=recipe.computing if loading.execution == DEFAULT else loading.execution,
    )  # fmt: skip


def _available(device: str) -> str | None:
    try:
        choose_device(device)
    except InputError:
        return None
    return device


def _read_exact_pixels(path: str) -> Image.Image | None:
    """Read the pixels of a PNG; return None for JPEG and WebP, which are lossy.

    Raises:
        InputError: the file is damaged.
    """
    try:
        with open_regular(path) as file, Image.open(file, formats=["PNG"]) as image:
            return image.convert("RGB")
    except UnidentifiedImageError:
        return None
    except InputError:
        raise
    except (OSError, SyntaxError, ValueError) as error:  # Pillow raises all of these for damaged files
        raise InputError(f"{named(path)}: its pixels are damaged: {reason(error)}") from None


def model_name(model: ModelIdentity) -> str:
    """Return the name by which ``Model.find`` finds the same weights."""
    return model.source if model.revision is None else f"{model.source}@{model.revision}"


def is_known(model: ModelIdentity) -> bool:
    """Return whether a recipe's model may be used without asking."""
    return hub.known_source(model_name(model)) is not None


def reproduction_command(path: str, recipe: Recipe | Parameters) -> str:
    """Write the command that generates an image again.

    This is ``ssd1b generate`` with all settings if options can express them, else ``ssd1b rerun``. A model
    that may not be used without asking is not written, since typing its name would be permission.
    """
    line = _from_recipe(recipe) if isinstance(recipe, Recipe) else _from_parameters(recipe)
    # Text that a terminal does not show as it is must not be copied from one.
    return line if line and line.isprintable() else shlex.join(["ssd1b", "rerun", path])


def _from_recipe(recipe: Recipe) -> str | None:
    settings = recipe.settings
    if not is_known(recipe.model):
        return None
    size = (settings.height, settings.width)
    if (settings.original_size, settings.crop_top_left, settings.target_size) != (size, (0, 0), size):
        return None  # there are no options for micro-conditioning
    return command_line(
        settings.prompt, {**asdict(settings), "schedule": settings.schedule or AUTOMATIC},
        model=model_name(recipe.model), device=recipe.device, dtype=recipe.dtype,
        prediction=recipe.model.prediction,
        **{each.network.replace("_", "-"): each.file.path for each in recipe.model.networks},
    )  # fmt: skip


def _from_parameters(parameters: Parameters) -> str | None:
    try:
        settings = parameters.settings()
        check_overrides(settings)
        return command_line(check("prompt", parameters.prompt, Prompt), settings)
    except InputError:  # a value out of range
        return None
