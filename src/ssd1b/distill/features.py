"""Features of teacher and student: which ones are compared, and how they are captured."""

from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn

from ssd1b.layer_map import LayerMap
from ssd1b.layouts import UNetLayout

Pairs = Mapping[str, str]
"""Names of the student's modules, with the teacher's modules whose outputs they should reproduce."""


def no_features(layers: LayerMap) -> Pairs:
    """Compare no features."""
    return {}


def layer_level(layers: LayerMap) -> Pairs:
    """Compare the outputs of every resnet, every transformer as a whole, and the middle block.

    This is SSD-1B's choice (Gupta et al. 2024, 2401.02677; the vendor's ``distill_sdxl.py`` sums 26 such
    terms). Since whole transformers are compared, the number of blocks inside does not matter.
    """
    outer = {
        ours: theirs
        for ours, theirs in layers.modules.items()
        if not ours.startswith("mid_block") and ours.split(".")[-2] in ("resnets", "attentions")
    }
    return outer if layers.student.mid is None else outer | {"mid_block": "mid_block"}


def block_level(layers: LayerMap) -> Pairs:
    """Compare the outputs of every level on the way down and up, but not the middle (BK-SDM, 2305.15798)."""
    return dict(zip(_ends(layers.student), _ends(layers.teacher), strict=True))


def self_attention(layers: LayerMap) -> Pairs:
    """Compare the outputs of the self-attention of every kept transformer block (KOALA, 2312.04005)."""
    return {
        f"{ours}.attn1": f"{theirs}.attn1"
        for ours, theirs in layers.modules.items()
        if ".transformer_blocks." in ours
    }


LEVELS: dict[str, Callable[[LayerMap], Pairs]] = {
    "none": no_features,
    "layer": layer_level,
    "block": block_level,
    "self-attention": self_attention,
}


@contextmanager
def capture_outputs(network: nn.Module, names: Iterable[str]) -> Generator[dict[str, Tensor], None, None]:
    """Yield a dictionary that each forward pass fills with the outputs of the named modules."""
    outputs: dict[str, Tensor] = {}

    def capture(name: str) -> Callable[..., None]:
        def store(module: nn.Module, given: Any, output: Tensor) -> None:
            outputs[name] = output

        return store

    handles = [network.get_submodule(name).register_forward_hook(capture(name)) for name in names]
    try:
        yield outputs
    finally:
        for handle in handles:
            handle.remove()


def _ends(layout: UNetLayout) -> list[str]:
    """Return the last module of each level on the way down, then up."""
    last = len(layout.levels) - 1
    ends: list[str] = []
    for index, level in enumerate(layout.levels):
        ends.append(f"down_blocks.{index}." + ("downsamplers.0" if index < last else _last(level.down)))
    for index, level in enumerate(reversed(layout.levels)):
        ends.append(f"up_blocks.{index}." + ("upsamplers.0" if index < last else _last(level.up)))
    return ends


def _last(depths: tuple[int, ...]) -> str:
    return f"{'attentions' if depths[-1] else 'resnets'}.{len(depths) - 1}"
