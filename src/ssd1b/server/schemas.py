"""Bodies and answers of the native API. The settings in them come from the one table of settings."""

from collections.abc import Mapping
from dataclasses import asdict
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, WithJsonSchema, create_model, model_validator

from ssd1b.advice import Advised
from ssd1b.controls import MOST as MOST_CONTROLS
from ssd1b.controls import PREPROCESSORS, Control
from ssd1b.embeddings import MOST_EMBEDDINGS, Embedding
from ssd1b.errors import InputError, shown, unknown
from ssd1b.image_prompts import LAYERS, MOST_IMAGE_PROMPTS, ImagePrompt
from ssd1b.inputs import InputFile
from ssd1b.loras import MOST, Lora
from ssd1b.server.errors import with_fields
from ssd1b.server.files import control_name, file_name, lora_name
from ssd1b.server.options import ServerOptions
from ssd1b.settings import INPUTS, OPTIONS, RANDOM_SEED, SEEDS, SETTINGS, GenerationSettings, read_size

FILE_SETTINGS: Mapping[str, dict[str, Any]] = {
    "init_image": {"type": "string", "description": "The picture to start from: base64 of a PNG, JPEG or "
                   "WebP, with or without a data: prefix, or the id of an upload or of an image."},
    "mask": {"type": "string", "description": "Change the picture only where this one is white; given in the "
             "same ways."},
    "loras": {
        "type": "array", "maxItems": MOST, "description": "LoRAs of /v1/loras; unet and text are strengths.",
        "items": {
            "type": "object", "required": ["name"], "additionalProperties": False,
            "properties": {
                "name": {"type": "string"},
                "unet": {"type": "number", "minimum": -100, "maximum": 100, "default": 1},
                "text": {"type": "number", "minimum": -100, "maximum": 100,
                         "description": "Default: the strength in the UNet."},
            },
        },
    },
    "controls": {
        "type": "array", "maxItems": MOST_CONTROLS,
        "description": "ControlNets and T2I-Adapters of /v1/controls, and the pictures that they follow.",
        "items": {
            "type": "object", "required": ["model", "picture"], "additionalProperties": False,
            "properties": {
                "model": {"type": "string"},
                "picture": {"type": "string", "description": "Given as init_image."},
                "scale": {"type": "number", "minimum": 0, "maximum": 10, "default": 1},
                "start": {"type": "number", "minimum": 0, "maximum": 1, "default": 0,
                          "description": "Where it begins, as a share of the steps."},
                "end": {"type": "number", "minimum": 0, "maximum": 1, "default": 1},
                "preprocess": {"enum": [*PREPROCESSORS], "default": "none"},
                "guess": {"type": "boolean", "default": False,
                          "description": "Without the prompt, for a ControlNet."},
            },
        },
    },
    "image_prompts": {
        "type": "array", "maxItems": MOST_IMAGE_PROMPTS,
        "description": "IP-Adapters of /v1/ip-adapters, and the pictures that the image is like.",
        "items": {
            "type": "object", "required": ["adapter", "picture"], "additionalProperties": False,
            "properties": {
                "adapter": {"type": "string"},
                "picture": {"type": "string", "description": "Given as init_image."},
                "scale": {"type": "number", "minimum": 0, "maximum": 10, "default": 1},
                "start": {"type": "number", "minimum": 0, "maximum": 1, "default": 0,
                          "description": "Where it begins, as a share of the steps."},
                "end": {"type": "number", "minimum": 0, "maximum": 1, "default": 1},
                "layers": {"type": "array", "items": {"type": "string"}, "maxItems": 32,
                           "description": f"Parts of the UNet: {', '.join(LAYERS)}; all by default."},
            },
        },
    },
    "embeddings": {
        "type": "array", "maxItems": MOST_EMBEDDINGS,
        "description": "Embeddings of /v1/embeddings under another word. Those that a prompt uses by the "
        "names of their files need no entry.",
        "items": {
            "type": "object", "required": ["name"], "additionalProperties": False,
            "properties": {
                "name": {"type": "string"},
                "word": {"type": "string", "description": "For it in prompts. Default: the file's name."},
            },
        },
    },
}  # fmt: skip
"""JSON schemas of the settings that are files, which clients send or name, and never by a path."""

PICTURED: Mapping[str, tuple[str, tuple[str, ...]]] = {
    name: (named, tuple(FILE_SETTINGS[name]["items"]["properties"]))
    for name, named in {"controls": "model", "image_prompts": "adapter"}.items()
}
"""Settings whose items have a network and a picture: the field of the network's name, and all fields."""

CLIENT_SETTINGS = tuple(name for name, each in SETTINGS.items() if not each.local or name in FILE_SETTINGS)
"""Settings that clients may set."""


SIZES = {option.replace("-", "_"): option for option, group in OPTIONS.items() if len(group) == 2}
"""Fields that are two settings, and the names of their options."""

ALIASES: Mapping[str, str] = {
    alias.removeprefix("--").replace("-", "_"): name
    for name, each in SETTINGS.items() if not each.local
    for alias in (*each.flags, *each.aliases) if alias != f"--{name.replace('_', '-')}"
}  # fmt: skip
"""Other names of settings, which are those of options and of a sweep's axes."""


ELSEWHERE: Mapping[str, str] = {
    "speed": "model chooses a few-step variant, such as mini-ssd-1b-turbo, and feature_reuse is a setting",
    "negative_preset": "preset takes these names, too",
    **dict.fromkeys(
        ("device", "dtype", "threads", "compile", "quantize", "memory", "backend", "offline", "prediction"),
        "the server was started with it",
    ),
}
"""Command-line options that are not fields of a job, each with its replacement."""


def client_settings(settings: GenerationSettings) -> dict[str, Any]:
    """Return an image's prompt and those of its settings that a client can send again."""
    names = ("prompt", *CLIENT_SETTINGS)
    return {name: sent(getattr(settings, name), network=name not in INPUTS) for name in names}


def sent(value: Any, *, network: bool = False) -> Any:
    """Write a setting as clients send it: files by name, pictures by their ids.

    Args:
        value: of the setting.
        network: whether it is a network, if it is a file itself.
    """
    if isinstance(value, InputFile):
        return file_name(value) if network else value.sha256
    if isinstance(value, list | tuple):
        return [sent(each) for each in value]
    if isinstance(value, Lora):
        return {"name": lora_name(value), "unet": value.unet, "text": value.text}
    if isinstance(value, Embedding):
        return {"name": file_name(value.file), "word": value.word}
    if isinstance(value, Control):
        fields = {name: getattr(value, name) for name in PICTURED["controls"][1]}
        return {**fields, "model": control_name(value), "picture": value.picture.sha256}
    if isinstance(value, ImagePrompt):
        fields = {name: getattr(value, name) for name in PICTURED["image_prompts"][1]}
        return {**fields, "adapter": file_name(value.adapter), "picture": value.picture.sha256}
    return value


def beyond_clients(settings: GenerationSettings) -> list[str]:
    """Name the settings of an image that a client cannot send, though they changed the image."""
    return [
        name
        for name, each in SETTINGS.items()
        if each.local and name not in CLIENT_SETTINGS and getattr(settings, name) not in (None, ())
    ]


State = Literal["queued", "running", "done", "failed", "cancelled"]


def _schema(name: str) -> dict[str, Any]:
    """The JSON schema of a setting. Names of samplers and schedules have several spellings, so any text."""
    setting = SETTINGS[name]
    if name in FILE_SETTINGS:
        return FILE_SETTINGS[name]
    if setting.is_name:
        schema: dict[str, Any] = {"type": "string"}
    elif name == "seed":
        schema = {"type": "integer", "minimum": RANDOM_SEED, "maximum": SEEDS - 1}
    else:
        schema = TypeAdapter(get_type_hints(GenerationSettings, include_extras=True)[name]).json_schema()
    if setting.help:
        schema["description"] = with_fields(setting.help)
    if isinstance(setting.default, int | float | str):
        schema["default"] = setting.default
    return schema


class _Body(BaseModel):
    # Settings are checked by ``resolve_settings``, which names the nearest valid name.
    model_config = ConfigDict(
        extra="allow",
        json_schema_extra={
            "additionalProperties": False,
            "examples": [
                {"prompt": "a large red metal sphere on a blue background", "seed": 3, "count": 2},
                {"prompt": "a lighthouse", "steps": 25, "guidance_scale": 9.0},
            ],
        },
    )


_FIELDS: Any = {name: (Annotated[Any, WithJsonSchema(_schema(name))], None) for name in CLIENT_SETTINGS}
SettingsFields: Any = create_model("SettingsFields", __base__=_Body, **_FIELDS)
"""Every setting as an optional field; null counts as absent."""


class JobBody(SettingsFields):
    """A request for images."""

    prompt: str = Field(description="What to generate, in AUTOMATIC1111's syntax for weights.")
    model: str | None = Field(default=None, description="A model of /v1/models. Default: the first.")
    count: int = Field(1, ge=1, description="Images with consecutive seeds.")
    styles: list[str] | None = Field(
        default=None,
        max_length=32,
        description="Styles of /v1/styles, put around the prompt in this order.",
    )
    preset: str | None = Field(
        default=None, description="Name of a preset; the settings given here override it."
    )
    priority: int = Field(0, ge=-10, le=10, description="Higher goes first; use negative ones for bulk work.")

    def given(self) -> dict[str, Any]:
        """The settings that were given.

        Raises:
            InputError: a field is unknown.
        """
        extra = self.model_extra or {}
        for name in extra.keys() - ALIASES.keys():
            if name in ELSEWHERE:
                raise InputError(f"there is no field {name!r}: {ELSEWHERE[name]}")
            raise unknown("setting", name, type(self).model_fields)
        own = JobBody.__annotations__
        found = {
            name: value for name, value in self.model_dump(exclude_unset=True).items()
            if name not in own and name not in extra and value is not None
        }  # fmt: skip
        for alias, value in extra.items():
            if value is None:
                continue
            given = {ALIASES[alias]: value}
            if alias in SIZES:
                if not isinstance(value, str):
                    raise InputError(f"{alias} is {shown(value)}: it must be a text like 1024x768")
                given = read_size(value, SIZES[alias])
            if twice := given.keys() & found.keys():
                raise InputError(f"{alias} and {min(twice)} are the same setting: leave one of them out")
            found |= given
        return found


class ImageAnswer(BaseModel):
    """An image of a job."""

    id: str
    state: Literal["waiting", "done", "failed"]
    seed: int
    url: str | None = Field(default=None, description="Path of the PNG, which contains its recipe.")
    error: str | None = None


class JobAnswer(BaseModel):
    """A job: its state, and its images."""

    id: str
    state: State
    model: str
    prompt: str
    settings: dict[str, Any]
    priority: int
    created: float = Field(description="Seconds since 1970, as the following.")
    started: float | None
    finished: float | None
    position: int | None = Field(description="How many jobs are ahead in the queue.")
    step: int = Field(description="Denoising steps done of the images in progress.")
    steps: int
    eta: float | None = Field(description="Estimated seconds until it is done.")
    images: list[ImageAnswer]
    advice: list[str] = Field(
        [], description="What to expect of settings outside the recommended ranges, and which have no effect."
    )
    error: str | None = None
    code: str | None = None


class Jobs(BaseModel):
    """Jobs, the newest first."""

    jobs: list[JobAnswer]
    next: str | None = Field(description="Pass it as `before` for older jobs; null if there are none.")


class Exact(BaseModel):
    """A body whose unknown fields are refused, because they may be typing mistakes."""

    model_config = ConfigDict(json_schema_extra={"additionalProperties": False})

    @model_validator(mode="before")
    @classmethod
    def _know(cls, given: Any) -> Any:
        for name in given if isinstance(given, dict) else ():
            if name not in cls.model_fields:
                raise unknown("field", name, cls.model_fields)
        return given


class Priority(Exact):
    """A job's place in the queue."""

    priority: int = Field(ge=-10, le=10)


class ModelAnswer(BaseModel):
    """A model that can be used; the first fields are OpenAI's."""

    id: str
    object: Literal["model"] = "model"
    created: int = 0
    owned_by: str = "ssd1b"
    family: str
    loaded: bool
    default: bool
    settings: dict[str, Any] = Field(description="The settings that its makers recommend.")


class Models(BaseModel):
    """The models, the default first."""

    object: Literal["list"] = "list"
    data: list[ModelAnswer]


class UploadAnswer(BaseModel):
    """A picture that a client sent."""

    id: str = Field(description="SHA-256 of the file; for init_image and mask.")
    width: int
    height: int
    url: str


class AdviceAnswer(BaseModel):
    """The recommended range of a setting."""

    setting: str
    low: float
    high: float
    below: str = Field(description="What to expect of smaller values.")
    above: str = Field(description="What to expect of larger values.")
    source: str


def advice_answers(advised: Advised) -> list[AdviceAnswer]:
    """Describe recommended ranges."""
    return [AdviceAnswer(**asdict(each)) for each in advised.ranges]


class FewStepsAnswer(BaseModel):
    """Recommended settings of a few-step LoRA."""

    kind: str
    settings: dict[str, Any] = Field(description="Used by jobs that do not set them.")
    advice: list[AdviceAnswer]
    samplers: list[str] = Field(description="Recommended samplers; empty if any will do.")


class LoraAnswer(BaseModel):
    """A LoRA, or another adapter, of the server's folder."""

    name: str = Field(description="For `loras`, and for `<lora:NAME:1>` in prompts.")
    families: dict[str, str] = Field(
        description="For each model of this server that it fits, the family whose names it has. One for SDXL "
        "is carried over to SSD-1B."
    )
    trigger_words: list[str] = Field(description="What it was trained with, by its metadata.")
    few_steps: FewStepsAnswer | None = Field(default=None, description="If it makes a model a few-step one.")
    error: str | None = Field(default=None, description="Why it cannot be used.")


class Loras(BaseModel):
    """The LoRAs, by name."""

    loras: list[LoraAnswer]


class ControlAnswer(BaseModel):
    """A ControlNet or T2I-Adapter."""

    name: str = Field(description="For `model` in `controls`.")
    kind: Literal["controlnet", "control_lora", "t2i_adapter"] | None = None
    models: list[str] = Field(description="Models of this server that it fits.")
    error: str | None = Field(default=None, description="Why it cannot be used.")


class Controls(BaseModel):
    """The networks that follow a picture, by name."""

    controls: list[ControlAnswer]
    preprocessors: list[str]


class IPAdapterAnswer(BaseModel):
    """An IP-Adapter of the server's folder."""

    name: str = Field(description="For `adapter` in `image_prompts`.")
    models: list[str] = Field(description="Models of this server that it fits.")
    error: str | None = Field(default=None, description="Why it cannot be used.")


class IPAdapters(BaseModel):
    """The IP-Adapters, by name."""

    ip_adapters: list[IPAdapterAnswer]


class EmbeddingAnswer(BaseModel):
    """An embedding of the server's folder."""

    name: str = Field(description="For `embeddings`.")
    word: str | None = Field(default=None, description="For prompts.")
    vectors: int | None = Field(default=None, description="How many tokens it takes the place of.")
    error: str | None = Field(default=None, description="Why it cannot be used.")


class Embeddings(BaseModel):
    """The embeddings, by name."""

    embeddings: list[EmbeddingAnswer]


class StyleAnswer(BaseModel):
    """A style of the server's file."""

    name: str = Field(description="For `styles`.")
    prompt: str = Field(description="{prompt} stands for the prompt; without it, it goes after a comma.")
    negative_prompt: str


class Styles(BaseModel):
    """The styles."""

    styles: list[StyleAnswer]


class Problem(BaseModel):
    """An error."""

    error: str = Field(description="One line: what is wrong, what was given, what is allowed.")
    code: str


class OpenAIError(BaseModel):
    """The error object of OpenAI's API."""

    message: str
    type: str
    param: str | None
    code: str


class OpenAIProblem(BaseModel):
    """An error of OpenAI's API."""

    error: OpenAIError


class A1111Problem(BaseModel):
    """An error of AUTOMATIC1111's API."""

    detail: str


COUNTS = frozenset({"count", "n", "batch_size", "n_iter"})
"""Fields with a number of images."""


def state_limits(schemas: Mapping[str, Any], options: ServerOptions) -> None:
    """Put a server's limits into the JSON schemas of requests, whose models are the same for all servers.

    Args:
        schemas: by the model's name; changed in place.
        options: of the server.
    """
    for model in ("JobBody", "Generation", "TextToImage", "ImageToImage"):
        for name, schema in schemas[model]["properties"].items():
            if allowed := options.ranges.get(name):
                schema |= {"minimum": allowed.low, "maximum": allowed.high, "multipleOf": allowed.multiple_of}
            elif name in COUNTS:
                schema |= {"minimum": 1, "maximum": options.max_count}
            if name in ("width", "height"):
                schema["description"] = f"In pixels. An image may have {options.max_pixels} pixels at most."


def problems(model: type[BaseModel]) -> dict[int | str, dict[str, Any]]:
    """Document that all errors of some routes look like a model."""
    return {"4XX": {"model": model}, "5XX": {"model": model}}
