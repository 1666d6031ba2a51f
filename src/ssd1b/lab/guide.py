"""The guide to SSD-1B's settings, repeated on a model: a sweep per experiment and a finding per claim."""

import base64
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from ssd1b.evaluate.plots import svg
from ssd1b.jobs.store import Store
from ssd1b.lab.axes import Axis, Value, make_axis
from ssd1b.lab.claims import CLAIMS, CONFIRMED, CONTRADICTED, UNDECIDED, Claim, Finding
from ssd1b.lab.export import sample_table
from ssd1b.lab.figures import curves, grouped
from ssd1b.lab.results import DIVERSITY, PASSES, SEED, UNCONVERGED, Results
from ssd1b.lab.sweep import ModelDescription, Sweep
from ssd1b.presets import NEGATIVE_PROMPTS
from ssd1b.sampler_names import SAMPLERS
from ssd1b.saving import renewing
from ssd1b.settings import ARTICLE, GenerationSettings, resolve_settings
from ssd1b.weights.files import write_json

if TYPE_CHECKING:
    from matplotlib.figure import Figure

GUIDANCE = (1, 2, 3, 5, 7, 9, 12, 14.5, 17, 20, 25)
STEPS = (5, 8, 10, 15, 20, 25, 40, 60)
COMPARED_SAMPLERS = [each.a1111 for name, each in SAMPLERS.items() if name not in ("lcm", "tcd")]
"""All samplers except LCM and TCD, which are for models distilled for them."""

FAULTS = (
    "low quality", "low res", "blurry", "watermark", "cropped", "jpeg artifacts", "sketch", "monochrome",
)  # fmt: skip
"""Faults named in the basic negative prompt that a judge may recognise."""

WORDS_SHARE = 4
"""Use every fourth prompt for faults, since each is combined with all of them."""

STREAM = 12
"""The guide's caption stream; ``evaluate`` and ``tune`` use others."""

ROWS = 4
"""Rows of sample images for each experiment."""

_TEMPLATES = Path(__file__).parent.parent / "data" / "guide"


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """An experiment that varies one setting over its range; all others are the model's defaults.

    Attributes:
        name: for files and ``--only``.
        title: for the page.
        axes: ``axes(model_settings)`` returns the sweep's axes.
        metrics: shown on the page if they were measured.
        seeds: seeds per prompt. More seeds mean fewer prompts.
        faults: whether prompts ask for each of ``FAULTS``, which only a judge can measure.
    """

    name: str
    title: str
    axes: Callable[[GenerationSettings], tuple[Axis, ...]]
    metrics: tuple[str, ...]
    seeds: int = 1
    faults: bool = False


def _guidance(model_settings: GenerationSettings) -> tuple[Axis, ...]:
    values = sorted({*map(float, GUIDANCE), model_settings.guidance_scale})
    return (make_axis("guidance", [f"{value:g}" for value in values]),)


def _fault_axes(model_settings: GenerationSettings) -> tuple[Axis, ...]:
    # The words axis replaces the first fault by each of them, in both prompts.
    named = Value(label="named", settings={"negative_prompt": FAULTS[0]})
    none = Value(label="none", settings={"negative_prompt": None})
    return make_axis("words", FAULTS), Axis(name="negative", values=(none, named))


EXPERIMENTS: tuple[Experiment, ...] = (
    Experiment(
        name="guidance", title="Guidance scale", axes=_guidance, seeds=2,
        metrics=(
            "flawless", "right", "pickscore", "material", "clean", "clip", DIVERSITY,
            "sharpness", "saturation", "clipping",
        ),
    ),
    Experiment(
        name="steps", title="Steps",
        axes=lambda model_settings: (make_axis("steps", [*map(str, STEPS)]),),
        metrics=("flawless", "pickscore", "clean", "clip", UNCONVERGED, "sharpness"),
    ),
    Experiment(
        name="negative", title="Negative prompts",
        axes=lambda model_settings: (make_axis("negative-preset", ["none", *NEGATIVE_PROMPTS]),),
        metrics=("flawless", "pickscore", "clean", "clip", "sharpness", "saturation"),
    ),
    Experiment(
        name="faults", title="Negative prompts that name a fault", axes=_fault_axes, metrics=("clean",),
        faults=True,
    ),
    Experiment(
        name="sampler", title="Schedulers",
        axes=lambda model_settings: (make_axis("sampler", COMPARED_SAMPLERS),),
        metrics=("flawless", "pickscore", "clean", "clip", "sharpness", PASSES),
    ),
)  # fmt: skip


def default_settings(model: ModelDescription, base: Mapping[str, Any]) -> GenerationSettings:
    """Resolve a model's default settings, overridden by the base settings of all experiments."""
    defaults = {"seed": 0, **model.defaults}
    return resolve_settings("any", family=model.family, model_defaults=defaults, preset=None, **base)


def sweep_of(
    experiment: Experiment, prompts: Sequence[str], pairs: int, *, model: str,
    model_settings: GenerationSettings, base: Mapping[str, Any],
) -> Sweep:  # fmt: skip
    """Convert an experiment to a sweep with about ``pairs`` pairs of prompt and seed per value.

    Args:
        experiment: the experiment.
        prompts: the first ones are used. If there are too few, each gets more seeds.
        pairs: number of pairs per value.
        model: the model's name.
        model_settings: the model's default settings.
        base: settings of all images.
    """
    count = pairs // (experiment.seeds * (WORDS_SHARE if experiment.faults else 1))
    chosen = list(prompts[: max(1, count)])
    seeds = max(experiment.seeds, math.ceil(count / len(chosen)))
    if experiment.faults:
        chosen = [f"{prompt}, {FAULTS[0]}" for prompt in chosen]
    axes = (*experiment.axes(model_settings), make_axis("seed", [f"0-{seeds - 1}"]))
    return Sweep(prompts=tuple(chosen), axes=axes, model=model, settings=base)


PAGES = ("guide.html", "guide.md", "guide.json")


class Chapter(NamedTuple):
    """An experiment and its results; None if the model has no judge to measure them."""

    experiment: Experiment
    results: Results | None

    def findings(self, model_settings: GenerationSettings) -> list[tuple[Claim, Finding]]:
        """Decide the experiment's claims."""
        claims = [claim for claim in CLAIMS if claim.experiment == self.experiment.name]
        if self.results is None:
            summary = "the faults in this model's images cannot be measured"
            return [(claim, Finding(verdict=UNDECIDED, summary=summary)) for claim in claims]
        return [(claim, claim.decide(self.results, model_settings)) for claim in claims]


def files_of(experiments: Iterable[str]) -> list[str]:
    """The names of the files that ``write_guide`` writes for these experiments."""
    return [*PAGES, *(f"{name}{suffix}" for name in experiments for suffix in (".svg", ".webp"))]


def write_guide(
    out: Path, chapters: Iterable[Chapter], store: Store, *, model: str, model_settings: GenerationSettings,
    overwrite: bool = False,
) -> list[Path]:  # fmt: skip
    """Write the guide: ``guide.html`` as one file, ``guide.md`` with separate images, and ``guide.json``.

    Args:
        out: a folder. An earlier guide in it is replaced.
        chapters: the experiments with their results.
        store: contains the images.
        model: the model's name.
        model_settings: the model's default settings.
        overwrite: also replace files of another origin.

    Returns:
        The paths of the three files.
    """
    sections = [_section(chapter, model_settings, store) for chapter in chapters]
    for each in sections:
        for name, content in each["files"].items():
            with renewing(out / name, overwrite=overwrite) as aside:
                aside.write_bytes(content)
    rows = [row for each in sections for row in each["claims"]]
    counts = {word: sum(row["word"] == word for row in rows) for word in (CONFIRMED, CONTRADICTED, UNDECIDED)}
    page = {
        "model": model, "settings": model_settings, "article": ARTICLE, "chapters": sections,
        "counts": counts, "version": version("ssd1b"),
    }  # fmt: skip
    paths = [out / name for name in PAGES]
    for path in paths[:2]:
        with renewing(path, overwrite=overwrite) as aside:
            aside.write_text(_rendered(path.name, page), encoding="utf-8")
    with renewing(paths[2], overwrite=overwrite) as aside:
        settings = {
            name: value for name, value in asdict(model_settings).items() if name not in ("prompt", "seed")
        }
        sizes = {each["name"]: each["pictures"] for each in sections}
        content = {
            "model": model,
            "ssd1b": version("ssd1b"),
            "own": settings,
            "pictures": sizes,
            "claims": rows,
        }
        write_json(aside, content)
    return paths


def _section(chapter: Chapter, model_settings: GenerationSettings, store: Store) -> dict[str, Any]:
    """A chapter's content for the pages."""
    experiment, results = chapter
    claims = [
        {
            "name": claim.name,
            "says": claim.says,
            "word": finding.verdict,
            "told": finding.summary,
            "estimate": finding.estimate and finding.estimate._asdict(),
        }
        for claim, finding in chapter.findings(model_settings)
    ]
    content: dict[str, Any] = {
        "name": experiment.name,
        "title": experiment.title,
        "claims": claims,
        "pictures": 0,
        "files": {},
    }
    if results is None:
        return content
    curve = svg(_figure(experiment, results))
    sheet = io.BytesIO()
    sample_table(results, store, len(FAULTS) if experiment.faults else ROWS).save(sheet, "WEBP", quality=85)
    (seeds,) = (axis.values for axis in results.axes if axis.name == SEED)
    content |= {
        "pictures": results.keys.size,
        "missing": results.missing,
        "failures": dict(results.failures),
        "curve": curve,
        "sheet": f"data:image/webp;base64,{base64.b64encode(sheet.getvalue()).decode()}",
        "files": {f"{experiment.name}.svg": curve.encode(), f"{experiment.name}.webp": sheet.getvalue()},
        "prompts": len(results.sweep.prompts),
        "seeds": len(seeds),
        "units": "prompts" if results.many_prompts else "pairs of prompt and seed, for these prompts only",
    }
    return content


def _figure(experiment: Experiment, results: Results) -> "Figure":
    place = results.setting_axes[-1]
    if experiment.faults:
        return grouped(results, results.setting_axes[0], place, experiment.metrics[0])
    return curves(results, place, [name for name in experiment.metrics if name in results.known_metrics])


def _rendered(template: str, page: Mapping[str, Any]) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES), autoescape=template.endswith(".html"), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True,
    )  # fmt: skip
    return environment.get_template(template).render(page)
