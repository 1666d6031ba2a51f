"""A new word: its vectors alone learn, from the word in captions, and their file gives the same encoding."""

import pytest
import torch

from ssd1b.adapters.vectors import read_vectors
from ssd1b.embeddings import embedding_of, words_of
from ssd1b.errors import FailedError, InputError
from ssd1b.finetune.inversion import check_captions, new_vectors, prove_embedding, write_embedding
from ssd1b.finetune.networks import Networks, prepare
from ssd1b.finetune.prior import loss_terms
from ssd1b.finetune.settings import TEMPLATES, make_settings
from ssd1b.model import Model
from ssd1b.training.batches import LatentBatch
from ssd1b.training.objective import Objective
from ssd1b.training.optimizers import Optimizers
from tiny import DRAWABLE

OBJECTIVE = Objective(text=None, device="cpu", dtype=torch.float32)


def settings(**given):
    method = {"method": "textual-inversion", "token": "my-cat", "data.path": "x"}
    return make_settings(None, {**method, **given}, size=64)


def opened(worded_model, chosen):
    model = Model.find(str(worded_model))
    text = model.text_encoders(lambda part: model.network(part, dtype=torch.float32, copied=True))
    unet = model.network("unet", dtype=torch.float32, copied=True)
    networks = Networks(unet, (text.encoder, text.encoder_2), new_vectors(text, chosen))
    prepare(networks, chosen)
    return text, networks


def batch(text, captions, words):
    torch.manual_seed(1)
    return LatentBatch(
        latents=torch.randn(len(captions), 4, 8, 8),
        text=text.tokenize(captions, words),
        time_ids=torch.tensor([[64.0, 64, 0, 0, 64, 64]] * len(captions)),
        has_caption=torch.ones(len(captions), dtype=torch.bool),
    )


def test_only_the_vectors_change_and_the_loss_falls(worded_model):
    chosen = settings(vectors=2, **{"train.learning_rate": 0.02})
    text, networks = opened(worded_model, chosen)
    before = {name: each.detach().clone() for name, each in networks.state_dict().items()}
    given = batch(text, ["a red my-cat", "my-cat, a ball"], chosen.words)
    optimizers = Optimizers(networks, chosen.train)
    losses = []
    for _ in range(12):
        torch.manual_seed(2)
        encoded = networks.encoded(given, torch.float32)
        loss = loss_terms(OBJECTIVE, networks.unet, encoded, None, 1.0)["loss"]
        networks.zero_grad(set_to_none=True)
        loss.backward()
        assert {n for n, each in networks.named_parameters() if each.grad is not None} == {
            "vectors.clip_l", "vectors.clip_g"
        }  # fmt: skip
        optimizers.step(1.0)
        losses.append(float(loss.detach()))
    assert losses[-1] < losses[0]
    for name, each in networks.state_dict().items():
        assert each.equal(before[name]) != name.startswith("vectors."), name


def test_a_caption_without_the_word_teaches_nothing(worded_model):
    chosen = settings()
    text, networks = opened(worded_model, chosen)
    torch.manual_seed(2)
    encoded = networks.encoded(batch(text, ["a red cube", "a ball"], chosen.words), torch.float32)
    loss_terms(OBJECTIVE, networks.unet, encoded, None, 1.0)["loss"].backward()
    assert all(each.grad is not None and not each.grad.any() for each in networks.vectors.values())


def test_the_file_gives_the_trained_encoding(worded_model, tmp_path):
    chosen = settings(vectors=3, token="<my cat>", init_word="cat")
    text, networks = opened(worded_model, chosen)
    tokens = text.tokenize(["a photo of <my cat> on a table"], chosen.words)
    with torch.no_grad():
        for each in networks.vectors.values():
            each.add_(0.5 * torch.randn_like(each))
        ours = networks.encode(tokens, torch.float32)
    path = tmp_path / chosen.embedding_file
    assert path.name == "mycat.safetensors"
    write_embedding(path, networks.word, {})
    found = embedding_of(path, "<my cat>")
    assert words_of([found]) == chosen.words
    read = text.encode(tokens, read_vectors([found], DRAWABLE))
    for trained, applied in zip(ours, read, strict=True):
        assert trained.equal(applied)


def test_vectors_start_from_a_word_repeated_or_at_random(worded_model):
    text, networks = opened(worded_model, settings(vectors=3, init_word="cat"))
    for name, encoder, tokenizer in (
        ("clip_l", text.encoder, text.tokenizer), ("clip_g", text.encoder_2, text.tokenizer_2),
    ):  # fmt: skip
        (token,) = tokenizer.ids("cat")
        row = encoder.text_model.embeddings["token_embedding"].weight[token]
        assert networks.vectors[name].equal(row.expand(3, -1))
    two = new_vectors(text, settings(vectors=3, init_word="red cube"))["clip_l"]
    assert two[0].equal(two[2]) and not two[0].equal(two[1])
    drawn, same, other = (new_vectors(text, settings(vectors=2, **{"train.seed": s})) for s in (0, 0, 1))
    rows = text.encoder.text_model.embeddings["token_embedding"].weight
    assert drawn["clip_l"].equal(same["clip_l"]) and not drawn["clip_l"].equal(other["clip_l"])
    assert not drawn["clip_l"][0].equal(drawn["clip_l"][1])
    assert drawn["clip_l"].abs().max() < 6 * rows.std()
    with pytest.raises(InputError, match=r"'red cube' has 2 tokens: as many vectors are needed .* got 1"):
        new_vectors(text, settings(init_word="red cube"))


def test_saving_is_proven_and_nan_is_not_saved(worded_model, tmp_path):
    _, networks = opened(worded_model, settings())
    vectors = networks.word
    prove_embedding(tmp_path, vectors, DRAWABLE, "my-cat")
    assert not list(tmp_path.iterdir())
    vectors["clip_g"] = vectors["clip_g"] * float("nan")
    with pytest.raises(FailedError, match="clip_g is NaN or infinite: not saved"):
        write_embedding(tmp_path / "a.safetensors", vectors, {})
    assert not list(tmp_path.iterdir())


def test_the_word_must_be_in_a_caption():
    check_captions(["a cat", "A photo of MY-CAT!"], "my-cat")
    with pytest.raises(InputError, match=r"no caption has the word 'my-cat'.*--template subject or style"):
        check_captions(["a cat", "my-cats"], "my-cat")


@pytest.mark.parametrize("template", TEMPLATES)
def test_templates_all_have_the_word(template):
    captions = settings(template=template).captions
    assert len(set(captions)) == len(TEMPLATES[template]) and all("my-cat" in each for each in captions)
    assert settings().captions == ()


@pytest.mark.parametrize(
    ("given", "error"),
    [
        ({"token": None}, "needs token"),
        ({"token": "my:cat"}, "word is 'my:cat': it must have 1 to 100 characters"),
        ({"token": "<>"}, "needs a letter or a digit"),
        ({"token": "my/cat"}, "'my/cat' names the file, too: .* and no /"),
        ({"vectors": 0}, "vectors is 0: it must be a whole number from 1 to 75"),
        ({"template": "subjekt"}, "subject"),
    ],
)
def test_a_word_that_nothing_could_be_learned_of_is_refused(given, error):
    with pytest.raises(InputError, match=error):
        settings(**given)


def test_only_captions_teach_a_word():
    chosen = settings()
    assert not chosen.data.caption_dropout and not chosen.data.cache_captions
    assert (chosen.train.learning_rate, chosen.train.weight_decay) == (5e-4, 0.0)
