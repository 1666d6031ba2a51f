"""The recipe of a picture: all it takes to draw it again, as our JSON and as AUTOMATIC1111's text.

The JSON is complete and strict. The text is what the field's other programs read and write; what it cannot
say is in the JSON: rescale, interval and micro-conditioning, and prompts with a line that itself begins with
"Negative prompt:".
"""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Annotated, Any

from ssd1b import automatic1111
from ssd1b.errors import InputError, shown
from ssd1b.execution import DEFAULT, Execution
from ssd1b.numerals import number, whole_number
from ssd1b.sampler_names import SAMPLERS, SCHEDULES
from ssd1b.settings import SETTINGS, UNSET, GenerationSettings, equal_seed
from ssd1b.validation import OneOf, Range, Text, parse, validated

FORMAT = 1
"""Of the JSON; another number is another format."""

Count = Annotated[int, Range(1, 65_536)]


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class ModelIdentity:
    """Which weights drew the picture.

    Attributes:
        name: of the model, for people.
        source: the Hub repository or the path it was loaded from.
        revision: the Hub commit, None for a path.
        layout: a name of ``layouts.UNETS``.
        prediction: what the UNet was said to predict, "epsilon" or "v"; None left it to the model's files.
    """

    name: Text
    source: Text
    revision: Text | None
    layout: Text
    prediction: Text | None = None


@validated
@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """Settings, model and the circumstances that can change a picture's last bits.

    Attributes:
        dtype: of the UNet, as "float16".
        device: kind of device, as "cuda".
        batch_size: pictures that were drawn at once.
        threads: of the CPU.
        computing: compiled, in eight bits, in little memory.
        drawn_schedule: the schedule in effect, also where the settings leave it to sampler or model; None in
            recipes of earlier versions.
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
        """Note down what this process is drawing, with its own versions and threads."""
        # Here, because reading recipes takes no torch, and metadata take a tenth of the start-up time.
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


def write_json(recipe: Recipe) -> str:
    """Write a recipe as one line of ASCII, so that any container can hold it."""
    return json.dumps({"format": FORMAT, **asdict(recipe)}, allow_nan=False)


_BEFORE = {name: each.before for name, each in SETTINGS.items() if each.before is not UNSET}
"""What pictures had before a setting existed, for recipes of those versions."""


def read_json(text: str) -> Recipe:
    """Read what ``write_json`` wrote.

    Raises:
        InputError: it is no JSON, of another format, incomplete, or has a key or a value that is not allowed.
    """
    try:
        table = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise InputError(f"recipe is no JSON: {error}") from None
    if not isinstance(table, dict) or "format" not in table:
        raise InputError(f"recipe has no format: {shown(table)}")
    if (found := table.pop("format")) != FORMAT:
        raise InputError(f"recipe has format {shown(found)}: this version of ssd1b reads format {FORMAT}")
    if isinstance(settings := table.get("settings"), dict):
        table["settings"] = {**_BEFORE, **settings}
        if "seed" in settings:
            table["settings"]["seed"] = equal_seed(settings["seed"])
    return parse(Recipe, table, "recipe")


@dataclass(frozen=True, slots=True, kw_only=True)
class Parameters:
    """What AUTOMATIC1111's text says, or another program's in its terms.

    Attributes:
        values: as they stand there, quotes removed.
        program: that wrote it.
    """

    prompt: str
    negative_prompt: str | None
    values: Mapping[str, str]
    program: str = "AUTOMATIC1111"

    def settings(self) -> dict[str, Any]:
        """Give what ``resolve_settings`` can use, next to the prompt.

        No negative prompt is None: for SDXL, AUTOMATIC1111 too takes zeros when it is empty.

        A seed beyond 32 bits, as ComfyUI's, is the one within them that gives the same noise. The schedule
        is what AUTOMATIC1111 means, see ``automatic1111.schedule_of``.

        Raises:
            InputError: a value is no number where one belongs.
        """
        overrides: dict[str, Any] = {"negative_prompt": self.negative_prompt}
        for name, setting in SETTINGS.items():
            key = setting.a1111 or ""
            if key in self.values and key not in ("Schedule type", "Size"):
                overrides[name] = _read_value(key, self.values[key], _READERS[setting.kind])
        if (schedule := automatic1111.schedule_of(self.values)) is not None:
            overrides["schedule"] = schedule
        if "seed" in overrides:
            overrides["seed"] = equal_seed(overrides["seed"])
        if "Size" in self.values:
            size = _SIZE.fullmatch(self.values["Size"])
            if size is None:
                raise InputError(f"Size is {shown(self.values['Size'])}: it must be as 1024x768")
            overrides |= {"width": int(size[1]), "height": int(size[2])}
        return overrides

    def unreproduced(self) -> list[str]:
        """Say what of the picture is not drawn again, a phrase for each cause."""
        return automatic1111.unreproduced(self.values, self.program)


_READERS: Mapping[type, Callable[[str], Any]] = {int: whole_number, float: number, str: str}
_SIZE = re.compile(r"([0-9]{1,9})x([0-9]{1,9})")
_NEGATIVE = "Negative prompt:"
# A key, and a value that is a JSON string or reaches to the next comma.
_PAIR = re.compile(r'\s*(\w[\w /-]+):\s*("(?:[^"\\]|\\.)+"(?=,|$)|[^,]*)')


def write_parameters(recipe: Recipe) -> str:
    """Write a recipe as AUTOMATIC1111 writes its ``parameters`` (``modules/processing.create_infotext``)."""
    settings, model = recipe.settings, recipe.model
    values = {
        "Steps": settings.steps,
        "Sampler": SAMPLERS[settings.sampler].a1111,
        **_schedule(recipe),
        "CFG scale": repr(settings.guidance_scale).removesuffix(".0"),
        "Seed": settings.seed,
        "Size": f"{settings.width}x{settings.height}",
        "Model": model.name,
        "RNG": "CPU",
        "Version": f"ssd1b {recipe.ssd1b_version}",
    }
    negative = [] if settings.negative_prompt is None else [f"{_NEGATIVE} {settings.negative_prompt}"]
    last = ", ".join(f"{key}: {_quote(str(value))}" for key, value in values.items())
    return "\n".join([settings.prompt, *negative, last])


def _schedule(recipe: Recipe) -> dict[str, str]:
    """Name the schedule so that AUTOMATIC1111 takes the same: its "Automatic" is the sampler's own.

    Where it is the model's, and an earlier version did not note which, nothing is named.
    """
    chosen, drawn = recipe.settings.schedule, recipe.drawn_schedule
    if chosen is None and drawn == SAMPLERS[recipe.settings.sampler].schedule:
        return {"Schedule type": "Automatic"}
    name = chosen or drawn
    return {} if name is None else {"Schedule type": SCHEDULES[name][0]}


def read_parameters(text: str) -> Parameters:
    """Read AUTOMATIC1111's text as it does (``modules/infotext_utils.parse_generation_parameters``).

    Whatever the text, it is read: a last line that holds fewer than three values belongs to the prompt, and
    what makes no sense in a line of values is left out.
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
    """Go from comma to comma, so that the time does not grow faster than the line."""
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
    """Quote as AUTOMATIC1111 does, and also what would come back trimmed or unquoted."""
    plain = not re.search(r'[,\n:]|^"|^\s|\s$', text)
    return text if plain else json.dumps(text, ensure_ascii=False)


def _unquote(text: str) -> str:
    if not text.startswith('"'):
        return text
    try:
        value = json.loads(text)
        value.encode()  # JSON can spell half of a surrogate pair, which nothing can print
        return value
    except ValueError:
        return text


def _read_value(key: str, text: str, read: Callable[[str], Any]) -> Any:
    try:
        return read(text.strip())
    except InputError:
        kind = "whole number" if read is whole_number else "number"
        raise InputError(f"{key} is {shown(text)}: it must be a {kind} in plain digits") from None
