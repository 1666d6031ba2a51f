"""A UNet's forward pass recorded as a CUDA graph, so that its kernels do not wait for Python.

A step launches thousands of kernels, and a fast GPU computes many of them sooner than Python launches the
next. The first call with inputs of a shape runs as usual, the second one is recorded, and later ones replay
the record with new inputs.
"""

import os
import warnings
from collections import OrderedDict
from collections.abc import Callable, Hashable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import TreeSpec, tree_flatten, tree_unflatten

from ssd1b.errors import shown

SWITCH = "SSD1B_CUDA_GRAPHS"
"""Environment variable; with 0, nothing is recorded."""

KEPT = 4
"""Number of input shapes whose records are kept; the one that was not used for longest is dropped."""

_ROOM = 11 * 10**9
"""Bytes of a GPU's memory from which forward passes are recorded. A record keeps the memory of the feature
maps (an estimated 1 GB at 1024x1024), which the decoder then cannot use."""

_TOLERANCE = 0.02
"""Largest relative difference (L2 norm) of a replay from the forward pass; more than rounding in 16 bits."""

Replay = Callable[[], Tensor]
"""Runs recorded kernels again, on the tensors they were recorded with; always returns the same tensor."""


class _Recorded(NamedTuple):
    inputs: list[Tensor]
    replay: Replay


class RecordedForward:
    """A forward pass that is recorded for each shape of its inputs.

    Calls with anything but tensors on the device, numbers and None are not recorded, such as those with reuse
    of deep features, which decides in Python.

    Args:
        forward: the forward pass; equal inputs must give equal outputs.
        device: type of the tensors' device.
        record: called with a function without arguments after its first run; see ``record_on_cuda``.
    """

    def __init__(
        self, forward: Callable[..., Tensor], device: str, record: Callable[[Replay], Replay]
    ) -> None:
        self._forward, self._device, self._record = forward, device, record
        self._found: OrderedDict[Hashable, _Recorded | None] = OrderedDict()
        self._works = True

    def __call__(self, *inputs: Any, **options: Any) -> Tensor:
        """Run the forward pass, or its record."""
        leaves, structure = tree_flatten((inputs, options))
        if not self._works or not all(map(self._is_recordable, leaves)):
            return self._forward(*inputs, **options)
        shapes = ((each.shape, each.dtype) if isinstance(each, Tensor) else each for each in leaves)
        key = (repr(structure), *shapes)  # older versions of torch cannot hash a structure
        if key not in self._found:  # the first run loads kernels and chooses algorithms
            self._keep(key, None)
            return self._forward(*inputs, **options)
        tensors = [each for each in leaves if isinstance(each, Tensor)]
        recorded = self._found[key]
        if recorded is None:
            return self._recorded(key, leaves, structure)
        self._found.move_to_end(key)
        _copy(recorded.inputs, tensors)
        return recorded.replay().clone()  # the next replay overwrites it

    def forget(self) -> None:
        """Drop all records, after weights were replaced: they read the old ones."""
        self._found.clear()

    def _is_recordable(self, leaf: object) -> bool:
        if isinstance(leaf, Tensor):
            return leaf.device.type == self._device
        return leaf is None or isinstance(leaf, int | float)

    def _recorded(self, key: Hashable, leaves: list[Any], structure: TreeSpec) -> Tensor:
        """Run the forward pass and record it. After a record that differs or fails, nothing is recorded."""
        given, given_options = tree_unflatten(leaves, structure)
        expected = self._forward(*given, **given_options)
        own = [each.clone() if isinstance(each, Tensor) else each for each in leaves]
        inputs, options = tree_unflatten(own, structure)
        try:
            replay = self._record(lambda: self._forward(*inputs, **options))
            found = replay()
            difference = float((found - expected).float().norm() / expected.float().norm())
            # Not finite means an image that is broken anyway, which its reader reports.
            if difference > _TOLERANCE:
                self._give_up(f"its replay differs by {difference:.2g}")
            else:
                self._keep(key, _Recorded([each for each in own if isinstance(each, Tensor)], replay))
        except RuntimeError as error:  # torch's errors of CUDA, and of memory, are such
            self._give_up(str(error))
        return expected

    def _keep(self, key: Hashable, recorded: _Recorded | None) -> None:
        self._found[key] = recorded
        self._found.move_to_end(key)
        while len(self._found) > KEPT:
            self._found.popitem(last=False)

    def _give_up(self, reason: str) -> None:
        self._works = False
        self.forget()
        warnings.warn(
            f"a step could not be recorded as a CUDA graph, and waits for Python: {shown(reason)}",
            RuntimeWarning, stacklevel=4,
        )  # fmt: skip


def _copy(targets: list[Tensor], sources: list[Tensor]) -> None:
    """Copy tensors, those of a number format by one kernel."""
    for dtype in {each.dtype for each in targets}:
        pairs = [pair for pair in zip(targets, sources, strict=True) if pair[0].dtype == dtype]
        to, given = [target for target, _ in pairs], [source for _, source in pairs]
        torch._foreach_copy_(to, given)  # pyright: ignore[reportPrivateUsage, reportPrivateImportUsage]


def record_forward(network: nn.Module) -> None:
    """Let a network record its forward pass, if it is on a CUDA GPU with room for it."""
    device = next(network.parameters()).device
    if device.type != "cuda" or torch.version.cuda is None or os.environ.get(SWITCH) == "0":
        return
    if torch.cuda.get_device_properties(device).total_memory < _ROOM:
        return
    pool = torch.cuda.graph_pool_handle()  # all records share it, since each output is copied at once
    network.forward = RecordedForward(  # type: ignore[method-assign]
        network.forward, "cuda", lambda run: record_on_cuda(run, pool)
    )


def forget_records(network: nn.Module) -> None:
    """Drop what a network recorded, after its weights were replaced."""
    if isinstance(network.forward, RecordedForward):
        network.forward.forget()


def record_on_cuda(run: Replay, pool: Any) -> Replay:
    """Record a function's kernels, without running them.

    Args:
        run: the function.
        pool: where its memory comes from.
    """
    graph = torch.cuda.CUDAGraph()
    # Other threads may allocate memory meanwhile.
    with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
        output = run()

    def replay() -> Tensor:
        graph.replay()
        return output

    return replay
