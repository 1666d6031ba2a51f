"""Making one adapter of others, or of the difference of two models; in float64, and rounded once.

Several LoRAs of one module are a LoRA whose rank is the sum of theirs: their matrices stand beside each
other, with the strengths multiplied into one of them. Everything else becomes a LoRA by the singular values
of its change. One module is in memory at a time, besides the result.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ssd1b.adapters.dialects import Piece
from ssd1b.adapters.kinds import ADDITIVE
from ssd1b.adapters.low_rank import LowRank, decompose, decompose_product
from ssd1b.adapters.matching import Match
from ssd1b.adapters.merging import Change, Changes, merge
from ssd1b.adapters.names import Module, shapes
from ssd1b.adapters.projection import project, subspaces
from ssd1b.adapters.ranks import Cut
from ssd1b.adapters.reading import NUMBERS, AdapterFile, ModuleWeights
from ssd1b.errors import InputError, prefix_errors, shown
from ssd1b.layouts import ModelLayout
from ssd1b.weights.files import Shape

Read = Callable[[str, str], Tensor]
"""``read(part, name)`` returns a tensor of a model, float32."""


class Made(NamedTuple):
    """One module of a new adapter.

    Attributes:
        module: the module.
        piece: its tensors; None if nothing is left.
        energy: sum of squares of the change.
        kept: the same of what is left.
    """

    module: Module
    piece: Piece | None
    energy: float
    kept: float


def copied(found: Match) -> dict[Module, Piece]:
    """Return an adapter with all numbers as they are in its file, by the modules of the matched model."""
    return {module: _copied(found.adapter, weights) for module, weights in found.targets.items()}


def _copied(adapter: AdapterFile, weights: ModuleWeights) -> Piece:
    numbers = {role: weights.numbers[role] for role in NUMBERS if role in weights.numbers}
    if weights.rank and not numbers.get("alpha"):
        numbers["alpha"] = float(weights.rank)  # what its absence, or 0, means
    return Piece(adapter.stored(weights), numbers)


def combined(
    changes: dict[str, Changes],
    layout: ModelLayout,
    *,
    cut: Cut | None,
    dtype: torch.dtype,
    read: Read | None = None,
) -> Iterator[Made]:
    """Make one adapter of several, or of one.

    Args:
        changes: what they change, see ``merging.find_changes``.
        layout: the model's layout.
        cut: the rank of each module; None puts LoRAs beside each other, which is exact.
        dtype: number format of the result.
        read: returns the weights of the model, which the change by DoRA, OFT, GLoRA and IA3 depends on; None
            if it is not at hand.

    Raises:
        InputError: a kind needs a rank or the model's weights; a number overflows.
    """
    for part, changed in changes.items():
        known = shapes(part, layout)
        for name in dict.fromkeys(each.rpartition(".")[0] for each in changed):
            module, shape = Module(part, name), known[f"{name}.weight"]
            weight, bias = f"{name}.weight", f"{name}.bias"
            product, tensors = None, dict[str, Tensor]()
            if weight in changed and len(shape) > 1:
                product = _product(part, weight, changed[weight], shape, cut, read)
            elif weight in changed:
                tensors["w_norm"] = _change(part, weight, changed[weight], shape, read)
            if bias in changed:
                role = "diff_b" if len(shape) > 1 else "b_norm"
                tensors[role] = _change(part, bias, changed[bias], known[bias], read)
            yield _made(module, product, cut, tensors, shape, dtype)


def extracted(
    original: Read,
    tuned: Read,
    names: Iterable[Module],
    layout: ModelLayout,
    *,
    cut: Cut,
    dtype: torch.dtype,
    small: bool = False,
) -> Iterator[Made]:
    """Make an adapter of the difference of two models.

    Args:
        original: reads the model that the adapter will be used with.
        tuned: reads the other one.
        names: the modules.
        layout: the layout of both.
        cut: the rank of each module.
        dtype: number format of the result.
        small: also take the changes of norms and biases, as they are.

    Raises:
        InputError: a number overflows.
    """
    for module in names:
        known = shapes(module.part, layout)
        shape = known[f"{module.name}.weight"]

        def difference(leaf: str, part: str = module.part, name: str = module.name) -> Tensor:
            return tuned(part, f"{name}.{leaf}") - original(part, f"{name}.{leaf}")

        product = decompose(difference("weight").flatten(1)) if len(shape) > 1 else None
        tensors: dict[str, Tensor] = {}
        if small:
            roles = {"weight": "w_norm", "bias": "b_norm"} if product is None else {"bias": "diff_b"}
            found = {
                role: difference(leaf) for leaf, role in roles.items() if f"{module.name}.{leaf}" in known
            }
            tensors = {role: tensor for role, tensor in found.items() if tensor.any()}
        yield _made(module, product, cut, tensors, shape, dtype)


def projected(found: Match, source: Read, target: Read, share: float, dtype: torch.dtype) -> Iterator[Made]:
    """Move a LoRA to another model by the subspaces of both models' weights; see ``projection``.

    What is not in the UNet is copied, since both models have the same text encoders.

    Args:
        found: the LoRA, matched to the other model.
        source: reads the model that it was trained for.
        target: reads the other model.
        share: of a weight's energy that its subspace holds, 0 to 1.
        dtype: number format of the result.

    Raises:
        InputError: a module is no plain LoRA, or a number overflows.
    """
    for module, weights in found.targets.items():
        piece = _copied(found.adapter, weights)
        if module.part == "unet":
            if not _is_plain(weights):
                raise InputError(
                    f"{shown(weights.name)} is {weights.label}, which cannot be projected: "
                    "make it a LoRA first, with ssd1b lora resize"
                )
            spaces = (
                subspaces(read("unet", f"{each.name}.weight"), share)
                for read, each in ((source, found.origins[module]), (target, module))
            )
            up, down = piece.tensors["up"], piece.tensors["down"]
            moved = project(up.flatten(1), down.flatten(1), *spaces)
            tensors = {"up": moved[0].reshape(up.shape), "down": moved[1].reshape(down.shape)}
            piece = Piece({**piece.tensors, **tensors}, piece.numbers)
        yield Made(module, piece.to(dtype), 0.0, 0.0)


def _product(
    part: str, name: str, changes: Sequence[Change], shape: Shape, cut: Cut | None, read: Read | None
) -> LowRank:
    """Return the change of a matrix as a low-rank product."""
    other = next((each.weights for each in changes if not _is_plain(each.weights)), None)
    if other is None:
        pairs = [(each, each.adapter.tensors(each.weights)) for each in changes]
        up = torch.cat(
            [
                tensors["up"].flatten(1).double() * (each.strength * each.weights.numbers["scale"])
                for each, tensors in pairs
            ],
            dim=1,
        )
        down = torch.cat([tensors["down"].flatten(1).double() for _, tensors in pairs])
        return LowRank(up, down, torch.empty(0)) if cut is None else decompose_product(up, down)
    if cut is None:
        raise InputError(
            f"{shown(other.name)} is {other.label}, which cannot stand beside others: give --rank or --energy"
        )
    return decompose(_change(part, name, changes, shape, read).flatten(1))


def _is_plain(weights: ModuleWeights) -> bool:
    """Whether it is a product of two matrices, and nothing else."""
    return weights.kind == "LoRA" and not {"mid", "dora", "magnitude"} & weights.roles


def _change(part: str, name: str, changes: Sequence[Change], shape: Shape, read: Read | None) -> Tensor:
    """Return the sum of changes of a tensor."""
    dependent = next((each.weights for each in changes if not _is_additive(each.weights)), None)
    if dependent is None:
        return merge(name, torch.zeros(shape), changes)
    if read is None:
        raise InputError(
            f"{shown(dependent.name)} is {dependent.label}, whose change depends on the model's weights: "
            "give the model with --model"
        )
    weight = read(part, name)
    return merge(name, weight, changes) - weight


def _is_additive(weights: ModuleWeights) -> bool:
    return weights.kind in ADDITIVE and not {"dora", "magnitude"} & weights.roles


def _made(
    module: Module,
    product: LowRank | None,
    cut: Cut | None,
    tensors: dict[str, Tensor],
    shape: Shape,
    dtype: torch.dtype,
) -> Made:
    energy = kept = 0.0
    numbers: dict[str, float] = {}
    if product is not None:
        if cut is not None:
            whole = product.values.square()
            product = product.cut(cut.of(product.values))
            energy, kept = float(whole.sum()), float(product.values.square().sum())
        if rank := product.up.shape[1]:
            kernel = shape[2:]
            tensors["up"] = product.up.reshape(*product.up.shape, *[1] * len(kernel))
            tensors["down"] = product.down.reshape(rank, shape[1], *kernel)
            numbers["alpha"] = float(rank)
    with prefix_errors(f"{module.part}.{module.name}"):
        piece = Piece(tensors, numbers).to(dtype)
    return Made(module, piece if tensors else None, energy, kept)
