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
from ssd1b.edges import canny
from ssd1b.errors import ConflictError, FailedError, InputError
from ssd1b.models.text import FIRST_VECTOR, Conditioning, TextEncoders
from ssd1b.models.vae import VAE
from ssd1b.pipeline import Pipeline
from ssd1b.training.data import batches as batches_module
from ssd1b.training.data.batches import DataSettings, PictureBatches, open_data, scan_data
from ssd1b.training.data.encoding import read
from ssd1b.training.data.pictures import decode_and_crop
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


def test_captions_are_replaced_and_words_stand_for_vectors(
    mini: Pipeline, source: Path, tmp_path: Path
) -> None:
    for caption in source.glob("*.txt"):
        caption.unlink()
    settings = DataSettings(path=str(source), size=64, multiple=16, cache_captions=False, caption_dropout=0)
    batches = open_data(
        settings, vae=mini.vae, text=mini.text, cache=tmp_path / "cache", report=tmp_path / "report.json",
        batch_size=2, seed=3, captions=["a zarp", "one zarp"], words=(("zarp", 2),),
    )  # fmt: skip
    batches = pickle.loads(pickle.dumps(batches))  # as for a process that is spawned to read
    assert batches.text is not None
    assert all(each.is_meta for each in batches.text.encoder_2.parameters()), "no weights are sent along"
    seen = set()
    for step in range(8):
        for row in batches[step].text[0].ids[:, 0].tolist():
            assert [id for id in row if id >= FIRST_VECTOR] == [FIRST_VECTOR, FIRST_VECTOR + 1]
            seen.add(tuple(row))
    assert len(seen) == 2, "each use draws one of the captions"


def test_batches_hold_what_a_fresh_look_at_the_files_gives(
    opened: Callable[..., PictureBatches], mini: Pipeline, source: Path, tmp_path: Path
) -> None:
    batches = opened(caption_dropout=0)
    facts = json.loads((tmp_path / "report.json").read_text())
    assert facts.pop("read_as")["images"] == 6
    assert facts == {
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


def test_latents_that_are_not_finite_name_the_picture_and_the_remedy(
    opened: Callable[..., PictureBatches], source: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    encode = VAE.encode

    def broken(self: VAE, pixels: torch.Tensor) -> Any:
        found = encode(self, pixels)
        found.mean[:] = torch.nan
        return found

    monkeypatch.setattr(VAE, "encode", broken)
    with pytest.raises(FailedError, match=r"the VAE gives NaN .*\.png: load it in float32 or bfloat16"):
        opened()


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
    with pytest.raises(
        InputError,
        match=r"^2 of 6 images .*; allowed are 30% \(max_unusable\); the list is in .*report\.json$",
    ) as error:
        opened(max_unusable=0.3)
    assert "picture damaged (1: 2.png)" in str(error.value)
    with pytest.warns(UserWarning, match=r"2 of 6 images cannot be used.*2\.png.*report\.json"):
        batches = opened(max_unusable=0.5)
    assert batches.report.unusable == {"caption missing": ["5.png"], "picture damaged": ["2.png"]}
    assert json.loads((tmp_path / "report.json").read_text())["buckets"] == {"80x48": 3, "64x64": 1}
    with pytest.warns(UserWarning, match="2 of 6 images"):
        again = opened(max_unusable=0.5)
    for step in range(6):
        assert again.order[step] == batches.order[step]
        assert again[step].latents.equal(batches[step].latents)


def test_a_continued_run_refuses_other_data(
    opened: Callable[..., PictureBatches], source: Path, tmp_path: Path
) -> None:
    settings, report = opened().settings, tmp_path / "report.json"

    def check() -> None:
        scan_data(settings, cache=tmp_path / "cache", report=report, resumed=True)

    check()
    (source / "0.png").write_bytes(as_bytes(smooth(96, 48, 9)))
    with pytest.raises(ConflictError, match="began: images changed; restore"):
        check()
    (source / "0.txt").write_text("another caption")
    with pytest.raises(ConflictError, match="images and captions changed"):
        check()
    (source / "1.png").unlink()
    with pytest.raises(ConflictError, match="6 usable images then, 5 now"):
        check()
    (tmp_path / "older.json").write_text('{"pictures": 6}')
    scan_data(settings, cache=tmp_path / "cache").check_unchanged(tmp_path / "older.json")


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


def captions_of(batches: PictureBatches, steps: int, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The captions of the first steps, as they are looked up in the cache or tokenized."""
    seen: list[str] = []
    monkeypatch.setattr(PictureBatches, "_text", lambda self, captions: seen.extend(captions))
    for step in range(steps):
        batches[step]
    return seen


@pytest.fixture
def tagged(tmp_path: Path) -> Path:
    folder = tmp_path / "tagged"
    folder.mkdir()
    (folder / "a.png").write_bytes(as_bytes(smooth(64, 64)))
    (folder / "a.txt").write_text("one, a, b, c, d\ntwo, e, f, g, h")
    return folder


CHANGED = {"caption_lines": True, "shuffle_captions": True, "keep_tokens": 1, "tag_dropout": 0.3}


@pytest.mark.parametrize("cached", [True, False])
def test_captions_vary_and_are_never_those_of_another_setting(
    opened: Callable[..., PictureBatches], tagged: Path, encoded: list[int], cached: bool,
    mini: Pipeline, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    given = {"path": str(tagged), "caption_dropout": 0, "cache_captions": cached, "trigger": "sks"}
    plain = opened(**given, caption_lines=True)
    changing = opened(**given, **CHANGED, caption_variants=5)
    # Two captions, ten variants of which some may be equal, the empty caption: each is encoded once.
    assert encoded[1] <= (2 + 10 + 1 if cached else 0)
    again = encoded[1]
    opened(**given, **CHANGED, caption_variants=5, seed=9)
    assert encoded[1] == again, "variants depend on the caption alone"
    if cached:
        (first,) = [each.scanned.captions for few in changing.pictures for each in few]
        batch = changing[0]
        fresh = mini.text.encode(mini.text.tokenize(list(first)))
        for row in batch.text.embeds:
            assert (fresh.embeds - row).abs().amax((1, 2)).min() < 1e-3, "a variant's own embedding"
    with monkeypatch.context() as patch:
        seen = captions_of(changing, 40, patch)
        assert {*captions_of(plain, 20, patch)} == {"sks, one, a, b, c, d", "sks, two, e, f, g, h"}
    for caption in seen:
        trigger, first_tag, *others = caption.split(", ")
        assert trigger == "sks" and first_tag in ("one", "two")
        assert {*others} <= {*("abcd" if first_tag == "one" else "efgh")}
    assert len({*seen}) > (5 if cached else 20)
    again_there = captions_of(changing, 40, monkeypatch)
    assert again_there == seen, "a step's captions depend on the step alone"


def test_images_are_seen_as_often_as_they_are_repeated(
    opened: Callable[..., PictureBatches], source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "x.png").write_bytes(as_bytes(smooth(64, 64, 9)))
    (other / "x.txt").write_text("x")
    sources = [{"path": str(source)}, {"path": str(other), "repeats": 4}]
    batches = opened(path=None, sources=sources, batch_size=1)
    assert (batches.different, batches.seen) == (7, 10)
    seen = [
        batches.pictures[bucket][index].scanned.example.key
        for step in range(10)
        for bucket, [index] in [batches.order[step]]
    ]
    assert seen.count(f"{other}/x.png") == 4 and len({*seen}) == 7
    few = {"path": str(source), "repeats": 10_000}
    monkeypatch.setattr(batches_module, "_MOST_SEEN", 119_999)
    with pytest.raises(InputError, match="repeats make 120000 images in a pass: at most 119999"):
        opened(path=None, sources=[few, few])


def test_half_of_the_images_are_mirrored_with_their_masks_and_crops(
    opened: Callable[..., PictureBatches], source: Path, mini: Pipeline, encoded: list[int]
) -> None:
    for index in range(6):
        (source / f"{index}.mask.png").write_bytes(
            as_bytes(smooth(96, 48, index + 20) if index < 4 else smooth(70, 80, index + 20))
        )
    given = {"caption_dropout": 0, "masks": "beside", "unmasked_weight": 0.25, "crop": "random"}
    plain, flipped = opened(**given), opened(**given, flip=True)
    assert encoded[0] == 12, "both sides of each image are encoded, and each once"
    mirrored = 0
    for step in range(12):
        ours, both = plain[step], flipped[step]
        assert plain.order[step] == flipped.order[step]
        bucket, indices = plain.order[step]
        for row, index in enumerate(indices):
            placement = plain.pictures[bucket][index].placement
            assert both.cell_weights is not None and ours.cell_weights is not None
            if both.latents[row].equal(ours.latents[row]):
                assert both.cell_weights[row].equal(ours.cell_weights[row])
                assert both.time_ids[row].tolist() == list(placement.time_ids)
            else:
                mirrored += 1
                assert (both.cell_weights[row].flip(-1) - ours.cell_weights[row]).abs().max() < 0.02
                assert both.time_ids[row].tolist() == list(placement.mirror.time_ids)
    assert 4 < mirrored < 20
    assert flipped[3].latents.equal(flipped[3].latents)


def test_masks_weigh_the_cells_of_their_images(
    opened: Callable[..., PictureBatches], source: Path, tmp_path: Path, encoded: list[int]
) -> None:
    assert opened()[0].cell_weights is None
    left = Image.new("L", (96, 48), 0)
    left.paste(255, (0, 0, 48, 48))
    (source / "1.mask.png").write_bytes(as_bytes(left))
    assert opened()[0].cell_weights is None, "masks are used if they are asked for"
    batches = opened(masks="beside", unmasked_weight=0.25, batch_size=1)
    assert json.loads((tmp_path / "report.json").read_text())["masks"] == 1
    for step in range(6):
        bucket, [index] = batches.order[step]
        weights = batches[step].cell_weights
        assert weights is not None and weights.shape == (1, 1, *batches[step].latents.shape[-2:])
        if batches.pictures[bucket][index].scanned.example.key == "1.png":
            # The crop is 8 pixels from the left, so the mask ends after 5 cells of 10.
            assert weights[0, 0].tolist() == [[1.0] * 5 + [0.25] * 5] * 6
        else:
            assert weights.eq(1).all()
    # A changed mask is read anew; the image is not encoded again.
    before = encoded[0]
    (source / "1.mask.png").write_bytes(as_bytes(Image.new("L", (96, 48), 255)))
    changed = opened(masks="beside", batch_size=1)
    assert all(changed[step].cell_weights.eq(1).all() for step in range(6)) and encoded[0] == before
    elsewhere = pickle.loads(pickle.dumps(batches))
    assert elsewhere.settings == batches.settings
    (source / "1.mask.png").write_bytes(as_bytes(left)[:70])
    with pytest.warns(UserWarning, match=r"mask: picture damaged \(1: 1\.png\)"):
        assert opened(masks="beside", max_unusable=0.5).masks is None


def test_opacity_is_a_mask(opened: Callable[..., PictureBatches], tmp_path: Path) -> None:
    folder = tmp_path / "cut out"
    folder.mkdir()
    opacity = Image.new("L", (64, 64), 0)
    opacity.paste(255, (16, 16, 48, 48))
    for name, image in (("a", smooth(64, 64)), ("b", smooth(64, 64, 1))):
        if name == "a":
            image.putalpha(opacity)
        (folder / f"{name}.png").write_bytes(as_bytes(image))
        (folder / f"{name}.txt").write_text(name)
    batches = opened(path=str(folder), masks="alpha", unmasked_weight=0, batch_size=2)
    weights = batches[0].cell_weights
    assert weights is not None and sorted(weights.sum((1, 2, 3)).tolist()) == [16, 64]


def test_combinations_of_settings_that_have_no_effect_are_errors() -> None:
    good = DataSettings(path="pictures")
    for wrong, name in (
        ({"keep_tokens": 1}, "keep_tokens needs shuffle_captions or tag_dropout"),
        ({"sources": [{"path": "x"}]}, "path or sources"),
        ({"path": None, "sources": [{"path": "x"}, {"path": "y"}], "masks": "folder"}, "masks"),
        ({"path": None, "sources": [{"path": "x"}, {"path": "y"}], "controls": "folder"}, "controls"),
        ({"path": None, "sources": [{"path": "x", "repeats": 0}]}, "repeats"),
        ({"path": None, "sources": [{"path": "x", "repeat": 1}]}, "repeat"),
    ):
        with pytest.raises(InputError, match=name):
            replace(good, **wrong)
    held = replace(good, masks="folder", trigger="sks", flip=True, shuffle_captions=True, keep_tokens=2)
    assert held.held_out("x") == DataSettings(path="x", trigger="sks", caption_dropout=0)
    assert held.of_others("x").all_sources[0].trigger is None
    assert replace(good, masks="alpha").of_others("x").masks == "alpha"
    for controls, kept in (("edges", "edges"), ("folder", "beside"), ("beside", "beside"), (None, None)):
        assert replace(good, controls=controls).held_out("x").controls == kept
    assert replace(good, controls="edges").of_others("x").controls is None


def test_edges_are_those_of_the_very_crop_that_is_learned(
    opened: Callable[..., PictureBatches], source: Path, tmp_path: Path, encoded: list[int]
) -> None:
    for index in range(4):
        image = smooth(96, 48, index)
        image.paste("white", (20 + index, 10, 60, 30 + index))
        (source / f"{index}.png").write_bytes(as_bytes(image))
    given = {"caption_dropout": 0, "batch_size": 1}
    assert opened(**given)[0].controls is None and encoded[0] == 6
    plain, flipped = opened(**given, controls="edges"), opened(**given, controls="edges", flip=True)
    assert encoded[0] == 12, "the mirror images are encoded, and nothing is encoded again"
    assert json.loads((tmp_path / "report.json").read_text())["controls"] == 6
    mirrored = 0
    for step in range(12):
        ours, both = plain[step].controls, flipped[step].controls
        assert ours is not None and both is not None and ours.dtype == torch.uint8
        bucket, [index] = plain.order[step]
        key = plain.pictures[bucket][index].scanned.example.key
        if ours.shape[-2:] == (48, 80):
            # 96 x 48 covers 80 x 48 as it is, less 8 columns on either side.
            pixels = np.array(Image.open(source / key))[:, 8:88]
            assert np.array_equal(ours[0, 0], canny(pixels)) and ours.any()
            change = flipped[step].latents.ne(plain[step].latents).any()
            mirrored += int(change)
            assert np.array_equal(both[0, 0], canny(pixels[:, ::-1] if change else pixels))
    assert 0 < mirrored < 8
    assert pickle.loads(pickle.dumps(flipped))[3].controls.equal(flipped[3].controls)


def test_control_images_are_cropped_and_mirrored_as_their_images(
    opened: Callable[..., PictureBatches], source: Path, tmp_path: Path
) -> None:
    """Here each image is its own control image, and one of them is grey."""
    folder = tmp_path / "controls"
    folder.mkdir()
    for path in source.glob("*.png"):
        image = Image.open(path)
        (image.convert("L") if path.stem == "0" else image).save(folder / f"{path.stem}.webp", lossless=True)
    given = {"caption_dropout": 0, "crop": "random", "flip": True, "controls": str(folder)}
    batches, seen = opened(**given, batch_size=1), set()
    for step in range(24):
        batch, (bucket, [index]) = batches[step], batches.order[step]
        picture = batches.pictures[bucket][index]
        for each in (picture, picture.mirror):
            assert batch.controls is not None
            if read(batches.latents, each.key)["latents"].equal(batch.latents[0]):
                file = folder / f"{Path(each.scanned.example.key).stem}.webp"
                wanted = decode_and_crop(file.read_bytes(), each.placement).transpose(2, 0, 1)
                assert np.array_equal(batch.controls[0], wanted[:1] if file.stem == "0" else wanted)
                seen.add((file.stem, each.placement.mirrored))
    assert len(seen) > 8
    together = opened(**given, batch_size=4)
    assert all(together[step].controls.shape[:2] == (4, 3) for step in range(3)), "grey beside colours"
    (folder / "3.webp").unlink()
    with pytest.warns(UserWarning, match=r"1 of 6 images cannot be used: control: missing \(1: 3\.png\)"):
        assert opened(**given, max_unusable=0.5).different == 5
    with pytest.raises(InputError, match=r"control: missing \(1: 3\.png\); allowed are 10%"):
        opened(**given)
