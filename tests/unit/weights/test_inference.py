"""What is inferred of a network: nothing that is optional or unknown decides a fact that is not its own."""

from dataclasses import asdict

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ssd1b.layouts import model_layout
from ssd1b.weights.detect import layout_of
from ssd1b.weights.keymap import PARTS, from_original, to_original

from .cases import modules, shapes

LAYOUT = model_layout("ssd-1b")
SHAPES = {part: shapes(module) for part, module in modules(LAYOUT).items()}

OPTIONAL = {
    "unet": {"time_embedding.cond_proj.weight": ((320, 256), "guidance_embed_dim")},
    "text_encoder_2": {"text_projection.weight": ((1280, 1280), "projection_dim")},
}
"""Tensors that a network may have or not, and the fact that each decides."""

WORDS = (
    "down_blocks up_blocks mid_block resnets attentions transformer_blocks attn2 to_k encoder decoder layers "
    "text_model text_projection embeddings position_ids logit_scale scale_weight lora_down input_blocks "
    "output_blocks middle_block loss junk 0 1 2 3 11 weight bias"
).split()
NAMES = st.lists(st.sampled_from(WORDS), min_size=1, max_size=8).map(".".join)
STRANGERS = st.dictionaries(NAMES, st.lists(st.integers(0, 5000), max_size=4).map(tuple), max_size=8)


def known_leaves(part: str, name: str) -> bool:
    """Whether a made-up name is one that a layer of this kind has: then it is no stranger."""
    leaves = {known.rpartition(".")[0].rpartition(".")[2] for known in SHAPES[part]}
    return name.rpartition(".")[0].rpartition(".")[2] in leaves - {"0", "1", "2", "3"} and name.endswith(
        ("weight", "bias")
    )


@given(st.sampled_from(PARTS), STRANGERS, st.randoms(use_true_random=False))
@settings(max_examples=60)
def test_unknown_tensors_decide_nothing(part, strangers, random):
    known = SHAPES[part]
    extra = {
        name: shape for name, shape in strangers.items() if name not in known and not known_leaves(part, name)
    }
    mixed = list({**extra, **known}.items())
    random.shuffle(mixed)
    assert layout_of(part, dict(mixed), None, "x") == getattr(LAYOUT, part)


@given(st.sampled_from(PARTS), STRANGERS)
@settings(max_examples=30)
def test_unknown_tensors_move_no_known_one(part, strangers):
    originals = {original for original, _ in to_original(part, SHAPES[part]).values()}
    alone = from_original(part, originals)
    extra = {f"{name}.stranger" for name in strangers}
    together = from_original(part, originals | extra)
    assert {name: together[name] for name in originals} == alone


@pytest.mark.parametrize("part", OPTIONAL)
def test_an_optional_tensor_decides_its_own_fact_and_no_other(part):
    for name, (shape, fact) in OPTIONAL[part].items():
        with_it = layout_of(part, {**SHAPES[part], name: shape}, None, "x")
        without = layout_of(part, {n: s for n, s in SHAPES[part].items() if n != name}, None, "x")
        differing = {key for key, value in asdict(with_it).items() if asdict(without)[key] != value}
        assert differing == {fact}
