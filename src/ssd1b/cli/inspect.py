"""``ssd1b inspect``: what a checkpoint, an adapter, a control network or an image contains."""

from typing import Any

import click

from ssd1b.cli.command import Command
from ssd1b.cli.table import columns, json_line
from ssd1b.errors import line, printable
from ssd1b.numerals import byte_size
from ssd1b.picture_names import PICTURES
from ssd1b.settings import BEFORE, LISTS, SETTINGS

_SCHEDULER = ("_class_name", "prediction_type", "timestep_spacing")
_DEFAULTS = ("sampler", "schedule", "steps", "guidance_scale", "guidance_rescale", "negative_prompt")
"""The fields that are shown to people; --json has all."""


@click.command("inspect", cls=Command)
@click.argument("subject", metavar="FILE|FOLDER|MODEL")
@click.option(
    "--model",
    metavar="MODEL",
    help="The model that an adapter or ControlNet is compared with. Default: all known.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def command(subject: str, model: str | None, as_json: bool) -> None:
    """Describe a model, a LoRA, an embedding, a ControlNet, an upscaler, or the settings of an image.

    Nothing is downloaded.

    \b
    Examples:
      ssd1b inspect pictures/7-an-astronaut-riding-a-horse.png
      ssd1b inspect sd_xl_base_1.0.safetensors
      ssd1b inspect pixel-art.safetensors --model ssd-1b
      ssd1b inspect ssd-1b
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.actions import inspect as actions

    if subject.lower().endswith(PICTURES):
        facts, as_text = actions.describe_image(subject), _image_text
    elif actions.is_adapter(subject):
        facts, as_text = actions.describe_adapter(subject, model), adapter_text
    elif actions.is_embedding(subject):
        facts, as_text = actions.describe_embedding(subject), _listed
    elif actions.is_control(subject):
        facts, as_text = actions.describe_control(subject, model), _control_text
    elif actions.is_ip_adapter(subject):
        facts, as_text = actions.describe_ip_adapter(subject, model), _ip_adapter_text
    elif actions.is_upscaler(subject):
        facts, as_text = actions.describe_upscaler(subject), _upscaler_text
    else:
        facts, as_text = actions.describe_model(subject), _model_text
    click.echo(json_line(facts) if as_json else as_text(facts))


def _image_text(facts: dict[str, Any]) -> str:
    if "recipe" in facts:
        recipe = facts["recipe"]
        model = {f"model {name}": value for name, value in recipe["model"].items() if name != "networks"}
        model |= {f"model {each['network']}": each["file"]["path"] for each in recipe["model"]["networks"]}
        settings = {
            name: value["path"] if isinstance(value, dict) else value
            for name, value in recipe["settings"].items()
            if name not in BEFORE or value != BEFORE[name]  # not the many that were left as they are
        }
        rows, note = settings | model | recipe, "generate it again:"
        if not facts["model_is_known"]:
            note = "generate it again with a --model of your choice, or the image's own by --trust-recipe:"
    else:
        rows = facts["parameters"] | facts["parameters"]["values"]
        note = f"no recipe, only {rows['program']}'s; generate it again with a --model of your choice:"
    listed = {name: value for name, value in rows.items() if not isinstance(value, dict)}
    for name in LISTS:
        if items := listed.pop(name, None):
            item = SETTINGS[name].item
            listed[name] = printable(", ".join(str(item(**each)) for each in items if item is not None))
    if left_out := facts.get("not_reproduced"):
        note = line(f"not reproduced: {', '.join(left_out)}") + f"\n\n{note}"
    return f"{_listed(listed)}\n\n{note}\n{printable(facts['command'])}"


def adapter_text(facts: dict[str, Any]) -> str:
    """Format an adapter: what it is, what it says about itself, and what it changes in each model."""
    rows = {
        "adapter": facts["path"],
        "kind": _counted(facts["kinds"]),
        "rank": _counted(facts["ranks"]) or "none",
        "alpha": _counted(facts["alphas"]) or "none: scale 1",
        "modules": _counted(facts["parts"]),
        "hash": facts["short_hash"],
    } | facts["metadata"]
    if facts["trigger_words"]:
        rows["trigger words"] = ", ".join(facts["trigger_words"])
    rows |= _few_steps(facts)
    header = ("MODEL", "KEYS", "THROUGH", "CARRIED", "NOT MATCHED")
    table = [(name, *_fit(each, facts["keys"])) for name, each in facts["models"].items()]
    return f"{_listed(rows)}\n\n{columns([header, *table])}"


def _control_text(facts: dict[str, Any]) -> str:
    """Format a control network: what it is, and which models it fits."""
    kinds = {"controlnet": "ControlNet", "control_lora": "Control-LoRA", "t2i_adapter": "T2I-Adapter"}
    rows = {
        "control": facts["path"],
        "kind": kinds[facts["kind"]] + (f", with the blocks of {facts['like']}" if facts["like"] else ""),
        **_sizes(facts),
        "order": facts["order"],
    } | facts["metadata"]
    return f"{_listed(rows)}\n\n{_fits(facts)}"


def _ip_adapter_text(facts: dict[str, Any]) -> str:
    """Format an IP-Adapter: what it takes, and which models it fits."""
    rows = {"IP-Adapter": facts["path"], "kind": facts["kind"] or "for another model", **_sizes(facts)}
    if facts["kind"]:
        rows |= {"tokens": facts["tokens"], "image encoder": f"{facts['image_channels']} channels"}
    return f"{_listed(rows)}\n\n{_fits(facts)}"


def _upscaler_text(facts: dict[str, Any]) -> str:
    """Format a network that enlarges images."""
    rows = {"upscaler": facts["path"], "architecture": facts["architecture"], "scale": f"{facts['scale']}x"}
    return _listed(rows | {"channels": facts["channels"], **_sizes(facts)})


def _sizes(facts: dict[str, Any]) -> dict[str, str]:
    return {
        "parameters": f"{facts['parameters']:,}",
        "size": byte_size(facts["bytes"]),
        "dtype": ", ".join(facts["dtypes"]),
    }


def _fits(facts: dict[str, Any]) -> str:
    """Format which models a network fits, and why not others."""
    fits = [(name, "yes" if why is None else "no", line(why or "")) for name, why in facts["models"].items()]
    return columns([("MODEL", "FITS", ""), *fits])


def _fit(fit: dict[str, Any], keys: int) -> tuple[str, str, str, str]:
    if "error" in fit:
        return "none", "", "", line(fit["error"])
    share = "" if fit["carried"] is None else f"{100 * fit['carried']:.0f} %"
    reasons = ", ".join(f"{count}: {why}" for why, count in fit["unmatched"].items())
    return f"{fit['matched']} of {keys}", fit["through"] or "", share, reasons


def _counted(counts: dict[str, int]) -> str:
    """Write a name, or several with their numbers."""
    if len(counts) == 1:
        return next(iter(counts))
    return ", ".join(f"{name} ({count})" for name, count in counts.items())


def _model_text(facts: dict[str, Any]) -> str:
    sections = [_listed(_headlines(facts)), _parts(facts["parts"])]
    if "unet" in facts["parts"]:
        sections.append(_levels(facts["parts"]["unet"]["layout"]))
    sections += [f"note: {printable(note)}" for note in facts["notes"]]
    return "\n\n".join(sections)


def _headlines(facts: dict[str, Any]) -> dict[str, Any]:
    rows = {name: facts[name] for name in ("model", "path", "commit", "format") if facts[name] is not None}
    if facts["transformer_blocks"] is not None:
        name, family = facts["layout"], facts["family"]
        blocks = "" if family in (None, name) else f", arranged as in {family}"
        rows["layout"] = f"{name}: {facts['transformer_blocks']} transformer blocks{blocks}"
    if facts["settings"] is not None:
        settings, scheduler = facts["settings"], facts["scheduler"]
        rows["trained for"] = f"{facts['size']}x{facts['size']}"
        rows["scheduler"] = ", ".join(str(scheduler[name]) for name in _SCHEDULER if name in scheduler)
        said = ", ".join(f"{source}: {word}" for source, word in facts["prediction"].items())
        rows["prediction"] = said or f"{scheduler.get('prediction_type', 'epsilon')}; the files do not say"
        rows["defaults"] = ", ".join(f"{name} {settings[name]}" for name in _DEFAULTS if settings[name])
    return rows | _few_steps(facts)


def _few_steps(facts: dict[str, Any]) -> dict[str, str]:
    """Format what a few-step file was made for."""
    found = facts["few_steps"]
    if found is None:
        return {}
    settings = ", ".join(f"{name} {value}" for name, value in found["settings"].items())
    return {"few steps": line(f"{found['kind']}: {settings}")}


def _parts(parts: dict[str, Any]) -> str:
    rows = [
        (name, part["parameters"], part["bytes"], ", ".join(part["dtypes"])) for name, part in parts.items()
    ]
    if len(rows) > 1:
        rows.append(("total", sum(row[1] for row in rows), sum(row[2] for row in rows), ""))
    cells = [(name, f"{parameters:,}", byte_size(size), dtypes) for name, parameters, size, dtypes in rows]
    return columns([("PART", "PARAMETERS", "SIZE", "DTYPE"), *cells], right=(1, 2))


def _levels(unet: dict[str, Any]) -> str:
    """List the channels of each level of the UNet, and the transformer depth after each of its resnets."""

    def row(name: str, channels: int, *depths: tuple[int, ...]) -> tuple[str, ...]:
        return name, str(channels), *(" ".join(map(str, each)) for each in depths)

    levels = unet["levels"]
    rows = [row(str(index), each["channels"], each["down"], each["up"]) for index, each in enumerate(levels)]
    if unet["mid"] is not None:
        rows.append(row("middle", levels[-1]["channels"], (unet["mid"],), ()))
    return columns([("UNET LEVEL", "CHANNELS", "DEPTHS DOWN", "DEPTHS UP"), *rows], right=(1,))


def _listed(rows: dict[str, Any]) -> str:
    shown = {name: "none" if value is None else str(value) for name, value in rows.items()}
    return columns([(name.replace("_", " "), value) for name, value in shown.items()])
