"""Pictures beside those of a folder: published metrics on networks of random weights, and what is missing."""

import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor, CLIPTokenizer

from ssd1b import Pipeline
from ssd1b.errors import InputError
from ssd1b.evaluate import folder as module
from ssd1b.evaluate import published
from ssd1b.evaluate.drawing import timed
from ssd1b.evaluate.folder import FolderEvaluation, compare_folders, evaluate_folder, read_captions
from ssd1b.evaluate.published import Scorer
from ssd1b.layouts import CLIP_MINI
from ssd1b.pipeline import ignore
from ssd1b.tabletop.miniature.tokenizer import train_tokenizer
from ssd1b.tabletop.world.renderer import render
from ssd1b.tabletop.world.scenes import scene

# The folder of these tests has a picture without a caption.
pytestmark = pytest.mark.filterwarnings("ignore:1 images without a caption are skipped")

CAPTIONS = ("a large red metal sphere", "a small green cube on a white background")


@pytest.fixture(scope="module")
def scorer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A CLIP model in transformers' format, with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    vocabulary, merges = train_tokenizer()
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=77)
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={
            "vocab_size": CLIP_MINI.vocab_size, "hidden_size": 32, "num_hidden_layers": 1,
            "intermediate_size": 32, "num_attention_heads": 2, "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
        },
        vision_config={
            "hidden_size": 32, "num_hidden_layers": 1, "intermediate_size": 32, "num_attention_heads": 2,
            "image_size": 32, "patch_size": 16,
        },
        projection_dim=16,
    )  # fmt: skip
    CLIPModel(config).save_pretrained(folder)
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    CLIPProcessor(image_processor=image_processor, tokenizer=tokenizer).save_pretrained(folder)
    return folder


@pytest.fixture
def data(tmp_path: Path) -> Path:
    folder = tmp_path / "data"
    folder.mkdir()
    for index, caption in enumerate(CAPTIONS):
        Image.fromarray(render(scene(9, index))).save(folder / f"{index}.jpg")
        (folder / f"{index}.txt").write_text(caption + "\n")
    Image.new("RGB", (8, 8)).save(folder / "without-caption.png")
    return folder


class FakeInception(nn.Module):
    """Stands for torch-fidelity's network: the mean colour instead of features."""

    def __init__(self, name: str, features: list[str], weights: str) -> None:
        super().__init__()

    def forward(self, pixels: torch.Tensor) -> tuple[torch.Tensor]:
        assert pixels.dtype == torch.uint8 and pixels.shape[1] == 3
        return (pixels.float().mean(dim=(2, 3)),)


def evaluated(data: Path, seeds: int) -> FolderEvaluation:
    pipeline, pairs = Pipeline.load("mini-sdxl"), read_captions(data)
    with timed(pipeline) as draw:
        drawn = [
            draw([pipeline.settings(pair.caption, seed=seed, steps=1)], ignore)[0]
            for pair in pairs
            for seed in range(seeds)
        ]
    return evaluate_folder(pairs, drawn, pipeline.layout, device=torch.device("cpu"), offline=True)


def test_captions_are_read_in_order(data: Path) -> None:
    pairs = read_captions(data)
    assert [(pair.path.name, pair.caption) for pair in pairs] == [
        ("0.jpg", CAPTIONS[0]),
        ("1.jpg", CAPTIONS[1]),
    ]


def test_capitals_are_read_and_what_is_left_out_is_told(tmp_path: Path) -> None:
    for name in ("a.JPG", "b.png", "c.bmp", "d.GIF"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    (tmp_path / "a.TXT").write_bytes("\ufeffa cone".encode())
    with pytest.warns(UserWarning) as told:
        assert [(pair.path.name, pair.caption) for pair in read_captions(tmp_path)] == [("a.JPG", "a cone")]
    assert [str(each.message) for each in told] == [
        "1 images without a caption are skipped: b.png",
        "2 images in an unsupported format are skipped: c.bmp, d.GIF",
    ]


def test_a_folder_without_captions_says_what_one_is(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such folder"):
        read_captions(tmp_path / "nothing")
    with pytest.raises(InputError, match=r"no image .* with a caption in a \.txt"):
        read_captions(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    (tmp_path / "a.txt").write_text(" \n")
    with pytest.raises(InputError, match="caption is empty"):
        read_captions(tmp_path)


def test_a_score_is_the_models_cosine_times_its_temperature(scorer: Path, data: Path) -> None:
    pictures = [Image.open(pair.path) for pair in read_captions(data)]
    scores = Scorer(scorer, torch.device("cpu"))(pictures, CAPTIONS)
    model, processor = CLIPModel.from_pretrained(scorer), CLIPProcessor.from_pretrained(scorer)
    for picture, caption, score in zip(pictures, CAPTIONS, scores, strict=True):
        inputs = processor(text=[caption], images=[picture], return_tensors="pt")
        with torch.no_grad():
            found = model(**inputs)
        cosine = float(nn.functional.cosine_similarity(found.text_embeds, found.image_embeds))
        assert score == pytest.approx(cosine * model.logit_scale.exp().item(), rel=1e-4)


def test_what_is_there_is_measured_and_what_is_not_is_named(
    scorer: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(published, "SCORERS", {"CLIP score": str(scorer), "PickScore": "nobody/nothing"})
    monkeypatch.setattr(module, "inception_weights", lambda: tmp_path / "inception.pth")
    found = evaluated(data, seeds=2)
    assert len(found.pictures) == 4 == len(found.values["CLIP score"])
    assert "not in the cache" in found.missing["PickScore"]
    assert "inception.pth is missing" in found.missing["FID, KID"]
    assert found.distances == {}
    assert found.macs > 0 and found.seconds > 0
    again = evaluated(data, seeds=2)
    assert compare_folders(found, again)["CLIP score"].mean == 0


def test_distances_are_measured_where_the_network_is(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = tmp_path / "inception.pth"
    weights.touch()
    monkeypatch.setattr(published, "SCORERS", {})
    monkeypatch.setattr(module, "inception_weights", lambda: weights)
    library = ModuleType("torch_fidelity.feature_extractor_inceptionv3")
    library.FeatureExtractorInceptionV3 = FakeInception  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "torch_fidelity", ModuleType("torch_fidelity"))
    monkeypatch.setitem(sys.modules, library.__name__, library)
    found = evaluated(data, seeds=1)
    theirs = np.stack([np.asarray(Image.open(pair.path)).mean(axis=(0, 1)) for pair in read_captions(data)])
    ours = np.stack([picture.mean(axis=(0, 1)) for picture in found.pictures])
    assert found.distances["FID"] == pytest.approx(module.frechet_distance(ours, theirs), rel=1e-3)
    assert found.missing == {}


def test_a_folder_that_holds_no_clip_model_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="not a readable CLIP model"):
        Scorer(tmp_path, torch.device("cpu"))
    assert published.inception_weights().name == published.INCEPTION
