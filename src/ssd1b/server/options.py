"""Options of the server: the table from which flags, the settings file and their checks come; no torch."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from ipaddress import ip_address
from pathlib import Path
from typing import Annotated, Any, get_type_hints

from ssd1b.cluster.options import ClusterOptions, option_names
from ssd1b.errors import InputError, NotFoundError, prefix_errors, shown
from ssd1b.execution import BACKENDS, DEFAULT, MEMORIES, QUANTIZATIONS, Execution
from ssd1b.files import expand_path, named
from ssd1b.settings import DEFAULT_MODEL, MAX_PIXELS, RANGES
from ssd1b.table_files import read_table
from ssd1b.validation import Check, Flag, Name, OneOf, Range, check, parse, validated
from ssd1b.weights.prediction import PREDICTIONS

_HOST_NAME = re.compile(r"([a-z0-9_-]{1,63}[.])*[a-z0-9_-]*[a-z_-][a-z0-9_-]*")
"""A host name in lower case. The last part of one is no number, or it would be a wrong address."""


def bare_host(given: str) -> str:
    """Return a host name or address as it is compared: in lower case, without brackets and final dot."""
    host = given.lower().removesuffix(".")
    return host[1:-1] if host.startswith("[") and host.endswith("]") else host


def _check_host(option: str, given: str) -> None:
    host = bare_host(given)
    try:
        ip_address(host)
    except ValueError:
        if len(host) > 253 or not _HOST_NAME.fullmatch(host):
            raise InputError(
                f"{option} is {shown(given)}: it must be a host name or an IP address alone, "
                "without scheme, port and path"
            ) from None


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """How an option appears on the command line.

    Attributes:
        help: one sentence.
        metavar: of the value; empty for a flag.
        flag: without its dashes, where it is not the name of the field.
    """

    help: str
    metavar: str = "N"
    flag: str = ""


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class ServerOptions:
    """Options of ``ssd1b serve``; a settings file has the same names, with underscores."""

    # fmt: off
    model: Annotated[tuple[Name, ...], Option(
        metavar="MODEL", help="A model to offer: a name, folder, file or hub id. May be given several times; "
        "the first is the default.",
    )] = (DEFAULT_MODEL,)
    host: Annotated[Name, Check(partial(_check_host, "host")), Option(
        metavar="ADDRESS", help="Address to listen on; 0.0.0.0 for all.",
    )] = "127.0.0.1"
    port: Annotated[int, Range(0, 65535), Option(help="Port to listen on; 0 for any free one.")] = 7860
    store: Annotated[Name, Option(
        metavar="FOLDER", help="Where jobs, images and recipes are kept.",
    )] = "ssd1b-server"
    lora_folder: Annotated[Name | None, Option(
        metavar="FOLDER", help="LoRAs that clients may use, by name and in prompts. Default: none.",
    )] = None
    control_folder: Annotated[Name | None, Option(
        metavar="FOLDER", help="ControlNets and T2I-Adapters that clients may use by name. Default: only the "
        "built-in one.",
    )] = None
    ip_adapter_folder: Annotated[Name | None, Option(
        metavar="FOLDER", help="IP-Adapters that clients may use by name, with image encoders beside them. "
        "Default: none.",
    )] = None
    embedding_folder: Annotated[Name | None, Option(
        metavar="FOLDER", help="Embeddings that prompts use by the names of their files. Default: none.",
    )] = None
    upscaler_folder: Annotated[Name | None, Option(
        metavar="FOLDER", help="Enlarging networks, such as ESRGAN, that clients may use by name. Default: "
        "none.",
    )] = None
    styles: Annotated[Name | None, Option(
        metavar="FILE", help="Styles that clients may use by name: AUTOMATIC1111's styles.csv, or JSON of "
        "Fooocus.",
    )] = None
    wildcard_folder: Annotated[Name | None, Option(
        metavar="FOLDER", help="Draw one of {a|b} in prompts, and a line of NAME.txt in this folder for "
        "__NAME__, anew for each image. Default: these are plain words.",
    )] = None
    api_key_file: Annotated[Name | None, Option(
        metavar="FILE", help="API keys that clients need, as a .toml or .json file. Default: no keys.",
    )] = None
    allow_host: Annotated[tuple[Annotated[Name, Check(partial(_check_host, "allow_host"))], ...], Option(
        metavar="NAME", help="A further host name of this server, for a proxy; may be given several times.",
    )] = ()
    allow_any_host: Annotated[Flag, Option(
        metavar="", help="Answer whatever host name is asked for. Only behind a proxy that checks it.",
    )] = False
    workers: Annotated[int | None, Range(1, 64), Option(
        help="Batches that are generated at the same time. Default: as many as keep the processor busy.",
    )] = None
    threads: Annotated[int | None, Range(1, 1024), Option(
        help="CPU threads of each worker. Default: by its load.",
    )] = None
    max_pending: Annotated[int, Range(1, 100_000), Option(
        help="Images that may wait; further requests are refused with 429.",
    )] = 256
    max_count: Annotated[int, Range(1, 1000), Option(help="Images of one job.")] = 64
    max_pixels: Annotated[int, Range(64 * 64, MAX_PIXELS), Option(help="Pixels of one image.")] = MAX_PIXELS
    max_steps: Annotated[int, Range(1, 1000), Option(help="Denoising steps of one image.")] = 150
    max_batch: Annotated[int, Range(1, 1024), Option(
        help="Images in one batch, which large images do not reach.",
    )] = 1024
    max_uploads: Annotated[float, Range(0.001, 1e6), Option(
        metavar="GB", help="Pictures of clients that are kept; further ones are refused with 507.",
    )] = 4.0
    max_seconds: Annotated[float, Range(1, 1e6), Option(
        metavar="SECONDS", help="A job that takes longer, waiting included, fails.",
    )] = 3600.0
    max_memory: Annotated[float | None, Range(0, 1e6), Option(
        metavar="GB", help="Unload idle models when more is in use. Default: half of the machine's.",
    )] = None
    idle_minutes: Annotated[float, Range(0, 1e6), Option(
        metavar="MINUTES", help="Unload a model that was idle for so long; 0 for never.",
    )] = 0.0
    drain_seconds: Annotated[float, Range(0, 86_400), Option(
        metavar="SECONDS", help="On shutdown, wait so long for images in progress.",
    )] = 60.0
    log_prompts: Annotated[Flag, Option(metavar="", help="Write prompts to the log.")] = False
    device: Annotated[Name | None, Option(metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu.")] = None
    dtype: Annotated[Name | None, Option(metavar="NAME", help="Number format: fp32, bf16, fp16.")] = None
    prediction: Annotated[Annotated[str, OneOf("prediction", PREDICTIONS)] | None, Option(
        metavar="NAME", help="Prediction type, epsilon or v, if the models' files do not say.",
    )] = None
    compile: Annotated[Flag, Option(
        metavar="", help="Use torch.compile: slow the first time, then faster.",
    )] = False
    quantize: Annotated[Annotated[str, OneOf("quantization", QUANTIZATIONS)] | None, Option(
        metavar="NAME", help="int8, fp8, int8-weights or auto, as for generate. Changes the images.",
    )] = None
    memory: Annotated[str, OneOf("memory", MEMORIES), Option(
        metavar="NAME", help="low: keep networks in 8 bits, and one at a time, as for generate.",
    )] = DEFAULT.memory
    backend: Annotated[str, OneOf("backend", BACKENDS), Option(
        metavar="NAME", help="torch or, on a CPU, openvino.",
    )] = DEFAULT.backend
    ray: Annotated[Name | None, Option(
        metavar="ADDRESS", help="Generate on a Ray cluster: HOST:PORT of its head node, auto for the one "
        "that this machine belongs to, or local for a new one on this machine.",
    )] = None
    ray_actors: Annotated[int | None, Range(1, 100_000), Option(
        help="Number of actors. Default: as many as there is room for.",
    )] = None
    ray_gpus: Annotated[float | None, Range(0, 64), Option(
        help="GPUs of each actor; 0.5 lets two share one. Default: one, if the cluster has any.",
    )] = None
    ray_cpus: Annotated[float | None, Range(0.01, 4096), Option(
        help="CPUs of each actor. Default: one beside a GPU, otherwise all of a node.",
    )] = None
    preset: Annotated[Name | None, Option(
        metavar="NAME|FILE", help="Settings that clients do not give come from this preset, then the model.",
    )] = None
    offline: Annotated[Flag, Option(
        metavar="", help="Never use the network, not even to download a model.",
    )] = False
    # fmt: on

    def __post_init__(self) -> None:
        """Check for options that exclude each other."""
        _ = self.execution

    @property
    def folder(self) -> Path:
        """The store's folder."""
        return Path(expand_path(self.store))

    @property
    def folders(self) -> dict[str, Path]:
        """The folders with files that clients name, by the setting that takes them.

        Raises:
            NotFoundError: one does not exist.
        """
        given = {setting: _folder(option, getattr(self, option)) for setting, option in FOLDERS.items()}
        return {setting: folder for setting, folder in given.items() if folder is not None}

    @property
    def wildcards(self) -> Path | None:
        """The folder of wildcards, as ``folders``."""
        return _folder("wildcard_folder", self.wildcard_folder)

    @property
    def models(self) -> dict[str, str]:
        """Map each model's public name to its ``--model`` argument. A path's public name is its last part.

        Raises:
            InputError: two models have the same name.
        """
        found: dict[str, str] = {}
        for given in self.model:
            path = Path(expand_path(given))
            name = (path.stem if path.is_file() else path.resolve().name) if path.exists() else given
            if name in found:
                raise InputError(f"two models are called {shown(name)}: {shown(found[name])}, {shown(given)}")
            found[name] = given
        return found

    @property
    def execution(self) -> Execution:
        """How networks run."""
        return Execution(
            backend=self.backend, compiled=self.compile, quantized=self.quantize, memory=self.memory
        )

    @property
    def cluster(self) -> ClusterOptions | None:
        """The cluster that generates; None for this machine.

        Raises:
            InputError: an option of a cluster is given without its address.
        """
        given: dict[str, Any] = {"actors": self.ray_actors, "gpus": self.ray_gpus, "cpus": self.ray_cpus}
        if self.ray is not None:
            with option_names("ray", "_"):
                return ClusterOptions(address=self.ray, **given)
        if used := [name for name, value in given.items() if value is not None]:
            raise InputError(f"ray_{used[0]} needs ray, the address of a cluster")
        return None

    @property
    def ranges(self) -> Mapping[str, Range]:
        """Ranges of the settings that this server's limits narrow."""
        return _ranges(self.max_steps, self.max_pixels)

    def check_count(self, count: int, name: str = "count") -> None:
        """Check the number of images of a job.

        Args:
            count: the number.
            name: what the client calls it.

        Raises:
            InputError: there are too many.
        """
        if not 1 <= count <= self.max_count:
            raise InputError(
                f"{name} is {shown(count)}: this server allows 1 to {self.max_count} images in a job"
            )

    def check(self, settings: Mapping[str, Any]) -> None:
        """Check an image's settings against the limits.

        Args:
            settings: by name; steps, width and height are among them.

        Raises:
            InputError: the image is too large or takes too many steps.
        """
        for name, allowed in self.ranges.items():
            check(name, settings[name], Annotated[int, allowed])
        width, height = settings["width"], settings["height"]
        if width * height > self.max_pixels:
            raise InputError(f"size is {width}x{height}: this server allows at most {self.max_pixels} pixels")


FOLDERS: Mapping[str, str] = {
    "loras": "lora_folder", "controls": "control_folder", "image_prompts": "ip_adapter_folder",
    "embeddings": "embedding_folder", "hires_upscaler": "upscaler_folder",
}  # fmt: skip
"""The option of the folder of each setting whose files clients name."""


def _folder(name: str, given: str | None) -> Path | None:
    """Find the folder that an option names."""
    if given is None:
        return None
    folder = Path(expand_path(given))
    if not folder.is_dir():
        raise NotFoundError(f"{name} is {named(folder)}: there is no such folder")
    return folder


@cache
def _ranges(max_steps: int, max_pixels: int) -> Mapping[str, Range]:
    least, multiple = int(RANGES["width"].low), RANGES["width"].multiple_of
    longest = max_pixels // least // multiple * multiple
    limits = {"steps": max_steps, "width": longest, "height": longest}
    return {
        name: replace(RANGES[name], high=limit, why="this server's limit")
        if limit < RANGES[name].high
        else RANGES[name]
        for name, limit in limits.items()
    }


OPTIONS: Mapping[str, Option] = {
    name: next(each for each in hint.__metadata__ if isinstance(each, Option))
    for name, hint in get_type_hints(ServerOptions, include_extras=True).items()
}
"""How each field of ``ServerOptions`` appears on the command line."""


def read_options(file: str | None, given: Mapping[str, Any]) -> ServerOptions:
    """Combine a settings file with options that override it.

    Args:
        file: a .toml or .json file; None for none.
        given: options by the name of their field.

    Raises:
        InputError: the file cannot be read, a name is unknown, or a value is not allowed.
    """
    table = {} if file is None else read_table(Path(expand_path(file)))
    if not isinstance(table, dict):
        raise InputError(f"{file} must hold a table")
    if file is not None:
        parse(ServerOptions, table, file)  # here, where the error names the file
    return ServerOptions(**{**table, **given})


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Key:
    """An API key of a client.

    Attributes:
        key: the key itself.
        max_pending: images of this client that may wait.
        images_per_hour: that this client may request.
    """

    key: Name
    max_pending: Annotated[int, Range(1, 1_000_000)] = 1_000_000
    images_per_hour: Annotated[int, Range(1, 1_000_000_000)] = 1_000_000_000


def read_keys(file: str) -> dict[str, Key]:
    """Read a file of API keys, by the client's name.

        [alice]
        key = "a long random text"
        max_pending = 8
        images_per_hour = 100

    Raises:
        InputError: the file cannot be read, or a key is too short, there twice, or nothing a client can send.
    """
    table = read_table(Path(expand_path(file)))
    with prefix_errors(file):
        if not isinstance(table, dict) or not table:
            raise InputError("it must hold a table for each client")
        keys = {name: parse(Key, entry, name) for name, entry in table.items()}
        for name, each in keys.items():
            if not (each.key.isascii() and each.key.isprintable() and each.key == each.key.strip()):
                raise InputError(f"{name}: the key must be printable ASCII, without spaces at its ends")
            if len(each.key) < MIN_KEY:
                raise InputError(
                    f"{name}: the key has {len(each.key)} characters, at least {MIN_KEY} are needed"
                )
        if len({each.key for each in keys.values()}) < len(keys):
            raise InputError("two clients have the same key")
    return keys


MIN_KEY = 16
"""Characters of an API key."""
