"""The recipe of an image: everything needed to reproduce it, as JSON and as AUTOMATIC1111's text.

The JSON is complete and strict. The text is the format that other programs read and write. Only the JSON has
rescale, interval and micro-conditioning, and prompts with a line that begins with "Negative prompt:".
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from ssd1b import automatic1111
from ssd1b.errors import InputError, NotFoundError, shown, unknown
from ssd1b.execution import DEFAULT, Execution
from ssd1b.files import expand_path, named, read_shapes
from ssd1b.inputs import InputFile, with_paths
from ssd1b.layouts import STEMS
from ssd1b.loras import PEFT_CONFIG, PEFT_FILE, write_tags
from ssd1b.numerals import number, whole_number
from ssd1b.sampler_names import SAMPLERS, SCHEDULES
from ssd1b.settings import BEFORE, HIRES_SETTINGS, SEED_SETTINGS, SETTINGS, GenerationSettings, equal_seed
from ssd1b.table_files import load_json, parser_reason
from ssd1b.upscalers import DEFAULT_UPSCALER, upscaler_label
from ssd1b.validation import Items, OneOf, Range, Text, parse, validated

FORMAT = 1
"""Format version of the JSON."""

Count = Annotated[int, Range(1, 65_536)]


NETWORKS = ("vae", "unet", "text_encoder", "text_encoder_2")
"""The networks of a model."""

MAX_NETWORK_BYTES = 64 * 2**30
"""Maximum size of a file with a network; SDXL's UNet in float32 has 10 GB."""

MAX_CONFIG_BYTES = 2**20

CONFIG = "config.json"
"""Name of the configuration beside the weights in a network's folder, in diffusers' format."""


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class NetworkFile:
    """A file with a network that replaces the model's own.

    Attributes:
        network: one of ``NETWORKS``.
        file: the file, identified by its content.
        config: diffusers' ``config.json`` of the network, which has what its tensors do not show; None for a
            file that is not called as in a network's folder, or has none beside it.
    """

    network: Annotated[str, OneOf("network", NETWORKS)]
    file: InputFile
    config: InputFile | None = None

    @property
    def files(self) -> Mapping[InputFile, int]:
        """The files, and their maximum sizes in bytes."""
        return {self.file: MAX_NETWORK_BYTES} | ({self.config: MAX_CONFIG_BYTES} if self.config else {})

    @classmethod
    def of(cls, network: str, path: str) -> "NetworkFile":
        """Identify a file, and the configuration beside it.

        Args:
            network: one of ``NETWORKS``.
            path: a safetensors file, or the network's folder in diffusers' format.

        Raises:
            NotFoundError: there is no such file, or no weights in the folder.
            InputError: there is no such network, or the file cannot be read or is not safetensors.
        """
        if network not in NETWORKS:  # a misspelled name is found before its file is read
            raise unknown("network", network, NETWORKS)
        place, names = Path(expand_path(path)), _weight_files(network)
        if place.is_dir():
            found = next((place / name for name in names if (place / name).is_file()), None)
            if found is None:
                raise NotFoundError(f"{named(path)}: no {names[0]}, which a {network} has, in this folder")
            place = found
        file = InputFile.of(place, most=MAX_NETWORK_BYTES)
        read_shapes(file.path)  # another kind of file is found before anything is loaded
        beside = place.with_name(CONFIG)
        has_config = place.name in names and beside.is_file()
        config = InputFile.of(beside, most=MAX_CONFIG_BYTES) if has_config else None
        return cls(network=network, file=file, config=config)


def _weight_files(network: str) -> tuple[str, ...]:
    """Name the weight files of a network's folder, the preferred one first."""
    return tuple(f"{STEMS[network]}{variant}.safetensors" for variant in ("", ".fp16"))


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """The model that generated an image.

    Attributes:
        name: readable name.
        source: the hub repository or the path it was loaded from.
        revision: the hub commit, None for a path.
        layout: a name of ``layouts.UNETS``.
        prediction: what the user declared the UNet to predict, "epsilon" or "v"; None if it was read from the
            model's files.
        networks: files that replaced networks of the model.
    """

    name: Text
    source: Text
    revision: Text | None
    layout: Text
    prediction: Text | None = None
    networks: Annotated[tuple[NetworkFile, ...], Items(0, len(NETWORKS))] = ()


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings, model, and the environment, which can change an image's last bits.

    Attributes:
        dtype: the UNet's number format, such as "float16".
        device: kind of device, such as "cuda".
        batch_size: number of images generated at once.
        threads: number of CPU threads.
        computing: execution options.
        drawn_schedule: the schedule used, even if the settings leave it to sampler or model; None with given
            timesteps, and in recipes of earlier versions.
    """

    settings: GenerationSettings
    model: ModelIdentity
    dtype: Text
    device: Text
    batch_size: Count
    threads: Count
    torch_version: Text
    ssd1b_version: Text
    computing: Execution = DEFAULT
    drawn_schedule: Annotated[str, OneOf("drawn_schedule", SCHEDULES)] | None = None

    @classmethod
    def of(
        cls,
        settings: GenerationSettings,
        model: ModelIdentity,
        *,
        dtype: str,
        device: str,
        batch_size: int,
        computing: Execution = DEFAULT,
        drawn_schedule: str | None = None,
    ) -> "Recipe":
        """Make the recipe of an image from this process, with its versions and number of threads."""
        # Here, since reading recipes needs no torch, and importlib.metadata is a tenth of the start-up time.
        from importlib.metadata import version

        import torch

        return cls(
            settings=settings,
            model=model,
            dtype=dtype,
            device=device,
            batch_size=batch_size,
            threads=torch.get_num_threads(),
            torch_version=str(torch.__version__),
            ssd1b_version=version("ssd1b"),
            computing=computing,
            drawn_schedule=drawn_schedule,
        )


def _shared_path(path: str) -> str:
    """Return a file's name; for PEFT's, with the folder's, which is the adapter's name."""
    place = Path(path)
    return (
        Path(place.parent.name, place.name).as_posix()
        if place.name in (PEFT_FILE, PEFT_CONFIG)
        else place.name
    )


def without_folders(recipe: Recipe) -> Recipe:
    """Name the files that an image was generated from without the folders that they are in."""
    settings = with_paths(recipe.settings, _shared_path)
    return recipe if settings is recipe.settings else replace(recipe, settings=settings)


def write_json(recipe: Recipe) -> str:
    """Format a recipe as one line of ASCII, which any container can hold."""
    return json.dumps({"format": FORMAT, **asdict(recipe)}, allow_nan=False)


def read_json(text: str) -> Recipe:
    """Parse a recipe from JSON.

    Raises:
        InputError: the text is not JSON, has another format version, or a key or value is missing or invalid.
    """
    try:
        table = load_json(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"recipe is not valid JSON: {parser_reason(error)}") from None
    if not isinstance(table, dict) or "format" not in table:
        raise InputError(f"recipe has no format: {shown(table)}")
    if (found := table.pop("format")) != FORMAT:
        raise InputError(f"recipe has format {shown(found)}: this version of ssd1b reads format {FORMAT}")
    if isinstance(settings := table.get("settings"), dict):
        table["settings"] = {**BEFORE, **settings}
        if "seed" in settings:
            table["settings"]["seed"] = equal_seed(settings["seed"])
    return parse(Recipe, table, "recipe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """Content of AUTOMATIC1111's text, or of another program's metadata in the same terms.

    Attributes:
        prompt: the prompt.
        negative_prompt: the negative prompt, if any.
        values: all other fields as text, without quotes.
        program: the program that wrote it.
    """

    prompt: str
    negative_prompt: str | None
    values: Mapping[str, str]
    program: str = "AUTOMATIC1111"

    def settings(self, init_image: InputFile | None = None) -> dict[str, Any]:
        """Convert to overrides for ``resolve_settings``, without the prompt.

        A missing negative prompt is None, since AUTOMATIC1111 also uses zeros for an empty one with SDXL.
        Seeds beyond 32 bits, such as ComfyUI's, are reduced to the seed with the same noise. The schedule is
        interpreted as in AUTOMATIC1111, see ``automatic1111.schedule_of``.

        Args:
            init_image: the picture that the image was generated from, which the text does not contain.
                Without it the strength has no meaning and is left out.

        Raises:
            InputError: a value that must be a number is not.
        """
        overrides: dict[str, Any] = {"negative_prompt": self.negative_prompt}
        if init_image is not None:
            overrides |= {"init_image": init_image, "strength_steps": "a1111"}
        hires = automatic1111.hires_of(self.values)
        left_out = {*(() if hires else HIRES_SETTINGS), *(() if init_image else ("strength",))}
        for name, setting in SETTINGS.items():
            text = self.values.get(setting.a1111 or "")
            if text is None or name in left_out or text in _SAME:
                continue
            if setting.a1111 and setting.a1111 not in _READ_APART:
                overrides[name] = _read_value(setting.a1111, text, _READERS[setting.kind])
        if (schedule := automatic1111.schedule_of(self.values)) is not None:
            overrides["schedule"] = schedule
        for name in SEED_SETTINGS:
            if name in overrides:
                overrides[name] = equal_seed(overrides[name])
        if "Size" in self.values:
            size = automatic1111.SIZE.fullmatch(self.values["Size"])
            if size is None:
                raise InputError(f"Size is {shown(self.values['Size'])}: it must be like 1024x768")
            overrides |= {"width": int(size[1]), "height": int(size[2])}
        return overrides | automatic1111.seed_resize_of(self.values) | hires

    def unreproduced(self) -> list[str]:
        """List what of the image cannot be reproduced, a phrase for each cause."""
        return automatic1111.unreproduced(self.values, self.program)


_READERS: Mapping[type, Callable[[str], Any]] = {int: whole_number, float: number, str: str}
_READ_APART = ("Schedule type", "Size", "Seed resize from", "Hires resize", "Hires upscaler")
_SAME = ("Use same sampler", "Use same scheduler")
"""What some programs write of the second pass where AUTOMATIC1111 writes nothing."""
_NEGATIVE = "Negative prompt:"
# A key, and a value that is a JSON string or extends to the next comma.
_PAIR = re.compile(r'\s*(\w[\w /-]+):\s*("(?:[^"\\]|\\.)+"(?=,|$)|[^,]*)')


def write_parameters(recipe: Recipe) -> str:
    """Format a recipe like AUTOMATIC1111's ``parameters`` (``modules/processing.create_infotext``)."""
    settings, model = recipe.settings, recipe.model
    values = {
        "Steps": settings.steps,
        "Sampler": SAMPLERS[settings.sampler].a1111,
        **_schedule(recipe),
        "CFG scale": repr(settings.guidance_scale).removesuffix(".0"),
        "Seed": settings.seed,
        "Size": f"{settings.width}x{settings.height}",
        "Model": model.name,
        **_variation(settings),
        **_strength(settings),
        **_inpainting(settings),
        **_hires(settings),
        **_lora_hashes(settings),
        **_embedding_hashes(settings),
        "RNG": "CPU",
        "Version": f"ssd1b {recipe.ssd1b_version}",
    }
    negative = [] if settings.negative_prompt is None else [f"{_NEGATIVE} {settings.negative_prompt}"]
    last = ", ".join(f"{key}: {_quote(str(value))}" for key, value in values.items())
    tags = write_tags(settings.loras)
    return "\n".join([f"{settings.prompt} {tags}" if tags else settings.prompt, *negative, last])


def _lora_hashes(settings: GenerationSettings) -> dict[str, str]:
    """Name the files of adapters with the hashes by which AUTOMATIC1111 finds them."""
    hashes = [f"{each.name}: {each.short_hash}" for each in settings.loras if each.short_hash]
    return {"Lora hashes": ", ".join(hashes)} if hashes else {}


def _variation(settings: GenerationSettings) -> dict[str, object]:
    found: dict[str, object] = {}
    if settings.variation_strength:
        found["Variation seed"] = settings.variation_seed
        found["Variation seed strength"] = f"{settings.variation_strength:g}"
    if settings.seed_resize_width:
        found["Seed resize from"] = f"{settings.seed_resize_width}x{settings.seed_resize_height}"
    return found


def _embedding_hashes(settings: GenerationSettings) -> dict[str, str]:
    """Name the files of embeddings with the beginning of their SHA-256, as AUTOMATIC1111 does."""
    hashes = [f"{each.word}: {each.file.sha256[:12]}" for each in settings.embeddings]
    return {"TI hashes": ", ".join(hashes)} if hashes else {}


def _strength(settings: GenerationSettings) -> dict[str, str]:
    """Write the strength of the picture, or of the second pass: AUTOMATIC1111 has one name for both."""
    strength = settings.hires_strength if settings.hires else settings.strength
    return {} if strength is None else {"Denoising strength": f"{strength:g}"}


def _inpainting(settings: GenerationSettings) -> dict[str, object]:
    """Write how the mask was used; the text of AUTOMATIC1111 has no mask."""
    if settings.mask is None:
        return {}
    content = settings.mask_content
    found = {
        "Mask mode": "Inpaint not masked" if settings.mask_change == "black" else None,
        "Mask blur": None if settings.mask_blur is None else f"{settings.mask_blur:g}",
        "Masked content": {"original": None, "fill": "fill"}.get(content, f"latent {content}"),
        "Inpaint area": "Only masked" if settings.mask_area == "masked" else None,
        "Masked area padding": settings.mask_padding if settings.mask_area == "masked" else None,
    }
    return {name: value for name, value in found.items() if value is not None}


def _hires(settings: GenerationSettings) -> dict[str, object]:
    """Write the second pass, as far as it differs from the first."""
    if not settings.hires:
        return {}
    upscaler = settings.hires_upscaler or DEFAULT_UPSCALER
    sampler, schedule = settings.hires_sampler, settings.hires_schedule
    found = {
        "Hires upscale": None if settings.hires_scale is None else f"{settings.hires_scale:g}",
        "Hires resize": f"{settings.hires_width}x{settings.hires_height}" if settings.hires_width else None,
        "Hires upscaler": upscaler_label(upscaler),
        "Hires steps": settings.hires_steps,
        "Hires sampler": None if sampler is None else SAMPLERS[sampler].a1111,
        "Hires schedule type": None if schedule is None else SCHEDULES[schedule][0],
        "Hires CFG Scale": settings.hires_guidance_scale,
        "Hires prompt": settings.hires_prompt,
        "Hires negative prompt": settings.hires_negative_prompt,
    }
    return {name: value for name, value in found.items() if value is not None}


def _schedule(recipe: Recipe) -> dict[str, str]:
    """Name the schedule so that AUTOMATIC1111 uses the same one: its "Automatic" is the sampler's own.

    Omitted if it was the model's, and an earlier version did not record it.
    """
    chosen, drawn = recipe.settings.schedule, recipe.drawn_schedule
    if chosen is None and drawn == SAMPLERS[recipe.settings.sampler].schedule:
        return {"Schedule type": "Automatic"}
    name = chosen or drawn
    return {} if name is None else {"Schedule type": SCHEDULES[name][0]}


def read_parameters(text: str) -> Parameters:
    """Parse AUTOMATIC1111's text as it does (``modules/infotext_utils.parse_generation_parameters``).

    Any text is accepted: a last line with fewer than three values belongs to the prompt, and anything
    unintelligible in a line of values is skipped.
    """
    *lines, last = text.rstrip().split("\n")
    values = _read_pairs(last)
    if len(values) < 3:
        lines, values = [*lines, last], {}
    begin = next((index for index, line in enumerate(lines) if line.strip().startswith(_NEGATIVE)), None)
    if begin is None:
        return Parameters(prompt="\n".join(lines), negative_prompt=None, values=values)
    first = lines[begin].lstrip().removeprefix(_NEGATIVE).removeprefix(" ")
    return Parameters(
        prompt="\n".join(lines[:begin]),
        negative_prompt="\n".join([first, *lines[begin + 1 :]]),
        values=values,
    )


def _read_pairs(line: str) -> dict[str, str]:
    """Parse "key: value" pairs from comma to comma, in linear time."""
    values: dict[str, str] = {}
    position = 0
    while position < len(line):
        pair = _PAIR.match(line, position)
        if pair:
            values[pair[1]] = _unquote(pair[2])
        comma = line.find(",", pair.end() if pair else position)
        position = len(line) if comma < 0 else comma + 1
    return values


def _quote(text: str) -> str:
    """Quote as AUTOMATIC1111 does, and also values that parsing would trim or unquote."""
    plain = not re.search(r'[,\n:]|^"|^\s|\s$', text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _unquote(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        value = json.loads(text)
        value.encode()  # JSON can contain half of a surrogate pair, which cannot be printed
        return value
    except ValueError:
        return text


def _read_value(key: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text.strip())
    except InputError:
        kind = "whole number" if read is whole_number else "number"
        raise InputError(f"{key} is {shown(text)}: it must be a {kind} in plain digits") from None
