"""Converting, moving, merging, resizing and extracting adapters, and baking them into models."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ssd1b.actions.loading import Progress, silent
from ssd1b.adapters.combining import Made, Read, combined, copied, extracted, projected
from ssd1b.adapters.dialects import DIALECTS, PEFT_HEADER, Piece, spelled
from ssd1b.adapters.matching import carried_share, match, own_layout, own_layouts
from ssd1b.adapters.merging import find_changes, fit_advice, open_lora
from ssd1b.adapters.names import PARTS, Module, modules
from ssd1b.adapters.ranks import Cut
from ssd1b.adapters.reading import AdapterFile
from ssd1b.errors import ConflictError, InputError, unknown
from ssd1b.files import expand_path, named
from ssd1b.layouts import ModelLayout
from ssd1b.loras import SUFFIX, TRANSFERS, Lora, lora_of, read_lora
from ssd1b.model import NETWORKS, Model
from ssd1b.runtime import choose_dtype
from ssd1b.saving import check_free, writing
from ssd1b.weights.files import FLOATS, first_few, read_header, write_tensors
from ssd1b.weights.writing import check_single_file, save_folder, save_single_file

_CPU = torch.device("cpu")

_STALE = ("format", PEFT_HEADER, "sshs_model_hash", "sshs_legacy_hash", "modelspec.hash_sha256")
"""Metadata that are no longer true when tensors are written anew."""

_BASE = (
    "ss_sd_model_name", "ss_sd_model_hash", "ss_new_sd_model_hash", "ss_base_model_version",
    "ss_vae_name", "ss_vae_hash", "ss_new_vae_hash",
)  # fmt: skip
"""Metadata about the model that an adapter is for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdapterReport:
    """The result of a tool: the file that was written, or that a dry run would write.

    Attributes:
        path: the file.
        dialect: its spelling.
        modules: number of modules.
        ranks: number of modules by rank; those without one are not counted.
        bytes: size of the tensors.
        assumed: the published model that the adapter was taken to be for; None if a model was given.
        through: the model whose names an adapter that was moved had; None for the model's own.
        carried: share of the UNet's change that the model gets, 0 to 1; None if it is not known.
        kept: share of the change that the ranks keep, 0 to 1, by the sum of squares; None if all is kept.
        left_out: the reason for each key of the files that is not in the result.
    """

    path: str
    dialect: str
    modules: int
    ranks: Mapping[int, int]
    bytes: int
    assumed: str | None = None
    through: str | None = None
    carried: float | None = None
    kept: float | None = None
    left_out: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """Where and how an adapter is written.

    Attributes:
        path: the file; its name ends in ".safetensors".
        dialect: one of ``dialects.DIALECTS``.
        dtype: number format, "fp32", "fp16" or "bf16"; None keeps that of the files.
        overwrite: replace an existing file.
        dry_run: compute and report, and write nothing.
    """

    path: str
    dialect: str = "kohya"
    dtype: str | None = None
    overwrite: bool = False
    dry_run: bool = False

    def check(self) -> None:
        """Check everything before the work.

        Raises:
            InputError: the dialect or number format is unknown, or the file exists.
        """
        if self.dialect not in DIALECTS:
            raise unknown("dialect", self.dialect, DIALECTS)
        if self.dtype is not None:
            choose_dtype(self.dtype, _CPU)
        if Path(self.path).suffix.lower() != SUFFIX:
            raise InputError(f"{named(self.path)}: the name of an adapter must end in {SUFFIX}")
        if not self.dry_run:
            check_free(Path(expand_path(self.path)), overwrite=self.overwrite)

    def dtype_of(self, files: Iterable[Path]) -> torch.dtype:
        """Return the number format: the one chosen, or the widest of the files' own."""
        if self.dtype is not None:
            return choose_dtype(self.dtype, _CPU)
        formats = {each for file in files for each, _ in read_header(file).tensors.values()}
        floats = [FLOATS[name] for name in formats if name in FLOATS and FLOATS[name].itemsize < 8]
        found = {each if each.itemsize > 1 else torch.float16 for each in floats}
        if len(found) == 1:
            return found.pop()
        return torch.float32  # neither of float16 and bfloat16 holds the other

    def write(
        self,
        pieces: Mapping[Module, Piece],
        layout: ModelLayout,
        metadata: Mapping[str, str],
        extra: Mapping[str, Tensor] | None = None,
        **facts: Any,
    ) -> AdapterReport:
        """Write an adapter.

        Args:
            pieces: the adapter.
            layout: the layout of the model that it is for.
            metadata: texts for the header.
            extra: other tensors, by key.
            **facts: more fields of the report.

        Raises:
            InputError: the dialect has no spelling for a kind, or the file cannot be written.
        """
        if not pieces:
            raise InputError("nothing is left to write: no module changes")
        tensors, header = spelled(pieces, layout, self.dialect)
        tensors |= extra or {}
        if not self.dry_run:
            with writing(Path(expand_path(self.path)), overwrite=self.overwrite) as temporary:
                write_tensors(temporary, tensors, {**metadata, **header})
        ranks = [piece.rank for piece in pieces.values()]
        return AdapterReport(
            path=self.path, dialect=self.dialect, modules=len(pieces),
            ranks={rank: ranks.count(rank) for rank in sorted({each for each in ranks if each})},
            bytes=sum(each.nbytes for each in tensors.values()), **facts,
        )  # fmt: skip


def convert_adapter(
    source: str,
    output: Output,
    *,
    model: str | None = None,
    to: str | None = None,
    transfer: str = "kept",
    teacher: str | None = None,
    share: float = 0.99,
    partial: bool = False,
    progress: Progress = silent,
) -> AdapterReport:
    """Write an adapter in another program's spelling, or for another model.

    Without ``to`` no number changes, nor does the metadata. With it, the metadata name the new model.

    Args:
        source: the file, or PEFT's folder.
        output: the new file.
        model: the model that the adapter is for, if it is not moved; None finds it among the published ones.
        to: the model to move it to, through the layer maps; None for the same one.
        transfer: how it is moved, one of ``loras.TRANSFERS``.
        teacher: the model that the adapter was trained for, if it is moved; None finds its layout by the
            names and blocks. The transfer "projection" needs it, "name" takes none.
        share: with the transfer "projection", the share of a weight's energy that its subspace holds.
        partial: leave out keys that match nothing, instead of refusing the file.
        progress: shows how much is done.

    Raises:
        InputError: the file is no adapter or does not fit; it was made for another model than ``teacher``;
            ``to`` is the teacher; keys match nothing; or as ``Output.write``.
    """
    output.check()
    if transfer not in TRANSFERS:
        raise unknown("transfer", transfer, TRANSFERS)
    if transfer == "projection" and (to is None or teacher is None):
        raise InputError("the transfer projection needs both models: give --to and --teacher")
    if transfer == "name" and teacher is not None:
        raise InputError("the transfer name takes the names as those of --to: leave out --teacher")
    if to is None and teacher is not None:
        raise InputError("--teacher is for an adapter that is moved: give --to, too, or take --model")
    if to is not None and model is not None:
        raise InputError("--model is for an adapter that stays: with --to, give the model as --teacher")
    adapter = open_lora(lora_of(source))
    target = _found(to or model)
    layout = own_layout(adapter) if target is None else target.layout
    origin = _found(teacher)
    if origin and target and (origin.path.resolve(), origin.own) == (target.path.resolve(), target.own):
        raise InputError(f"--to and --teacher are the same model, {named(target.name)}: give two")
    found = match(adapter, layout, by_name=transfer == "name", source=origin and origin.layout)
    if found.unknown and not partial:
        key, why = next(iter(found.unknown.items()))
        raise InputError(
            f"{named(adapter.path)}: {len(found.unknown)} keys match nothing, such as {first_few([key])}: "
            f"{why}; --partial leaves them out"
        )
    if transfer == "projection":
        assert origin is not None and target is not None
        pieces = _collected(
            projected(found, _reader(origin), _reader(target), share, output.dtype_of([adapter.path])),
            len(found.targets), progress,
        )[0]  # fmt: skip
    else:
        pieces = copied(found)
        if output.dtype is not None:
            dtype = choose_dtype(output.dtype, _CPU)
            pieces = {module: piece.to(dtype) for module, piece in pieces.items()}
    extra = adapter.raw(found.bundled)
    return output.write(
        pieces, layout, _kept_metadata([adapter], target if to else None), extra,
        assumed=layout.name if target is None else None,
        through=found.through, carried=carried_share(found) if to else None,
        left_out={key: why for key, why in found.unmatched.items() if key not in extra},
    )  # fmt: skip


def merge_adapters(
    loras: Sequence[Lora | str],
    output: Output,
    *,
    cut: Cut | None = None,
    model: str | None = None,
    progress: Progress = silent,
) -> AdapterReport:
    """Make one adapter of several, with their strengths multiplied in; of one, with ``cut``, a smaller one.

    Args:
        loras: the files with their strengths.
        output: the new file.
        cut: the rank of each module; None adds up the ranks, which is exact.
        model: the model that they are for; None finds it among the published ones. Files for another one
            go through the layer maps. Its weights are needed for kinds whose change depends on them, such as
            DoRA.
        progress: shows how much is done.

    Raises:
        InputError: a file is no adapter or does not fit; the files are for different models and none is
            given; a kind needs a rank or the model.
    """
    output.check()
    given = [read_lora(each) if isinstance(each, str) else each for each in loras]
    files = [open_lora(each) for each in given]
    target = _found(model)
    layout = _common_layout(files) if target is None else target.layout
    changes = find_changes(given, layout)
    count = len({(part, key.rpartition(".")[0]) for part, changed in changes.items() for key in changed})
    made = combined(
        changes, layout, cut=cut, dtype=output.dtype_of(each.path for each in files),
        read=target and _reader(target),
    )  # fmt: skip
    pieces, kept = _collected(made, count, progress)
    left_out = {key: why for each in files for key, why in match(each, layout).unmatched.items()}
    return output.write(
        pieces, layout, _kept_metadata(files, target) | _network_metadata(pieces),
        assumed=layout.name if target is None else None,
        left_out=left_out, kept=None if cut is None else kept,
    )  # fmt: skip


def extract_adapter(
    original: str,
    tuned: str,
    output: Output,
    *,
    cut: Cut,
    parts: Sequence[str] = PARTS,
    small: bool = False,
    progress: Progress = silent,
) -> AdapterReport:
    """Make a LoRA of the difference of two models, by its singular values.

    Args:
        original: the model that the LoRA will be used with.
        tuned: the other one, with the same layout.
        output: the new file.
        cut: the rank of each module.
        parts: the networks, of ``names.PARTS``.
        small: also take the changes of norms and biases, which ComfyUI reads and diffusers does not.
        progress: shows how much is done.

    Raises:
        InputError: a model does not exist, or their layouts differ.
    """
    output.check()
    first, second = (Model.find(each, offline=True) for each in (original, tuned))
    for part in parts:
        if first.checkpoint.part(part).layout != second.checkpoint.part(part).layout:
            raise InputError(f"{original} and {tuned} have different layouts of {part}: give two alike")
    layout = first.layout
    chosen = [
        Module(part, name) for part in parts for name in modules(part, layout)
        if small or not name.rpartition(".")[2].startswith(("norm", "layer_norm"))
    ]  # fmt: skip
    dtype = torch.float16 if output.dtype is None else choose_dtype(output.dtype, _CPU)
    made = extracted(_reader(first), _reader(second), chosen, layout, cut=cut, dtype=dtype, small=small)
    pieces, kept = _collected(made, len(chosen), progress)
    return output.write(
        pieces, layout, _base_metadata(first) | _network_metadata(pieces), left_out={}, kept=kept
    )


def bake_adapters(
    model: str,
    loras: Sequence[Lora | str],
    out: str,
    *,
    dtype: str | None = None,
    overwrite: bool = False,
    dry_run: bool = False,
    progress: Progress = silent,
    notify: Callable[[str], None] = lambda message: None,
) -> str:
    """Write a model into which adapters are merged, as a folder of diffusers or a single file.

    Args:
        model: the model.
        loras: the files with their strengths.
        out: a single file if the name ends in ".safetensors", or else a folder, which must not exist.
        dtype: number format; None keeps the model's.
        overwrite: replace an existing file.
        dry_run: check that everything fits, and write nothing.
        progress: shows how much is done.
        notify: receives a line of advice for each adapter that does not fit as a whole.

    Returns:
        The path.

    Raises:
        InputError: the model does not exist, an adapter does not fit, or the path is taken.
    """
    path = Path(expand_path(out))
    single = path.suffix.lower() == SUFFIX
    if path.is_file() and not single:
        raise ConflictError(f"{named(path)} is a file: a model is a folder, or a file that ends in {SUFFIX}")
    check_free(path, overwrite=overwrite and single)
    given = [read_lora(each) if isinstance(each, str) else each for each in loras]
    found = Model.find(model, offline=True).with_loras(given)
    changed = sum(len(each) for each in found.changes.values())
    chosen = None if dtype is None else choose_dtype(dtype, _CPU)
    for advice in fit_advice(given, found.layout, found.identity.name):
        notify(advice)
    if single:
        check_single_file(path, found.layout)
    if dry_run:
        return out
    weights: dict[str, dict[str, Tensor]] = {}
    with progress("modules", changed) as advance:
        for part in NETWORKS:
            stored = found.checkpoint.part(part)
            weights[part] = {}
            for name, tensor in found.tensors(
                part, stored.tensors, device=_CPU, dtype=chosen or stored.dtype
            ):
                weights[part][name] = tensor
                advance(int(name in found.changes[part]))
    if single:
        save_single_file(path, found.info, weights, overwrite=overwrite)
    else:
        save_folder(path, found.info, weights)
    return out


def _found(model: str | None) -> Model | None:
    return None if model is None else Model.find(model, offline=True)


def _common_layout(files: Sequence[AdapterFile]) -> ModelLayout:
    """Return the layout that all files may have been made for; SDXL's if in doubt.

    Raises:
        InputError: there is none: by name, blocks of one model would get the changes of another's.
    """
    (first, common), *others = ((each, own_layouts(each)) for each in files)
    for file, layouts in others:
        both = [each for each in common if each in layouts]
        if not both:
            raise InputError(
                f"{named(first.path)} is for {common[0].name}, and {named(file.path)} for "
                f"{layouts[0].name}: give --model, the model that the result is for"
            )
        first, common = (first, both) if len(both) == len(common) else (file, both)
    return common[0]


def _reader(model: Model) -> Read:
    """Return a function that reads a tensor of a model in float32."""

    def read(part: str, name: str) -> Tensor:
        ((_, tensor),) = model.tensors(part, [name], device=_CPU, dtype=torch.float32)
        return tensor

    return read


def _collected(
    made: Iterable[Made], count: int, progress: Progress
) -> tuple[dict[Module, Piece], float | None]:
    """Collect modules, and the share of their energy that is kept."""
    pieces: dict[Module, Piece] = {}
    energy = kept = 0.0
    with progress("modules", count) as advance:
        for each in made:
            if each.piece is not None:
                pieces[each.module] = each.piece
            energy, kept = energy + each.energy, kept + each.kept
            advance(1)
    return pieces, kept / energy if energy else None


def _kept_metadata(files: Sequence[AdapterFile], model: Model | None) -> dict[str, str]:
    """Return the metadata that all files agree on and that stay true, with those of a new model, if any."""
    first, *others = (each.metadata for each in files)
    stale = _STALE if model is None else (*_STALE, *_BASE)
    kept = {
        key: text for key, text in first.items()
        if key not in stale and all(each.get(key) == text for each in others)
    }  # fmt: skip
    return kept if model is None else kept | _base_metadata(model)


def _base_metadata(model: Model) -> dict[str, str]:
    """Name the model that an adapter is for, as sd-scripts and ``finetune`` do."""
    family = model.info.family
    return {
        "ss_sd_model_name": Path(model.name).name,
        "ss_base_model_version": "sdxl_base_v1-0" if family == "sdxl" else family,
    }


def _network_metadata(pieces: Mapping[Module, Piece]) -> dict[str, str]:
    """Write rank and alpha as sd-scripts does, which has a word for ranks that differ."""
    ranks = {piece.rank for piece in pieces.values() if piece.rank}
    word = str(ranks.pop()) if len(ranks) == 1 else "Dynamic"
    return {"ss_network_module": "networks.lora", "ss_network_dim": word, "ss_network_alpha": word}
