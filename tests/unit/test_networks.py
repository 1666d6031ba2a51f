"""Single networks from files, in place of a model's own."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from ssd1b.errors import ConflictError, InputError
from ssd1b.files import METADATA, hash_file
from ssd1b.layouts import STEMS
from ssd1b.model import Model
from ssd1b.pipeline import Pipeline
from ssd1b.recipe import NetworkFile, read_json, write_json
from ssd1b.weights import configs
from ssd1b.weights.checkpoint import ModelInfo
from ssd1b.weights.writing import save_folder, save_single_file, save_unet
from tiny import DRAWABLE, random_weights

OTHER = {
    part: {name: tensor * 0.9 for name, tensor in tensors.items()}
    for part, tensors in random_weights(DRAWABLE).items()
}


@pytest.fixture
def vae(tmp_path: Path) -> Path:
    """A VAE alone, as ComfyUI keeps them, with its configuration, since it is no published one."""
    path = tmp_path / "vae.safetensors"
    config = json.dumps({"vae": configs.vae_config(DRAWABLE.vae, DRAWABLE.size)})
    save_file(OTHER["vae"], path, metadata={METADATA: config})
    return path


def test_a_network_replaces_the_models_own(tiny_model: Path, vae: Path) -> None:
    plain = Model.find(str(tiny_model))
    found = Model.find(str(tiny_model), networks=[NetworkFile.of("vae", str(vae))])
    given = {"device": "cpu", "dtype": torch.float32}
    for part in ("unet", "vae", "text_encoder"):
        state, own = (each.network(part, **given).state_dict() for each in (found, plain))
        expected = OTHER["vae"] if part == "vae" else own
        assert all(torch.equal(state[name], expected[name]) for name in expected)
    assert found.identity.networks[0].file.path == str(vae) and plain.identity.networks == ()
    moved = vae.rename(vae.with_name("moved.safetensors"))
    renamed = Model.find(str(tiny_model), networks=[NetworkFile.of("vae", str(moved))])
    assert renamed.digest(hash_file) == found.digest(hash_file) != plain.digest(hash_file)


def test_all_networks_of_another_model_make_its_images(tiny_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_single_file(path, ModelInfo(layout=DRAWABLE, settings={"steps": 2}), OTHER)
    networks = dict.fromkeys(("unet", "vae", "text_encoder", "text_encoder_2"), str(path))
    given = {"seed": 1, "width": 64, "height": 64}
    expected = Pipeline.load(str(path), device="cpu").generate("a cat", **given)[0]
    found = Pipeline.load(str(tiny_model), device="cpu", networks=networks).generate("a cat", **given)[0]
    assert found.image.tobytes() == expected.image.tobytes()
    assert read_json(write_json(found.recipe)) == found.recipe


@pytest.mark.parametrize("names", [False, True], ids=["folder", "file"])
def test_parts_of_a_diffusers_folder_bring_their_configuration(
    names: bool, tiny_model: Path, tmp_path: Path
) -> None:
    """Heads, norm groups and others of this layout show in no tensor."""
    folder = tmp_path / "other"
    save_folder(folder, ModelInfo(layout=DRAWABLE), OTHER)
    paths = {part: folder / part / (f"{STEMS[part]}.safetensors" if names else "") for part in STEMS}
    networks = [NetworkFile.of(part, str(path)) for part, path in paths.items()]
    found = Model.find(str(tiny_model), networks=networks)
    for part in STEMS:
        state = found.network(part, device="cpu", dtype=torch.float32).state_dict()
        assert all(torch.equal(state[name], tensor) for name, tensor in OTHER[part].items())
    assert found.layout == replace(DRAWABLE, name=found.layout.name)
    digest = found.digest(hash_file)
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace('"scaling_factor": 0.', '"scaling_factor": 1.'))
    with pytest.raises(ConflictError, match=r"config\.json has changed"):
        Model.find(str(tiny_model), networks=networks)
    changed = [NetworkFile.of(part, str(path)) for part, path in paths.items()]
    assert Model.find(str(tiny_model), networks=changed).digest(hash_file) != digest


@pytest.mark.parametrize(
    ("network", "part", "message"),
    [
        ("vae", "unet", "it has no vae, only unet"),
        ("vae", "text_encoder", "text_encoder: no diffusion_pytorch_model.safetensors, which a vae has"),
        ("unet", "scheduler", "scheduler: no diffusion_pytorch_model.safetensors, which a unet has"),
    ],
)
def test_the_folder_of_another_network(
    network: str, part: str, message: str, tiny_model: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "other"
    save_folder(folder, ModelInfo(layout=DRAWABLE), OTHER)
    with pytest.raises(InputError, match=message):
        given = NetworkFile.of(network, str(folder / part))
        _ = Model.find(str(tiny_model), networks=[given]).checkpoint


@pytest.mark.parametrize("network", ["unet", "text_encoder"])
def test_a_file_without_the_network(network: str, tiny_model: Path, vae: Path) -> None:
    with pytest.raises(InputError, match=f"vae.safetensors: it has no {network}, only vae"):
        _ = Model.find(str(tiny_model), networks=[NetworkFile.of(network, str(vae))]).checkpoint


def test_files_that_are_refused(tiny_model: Path, vae: Path) -> None:
    with pytest.raises(InputError, match="unknown network 'vea': did you mean 'vae'"):
        NetworkFile.of("vea", str(vae))
    given = NetworkFile.of("vae", str(vae))
    vae.write_bytes(b"PK\x03\x04" + bytes(99))
    with pytest.raises(ConflictError, match="has changed"):
        Model.find(str(tiny_model), networks=[given])
    with pytest.raises(InputError, match="a pickle can run code"):
        NetworkFile.of("vae", str(vae))


def test_on_the_command_line(run, tiny_model: Path, vae: Path) -> None:
    given = ["--model", tiny_model, "--device", "cpu", "--seed", 3, "--size", 64, "--json"]
    plain, made = run("generate", "a cat", *given), run("generate", "a cat", *given, "--vae", vae)
    paths = [json.loads(each.out)["path"] for each in (plain, made)]
    assert Path(paths[0]).read_bytes() != Path(paths[1]).read_bytes()
    described = run("inspect", paths[1])
    assert "model vae" in described.out and str(vae) in described.out
    again = run("rerun", paths[1], "--model", tiny_model, "--device", "cpu", "--out", "again")
    assert again.code == 0 and "bit-equal" in again.err
    refused = run("generate", "a cat", *given, "--unet", vae)
    assert refused.code == 2 and "it has no unet, only vae" in refused.err


def test_a_few_step_unet_brings_its_settings_with_it(tiny_model: Path, tmp_path: Path) -> None:
    """By its metadata, also if it is exported again; another UNet takes them away."""
    info = Model.find(str(tiny_model)).info
    few = replace(info, few_steps="progressive student", settings={"sampler": "ddim", "steps": 3})
    paths = {name: str(tmp_path / f"{name}.safetensors") for name in ("few", "plain", "titled")}
    save_unet(Path(paths["few"]), few, OTHER["unet"])
    save_unet(Path(paths["plain"]), info, OTHER["unet"])
    config = json.dumps({"unet": configs.unet_config(DRAWABLE.unet, 8)})
    titled = {METADATA: config, "modelspec.title": "SDXL Lightning 8-step"}
    save_file(OTHER["unet"], paths["titled"], metadata={**titled})

    def found(name: str, base: Path = tiny_model) -> tuple[str | None, dict[str, object]]:
        model = Model.find(str(base), networks=[NetworkFile.of("unet", paths[name])])
        return model.info.few_steps, model.info.settings

    assert found("few") == ("progressive student", {"sampler": "ddim", "steps": 3})
    assert found("plain") == (None, {"steps": 2})
    kind, settings = found("titled")
    assert kind == "SDXL-Lightning" and settings["steps"] == 8

    save_folder(tmp_path / "folder", few, OTHER)
    whole = Model.find(str(tmp_path / "folder"))
    assert whole.few_steps is not None and whole.few_steps.steps == (3, 3)
    assert found("plain", tmp_path / "folder")[0] is None
