"""From files to batches: everything encoded once, nothing paired with what it does not belong to."""

import json
import pickle
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from picture_files import as_bytes, smooth
from ssd1b.errors import InputError
from ssd1b.models.text import Conditioning, TextEncoders
from ssd1b.models.vae import VAE
from ssd1b.pipeline import Pipeline
from ssd1b.training.data.batches import DataSettings, PictureBatches, open_data
from ssd1b.training.objective import Objective

LONG = "a red cube, " * 40  # two chunks


@pytest.fixture(scope="session")
def mini() -> Pipeline:
    return Pipeline.load("mini-sdxl", device="cpu", dtype="fp32", offline=True)


@pytest.fixture
def encoded(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """How many pictures and captions went through the encoders."""
    counts = [0, 0]
    encode, encode_text = VAE.encode, TextEncoders.encode

    def vae(self: VAE, pixels: torch.Tensor) -> Any:
        counts[0] += len(pixels)
        return encode(self, pixels)

    def text(self: TextEncoders, tokens: Any) -> Any:
        counts[1] += len(tokens[0].ids)
        return encode_text(self, tokens)

    monkeypatch.setattr(VAE, "encode", vae)
    monkeypatch.setattr(TextEncoders, "encode", text)
    yield counts


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """Four wide pictures and two square ones; one of the captions is long, one has brackets."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    captions = ["a red cube", LONG, "two (blue) cones [left]", "a torus", "a sphere", "a cone"]
    for index, caption in enumerate(captions):
        width, height = (96, 48) if index < 4 else (70, 80)
        (folder / f"{index}.png").write_bytes(as_bytes(smooth(width, height, index)))
        (folder / f"{index}.txt").write_text(caption)
    return folder


@pytest.fixture
def opened(mini: Pipeline, source: Path, tmp_path: Path) -> Callable[..., PictureBatches]:
    def open_(batch_size: int = 2, seed: int = 3, **settings: Any) -> PictureBatches:
        given = {"path": str(source), "size": 64, "multiple": 16, "dtype": "float32", **settings}
        return open_data(
            DataSettings(**given), vae=mini.vae, text=mini.text, cache=tmp_path / "cache",
            report=tmp_path / "report.json", batch_size=batch_size, seed=seed,
        )  # fmt: skip

    return open_


def test_batches_hold_what_a_fresh_look_at_the_files_gives(
    opened: Callable[..., PictureBatches], mini: Pipeline, source: Path, tmp_path: Path
) -> None:
    batches = opened(caption_dropout=0)
    assert json.loads((tmp_path / "report.json").read_text()) == {
        "pictures": 6, "unusable": {}, "buckets": {"80x48": 4, "64x64": 2},
    }  # fmt: skip
    seen = set()
    for step in range(3):
        batch = batches[step]
        bucket, indices = batches.order[step]
        chosen = [batches.pictures[bucket][index] for index in indices]
        paths = [source / each.scanned.example.key for each in chosen]
        seen |= set(paths)
        captions = [path.with_suffix(".txt").read_text().strip() for path in paths]
        if batch.latents.shape[-2:] == (8, 8):
            # 70 x 80 covers 64 x 64 as 64 x 73, of which 4 rows are cut off above.
            assert batch.time_ids.tolist() == [[80, 70, 4, 0, 64, 64]] * 2
        else:
            # 96 x 48 covers 80 x 48 as it is, less 8 columns on either side.
            assert batch.time_ids.tolist() == [[48, 96, 0, 8, 48, 80]] * 2
            pixels = np.stack([np.array(Image.open(path))[:, 8:88] for path in paths])
            with torch.inference_mode():
                fresh = mini.vae.encode(torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1).mean
            torch.testing.assert_close(batch.latents, fresh, rtol=1e-3, atol=1e-3)
        escaped = [c.replace("(", r"\(").replace(")", r"\)").replace("[", r"\[") for c in captions]
        expected = mini.text.encode(mini.text.tokenize(escaped))
        torch.testing.assert_close(batch.text.embeds, expected.embeds, rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(batch.text.pooled, expected.pooled, rtol=1e-3, atol=1e-3)
        assert batch.has_caption.tolist() == [True, True]
    assert len(seen) == 6
    # The loop reads ahead in another process.
    elsewhere = pickle.loads(pickle.dumps(batches))[1]
    assert elsewhere.latents.equal(batches[1].latents)


def test_the_objective_takes_embeddings_in_place_of_tokens(
    opened: Callable[..., PictureBatches], mini: Pipeline
) -> None:
    ready, raw = opened(caption_dropout=0.5)[0], opened(caption_dropout=0.5, cache_captions=False)[0]
    assert isinstance(ready.text, Conditioning) and not isinstance(raw.text, Conditioning)
    results = []
    for batch, text in ((ready, None), (raw, mini.text)):
        torch.manual_seed(1)
        results.append(Objective(text=text, device="cpu", dtype=torch.float32)(batch).inputs)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3)


def test_only_what_changed_is_encoded_again(
    opened: Callable[..., PictureBatches], source: Path, encoded: list[int]
) -> None:
    opened()
    assert encoded == [6, 7]  # and the empty caption
    opened()
    assert encoded == [6, 7]
    (source / "3.txt").write_text("a torus, seen anew")
    opened()
    assert encoded == [6, 8]
    (source / "3.png").write_bytes(as_bytes(smooth(96, 48, 33)))
    batches = opened()
    assert encoded == [7, 8]
    shutil.copy(source / "0.png", source / "7.png")
    (source / "7.txt").write_text("a red cube")
    opened()
    assert encoded == [7, 8]
    # Another crop is another content, another order is not.
    opened(crop="random", seed=4)
    assert encoded[0] > 7
    assert encoded[1] == 8
    (wide,) = [few for few in batches.pictures if len(few) == 4]
    damaged = batches.latents.path(wide[1].key)
    damaged.write_bytes(damaged.read_bytes()[:-3])
    before = encoded[0]
    with pytest.raises(InputError, match="restart to encode"):
        [batches[step] for step in range(3)]
    opened()
    assert encoded[0] == before + 1


def test_two_that_fill_one_cache_at_once(opened: Callable[..., PictureBatches], encoded: list[int]) -> None:
    found: list[PictureBatches] = []
    threads = [threading.Thread(target=lambda: found.append(opened())) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    first, second = found
    assert all(first[step].latents.equal(second[step].latents) for step in range(4))


def test_what_cannot_be_decoded_is_left_out_and_counted(
    opened: Callable[..., PictureBatches], source: Path, tmp_path: Path
) -> None:
    cut = (source / "2.png").read_bytes()
    (source / "2.png").write_bytes(cut[: len(cut) * 2 // 3])  # its header is whole
    (source / "5.txt").unlink()
    with pytest.raises(InputError, match=r"^2 of 6 images .*; allowed are 30% \(max_unusable\)$") as error:
        opened(max_unusable=0.3)
    assert "1 picture damaged (2.png)" in str(error.value)
    with pytest.warns(UserWarning, match=r"2 of 6 images cannot be used.*2\.png.*report\.json"):
        batches = opened(max_unusable=0.5)
    assert batches.report.unusable == {"caption missing": ["5.png"], "picture damaged": ["2.png"]}
    assert json.loads((tmp_path / "report.json").read_text())["buckets"] == {"80x48": 3, "64x64": 1}
    with pytest.warns(UserWarning, match="2 of 6 images"):
        again = opened(max_unusable=0.5)
    for step in range(6):
        assert again.order[step] == batches.order[step]
        assert again[step].latents.equal(batches[step].latents)


def test_captions_and_dropout_are_drawn_by_the_step(mini: Pipeline, tmp_path: Path) -> None:
    rows = [{"file_name": "a.png", "text": ["a cone", "a torus", LONG]}]
    (tmp_path / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (tmp_path / "a.png").write_bytes(as_bytes(smooth(64, 64)))
    settings = DataSettings(path=str(tmp_path), size=64, multiple=16, caption_dropout=0.25, dtype="bfloat16")
    batches = open_data(
        settings, vae=mini.vae, text=mini.text, cache=tmp_path / "cache", report=tmp_path / "report.json",
        batch_size=8, seed=0,
    )  # fmt: skip
    steps = [batches[step] for step in range(12)]
    assert {batch.latents.dtype for batch in steps} == {torch.bfloat16}
    pooled = torch.cat([batch.text.pooled for batch in steps])
    assert len(pooled.unique(dim=0)) == 3
    share = torch.cat([batch.has_caption for batch in steps]).float().mean()
    assert 0.6 < share < 0.9
    for step in (11, 4):
        assert batches[step].has_caption.equal(steps[step].has_caption)
        assert batches[step].text.embeds.equal(steps[step].text.embeds)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("size", 1000),
        ("multiple", 12),
        ("crop", "center"),
        ("dtype", "int8"),
        ("max_unusable", 2),
        ("caption_dropout", float("nan")),
        ("path", ""),
        ("min_side", 0),
        ("cache_captions", "no"),
        ("caption_column", 3),
    ],
)
def test_settings_say_what_is_allowed(name: str, value: object) -> None:
    with pytest.raises(InputError, match=name):
        replace(DataSettings(path="pictures"), **{name: value})
