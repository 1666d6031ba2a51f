"""Pictures of other programs: what they say is read, and never drawn as a prompt."""

import gzip
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from picture_files import COMFY
from ssd1b.errors import InputError
from ssd1b.images import decode_recipe
from ssd1b.recipe import Parameters
from ssd1b.settings import resolve_settings
from timing import at_most

SWARM = {
    "sui_image_params": {
        "prompt": "a cat", "negativeprompt": "bad", "model": "sdxl", "images": 1, "seed": 5, "steps": 20,
        "cfgscale": 7.0, "aspectratio": "1:1", "width": 512, "height": 640, "sampler": "dpmpp_2m",
        "scheduler": "karras", "swarm_version": "0.9.6",
    },
    "sui_extra_data": {"date": "2026-01-01"},
}  # fmt: skip
FOOOCUS = {
    "adm_guidance": "(1.5, 0.8, 0.3)", "base_model": "sdxl", "base_model_hash": "ab12",
    "guidance_scale": 7, "metadata_scheme": "fooocus", "negative_prompt": "bad", "performance": "Speed",
    "prompt": "a cat", "resolution": "(512, 640)", "sampler": "dpmpp_2m", "scheduler": "karras", "seed": "5",
    "sharpness": 2, "steps": 20, "version": "Fooocus v2.5.5",
}  # fmt: skip
INVOKE = {
    "app_version": "5.0.0", "positive_prompt": "a cat", "negative_prompt": "bad",
    "width": 512, "height": 640, "seed": 5, "rand_device": "cpu", "cfg_scale": 7.0, "steps": 20,
    "scheduler": "dpmpp_2m_k", "model": {"key": "1", "name": "sdxl", "base": "sdxl", "type": "main"},
}  # fmt: skip
OLD_INVOKE = {
    "model_weights": "sdxl",
    "image": {"prompt": [{"prompt": "a cat", "weight": 1}], "steps": 20, "cfg_scale": 7.0, "seed": 5,
              "width": 512, "height": 640, "sampler": "dpmpp_2m_k"},
}  # fmt: skip
NOVELAI = {
    "prompt": "a cat", "steps": 20, "height": 640, "width": 512, "scale": 7.0, "uncond_scale": 1.0, "seed": 5,
    "n_samples": 1, "noise_schedule": "karras", "sampler": "k_dpmpp_2m", "uc": "bad",
}  # fmt: skip
DRAW_THINGS = {
    "c": "a cat", "model": "sdxl", "sampler": "DPM++ 2M Karras", "scale": 7, "seed": 5, "size": "512x640",
    "steps": 20, "uc": "bad", "v2": {"seed": 5},
}  # fmt: skip
CUSTOM: dict[str, dict[str, Any]] = {
    "1": {"class_type": "SamplerCustomAdvanced", "inputs": {
        "noise": ["2", 0], "guider": ["3", 0], "sampler": ["4", 0], "sigmas": ["5", 0],
        "latent_image": ["9", 0]}},
    "2": {"class_type": "RandomNoise", "inputs": {"noise_seed": 5}},
    "3": {"class_type": "CFGGuider", "inputs": {
        "cfg": 7.0, "model": ["11", 0], "positive": ["7", 0], "negative": ["8", 0]}},
    "4": {"class_type": "KSamplerSelect", "inputs": {"sampler_name": "dpmpp_2m"}},
    "5": {"class_type": "BasicScheduler", "inputs": {"scheduler": "karras", "steps": ["10", 0]}},
    "6": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl"}},
    "7": {"class_type": "CLIPTextEncodeSDXL", "inputs": {"text_g": ["12", 0], "text_l": "x", "width": 4096}},
    "8": {"class_type": "ConditioningZeroOut", "inputs": {"conditioning": ["7", 0]}},
    "9": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 640}},
    "10": {"class_type": "PrimitiveInt", "inputs": {"value": 20}},
    "11": {"class_type": "LoraLoaderModelOnly", "inputs": {"lora_name": "crisp", "model": ["6", 0]}},
    "12": {"class_type": "PrimitiveString", "inputs": {"value": "a cat"}},
}  # fmt: skip
XMP = (
    '<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description><exif:UserComment><rdf:Alt>'
    '<rdf:li xml:lang="x-default">'
    "{}</rdf:li></rdf:Alt></exif:UserComment></rdf:Description></x:xmpmeta>"
)
TEXT = "a cat\nNegative prompt: bad\nSteps: 20, Sampler: DPM++ 2M, CFG scale: 7, Seed: 5, Size: 512x640"
WANTED = {
    "steps": 20, "sampler": "dpmpp_2m", "guidance_scale": 7.0, "seed": 5, "width": 512, "height": 640,
    "schedule": "karras",
}  # fmt: skip


def png(mode: str = "RGB", **chunks: str) -> bytes:
    info = PngInfo()
    for key, text in chunks.items():
        info.add_itxt(key.replace("XMP", "XML:com.adobe.xmp").replace("sd_", "sd-"), text)
    file = io.BytesIO()
    Image.new(mode, (8, 8)).save(file, "PNG", pnginfo=info)
    return file.getvalue()


def with_comment(comment: bytes | str, format: str = "JPEG", *, whole: bool = False) -> bytes:
    exif = Image.Exif()
    fields = exif if whole else exif.get_ifd(IFD.Exif)
    fields[Base.UserComment] = comment
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, format, exif=exif)
    return file.getvalue()


def hidden(text: bytes, signature: bytes, channels: int) -> bytes:
    """A PNG with a text in its pixels, written as the programs do."""
    bits = np.unpackbits(np.frombuffer(signature + (8 * len(text)).to_bytes(4, "big") + text, np.uint8))
    side = 256
    pixels = np.full((side, side, 4), 254, np.uint8)
    columns = pixels.transpose(1, 0, 2)[..., 3:] if channels == 1 else pixels.transpose(1, 0, 2)[..., :3]
    flat = columns.reshape(-1).copy()
    flat[: len(bits)] |= bits
    columns[...] = flat.reshape(columns.shape)
    file = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(file, "PNG")
    return file.getvalue()


def read(data: bytes) -> Parameters:
    found = decode_recipe(data)
    assert isinstance(found, Parameters)
    return found


def settings(found: Parameters) -> dict[str, Any]:
    """What would be drawn, as far as ``WANTED`` says."""
    chosen = resolve_settings(
        found.prompt, family="sdxl", model_defaults={}, preset=None, **found.settings()
    )  # fmt: skip
    return {name: getattr(chosen, name) for name in WANTED}


SAMPLES = {
    "SwarmUI": png(parameters=json.dumps(SWARM)),
    "SwarmUI, JPEG": with_comment(b"UNICODE\0" + json.dumps(SWARM).encode("utf-16-be")),
    "Fooocus": png(parameters=json.dumps(FOOOCUS), fooocus_scheme="fooocus"),
    "InvokeAI": png(invokeai_metadata=json.dumps(INVOKE)),
    "InvokeAI, old": png(sd_metadata=json.dumps(OLD_INVOKE)),
    "ComfyUI": png(prompt=json.dumps(COMFY), workflow="{}"),
    "ComfyUI, custom sampler": png(prompt=json.dumps(CUSTOM)),
    "NovelAI": png(Comment=json.dumps(NOVELAI), Software="NovelAI", Source="NovelAI Diffusion V4 37442FCA"),
    "NovelAI, stealth": hidden(
        gzip.compress(json.dumps({"Comment": json.dumps(NOVELAI), "Software": "NovelAI"}).encode()),
        b"stealth_pngcomp", 1,
    ),
    "Draw Things": png(XMP=XMP.format(json.dumps(DRAW_THINGS).replace('"', "&quot;"))),
    "Draw Things, EXIF": with_comment(b"ASCII\0\0\0" + json.dumps(DRAW_THINGS).encode()),
}  # fmt: skip


@pytest.mark.parametrize(
    ("data", "sampler"),
    [
        (png(sd_metadata=json.dumps({"image": {"prompt": "a cat", "sampler": "k_euler"}})), "euler"),
        (png(sd_metadata=json.dumps({"image": {"prompt": "a cat", "sampler": "k_heun"}})), "heun"),
        (png(Comment=json.dumps({"prompt": "a cat", "sampler": "ddim_v3"}), Software="NovelAI"), "ddim"),
    ],
)
def test_prefixes_and_versions_of_samplers_are_no_part_of_their_names(data: bytes, sampler: str) -> None:
    assert read(data).settings()["sampler"] == sampler


@pytest.mark.parametrize("size", ["((64", "64", "wide", "", "1e9 x 3"])
def test_a_size_that_cannot_be_read_is_not_left_out_silently(size: str) -> None:
    with pytest.raises(InputError, match=r"from Fooocus: the size is .*: it must be a width and a height"):
        read(png(parameters=json.dumps(FOOOCUS | {"resolution": size}), fooocus_scheme="fooocus"))


def test_settings_that_a_graph_does_not_give_are_named() -> None:
    graph = {**COMFY, "3": {**COMFY["3"], "inputs": {**COMFY["3"]["inputs"], "steps": [[]]}}}
    found = read(png(prompt=json.dumps(graph)))
    assert any("the steps, which the text does not contain" in each for each in found.unreproduced())


@pytest.mark.parametrize("name", SAMPLES)
def test_each_programs_settings_are_read(name: str) -> None:
    found = read(SAMPLES[name])
    assert (found.program, found.prompt) == (name.partition(",")[0], "a cat")
    assert settings(found) == WANTED
    without = name in ("InvokeAI, old", "ComfyUI, custom sampler")
    assert found.negative_prompt == (None if without else "bad")
    if not name.startswith("NovelAI"):
        assert found.values["Model"] == "sdxl"


def test_a_lora_and_a_picture_as_start_are_named() -> None:
    assert read(SAMPLES["ComfyUI, custom sampler"]).values["Lora hashes"] == "crisp: unknown"
    again = json.loads(json.dumps(COMFY))
    again["5"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}}
    again["10"] = {"class_type": "LoadImage", "inputs": {"image": "a.png"}}
    again["3"]["inputs"]["denoise"] = 0.6
    found = read(png(prompt=json.dumps(again)))
    assert found.values["Denoising strength"] == "0.6" and "Size" not in found.values


def test_comfyuis_graph_in_a_webp() -> None:
    exif = Image.Exif()
    exif[Base.Make], exif[Base.Model] = 'workflow:{"nodes": []}', "prompt:" + json.dumps(COMFY)
    file = io.BytesIO()
    Image.new("RGB", (8, 8)).save(file, "WEBP", exif=exif)
    assert settings(read(file.getvalue())) == WANTED


@pytest.mark.parametrize(
    "signature", [b"stealth_pnginfo", b"stealth_pngcomp", b"stealth_rgbinfo", b"stealth_rgbcomp"]
)
def test_text_in_the_pixels(signature: bytes) -> None:
    text = TEXT.encode()
    data = gzip.compress(text) if signature.endswith(b"comp") else text
    found = read(hidden(data, signature, 1 if b"png" in signature else 3))
    assert (found.program, found.prompt, found.values["Seed"]) == ("AUTOMATIC1111", "a cat", "5")


@pytest.mark.parametrize("data", [b"\x1f\x8b broken", gzip.compress(b"\xff\xfe\xfd")], ids=["gzip", "UTF-8"])
def test_damaged_text_in_the_pixels(data: bytes) -> None:
    with pytest.raises(InputError, match="in the image's pixels is damaged"):
        read(hidden(data, b"stealth_pngcomp", 1))


def test_a_bomb_in_the_pixels_is_not_unpacked() -> None:
    bomb = gzip.compress(b"a" * 20_000_000)
    with pytest.raises(InputError, match="too long"):
        read(hidden(bomb, b"stealth_rgbcomp", 3))


@pytest.mark.parametrize(
    "text",
    [
        json.dumps({"unknown": 1}), '{"prompt": "a cat", ', json.dumps({"sui_image_params": 5}), "{}",
        json.dumps({"sui_image_params": {"steps": 5}}), '{"a":' * 5000,
    ],
)  # fmt: skip
def test_json_of_others_is_no_prompt(text: str) -> None:
    with pytest.raises(InputError):
        read(png(parameters=text))


def test_a_prompt_that_begins_with_a_brace_is_a_prompt() -> None:
    text = TEXT.replace("a cat", "{red|blue} cat")
    assert read(png(parameters=text)).prompt == "{red|blue} cat"


@pytest.mark.parametrize("key", ["prompt", "invokeai_metadata", "sd_metadata"])
@pytest.mark.parametrize(
    "text", ["[]", "no json", "{}", '{"image": 5}', '{"3": {"class_type": 1, "inputs": {}}}']
)
def test_what_cannot_be_read_says_of_which_program(key: str, text: str) -> None:
    with pytest.raises(InputError, match=r"from (ComfyUI|InvokeAI)"):
        read(png(**{key: text}))


def test_a_graph_with_circles_ends() -> None:
    graph = json.loads(json.dumps(COMFY))
    graph["6"]["inputs"] = {"text": ["7", 0], "clip": ["6", 1]}
    graph["7"]["inputs"] = {"text": ["6", 0]}
    graph["4"]["inputs"] = {"model": ["4", 0]}
    graph["5"]["inputs"] = {"samples": ["5", 0]}
    with pytest.raises(InputError, match="from ComfyUI: its text has no prompt"):
        read(png(prompt=json.dumps(graph)))


def test_a_long_chain_of_nodes_is_walked_once() -> None:
    nodes: dict[str, Any] = {**COMFY}
    nodes["6"] = {"class_type": "Reroute", "inputs": {"a": ["n0", 0], "b": ["n0", 0]}}
    for number in range(5000):
        following = [f"n{number + 1}", 0]
        nodes[f"n{number}"] = {"class_type": "Reroute", "inputs": {"a": following, "b": following}}
    nodes["n5000"] = COMFY["6"]
    assert read(png(prompt=json.dumps(nodes))).prompt == "a cat"


@pytest.mark.parametrize(
    "text", ["<exif:UserComment>", "<exif:UserComment><rdf:li", "<exif:UserComment><rdf:li>"]
)
def test_xmp_that_begins_again_and_again_takes_no_time(text: str) -> None:
    data = png(XMP=text * 3000)
    with at_most(5), pytest.raises(InputError):
        read(data)


def test_many_nodes_that_sample_take_no_time() -> None:
    nodes: dict[str, Any] = {
        str(number): {"class_type": "Reroute", "inputs": {"a": [str(number + 1), 0]}}
        for number in range(15_000)
    }
    links = {name: ["0", 0] for name in ("positive", "negative", "latent_image", "model")}
    nodes |= {f"s{number}": {"class_type": "KSampler", "inputs": links} for number in range(3000)}
    data = png(prompt=json.dumps(nodes))
    with at_most(5), pytest.raises(InputError):
        read(data)


@pytest.mark.parametrize("steps", ["true", "[]", "{}", "9" * 5000, "NaN", json.dumps("x" * 90)])
def test_values_of_the_wrong_kind(steps: str) -> None:
    text = json.dumps({**INVOKE, "steps": 0}).replace('"steps": 0', f'"steps": {steps}')
    with pytest.raises(InputError) as error:
        read(png(invokeai_metadata=text)).settings()
    assert len(str(error.value)) < 200


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("whole", [False, True], ids=["Exif", "IFD0"])
@pytest.mark.parametrize(
    "comment",
    [
        b"UNICODE\0" + TEXT.encode("utf-16-be"),
        b"UNICODE\0" + TEXT.encode("utf-16-le"),
        b"UNICODE\0" + TEXT.encode("utf-16"),
        b"UNICODE\0" + TEXT.encode(),
        b"ASCII\0\0\0" + TEXT.encode(),
        b"JIS\0\0\0\0\0" + TEXT.encode("iso2022_jp"),
        b"\0" * 8 + TEXT.encode(),
        b"\0" * 8 + TEXT.encode("utf-16-le"),
        TEXT.encode(),
        TEXT.encode() + b"\0",
        TEXT.encode("utf-16-le"),
        TEXT.encode("utf-16"),
    ],
)
def test_user_comments_of_every_encoding(comment: bytes, whole: bool, format: str) -> None:
    found = read(with_comment(comment, format, whole=whole))
    assert (found.prompt, found.negative_prompt, found.values["Size"]) == ("a cat", "bad", "512x640")


def test_other_scripts_in_user_comments() -> None:
    text = TEXT.replace("a cat", "一只猫 на столе 🐈")
    for code in (b"UNICODE\0", b"", b"ASCII\0\0\0"):
        for encoding in ("utf-8", "utf-16-le", "utf-16-be"):
            assert read(with_comment(code + text.encode(encoding))).prompt == "一只猫 на столе 🐈"


def test_an_encoding_that_cannot_be_told() -> None:
    with pytest.raises(InputError, match="UserComment is damaged or in an unknown encoding"):
        read(with_comment(b"\xe9\xff\xfb caf\xe9"))


def test_the_command_line_says_which_program_a_picture_is_from(run: Any, tmp_path: Path) -> None:
    small = {**SWARM["sui_image_params"], "width": 64, "height": 64, "steps": 1}
    (tmp_path / "swarm.png").write_bytes(png(parameters=json.dumps({"sui_image_params": small})))
    (tmp_path / "unknown.png").write_bytes(png(parameters='{"unknown": 1}'))
    shown = run("inspect", "swarm.png")
    assert shown.code == 0 and "SwarmUI" in shown.out and "a cat" in shown.out
    refused = run("rerun", "unknown.png")
    assert refused.code == 2 and "unknown program" in refused.err
    assert not (tmp_path / "pictures").exists()
