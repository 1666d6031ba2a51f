"""Embeddings: files, the words for them, and the places of their vectors among the tokens."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor

from ssd1b.batching import batch_key
from ssd1b.embeddings import Embedding, embedding_of, find_words, read_embedding, used_in, words_of
from ssd1b.errors import ConflictError, InputError, NotFoundError
from ssd1b.jobs.job import make_job
from ssd1b.models.text import FIRST_VECTOR
from ssd1b.pipeline import Pipeline
from ssd1b.recipe import read_json, write_json, write_parameters
from ssd1b.settings import GenerationSettings, check_overrides, resolve_settings
from tiny import DRAWABLE

WIDTHS = (DRAWABLE.text_encoder.hidden_size, DRAWABLE.text_encoder_2.hidden_size)


def vectors(count: int, seed: int = 0, widths: tuple[int, int] = WIDTHS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    names = zip(("clip_l", "clip_g"), widths, strict=True)
    return {name: torch.randn(count, width, generator=generator) for name, width in names}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    save_file(vectors(3), tmp_path / "cat-toy.safetensors")
    return tmp_path / "cat-toy.safetensors"


@pytest.fixture(scope="module")
def pipeline(worded_model: Path) -> Pipeline:
    return Pipeline.load(str(worded_model), device="cpu", dtype="fp32")


def test_a_file_and_its_word(file: Path) -> None:
    plain, named = read_embedding(str(file)), read_embedding(f"{file}:<cat>")
    assert (plain.word, plain.vectors, named.word) == ("cat-toy", 3, "<cat>")
    assert plain != named and read_embedding(str(named)) == named
    assert embedding_of(file, "x").file == plain.file


def test_embeddings_in_the_file_of_a_lora(file: Path) -> None:
    bundle = {f"bundle_emb.{word}.{key}": each for seed, word in enumerate(("dog", "cat.1"))
              for key, each in vectors(2, seed).items()}  # fmt: skip
    save_file(bundle, file)
    assert read_embedding(f"{file}:cat.1").vectors == 2
    with pytest.raises(
        InputError, match=r"has several embeddings: give one as FILE:WORD, of (cat\.1, dog|dog, cat\.1)"
    ):
        read_embedding(str(file))
    with pytest.raises(InputError, match="unknown embedding 'dig': did you mean 'dog'"):
        read_embedding(f"{file}:dig")


@pytest.mark.parametrize(
    ("tensors", "message"),
    [
        (
            {"emb_params": (2, 768)},
            "an embedding for Stable Diffusion 1; SDXL's family needs one with clip_l and",
        ),
        ({"clip_l": (2, 768)}, "an embedding for Stable Diffusion 1"),
        ({"emb_params": (2, 1024)}, "an embedding for Stable Diffusion 2"),
        ({"x": (2, 5)}, "not an embedding for SDXL's family: it has no clip_l and clip_g"),
        ({"clip_l": (2, 5)}, "not an embedding for SDXL's family: it has no clip_g$"),
        ({"clip_g": (2, 5)}, "not an embedding for SDXL's family: it has no clip_l$"),
        ({"lora_te1_x.lora_down.weight": (2, 768)}, "not an embedding but a LoRA: use --lora$"),
        ({"clip_l": (2, 768), "clip_g": (3, 1280)}, "must have as many vectors as each other"),
        ({"clip_l": (2, 2, 768), "clip_g": (2, 2, 1280)}, "must have as many vectors"),
        ({"clip_l": (76, 8), "clip_g": (76, 8)}, "it has 76 vectors: 1 to 75 are allowed"),
    ],
)
def test_other_files(tensors: dict[str, tuple[int, ...]], message: str, file: Path) -> None:
    save_file({name: torch.zeros(shape) for name, shape in tensors.items()}, file)
    with pytest.raises(InputError, match=message) as error:
        read_embedding(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"PK\x03\x04" + bytes(99), "a pickle can run code"),
        ((20).to_bytes(8, "little") + b'{"clip_l": {"a": 1}}', "damaged safetensors"),
        ((4).to_bytes(8, "little") + b"{[1]", "damaged safetensors"),
    ],
)
def test_damaged_files(content: bytes, message: str, file: Path) -> None:
    file.write_bytes(content)
    with pytest.raises(InputError, match=message):
        read_embedding(str(file))


@pytest.mark.parametrize("word", ["a(b", "a:b", "x" * 101, "a|b"])
def test_words_that_cannot_be_in_prompts(word: str, file: Path) -> None:
    with pytest.raises(InputError, match="word is"):
        embedding_of(file, word)
    with pytest.raises(InputError, match="the word 'x' twice"):
        check_overrides({"embeddings": [f"{file}:x", f"{file}:X"]})


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("a cat, a CAT", ["cat", "CAT"]), ("a catalogue, concat", []),
        ("<toy>s and x<toy>", ["<toy>", "<toy>"]),
        ("embedding:cat, embedding: cat", ["embedding:cat", "embedding: cat"]), ("a cat-toy", ["cat-toy"]),
        ("cat_", []), ("", []),
    ],
)  # fmt: skip
def test_words_are_found_whole(text: str, found: list[str]) -> None:
    words = ["cat", "cat-toy", "<toy>"]
    assert [text[start:end] for start, end, _ in find_words(text, words)] == found
    assert all(words[which] in text[start:end].lower() for start, end, which in find_words(text, words))


def test_a_folder_of_embeddings(file: Path) -> None:
    (file.parent / "in").mkdir()
    save_file(vectors(1), file.parent / "in" / "Rain.safetensors")
    (file.parent / "broken.safetensors").write_bytes(b"x")  # not used, so not opened
    found = used_in(["a cat-toy", "in the rain"], file.parent)
    assert [each.word for each in found] == ["cat-toy", "Rain"]
    assert used_in(["nothing"], file.parent) == ()
    save_file(vectors(1), file.parent / "rain.safetensors")
    with pytest.raises(InputError, match="embedding 'rain' is the name of several files"):
        used_in(["rain"], file.parent)
    with pytest.raises(NotFoundError, match="no such folder"):
        used_in(["rain"], file.parent / "none")


def test_vectors_take_the_places_of_tokens(pipeline: Pipeline, file: Path) -> None:
    save_file(vectors(40), file.with_name("long.safetensors"))
    given = words_of([read_embedding(str(file)), read_embedding(str(file.with_name("long.safetensors")))])
    first, second = pipeline.text.tokenize(["a (cat-toy:1.5), x"], given)
    plain = pipeline.text.tokenize(["a, x"])
    for tokens, without in zip((first, second), plain, strict=True):
        ids = tokens.ids[0, 0].tolist()
        place = ids.index(FIRST_VECTOR)
        assert ids[place : place + 3] == [FIRST_VECTOR, FIRST_VECTOR + 1, FIRST_VECTOR + 2]
        assert tokens.weights[0, 0, place : place + 3].tolist() == [1.5] * 3
        assert ids[:place] + ids[place + 3 :] == without.ids[0, 0].tolist()[: 77 - 3]
    (both, _) = pipeline.text.tokenize(["long, long"], given)  # 40 + 1 + 40: no embedding is split
    assert both.ids.shape[1] == 2
    assert [int((chunk >= FIRST_VECTOR).sum()) for chunk in both.ids[0]] == [40, 40]


def test_an_embedding_of_a_words_own_vectors_changes_nothing(pipeline: Pipeline, tmp_path: Path) -> None:
    networks = (pipeline.text.encoder, pipeline.text.encoder_2)
    ids = pipeline.text.tokenizer.ids("red cube")
    tables = [network.text_model.embeddings["token_embedding"].weight for network in networks]
    own = {name: table[ids].clone() for name, table in zip(("clip_l", "clip_g"), tables, strict=True)}
    save_file(own, tmp_path / "thing.safetensors")
    given = {"seed": 1, "negative_prompt": "red cube"}
    expected = pipeline.generate("a red cube on a table", **given)[0]
    given = {"seed": 1, "negative_prompt": "thing", "embeddings": [str(tmp_path / "thing.safetensors")]}
    found = pipeline.generate("a Thing on a table", **given)[0]
    assert found.image.tobytes() == expected.image.tobytes()
    plain = pipeline.generate("a Thing on a table", seed=1)[0]
    assert plain.image.tobytes() != expected.image.tobytes()


def test_recipes_and_keys(pipeline: Pipeline, file: Path) -> None:
    plain = pipeline.settings("a cat-toy", seed=1)
    settings = pipeline.settings("a cat-toy", seed=1, embeddings=[str(file)])
    recipe = pipeline.recipe(settings)
    assert read_json(write_json(recipe)) == recipe
    assert f'TI hashes: "cat-toy: {settings.embeddings[0].file.sha256[:12]}"' in write_parameters(recipe)

    def key(settings: GenerationSettings) -> str:
        tokenizers = (pipeline.text.tokenizer, pipeline.text.tokenizer_2)
        return make_job("x", settings, fingerprint="0", tokenizers=tokenizers, environment={}).key

    moved = file.rename(file.with_name("other.safetensors"))
    renamed = pipeline.settings("a cat-toy", seed=1, embeddings=[f"{moved}:cat-toy"])
    assert key(renamed) == key(settings) != key(plain)
    tokenizers = (pipeline.text.tokenizer, pipeline.text.tokenizer_2)
    assert batch_key(settings, tokenizers) != batch_key(plain, tokenizers)


def test_files_that_do_not_fit_the_model(pipeline: Pipeline, file: Path) -> None:
    # Vectors that the pipeline has not read for another test: those it keeps.
    own = {name: tensor / 2 for name, tensor in vectors(3).items()}
    save_file(own, file)
    embedding = read_embedding(str(file))
    for change, message in (
        (vectors(3, widths=(768, 1280)), "clip_l has 768 channels, and this model's text encoder 16"),
        (vectors(3) | {"clip_g": torch.full((3, 24), torch.nan)}, "clip_g must hold finite"),
    ):
        save_file(change, file)
        with pytest.raises(InputError, match=message):
            pipeline.generate("a cat-toy", seed=1, embeddings=[str(file)])
    with pytest.raises(ConflictError, match="has changed"):
        pipeline.generate("a cat-toy", seed=1, embeddings=[embedding])
    wrong = Embedding(file=read_embedding(str(file)).file, word="cat-toy", vectors=2)
    save_file(own, file)
    wrong = replace(wrong, file=read_embedding(str(file)).file)
    with pytest.raises(ConflictError, match="it has 3 vectors, expected 2"):
        pipeline.generate("a cat-toy", seed=1, embeddings=[wrong])


def test_on_the_command_line(run, tiny_model: Path, file: Path) -> None:
    given = ["--model", tiny_model, "--device", "cpu", "--seed", 3, "--size", 64, "--json"]
    named = run("generate", "a cat-toy", *given, "--embedding", file)
    found = run("generate", "a cat-toy", *given, "--embedding-folder", file.parent)
    assert (named.code, found.code) == (0, 0) and "advice" not in named.err
    paths = [json.loads(each.out)["path"] for each in (named, found)]
    recipes = [json.loads(run("inspect", path, "--json").out)["recipe"]["settings"] for path in paths]
    assert recipes[0] == recipes[1] and recipes[0]["embeddings"][0]["word"] == "cat-toy"
    assert f"{file}:cat-toy" in run("inspect", paths[0]).out
    again = run("rerun", paths[0], "--model", tiny_model, "--device", "cpu", "--out", "again")
    assert again.code == 0 and "bit-equal" in again.err
    unused = run("generate", "a dog", *given, "--embedding", file)
    assert "advice: no prompt has the word 'cat-toy'" in unused.err
    described = run("inspect", file)
    assert described.code == 0 and "cat-toy" in described.out and "vectors" in described.out
    literal = run("generate", "embedding:dog", *given)
    assert "see --embedding" in literal.err


def test_settings_have_no_embeddings_by_default() -> None:
    settled = resolve_settings("x", family="sdxl", model_defaults={"seed": 7}, preset=None)
    assert settled.embeddings == ()
