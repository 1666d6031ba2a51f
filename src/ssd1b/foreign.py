"""Settings in images of other programs, converted to AUTOMATIC1111's parameters.

Where each program writes them:

- SwarmUI: JSON in ``parameters``, below ``sui_image_params``.
- Fooocus: JSON in ``parameters``, with ``metadata_scheme`` in it or a separate ``fooocus_scheme``.
- InvokeAI: JSON in ``invokeai_metadata``; before version 3 in ``sd-metadata``.
- ComfyUI: the graph of nodes in ``prompt``; in WebP after ``prompt:`` in EXIF's Model.
- NovelAI: JSON in ``Comment``, if ``Source`` or ``Software`` names it.
- Draw Things: JSON in the UserComment of XMP or EXIF, with the prompt under ``c``.

Names and values are untrusted: only texts and plain numbers are accepted, and no node of a graph is visited
twice.
"""

import html
import json
import re
from collections.abc import Callable, Iterator, Mapping
from typing import Any

from ssd1b.errors import InputError, shown
from ssd1b.recipe import Parameters

Table = Mapping[str, Any]

PARAMETERS = "parameters"
XMP = "XML:com.adobe.xmp"
"""Keys of texts in PNG, see ``metadata``."""

_FIELDS: dict[str, dict[str, tuple[str, ...]]] = {
    "SwarmUI": {
        "prompt": ("prompt",),
        "negative": ("negativeprompt",),
        "Steps": ("steps",),
        "CFG scale": ("cfgscale",),
        "Seed": ("seed",),
        "Sampler": ("sampler", "comfyuisampler", "comfy_sampler"),
        "Schedule type": ("scheduler", "comfyuischeduler", "comfy_scheduler"),
        "width": ("width",),
        "height": ("height",),
        "Model": ("model",),
        "Denoising strength": ("initimagecreativity",),
    },
    "Fooocus": {
        "prompt": ("prompt",),
        "negative": ("negative_prompt",),
        "Steps": ("steps",),
        "CFG scale": ("guidance_scale",),
        "Seed": ("seed",),
        "Sampler": ("sampler",),
        "Schedule type": ("scheduler",),
        "size": ("resolution",),
        "Model": ("base_model",),
    },
    "InvokeAI": {
        "prompt": ("positive_prompt",),
        "negative": ("negative_prompt",),
        "Steps": ("steps",),
        "CFG scale": ("cfg_scale",),
        "Seed": ("seed",),
        "Sampler": ("scheduler", "sampler"),
        "width": ("width",),
        "height": ("height",),
        "Model": ("model",),
        "Denoising strength": ("strength",),
    },
    "NovelAI": {
        "prompt": ("prompt",),
        "negative": ("uc",),
        "Steps": ("steps",),
        "CFG scale": ("scale",),
        "Seed": ("seed",),
        "Sampler": ("sampler",),
        "Schedule type": ("noise_schedule",),
        "width": ("width",),
        "height": ("height",),
    },
    "Draw Things": {
        "prompt": ("c",),
        "negative": ("uc",),
        "Steps": ("steps",),
        "CFG scale": ("scale",),
        "Seed": ("seed",),
        "Sampler": ("sampler",),
        "size": ("size",),
        "Model": ("model",),
    },
}
"""Names of each value by program; the first that is present is used."""

_SIZE = re.compile(r"\D{0,2}([0-9]{1,6})\s*[x×,]\s*([0-9]{1,6})\D{0,2}", re.ASCII)


def read_foreign(texts: Mapping[str, str]) -> Parameters | None:
    """Read the settings that a program other than AUTOMATIC1111 wrote; None if there are none.

    Args:
        texts: texts of an image by their keys in PNG.

    Raises:
        InputError: a program's text cannot be read, or the program is unknown.
    """
    for key, read in _READERS.items():
        if key in texts and (found := read(texts)) is not None:
            return found
    return None


def _in_parameters(texts: Mapping[str, str]) -> Parameters | None:
    """Read JSON in the place of AUTOMATIC1111's text."""
    text = texts[PARAMETERS].strip()
    table = _json(text)
    if table is None:
        if text.startswith('{"'):
            raise InputError("the image contains damaged JSON where AUTOMATIC1111 writes its text")
        return None
    if isinstance(inner := table.get("sui_image_params"), dict):
        return _mapped("SwarmUI", inner)
    if "metadata_scheme" in table or "fooocus_scheme" in texts or "Fooocus" in str(table.get("version", "")):
        return _mapped("Fooocus", table)
    if isinstance(comment := table.get("Comment"), str):
        return _in_comment({**texts, "Comment": comment, "Software": "NovelAI"})
    if "c" in table and "sampler" in table:
        return _mapped("Draw Things", table)
    if any(_is_node(node) for node in table.values()):
        return _graph(table)
    names = ", ".join(shown(name) for name in list(table)[:3])
    raise InputError(f"the image contains JSON of an unknown program ({names} ...)")


def _in_invokeai(texts: Mapping[str, str]) -> Parameters:
    return _mapped("InvokeAI", _needed("InvokeAI", texts["invokeai_metadata"]))


def _in_old_invokeai(texts: Mapping[str, str]) -> Parameters:
    table = _needed("InvokeAI", texts["sd-metadata"])
    image = table.get("image")
    if not isinstance(image, dict):
        raise InputError("from InvokeAI: its text has no settings of the image")
    prompts = image.get("prompt")
    first = prompts[0] if isinstance(prompts, list) and prompts else prompts
    prompt = first.get("prompt") if isinstance(first, dict) else first
    found = {**image, "positive_prompt": prompt, "scheduler": _plain_sampler(image.get("sampler"))}
    return _mapped("InvokeAI", {**found, "model": table.get("model_weights")})


def _in_comfyui(texts: Mapping[str, str]) -> Parameters:
    return _graph(_needed("ComfyUI", texts["prompt"]))


def _in_comment(texts: Mapping[str, str]) -> Parameters | None:
    """Read NovelAI's JSON; other programs' comments are free text."""
    if "NovelAI" not in texts.get("Software", "") + texts.get("Source", ""):
        return None
    table = dict(_needed("NovelAI", texts["Comment"]))
    prompt = table.get("prompt", texts.get("Description"))
    return _mapped("NovelAI", {**table, "sampler": _plain_sampler(table.get("sampler")), "prompt": prompt})


def _plain_sampler(name: object) -> object:
    """Remove what NovelAI and InvokeAI before version 3 add to k-diffusion's and DDIM's names."""
    return name.removeprefix("k_").removesuffix("_v3") if isinstance(name, str) else name


def _in_xmp(texts: Mapping[str, str]) -> Parameters | None:
    """Read Draw Things' JSON out of XMP; other programs' XMP has none."""
    # Step by step, since a pattern would try every pair of start and end tags.
    rest = texts[XMP].partition("<exif:UserComment>")[2].partition("<rdf:li")[2].partition(">")[2]
    comment, end, _ = rest.partition("</rdf:li>")
    table = _json(html.unescape(comment)) if end else None
    return _mapped("Draw Things", table) if table and "c" in table else None


_READERS: dict[str, Callable[[Mapping[str, str]], Parameters | None]] = {
    "invokeai_metadata": _in_invokeai,
    "sd-metadata": _in_old_invokeai,
    "Comment": _in_comment,
    PARAMETERS: _in_parameters,
    XMP: _in_xmp,
    "prompt": _in_comfyui,
}
"""Readers by key. ComfyUI's graph is last, since SwarmUI's images may contain one, too."""

KEYS = frozenset(_READERS)
"""Keys of texts that may have an image's settings."""


def _json(text: str) -> dict[str, Any] | None:
    """Parse a JSON object; None for anything else."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _needed(program: str, text: str) -> dict[str, Any]:
    table = _json(text)
    if table is None:
        raise InputError(f"from {program}: its text is not a JSON object, or damaged")
    return table


def _mapped(program: str, table: Table) -> Parameters:
    """Convert a flat table of a program's values."""
    found: dict[str, str] = {}
    for field, names in _FIELDS[program].items():
        value = next((table[name] for name in names if table.get(name) is not None), None)
        if field == "Model" and isinstance(value, dict):
            value = value.get("name") or value.get("model_name")
        if value is not None:
            found[field] = _text(program, field, value)
    if program == "InvokeAI" and found.get("Sampler", "").endswith("_k"):  # its Karras schedule
        found |= {"Sampler": found["Sampler"].removesuffix("_k"), "Schedule type": "Karras"}
    return _parameters(program, found)


def _parameters(program: str, found: dict[str, str]) -> Parameters:
    prompt, negative = found.pop("prompt", None), found.pop("negative", None)
    if prompt is None:
        raise InputError(f"from {program}: its text has no prompt")
    if (text := found.pop("size", None)) is not None:
        if (size := _SIZE.fullmatch(text)) is None:
            raise InputError(f"from {program}: the size is {shown(text)}: it must be a width and a height")
        found |= {"width": size[1], "height": size[2]}
    width, height = found.pop("width", None), found.pop("height", None)
    if width and height:
        found["Size"] = f"{width}x{height}"
    return Parameters(prompt=prompt, negative_prompt=negative, values=found, program=program)


def _text(program: str, field: str, value: object) -> str:
    """Format a text or a plain number as in AUTOMATIC1111's text."""
    if isinstance(value, str):
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < 2**53:
        value = int(value)
    if isinstance(value, int | float) and not isinstance(value, bool):
        try:
            return str(value)
        except ValueError:  # an integer of thousands of digits
            pass
    raise InputError(f"from {program}: {field} is {shown(value)}, which is neither a text nor a number")


# ComfyUI: the settings are distributed over the nodes of a graph.

_LOADERS = ("ckpt_name", "unet_name", "model_name")
_WORDS = ("text", "text_g", "text_l", "string", "value", "prompt", "populated_text", "wildcard_text")
_NUMBERS = ("value", "int", "float", "number", "seed", "noise_seed", "Value")
_PARTS = ("noise", "guider", "sampler", "sigmas")
"""Inputs of SamplerCustom and SamplerCustomAdvanced whose nodes have further settings."""

_MOST_SAMPLERS = 16
"""Maximum number of sampling nodes examined; each may be connected to the whole graph."""

_OTHER_INPUTS = ("clip", "model", "vae", "image", "control_net", "mask", "pixels", "samples")
"""Inputs that lead from a conditioning to something other than its prompt."""


def _is_node(node: object) -> bool:
    return isinstance(node, dict) and "class_type" in node and isinstance(node.get("inputs"), dict)


class _Graph:
    """The nodes of a ComfyUI graph.

    Args:
        table: nodes by id.
    """

    def __init__(self, table: Table) -> None:
        self.nodes = {key: node for key, node in table.items() if _is_node(node)}

    def behind(self, link: object) -> dict[str, Any] | None:
        """Return the node that a link ``[id, output]`` refers to."""
        if isinstance(link, list) and len(link) == 2 and isinstance(link[0], str | int):
            return self.nodes.get(str(link[0]))
        return None

    def upstream(self, link: object, follow: Callable[[str], bool]) -> Iterator[dict[str, Any]]:
        """Traverse the nodes upstream of a link, nearest first; ``follow`` selects inputs by name."""
        waiting, seen = [link], set[int]()
        for each in waiting:
            node = self.behind(each)
            if node is None or id(node) in seen:
                continue
            seen.add(id(node))
            yield node
            waiting += [value for name, value in node["inputs"].items() if follow(name)]

    def value(self, value: object, names: tuple[str, ...]) -> object:
        """Return a plain value, or the one that a link leads to."""
        if not isinstance(value, list):
            return value
        for node in self.upstream(value, lambda name: name not in _OTHER_INPUTS):
            for name in names:
                if isinstance(found := node["inputs"].get(name), str | int | float):
                    return found
        return None

    def words(self, link: object) -> str | None:
        """Return the text of a conditioning; None if it is zeroed out, or there is none."""
        for node in self.upstream(link, lambda name: name not in _OTHER_INPUTS):
            if node["class_type"] == "ConditioningZeroOut":
                return None
            if name := next((name for name in _WORDS if name in node["inputs"]), None):
                found = self.value(node["inputs"][name], _WORDS)
                return found if isinstance(found, str) else None
        return None

    def size(self, link: object) -> dict[str, object]:
        """Return the size of the latents that a sampler starts from."""
        for node in self.upstream(link, lambda name: name not in ("vae", "model", "clip")):
            inputs = node["inputs"]
            if {"width", "height"} <= inputs.keys():
                return {name: self.value(inputs[name], _NUMBERS) for name in ("width", "height")}
        return {}

    def samplers(self) -> list[dict[str, Any]]:
        """Return the settings of each sampling node, those that start from noise first."""
        found = []
        for node in self.nodes.values():
            inputs = node["inputs"]
            if "latent_image" not in inputs:
                continue
            parts = [part["inputs"] for name in _PARTS if (part := self.behind(inputs.get(name)))]
            settings = {name: value for each in (*parts, inputs) for name, value in each.items()}
            if "positive" in settings and len(found) < _MOST_SAMPLERS:
                found.append(settings)
        return sorted(found, key=lambda each: not self.size(each["latent_image"]))


def _graph(table: Table) -> Parameters:
    """Convert a ComfyUI graph: the first sampler that starts from noise, and the nodes upstream of it."""
    graph = _Graph(table)
    samplers = graph.samplers()
    if not samplers:
        raise InputError("from ComfyUI: its graph has no sampling node")
    inputs = samplers[0]
    seed = inputs.get("seed", inputs.get("noise_seed"))
    found: dict[str, object] = {
        "prompt": graph.words(inputs["positive"]),
        "negative": graph.words(inputs.get("negative")),
        "Steps": graph.value(inputs.get("steps"), _NUMBERS),
        "CFG scale": graph.value(inputs.get("cfg"), _NUMBERS),
        "Seed": graph.value(seed, _NUMBERS),
        "Sampler": graph.value(inputs.get("sampler_name"), ("sampler_name", *_WORDS)),
        "Schedule type": graph.value(inputs.get("scheduler"), ("scheduler", *_WORDS)),
        **graph.size(inputs["latent_image"]),
    }
    if isinstance(denoise := inputs.get("denoise"), int | float) and denoise != 1:
        found["Denoising strength"] = denoise
    loras = []
    for node in graph.upstream(inputs.get("model"), lambda name: name == "model"):
        if isinstance(lora := node["inputs"].get("lora_name"), str):
            loras.append(lora)
        found.setdefault("Model", next((node["inputs"][n] for n in _LOADERS if n in node["inputs"]), None))
        if found["Model"] is None:
            del found["Model"]
    if loras:
        found["Lora hashes"] = ", ".join(f"{lora}: unknown" for lora in loras)
    texts = {name: _text("ComfyUI", name, value) for name, value in found.items() if value is not None}
    return _parameters("ComfyUI", texts)
