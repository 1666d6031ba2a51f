"""Text encoding against diffusers' own, and what goes beyond it: long and weighted prompts."""

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionXLPipeline
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from ssd1b.layouts import CLIP_MINI, CLIP_MINI_2, TextLayout
from ssd1b.models.text import TextEncoder, TextEncoders
from ssd1b.models.tokenizer import END
from ssd1b.tabletop.miniature.tokenizer import train_tokenizer
from ssd1b.weights.vocabulary import load_tokenizer, write_tokenizer

LONG = ", ".join(["a large red metal sphere to the left of a small green cube"] * 12)


def transformers_config(layout: TextLayout) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=layout.vocab_size,
        hidden_size=layout.hidden_size,
        intermediate_size=layout.intermediate_size,
        num_hidden_layers=layout.layers,
        num_attention_heads=layout.heads,
        hidden_act=layout.activation,
        projection_dim=layout.projection_dim or 512,
        bos_token_id=layout.bos_token_id,
        eos_token_id=layout.eos_token_id,
        pad_token_id=layout.pad_token_id,
    )


def published(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Keys as they are in files, whatever version of transformers made the module."""
    return {
        k if k.startswith(("text_model.", "text_projection.")) else f"text_model.{k}": v
        for k, v in state.items()
    }


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> tuple[TextEncoders, StableDiffusionXLPipeline]:
    folder = tmp_path_factory.mktemp("tokenizers")
    write_tokenizer(folder / "1", *train_tokenizer(), END)
    write_tokenizer(folder / "2", *train_tokenizer(), "!")
    tokenizers = [load_tokenizer(Path(folder / name)) for name in ("1", "2")]
    theirs = [CLIPTokenizer.from_pretrained(folder / name, local_files_only=True) for name in ("1", "2")]
    torch.manual_seed(0)
    oracle = CLIPTextModel(transformers_config(CLIP_MINI)).eval()
    oracle_2 = CLIPTextModelWithProjection(transformers_config(CLIP_MINI_2)).eval()
    encoder, encoder_2 = TextEncoder(CLIP_MINI).eval(), TextEncoder(CLIP_MINI_2).eval()
    encoder.load_state_dict(published(oracle.state_dict()))
    encoder_2.load_state_dict(published(oracle_2.state_dict()))
    pipeline = StableDiffusionXLPipeline(
        vae=None, unet=None, scheduler=None,
        text_encoder=oracle, text_encoder_2=oracle_2, tokenizer=theirs[0], tokenizer_2=theirs[1],
    )  # fmt: skip
    ours = TextEncoders(
        encoder=encoder, encoder_2=encoder_2, tokenizer=tokenizers[0], tokenizer_2=tokenizers[1]
    )
    return ours, pipeline


def test_same_embeddings_as_diffusers(pair: tuple[TextEncoders, StableDiffusionXLPipeline]) -> None:
    ours, pipeline = pair
    prompts = ["a large red metal sphere on a blue background", "", "two Cubes! café 12", "a torus, blurry"]
    with torch.no_grad():
        embeds, _, pooled, _ = pipeline.encode_prompt(
            prompts, device=torch.device("cpu"), do_classifier_free_guidance=False
        )
    actual = ours.encode(ours.tokenize(prompts))
    assert torch.allclose(actual.embeds, embeds, atol=1e-5)
    assert torch.allclose(actual.pooled, pooled, atol=1e-5)


def test_the_tokenizers_pad_differently(pair: tuple[TextEncoders, StableDiffusionXLPipeline]) -> None:
    first, second = pair[0].tokenize(["a cube"])
    assert first.ids[0, 0, -1] == CLIP_MINI.eos_token_id
    assert second.ids[0, 0, -1] == 0
    assert first.ids[0, 0, :4].equal(second.ids[0, 0, :4])


def test_a_long_prompt_is_chunked_and_its_end_counts(
    pair: tuple[TextEncoders, StableDiffusionXLPipeline],
) -> None:
    ours, _ = pair
    tokens = ours.tokenize([LONG, LONG + ", blurry", "a cube"])
    assert tokens[0].ids.shape[1] > 1
    embeds, pooled = ours.encode(tokens)
    assert embeds.shape[1] == 77 * tokens[0].ids.shape[1]
    assert not embeds[0].equal(embeds[1])
    assert pooled[0].equal(pooled[1]), "pooled is the first chunk's"
    alone = ours.encode(ours.tokenize(["a cube"]))
    assert torch.allclose(embeds[2, :77], alone.embeds[0], atol=1e-6), "a short prompt is padded, not changed"
    empty = ours.encode(ours.tokenize([""]))
    assert torch.allclose(embeds[2, 77:154], empty.embeds[0], atol=1e-6)


def test_weights_scale_their_tokens_only(pair: tuple[TextEncoders, StableDiffusionXLPipeline]) -> None:
    ours, _ = pair
    plain = ours.encode(ours.tokenize(["a red cube"]))
    heavy = ours.encode(ours.tokenize(["a (red:1.5) cube"]))
    assert ours.tokenize(["a (red:1.5) cube"])[0].ids.equal(ours.tokenize(["a red cube"])[0].ids)
    assert plain.pooled.equal(heavy.pooled)
    first = slice(0, CLIP_MINI.hidden_size)
    ratio = (heavy.embeds[0, :, first] / plain.embeds[0, :, first]).mean(dim=-1)
    red = 2  # after the begin token and "a"
    assert torch.allclose(ratio[red] / ratio[0], torch.tensor(1.5), atol=1e-4)
    assert torch.allclose(ratio[3:], ratio[0].expand_as(ratio[3:]), atol=1e-4)
    means = [embeds[0, :, first].mean() for embeds in (plain.embeds, heavy.embeds)]
    assert torch.allclose(*means, atol=1e-6), "the mean is restored"


def test_break_starts_a_chunk(pair: tuple[TextEncoders, StableDiffusionXLPipeline]) -> None:
    ours, _ = pair
    embeds = ours.encode(ours.tokenize(["a red cube BREAK a blue cone"])).embeds
    apart = ours.encode(ours.tokenize(["a red cube", "a blue cone"])).embeds
    assert torch.allclose(embeds[0], apart.flatten(0, 1), atol=1e-6)
