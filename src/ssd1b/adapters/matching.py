"""Matching an adapter's modules to a model's, also to one with more or fewer blocks.

An adapter for SDXL changes blocks that SSD-1B, Vega and other distilled models do not have, and its blocks of
the same number are not the same blocks: SSD-1B's fourth one is SDXL's seventh. So it is matched to SDXL's
modules, and the layer map of the distillation says where each is in the smaller model. What belongs to
removed blocks is left out. The same maps lead from a smaller model to the larger one, and from one student to
another. By name alone, as in other programs, blocks would get the changes of others.
"""

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import NamedTuple

import torch

from ssd1b.adapters.kinds import (
    ADDITIVE,
    ShapeError,
    bias_change,
    changes_bias,
    changes_weight,
    weight_change,
)
from ssd1b.adapters.names import Module, dictionary, shapes
from ssd1b.adapters.reading import AdapterFile, ModuleWeights
from ssd1b.errors import InputError
from ssd1b.files import named
from ssd1b.layer_map import LayerMap
from ssd1b.layouts import NAMED, UNETS, ModelLayout, UNetLayout, family_of, model_layout
from ssd1b.weights.files import first_few

_BY_TEXT_WIDTH = {
    768: "a Stable Diffusion 1 model",
    1024: "a Stable Diffusion 2 model",
    2048: "SDXL's family",
}


@dataclass(frozen=True, kw_only=True)
class Match:
    """An adapter's modules, and the modules of a model that they change.

    Attributes:
        adapter: the file.
        layout: the model's layout.
        source: the layout that the names in the file belong to: ``layout``, or one with other blocks.
        through: readable name of the source, such as "sdxl"; None if it is the model's own.
        targets: the tensors that change each module of the model.
        origins: the module of the source to which the tensors of each target belong.
        removed: the tensors for modules of the source that the model does not have.
        unmatched: the reason for each key of the file that changes nothing.
    """

    adapter: AdapterFile
    layout: ModelLayout
    source: ModelLayout
    through: str | None
    targets: Mapping[Module, ModuleWeights]
    origins: Mapping[Module, Module]
    removed: Mapping[Module, ModuleWeights]
    unmatched: Mapping[str, str]

    @property
    def unknown(self) -> dict[str, str]:
        """The keys of ``unmatched`` that mean nothing here: no embedding's, nor of a removed block."""
        removed = {key for each in self.removed.values() for key in each.keys.values()}
        known = {*removed, *self.bundled}
        return {key: why for key, why in self.unmatched.items() if key not in known}

    @property
    def bundled(self) -> list[str]:
        """The keys of embeddings in the file."""
        return [key for key in self.adapter.unread if key.startswith("bundle_emb.")]

    @property
    def matched_keys(self) -> int:
        """Number of the file's keys that change the model."""
        used = {each.name: each for each in self.targets.values()}
        return sum(len(each.keys) for each in used.values())


def match(
    adapter: AdapterFile, layout: ModelLayout, *, by_name: bool = False, source: ModelLayout | None = None
) -> Match:
    """Find the modules of a model that an adapter changes.

    The names are those of the layout with which most modules fit: the model's own, or one of
    ``layouts.UNETS`` at the model's widths. Of several, it is the one of which the file changes every
    transformer block.

    Args:
        adapter: the file.
        layout: the model's layout.
        by_name: take the names as the model's own, as other programs do.
        source: the layout that the names belong to; None finds it. ``by_name`` needs none.

    Raises:
        InputError: the adapter is for another family or another source, or fits no module.
    """
    _check_family(adapter, layout.unet)
    if source is not None:
        _check_source(adapter, source)
    if by_name or source is not None:
        found = _given(adapter, layout, layout if by_name or source is None else source)
    else:
        found = max(_possible(adapter, layout), key=lambda each: each.score)
    source, places = found.layout, found.places
    targets: dict[Module, ModuleWeights] = {}
    origins: dict[Module, Module] = {}
    removed: dict[Module, ModuleWeights] = {}
    unmatched = dict(adapter.unread)
    for weights in adapter.modules.values():
        module = found.modules.get(weights.name)
        if module is None:
            unmatched |= dict.fromkeys(weights.keys.values(), _misfit(weights, source))
        elif kept := [module.name] if places is None or module.part != "unet" else places[module.name]:
            changed = [Module(module.part, each) for each in kept]
            targets |= dict.fromkeys(changed, weights)
            origins |= dict.fromkeys(changed, module)
        else:
            removed[module] = weights
            where = family_of(layout.unet) or "this model"
            unmatched |= dict.fromkeys(weights.keys.values(), f"its block is removed in {where}")
    if not targets:
        key, why = next(iter(unmatched.items()))
        raise InputError(f"{named(adapter.path)}: it fits no module of this model: {first_few([key])}: {why}")
    return Match(
        adapter=adapter, layout=layout, source=source, through=found.name, targets=targets, origins=origins,
        removed=removed, unmatched=unmatched,
    )  # fmt: skip


class _Source(NamedTuple):
    """A layout that an adapter's names may belong to.

    Attributes:
        layout: the layout.
        name: readable name, such as "sdxl"; None if it is the model's own.
        places: the model's modules for each of its UNet's; None if they are the same.
        modules: the module of each name in the file that fits.
        score: how well it fits, see ``_score``.
    """

    layout: ModelLayout
    name: str | None
    places: Mapping[str, list[str]] | None
    modules: dict[str, Module]
    score: tuple[int, bool]


def _given(adapter: AdapterFile, layout: ModelLayout, source: ModelLayout) -> _Source:
    """Take the names as those of a source.

    Raises:
        InputError: no layer map leads from it to the model.
    """
    if source.unet == layout.unet:
        return _Source(source, None, None, *_score(adapter, source))
    places = _places(layout.unet, source.unet)
    if places is None:
        raise InputError(f"no layer map leads from {source.name} to {layout.name}")
    return _Source(source, source.name, places, *_score(adapter, source))


def _possible(adapter: AdapterFile, layout: ModelLayout) -> Iterator[_Source]:
    """Yield the model's own layout, and unless every name and block fits, the published ones."""
    yield (own := _given(adapter, layout, layout))
    if own.score == (len(adapter.modules), True):
        return
    for name, unet in _at_widths_of(layout.unet):
        places = _places(layout.unet, unet)
        if places is not None and unet != layout.unet:
            candidate = replace(layout, unet=unet)
            yield _Source(candidate, name, places, *_score(adapter, candidate))


def _check_source(adapter: AdapterFile, source: ModelLayout) -> None:
    """Check that no published layout at the widths of a source fits an adapter better.

    Raises:
        InputError: one does: the names would be taken for those of other blocks.
    """
    best = max(_possible(adapter, source), key=lambda each: each.score)
    if best.name is not None:
        name = next((name for name, unet in NAMED.items() if unet == best.layout.unet), best.name)
        raise InputError(
            f"{named(adapter.path)} changes the blocks of {name}, not those of the teacher, {source.name}: "
            "give the model that it was trained for"
        )


def own_layout(adapter: AdapterFile) -> ModelLayout:
    """Return the layout, of ``layouts.NAMED``, that an adapter was made for; the first of ``own_layouts``."""
    return own_layouts(adapter)[0]


def own_layouts(adapter: AdapterFile) -> list[ModelLayout]:
    """Return the layouts, of ``layouts.NAMED``, that an adapter may have been made for.

    The names of a smaller model's blocks are also those of a larger one. An adapter that changes every
    transformer block of a layout, and no others, was made for that one. Otherwise all layouts are returned in
    which most modules fit, SDXL's first.

    Raises:
        InputError: the adapter is for another family.
    """
    scores = [(_score(adapter, layout)[1], layout) for layout in map(model_layout, NAMED)]
    most = max(score for score, _ in scores)
    if not most[0]:
        _check_family(adapter, model_layout("sdxl").unet)
    return [layout for score, layout in scores if score == most]


_TRANSFORMER_BLOCK = re.compile(r".+\.transformer_blocks\.\d+")


def _score(adapter: AdapterFile, layout: ModelLayout) -> tuple[dict[str, Module], tuple[int, bool]]:
    """Resolve an adapter, and judge how well: number of modules, and whether every block is changed."""
    found = _resolve(adapter, layout)
    names = (module.name for module in found.values() if module.part == "unet")
    blocks = {block[0] for name in names if (block := _TRANSFORMER_BLOCK.match(name))}
    return found, (len(found), len(blocks) == layout.unet.transformer_blocks)


def carried_share(found: Match) -> float | None:
    """Return the share of the UNet's change that the model gets: the sum of squares of its numbers, 0 to 1.

    None if the UNet is not changed, or by kinds whose change depends on the weights.
    """
    kept = {each.name: each for module, each in found.targets.items() if module.part == "unet"}
    if any(each.kind not in ADDITIVE for each in (*kept.values(), *found.removed.values())):
        return None
    table = dictionary(found.source)
    carried, left = (
        sum(_energy(found, each, table[each.name]) for each in group)
        for group in (kept.values(), found.removed.values())
    )
    return carried / (carried + left) if carried + left else None


def _energy(found: Match, weights: ModuleWeights, modules: list[Module]) -> float:
    """Return the sum of squares of a change."""
    tensors = found.adapter.tensors(weights)
    if weights.kind == "LoRA" and "mid" not in tensors:  # without computing the product
        up, down = tensors["up"].flatten(1).double(), tensors["down"].flatten(1).double()
        return float(weights.numbers["scale"] ** 2 * ((up.T @ up) * (down @ down.T)).sum())
    if not changes_weight(weights.roles):
        return 0.0
    shape = shapes("unet", found.source)[f"{modules[0].name}.weight"]
    return float(
        weight_change(weights.kind, torch.zeros(shape), tensors, weights.numbers).double().square().sum()
    )


def _resolve(adapter: AdapterFile, layout: ModelLayout) -> dict[str, Module]:
    """Find the module of a layout for each name in the file whose tensors fit it."""
    table = dictionary(layout)
    found: dict[str, Module] = {}
    taken: set[Module] = set()
    for name, weights in adapter.modules.items():
        for module in table.get(name, ()):
            if module not in taken and _fits(weights, module, layout):
                found[name] = module
                taken.add(module)  # a file that names a module twice, in two spellings, changes it once
                break
    return found


def _fits(weights: ModuleWeights, module: Module, layout: ModelLayout) -> bool:
    """Whether the tensors' shapes fit a module, by computing the change on the meta device."""
    known = shapes(module.part, layout)
    meta = {role: torch.empty(shape, device="meta") for role, shape in weights.shapes.items()}
    meta = {role: tensor for role, tensor in meta.items() if role not in weights.numbers}
    try:
        if changes_weight(weights.roles):
            weight = torch.empty(known[f"{module.name}.weight"], device="meta")
            weight_change(weights.kind, weight, meta, weights.numbers)
        if changes_bias(weights.roles):
            bias_change(torch.empty(known[f"{module.name}.bias"], device="meta"), meta, weights.numbers)
    except (KeyError, IndexError, RuntimeError, ShapeError):
        return False
    return True


def _misfit(weights: ModuleWeights, layout: ModelLayout) -> str:
    """Say why a module of the file fits none of a layout."""
    modules = dictionary(layout).get(weights.name)
    if not modules:
        return "unknown name"
    known = shapes(modules[0].part, layout)
    if changes_bias(weights.roles) and f"{modules[0].name}.bias" not in known:
        return "its module has no bias"
    given = ", ".join(
        f"{role} {list(shape)}" for role, shape in weights.shapes.items() if role not in weights.numbers
    )
    return f"{weights.kind} of {given} does not fit {list(known[f'{modules[0].name}.weight'])}"


def larger_layouts(unet: UNetLayout) -> Iterator[tuple[str, UNetLayout, LayerMap]]:
    """Yield the published layouts that a UNet can be a part of, at its widths, with their layer maps."""
    for name, candidate in _at_widths_of(unet):
        try:
            found = LayerMap.between(unet, candidate)
        except InputError:
            continue
        if candidate != unet:
            yield name, candidate, found


def _at_widths_of(unet: UNetLayout) -> Iterator[tuple[str, UNetLayout]]:
    """Yield the published layouts of as many levels as a UNet, at its widths, by name."""
    for name, known in UNETS.items():
        if len(known.levels) == len(unet.levels):
            levels = tuple(
                replace(theirs, channels=ours.channels)
                for theirs, ours in zip(known.levels, unet.levels, strict=True)
            )
            yield name, replace(unet, levels=levels, mid=known.mid)


@lru_cache(maxsize=64)
def _places(target: UNetLayout, source: UNetLayout) -> Mapping[str, list[str]] | None:
    """Return the target's modules for each of the source's, through a layout that has the blocks of both.

    A block that the target lacks has no place there. None if there is no such layout.
    """
    for common in (source, target, *(candidate for _, candidate in _at_widths_of(target))):
        try:
            ours, theirs = (_weights(each, common) for each in (target, source))
        except InputError:
            continue
        found: dict[str, list[str]] = {}
        for name, shared in ours.items():
            found.setdefault(shared, []).append(name)
        return {name: found.get(shared, []) for name, shared in theirs.items()}
    return None


def _weights(unet: UNetLayout, larger: UNetLayout) -> dict[str, str]:
    """Return the larger layout's module for each of a UNet's that have a weight."""
    return {
        ours.removesuffix(".weight"): theirs.removesuffix(".weight")
        for ours, theirs in LayerMap.between(unet, larger).keys.items()
        if ours.endswith(".weight")
    }


def _check_family(adapter: AdapterFile, unet: UNetLayout) -> None:
    """Check the width of the text that the adapter's cross-attention takes.

    Raises:
        InputError: it is another one than the model's.
    """
    for name, weights in adapter.modules.items():
        if not name.endswith(
            ("attn2_to_k", "attn2_to_v", "attn2.to_k", "attn2.to_v", "to_k_lora", "to_v_lora")
        ):
            continue
        if "attn2" not in name:
            continue
        shape = next(
            (weights.shapes[role] for role in ("down", "hada_w1_b", "diff") if role in weights.shapes), ()
        )
        if len(shape) < 2 or shape[1] == unet.cross_attention_dim:
            continue
        kind = _BY_TEXT_WIDTH.get(shape[1], "another family of models")
        raise InputError(
            f"{named(adapter.path)}: an adapter for {kind}: it takes text of {shape[1]} channels, "
            f"and this model's has {unet.cross_attention_dim}"
        )
