"""What drawing takes for granted is checked when a model is opened, whatever opens it."""

import json
import shutil
from dataclasses import replace

import pytest

from ssd1b.errors import InputError
from ssd1b.layouts import CLIP_BIGG, CLIP_L, SDXL, VAELayout
from ssd1b.pipeline import Pipeline
from ssd1b.weights.fitting import check_fit, check_unet
from ssd1b.weights.hub import BUILT_IN
from ssd1b.weights.opening import open_checkpoint
from ssd1b.weights.vocabulary import load_tokenizers

REFINER = {"cross_attention_dim": 1280, "pooled_dim": 1280 - 256}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"in_channels": 8}, "takes 8 channels .editing."),
        ({"in_channels": 6}, "takes 6 channels; only 4 and 9 .inpainting."),
        ({"out_channels": 8}, "returns 8 channels"),
        (REFINER, "this is SDXL's refiner"),
        ({"time_ids_dim": 255}, "odd number of channels"),
        ({"guidance_embed_dim": 2}, "embeds guidance in 2 channels"),
        ({"guidance_embed_dim": 255}, "embeds guidance in 255 channels"),
    ],
)
def test_a_unet_that_drawing_has_no_inputs_for_is_named(change, message):
    check_unet(replace(SDXL, guidance_embed_dim=256), "there")
    check_unet(replace(SDXL, in_channels=9), "there")
    with pytest.raises(InputError, match=f"^there: .*{message}"):
        check_unet(replace(SDXL, **change), "there")


@pytest.mark.parametrize(
    ("part", "change", "message"),
    [
        (
            "unet",
            {"cross_attention_dim": 1024},
            "attends to 1024 text channels, but the text encoders return 2048",
        ),
        ("unet", {"pooled_dim": 1024}, "returns 1280; or it takes 5 additional numbers, not 6"),
        ("text_2", {"projection_dim": None}, "returns none: it has no text_projection"),
        ("text_2", {"projection_dim": 768}, "text_encoder_2 returns 768"),
        ("vae", {"latent_channels": 16}, "latents of 4 channels, but the VAE takes 16"),
        ("vae", {"channels": (32,) * 5}, "halves images 4 times"),
        ("text", {"max_length": 76}, "text_encoder takes 76 tokens"),
        ("text_2", {"max_length": 16}, "text_encoder_2 takes 16 tokens"),
        ("text", {"vocab_size": 49407}, "eos_token_id 49407 is not in the vocabulary of 49407"),
        ("text_2", {"bos_token_id": -1}, "bos_token_id -1"),
    ],
)
def test_networks_that_do_not_fit_are_named(part, change, message):
    networks = {"unet": SDXL, "vae": VAELayout(), "text": CLIP_L, "text_2": CLIP_BIGG}
    check_fit(**networks, where="there")
    with pytest.raises(InputError, match=f"^there: .*{message}"):
        check_fit(**{**networks, part: replace(networks[part], **change)}, where="there")


@pytest.fixture
def miniature(tmp_path):
    return shutil.copytree(BUILT_IN["mini-ssd-1b"], tmp_path / "mini")


def edit(file, **changes):
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def test_a_token_beyond_the_vocabulary_is_named_before_anything_is_loaded(miniature, monkeypatch):
    edit(miniature / "tokenizer_2" / "vocab.json", **{"new</w>": 1024})
    monkeypatch.setattr("ssd1b.model.load_component", lambda *a, **k: pytest.fail("loaded"))
    with pytest.raises(
        InputError, match=r"tokenizer_2: the tokenizer's 'new</w>' has the id 1024, .* 1024 tokens"
    ):
        Pipeline.load(str(miniature), device="cpu")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        (
            "special_tokens_map.json",
            {"pad_token": "<pad>"},
            "the vocabulary has no '<pad>', the padding token",
        ),
        ("special_tokens_map.json", {"pad_token": ["!"]}, "pad_token must be text, got"),
        ("special_tokens_map.json", {"pad_token": {"content": 3}}, "pad_token must be text, got 3"),
        ("vocab.json", {"a": 2**33}, "token ids must be from 0 to 262143, but 'a' has 8589934592"),
        ("vocab.json", {"a": -1}, "must be from 0 to"),
        ("vocab.json", {"a": True}, "must be from 0 to"),
        ("vocab.json", {"a": 1.5}, "must be from 0 to"),
        ("vocab.json", {"\x1b[2J" * 100: "x"}, r"'\\x1b\[2J"),
    ],
)
def test_damage_in_a_tokenizers_files_is_named(miniature, file, change, message):
    edit(miniature / "tokenizer" / file, **change)
    with pytest.raises(InputError, match=message) as error:
        load_tokenizers(open_checkpoint(miniature).info)
    assert str(error.value).isprintable() and len(str(error.value)) < 500


def test_a_tokenizer_without_a_comma_reads_prompts(miniature):
    file = miniature / "tokenizer" / "vocab.json"
    vocabulary = json.loads(file.read_text())
    del vocabulary[",</w>"]
    file.write_text(json.dumps(vocabulary))
    tokenizer, _ = load_tokenizers(open_checkpoint(miniature).info)
    assert tokenizer.ids("a cube")


def test_more_tokens_or_merges_than_any_model_has_are_refused_before_they_are_built(miniature):
    file = miniature / "tokenizer" / "vocab.json"
    before = file.read_text()
    edit(file, **{f"t{number}": 5 for number in range(300_000)})
    with pytest.raises(InputError, match=r"the vocabulary has 3\d+ tokens; at most 262144 are allowed"):
        load_tokenizers(open_checkpoint(miniature).info)
    file.write_text(before)
    (miniature / "tokenizer" / "merges.txt").write_text("a b\n" * 300_000)
    with pytest.raises(InputError, match="merges must be a list of at most 262144 pairs"):
        load_tokenizers(open_checkpoint(miniature).info)


def test_a_tokenizer_of_hundreds_of_megabytes_is_not_read(miniature):
    with (miniature / "tokenizer" / "vocab.json").open("r+b") as file:
        file.truncate(300 * 2**20)
    with pytest.raises(InputError, match=r"vocab\.json is too large: at most 8388608 bytes are allowed"):
        load_tokenizers(open_checkpoint(miniature).info)
