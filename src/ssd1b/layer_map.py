"""The map from each of a student's layers to the teacher's layer that it is copied from.

On the way down the first resnets are kept. On the way up the first ones and the last are kept, because only
the last takes the skip connection of the finer level; BK-SDM (2305.15798, section 3.1) does the same when it
copies a block's last pair into the slot before. A transformer is kept with its resnet, and a rule chooses
which of its blocks are.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from ssd1b.errors import InputError
from ssd1b.layouts import UNetLayout
from ssd1b.models.unet import UNet

BlockRule = Callable[[str, int, int], tuple[int, ...]]
"""``rule(transformer, depth, kept)``: indices of the ``kept`` blocks to keep out of ``depth``, in order.

``transformer`` is the teacher's name for the module, as ``down_blocks.2.attentions.0``.
"""

_INFERRED = {10: (0, 1, 2, 6)}


def first(transformer: str, depth: int, kept: int) -> tuple[int, ...]:
    """Keep the first blocks, as loading the teacher's file into the student's shape does."""
    return tuple(range(kept))


def inferred(transformer: str, depth: int, kept: int) -> tuple[int, ...]:
    """Keep the blocks that SSD-1B kept, inferred from the cosine similarity of its weights to SDXL's.

    These are 0, 1, 2 and 6 of ten blocks, and the first of two (laksjdjf, card of furusu/SSD-1B-anime; the
    vendor published no map). To keep more, the first of the others are added; to keep fewer, or at a depth
    for which nothing was inferred, the first are kept.
    """
    order = _INFERRED.get(depth, ())
    others = (block for block in range(depth) if block not in order)
    return tuple(sorted([*order, *others][:kept]))


BLOCK_RULES: dict[str, BlockRule] = {"inferred": inferred, "first": first}


def explicit(blocks: Mapping[str, tuple[int, ...]], otherwise: BlockRule = inferred) -> BlockRule:
    """Keep the blocks given for each of the teacher's transformers; ``otherwise`` chooses for the others."""

    def choose(transformer: str, depth: int, kept: int) -> tuple[int, ...]:
        return tuple(blocks[transformer]) if transformer in blocks else otherwise(transformer, depth, kept)

    return choose


def most_important(importance: Mapping[str, float]) -> BlockRule:
    """Keep the blocks whose removal changes the output most.

    Args:
        importance: of each block, by the teacher's name for it, as
            ``down_blocks.2.attentions.0.transformer_blocks.3``.
    """

    def choose(transformer: str, depth: int, kept: int) -> tuple[int, ...]:
        values = [importance[f"{transformer}.transformer_blocks.{block}"] for block in range(depth)]
        return tuple(sorted(sorted(range(depth), key=lambda block: -values[block])[:kept]))

    return choose


def within_remaining(earlier: "LayerMap", rule: BlockRule) -> BlockRule:
    """Apply a rule, which counts the first teacher's blocks, to the blocks that earlier stages left.

    The rules prefer the same blocks whatever the number to keep, so several stages keep the same blocks as
    one.
    """
    depths = transformers(earlier.teacher)

    def choose(transformer: str, depth: int, kept: int) -> tuple[int, ...]:
        source = earlier.modules[transformer]
        blocks = (earlier.modules[f"{transformer}.transformer_blocks.{block}"] for block in range(depth))
        left = [int(block.rpartition(".")[2]) for block in blocks]
        wanted: tuple[int, ...] = ()
        for number in range(kept, depths[source] + 1):
            wanted = rule(source, depths[source], number)
            positions = tuple(left.index(block) for block in wanted if block in left)
            if len(positions) == kept:
                return positions
        raise InputError(
            f"cannot keep the blocks {list(wanted)} of {source}: "
            f"give {kept} different ones of {left}, in rising order"
        )

    return choose


@dataclass(frozen=True, kw_only=True)
class LayerMap:
    """The teacher's module for each module of a student, from which it is copied.

    Attributes:
        student: layout of the smaller UNet.
        teacher: layout of the larger UNet.
        modules: the teacher's module for each of the student's resnets, transformers, transformer blocks and
            resamplers, by name.
    """

    student: UNetLayout
    teacher: UNetLayout
    modules: dict[str, str]

    @classmethod
    def between(cls, student: UNetLayout, teacher: UNetLayout, rule: BlockRule = inferred) -> "LayerMap":
        """Find the map.

        Raises:
            InputError: the student is not a part of the teacher (other widths, more layers), or ``rule``
                names blocks that the teacher does not have.
        """
        _check_widths(student, teacher)
        pairs = dict(_modules(student, teacher, rule))
        return cls(student=student, teacher=teacher, modules=pairs)

    @cached_property
    def keys(self) -> dict[str, str]:
        """The teacher's key for each of the student's, with shapes checked; this needs no weights.

        Raises:
            InputError: a tensor of the student has another shape than the teacher's.
        """
        ours, theirs = shapes(self.student), shapes(self.teacher)
        # A block's name begins with its transformer's, so the longest name that fits is the right one.
        names = sorted(self.modules, key=len, reverse=True)
        found: dict[str, str] = {}
        for key, shape in ours.items():
            module = next((name for name in names if key.startswith(f"{name}.")), None)
            source = key if module is None else self.modules[module] + key.removeprefix(module)
            if theirs.get(source) != shape:
                raise InputError(
                    f"{key} has the shape {list(shape)} in the student, "
                    f"{source} has {list(theirs.get(source, ()))} in the teacher"
                )
            found[key] = source
        return found

    @property
    def removed(self) -> list[str]:
        """The teacher's resnets, transformers and transformer blocks that the student lacks, in order.

        The blocks of a transformer that is removed as a whole are not listed.
        """
        kept = set(self.modules.values())
        gone = [name for name in _names(self.teacher) if name not in kept]
        return [name for name in gone if name.rpartition(".transformer_blocks.")[0] not in gone]

    @property
    def kept(self) -> dict[str, list[int]]:
        """The kept blocks of each of the teacher's transformers; an empty list if all of it is removed."""
        found: dict[str, list[int]] = {name: [] for name in transformers(self.teacher)}
        for source in self.modules.values():
            transformer, _, block = source.rpartition(".transformer_blocks.")
            if transformer:
                found[transformer].append(int(block))
        return found

    def through(self, earlier: "LayerMap") -> "LayerMap":
        """Compose with the map of an earlier stage: the result maps to the earlier map's teacher."""
        if earlier.student != self.teacher:
            raise InputError(
                "the maps do not follow each other: the earlier one's student is not this one's teacher"
            )
        modules = {ours: earlier.modules[theirs] for ours, theirs in self.modules.items()}
        return LayerMap(student=self.student, teacher=earlier.teacher, modules=modules)

    def weights(self, teacher: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the student's state dict, which shares the teacher's tensors."""
        return {key: teacher[source] for key, source in self.keys.items()}


def transformers(layout: UNetLayout) -> dict[str, int]:
    """Return the depth of each transformer, by the module's name, in the order of the forward pass."""
    down = [
        (f"down_blocks.{index}.attentions.{position}", depth)
        for index, level in enumerate(layout.levels)
        for position, depth in enumerate(level.down)
    ]
    up = [
        (f"up_blocks.{index}.attentions.{position}", depth)
        for index, level in enumerate(reversed(layout.levels))
        for position, depth in enumerate(level.up)
    ]
    return {name: depth for name, depth in (*down, ("mid_block.attentions.0", layout.mid), *up) if depth}


def parameters(layout: UNetLayout) -> int:
    """Return the number of a UNet's parameters."""
    return sum(shape.numel() for shape in shapes(layout).values())


@lru_cache(maxsize=64)
def shapes(layout: UNetLayout) -> Mapping[str, torch.Size]:
    """Return the shape of each of a UNet's tensors."""
    with torch.device("meta"):
        return {key: tensor.shape for key, tensor in UNet(layout).state_dict().items()}


def _check_widths(student: UNetLayout, teacher: UNetLayout) -> None:
    """Check everything that ``LayerMap.keys`` would report less clearly, or not at all."""
    widths = [tuple(level.channels for level in layout.levels) for layout in (student, teacher)]
    if widths[0] != widths[1]:
        raise InputError(f"the student's levels have {widths[0]} channels, the teacher's {widths[1]}")
    for name in ("head_dim", "cross_attention_dim", "pooled_dim", "time_ids_dim", "norm_groups",
                 "in_channels", "out_channels"):  # fmt: skip
        ours, theirs = getattr(student, name), getattr(teacher, name)
        if ours != theirs:
            raise InputError(f"the student's {name} is {ours}, the teacher's {theirs}")


def _modules(student: UNetLayout, teacher: UNetLayout, rule: BlockRule) -> Iterator[tuple[str, str]]:
    count = len(teacher.levels)
    for index, (ours, theirs) in enumerate(zip(student.levels, teacher.levels, strict=True)):
        last = index == count - 1
        sides = {
            f"down_blocks.{index}": (ours.down, theirs.down, tuple(range(len(ours.down)))),
            f"up_blocks.{count - 1 - index}": (
                ours.up,
                theirs.up,
                (*range(len(ours.up) - 1), len(theirs.up) - 1),
            ),
        }
        for block, (depths, of, kept) in sides.items():
            if len(depths) > len(of):
                raise InputError(
                    f"{block} has {len(depths)} resnets in the student, {len(of)} in the teacher"
                )
            for position, source in enumerate(kept):
                yield f"{block}.resnets.{position}", f"{block}.resnets.{source}"
                names = (f"{block}.attentions.{position}", f"{block}.attentions.{source}")
                yield from _blocks(*names, depths[position], of[source], rule)
        if not last:
            yield f"down_blocks.{index}.downsamplers.0", f"down_blocks.{index}.downsamplers.0"
        if index:
            up = f"up_blocks.{count - 1 - index}.upsamplers.0"
            yield up, up
    if student.mid is not None:
        if teacher.mid is None:
            raise InputError("the student has a middle block, the teacher has none")
        for position in range(2 if student.mid else 1):
            yield f"mid_block.resnets.{position}", f"mid_block.resnets.{position}"
        name = "mid_block.attentions.0"
        yield from _blocks(name, name, student.mid, teacher.mid, rule)


def _blocks(ours: str, theirs: str, depth: int, of: int, rule: BlockRule) -> Iterator[tuple[str, str]]:
    """Yield the pairs of a transformer and its blocks."""
    if depth > of:
        raise InputError(f"{ours} has {depth} transformer blocks in the student, {theirs} has {of}")
    if not depth:
        return
    kept = rule(theirs, of, depth)
    if len(kept) != depth or sorted(set(kept)) != list(kept) or not 0 <= kept[0] <= kept[-1] < of:
        raise InputError(
            f"cannot keep the blocks {list(kept)} of {theirs}: "
            f"give {depth} different ones of 0 to {of - 1}, in rising order"
        )
    yield ours, theirs
    for position, source in enumerate(kept):
        yield f"{ours}.transformer_blocks.{position}", f"{theirs}.transformer_blocks.{source}"


def _names(layout: UNetLayout) -> list[str]:
    """Return the names of all modules in a map, in the order of the keys."""
    return list(dict(_modules(layout, layout, first)))
