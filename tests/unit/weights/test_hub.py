"""Names of models to places on disk, with a hub that is made up and a cache that is laid by hand."""

import shutil
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub import constants, errors

from ssd1b.errors import InputError, NotFoundError
from ssd1b.weights.download import wanted_files
from ssd1b.weights.hub import ALIASES, BUILT_IN, AvailableModel, available_models, known_source, resolve
from ssd1b.weights.opening import open_checkpoint

COMMIT = "0123456789abcdef0123456789abcdef01234567"

# As segmind/SSD-1B and stable-diffusion-xl-base-1.0 have them.
REPOSITORY = [
    ".gitattributes",
    "README.md",
    "SSD-1B-A1111.safetensors",
    "SSD-1B.safetensors",
    "distill_sdxl.py",
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/flax_model.msgpack",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/model.onnx",
    "text_encoder/model.safetensors",
    "text_encoder/pytorch_model.bin",
    "text_encoder_2/config.json",
    "text_encoder_2/model.safetensors",
    "tokenizer/merges.txt",
    "tokenizer/tokenizer_config.json",
    "tokenizer/vocab.json",
    "tokenizer_2/merges.txt",
    "tokenizer_2/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors",
    "unet/modeling.py",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
    "vae/diffusion_pytorch_model.safetensors",
    "vae_1_0/diffusion_pytorch_model.safetensors",
]


def weights(files):
    return sorted(file for file in files if file.endswith(".safetensors"))


def test_one_set_of_weights_is_wanted_and_no_code_or_pickle():
    full, half = (wanted_files(REPOSITORY, half=half) for half in (False, True))
    assert weights(full) == [
        "text_encoder/model.safetensors",
        "text_encoder_2/model.safetensors",
        "unet/diffusion_pytorch_model.safetensors",
        "vae/diffusion_pytorch_model.safetensors",
    ]
    assert weights(half) == [
        "text_encoder/model.fp16.safetensors",
        "text_encoder_2/model.safetensors",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "vae/diffusion_pytorch_model.fp16.safetensors",
    ]
    beside = sorted(file for file in REPOSITORY if file.endswith((".json", ".txt")))
    for files in (full, half):
        assert sorted(set(files) - set(weights(files))) == beside
        assert len(set(files)) == len(files)


def test_shards_are_wanted_with_their_index():
    files = [
        "model_index.json",
        "unet/config.json",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
    ]
    assert sorted(wanted_files(files, half=True)) == files


def test_bare_networks_and_single_files():
    unet = ["README.md", "config.json", "diffusion_pytorch_model.bin", "diffusion_pytorch_model.safetensors"]
    assert wanted_files(unet, half=True) == ["config.json", "diffusion_pytorch_model.safetensors"]
    assert wanted_files(["README.md", "zavychroma.safetensors"], half=False) == ["zavychroma.safetensors"]


@pytest.mark.parametrize(
    ("files", "message"),
    [
        (["README.md", "pytorch_model.bin"], "no safetensors"),
        (["a.safetensors", "b.safetensors"], "2 single files; download the one you want and give its path"),
    ],
)
def test_repositories_with_nothing_to_choose_by(files, message):
    with pytest.raises(InputError, match=message):
        wanted_files(files, half=False)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty cache, and a hub that nobody can reach."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))

    def unreachable(*_, **__):
        raise errors.HfHubHTTPError.__bases__[0](
            "[Errno -3] Temporary failure in name resolution\nlong story"
        )

    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", unreachable)
    return tmp_path / "hub"


def lay(cache, repository, source, revision="main", commit=COMMIT):
    """Put a model's folder into the cache, as a download does."""
    storage = cache / f"models--{repository.replace('/', '--')}"
    (storage / "refs").mkdir(parents=True, exist_ok=True)
    (storage / "refs" / revision).write_text(commit)
    return shutil.copytree(source, storage / "snapshots" / commit)


def test_a_folder_that_is_no_model_does_not_stand_in_the_way_of_a_name(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("mini-sdxl", "another"):
        (tmp_path / name / "cells").mkdir(parents=True)
    assert resolve("mini-sdxl").path == BUILT_IN["mini-sdxl"]
    assert resolve("./mini-sdxl").path == Path("mini-sdxl")
    assert resolve("another").path == Path("another")
    (tmp_path / "mini-sdxl/model_index.json").write_text("{}")
    assert resolve("mini-sdxl").path == Path("mini-sdxl")


@pytest.mark.parametrize("find", [resolve, lambda name: open_checkpoint(Path(name))])
@pytest.mark.parametrize("target", ["nowhere", "model"])
def test_a_link_that_leads_nowhere_is_named(tmp_path, cache, monkeypatch, find, target):
    monkeypatch.chdir(tmp_path)
    Path("model").symlink_to(target)
    with pytest.raises(NotFoundError, match=r"model is a link (to nowhere|that leads back to itself)"):
        find("model")


def test_such_a_link_does_not_stand_in_the_way_of_a_name(tmp_path, cache, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("mini-sdxl").symlink_to("nowhere")
    assert resolve("mini-sdxl").path == BUILT_IN["mini-sdxl"]


def test_paths_and_built_in_models_need_nothing(tmp_path, cache):
    assert resolve(str(tmp_path)).path == tmp_path
    for name, path in BUILT_IN.items():
        found = resolve(name, offline=True)
        assert found == (path, None)


@pytest.mark.parametrize("offline", [True, False])
@pytest.mark.parametrize(
    "name", ["segmind/SSD-1B", "ssd-1b", "SSD-1B", "ssd-1b@main", "ssd-1b@pr/1", f"segmind/SSD-1B@{COMMIT}"]
)
def test_what_is_cached_is_found_without_the_network(cache, tiny_folder, name, offline):
    snapshot = lay(cache, "segmind/SSD-1B", tiny_folder)
    references = snapshot.parents[1] / "refs"
    (references / "pr").mkdir()
    shutil.copy(references / "main", references / "pr" / "1")
    found = resolve(name, offline=offline)
    assert found == (snapshot, COMMIT)
    assert open_checkpoint(found.path).family == "ssd-1b"


def test_a_cached_single_file(cache, tiny_file):
    snapshot = lay(cache, "someone/merge", tiny_file.parent)
    found = resolve("someone/merge", offline=True)
    assert found.path == snapshot / tiny_file.name
    assert found.commit == COMMIT


def test_offline_and_not_cached(cache):
    with pytest.raises(
        InputError, match=r"segmind/SSD-1B@main: not in the cache, and the hub was not used \(offline\)"
    ):
        resolve("ssd-1b", offline=True)


def test_no_network_and_not_cached(cache):
    with pytest.raises(InputError) as error:
        resolve("ssd-1b@v2")
    assert str(error.value) == (
        "segmind/SSD-1B@v2: not in the cache, and the hub could not be used: "
        "[Errno -3] Temporary failure in name resolution; try again, complete files are kept"
    )


def test_offline_never_asks(cache, monkeypatch):
    monkeypatch.setattr(huggingface_hub.HfApi, "model_info", lambda *_, **__: pytest.fail("asked"))
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: pytest.fail("asked"))
    with pytest.raises(InputError):
        resolve("segmind/SSD-1B", offline=True)


def test_a_download_that_was_cut_short_is_named(cache, tiny_folder):
    snapshot = lay(cache, "segmind/SSD-1B", tiny_folder)
    (snapshot / "vae" / "diffusion_pytorch_model.safetensors").unlink()
    with pytest.raises(InputError, match="the cache lacks vae, and the hub was not used"):
        resolve("ssd-1b", offline=True)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("ssd1b", "unknown model 'ssd1b': did you mean 'ssd-1b'"),
        ("models/mine.safetensors", "no such file or folder"),
        ("./mine", "no such file or folder"),
        ("../a/b/c", "no such file or folder"),
        ("a/b@../../../etc", "is not a branch, tag or commit"),
        ("a/b@-x", "is not a branch, tag or commit"),
        ("a/b/c/d", "no such file or folder"),
        ("", "unknown model ''"),
    ],
)
def test_names_that_cannot_be(cache, model, message):
    with pytest.raises(InputError, match=message):
        resolve(model)


def test_what_may_be_used_without_asking(cache, tiny_folder, tmp_path, monkeypatch):
    lay(cache, "some-one/model", tiny_folder)
    (lay(cache, "some-one/broken", tiny_folder) / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    known = {"mini-sdxl": "built-in", "some-one/model": "cached", "some-one/model@main": "cached"}
    known |= dict.fromkeys(["ssd-1b", "SDXL@v1", f"vega@{COMMIT}", "segmind/SSD-1B"], "published")
    assert {name: known_source(name) for name in known} == known
    unknown = [
        "some-one/else",
        "some-one/model@v2",
        "some-one/broken",
        "ssd-1b@refs/pr/7",
        "segmind/SSD-1B@refs/pr/7",
        "ssd-1b@../main",
        "some-one/model@../main",
        "mini-sdxl@main",
        str(tiny_folder),
        "~/x",
        "~nobody-of-that-name/x",
        "//server/share/x",
        "..",
        "",
        "mini",
        "x" * 10_000,
    ]
    assert [name for name in unknown if known_source(name)] == []


def test_a_name_from_a_file_is_never_a_path(cache, tiny_folder, tmp_path, monkeypatch):
    """Neither of what is known nor of what is not: nothing that bears the name is looked at."""
    monkeypatch.chdir(tmp_path)
    for name in ("some-one/model", "mini-sdxl", "ssd-1b"):
        shutil.copytree(tiny_folder, tmp_path / name)
    lay(cache, "some-one/model", tiny_folder)
    assert resolve("some-one/model", offline=True).path == Path("some-one/model")
    assert cache in resolve("some-one/model", offline=True, paths=False).path.parents
    assert resolve("mini-sdxl", paths=False).path == BUILT_IN["mini-sdxl"]
    with pytest.raises(InputError, match="not in the cache"):
        resolve("ssd-1b", offline=True, paths=False)
    monkeypatch.setattr(Path, "exists", lambda *_: pytest.fail("a path was tried"))
    for name in ("/etc/passwd", "../x", "./x.safetensors", "~/x", "a/b/c"):
        assert known_source(name) is None
        with pytest.raises(InputError):
            resolve(name, offline=True, paths=False)


def test_models_lists_what_can_be_used(cache, tiny_folder):
    assert [model.name for model in available_models()] == [*sorted(BUILT_IN), *sorted(ALIASES)]
    lay(cache, "segmind/SSD-1B", tiny_folder)
    lay(cache, "some-one/my--model", tiny_folder)
    (lay(cache, "some-one/broken", tiny_folder) / "unet" / "diffusion_pytorch_model.safetensors").unlink()
    (lay(cache, "some-one/flux", tiny_folder) / "model_index.json").write_text(
        '{"_class_name": "FluxPipeline"}'
    )
    (lay(cache, "some-one/damaged", tiny_folder) / "model_index.json").write_text("{")
    listed = {model.name: model for model in available_models()}
    assert listed["ssd-1b"] == AvailableModel(name="ssd-1b", source="segmind/SSD-1B", ready=True)
    assert listed["sdxl"] == AvailableModel(name="sdxl", source=ALIASES["sdxl"], ready=False)
    assert listed["some-one/my--model"] == AvailableModel(
        name="some-one/my--model", source="cache", ready=True
    )
    assert listed.keys() == {*BUILT_IN, *ALIASES, "some-one/my--model"}
