"""Real clients, and the requests that other programs send, against a server on the loopback."""

import base64
import io
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
import requests
import webuiapi
from PIL import Image

from picture_files import as_bytes, smooth
from server_process import Server, leave, serving, states
from server_workers import Plan
from waiting import wait_for

pytestmark = pytest.mark.enable_socket

MODEL = "mini-ssd-1b"


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serving(tmp_path_factory.mktemp("server"), Plan()) as running:
        yield running


@pytest.fixture
def client(server: Server) -> Iterator[openai.OpenAI]:
    with connected(server) as client:
        yield client


def connected(server: Server, retries: int = 0) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key="any", max_retries=retries)


def image_of(text: str) -> Image.Image:
    return Image.open(io.BytesIO(base64.b64decode(text, validate=True)))


# The package openai.


def test_openai_generates(client: openai.OpenAI) -> None:
    answer = client.images.generate(
        model=MODEL, prompt="a red cube", n=2, size="128x128", extra_body={"seed": 5}
    )
    assert answer.data is not None and len(answer.data) == 2
    assert [each.seed for each in answer.data] == [5, 6]  # type: ignore[attr-defined]
    assert image_of(answer.data[0].b64_json or "").format == "PNG"
    assert answer.size == "128x128" and answer.output_format == "png"
    assert answer.usage is not None and answer.usage.total_tokens > 0


def test_openai_models_are_listed_and_names_of_hosted_ones_mean_the_default(client: openai.OpenAI) -> None:
    assert [each.id for each in client.models.list()] == [MODEL]
    assert client.models.retrieve(MODEL).id == MODEL
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("nothing")
    for name in ("dall-e-3", "gpt-image-1", "gpt-image-2"):
        answer = client.images.generate(model=name, prompt="x", size="auto", quality="high", style="vivid")
        assert answer.data


@pytest.mark.parametrize(
    ("field", "hint"), [("guidence_scale", "did you mean 'guidance_scale'"), ("foo", "allowed: ")]
)
def test_openai_names_an_unknown_field(client: openai.OpenAI, field: str, hint: str) -> None:
    with pytest.raises(openai.BadRequestError, match=hint) as refused:
        client.images.generate(prompt="x", extra_body={field: 3})
    assert f"unknown parameter '{field}'" in str(refused.value)


def test_openai_takes_nulls_and_fields_of_both_local_dialects(server: Server, client: openai.OpenAI) -> None:
    nulls = dict.fromkeys(
        (
            "model",
            "n",
            "size",
            "quality",
            "response_format",
            "output_format",
            "stream",
            "user",
            "style",
            "seed",
        )
    )
    assert (
        requests.post(f"{server.url}/v1/images/generations", json={"prompt": "x", **nulls}).status_code == 200
    )
    extra = {
        "num_inference_steps": 3,
        "cfg_scale": 2,
        "negative_prompt": "blurry",
        "sampler": "DPM++ 2M Karras",
    }
    answer = client.images.generate(prompt="y", extra_body={**extra, "seed": 1})
    assert answer.data is not None
    parameters = image_of(answer.data[0].b64_json or "").info
    assert parameters is not None


@pytest.mark.parametrize(("format", "kind"), [("jpeg", "JPEG"), ("webp", "WEBP"), ("png", "PNG")])
def test_openai_streams_the_image(client: openai.OpenAI, format: Any, kind: str) -> None:
    stream = client.images.generate(
        prompt=f"streamed as {format}",
        output_format=format,
        stream=True,
        partial_images=0,
        extra_body={"seed": 3},
    )
    events = list(stream)
    assert [each.type for each in events] == ["image_generation.completed"]
    assert image_of(events[0].b64_json).format == kind
    assert events[0].usage.total_tokens > 0


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"prompt": "x", "model": "mini-sdd"}, openai.NotFoundError, "did you mean 'mini-ssd-1b'"),
        ({"prompt": "x", "size": "9x9"}, openai.BadRequestError, "width is 9"),
        ({"prompt": "x", "n": 65}, openai.BadRequestError, "allows 1 to 64 images"),
        ({"prompt": ""}, openai.BadRequestError, "prompt is empty"),
        ({"prompt": "x", "background": "transparent"}, openai.BadRequestError, "transparent"),
        ({"prompt": "x", "partial_images": 2}, openai.BadRequestError, "partial_images needs stream"),
        (
            {"prompt": "x", "size": "64x64", "extra_body": {"width": 128}},
            openai.BadRequestError,
            "width or height",
        ),
        (
            {"prompt": "x", "extra_body": {"cfg_scale": 3, "guidance_scale": 4}},
            openai.BadRequestError,
            "leave one of them out",
        ),
        ({"prompt": "x", "extra_body": {"steps": "many"}}, openai.BadRequestError, "steps is 'many'"),
    ],
)
def test_openai_reads_our_errors(
    client: openai.OpenAI, given: dict[str, Any], error: type[openai.APIStatusError], words: str
) -> None:
    with pytest.raises(error, match=words) as raised:
        client.images.generate(**given)
    assert raised.value.request_id
    assert raised.value.body["type"] == "invalid_request_error"  # type: ignore[index]


def test_openai_waits_and_tries_again_when_the_queue_is_full(tmp_path: Path) -> None:
    plan = Plan()
    plan.gate.clear()
    with serving(tmp_path, plan, max_pending=1) as server:
        requests.post(f"{server.url}/v1/jobs", json={"prompt": "first"}).raise_for_status()
        with connected(server) as hasty, pytest.raises(openai.RateLimitError) as raised:
            hasty.images.generate(prompt="second")
        assert 1 <= int(raised.value.response.headers["retry-after"]) <= 120
        threading.Timer(0.5, plan.gate.set).start()
        with connected(server, retries=5) as patient:
            assert patient.images.generate(prompt="second").data


def test_openai_does_not_repeat_what_fails_again(tmp_path: Path) -> None:
    plan = Plan()
    plan.broken["bad"] = "the image has NaN"
    with serving(tmp_path, plan) as server:
        with connected(server, retries=5) as client, pytest.raises(openai.InternalServerError, match="NaN"):
            client.images.generate(prompt="bad")
        assert len(plan.batches) == 1


# The package webuiapi.


def test_webuiapi_generates_and_reads_lists(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    api = webuiapi.WebUIApi(host=host, port=int(port))
    result = api.txt2img(
        prompt="a red cube", negative_prompt="blurry", seed=9, steps=3, width=128, height=128
    )
    assert result.image.size == (64, 64), "the plain worker's size"
    assert result.info["all_seeds"] == [9] and result.info["infotexts"]
    assert "Euler a" in [each["name"] for each in api.get_samplers()]
    title = api.util_get_model_names()[0]
    assert title.startswith(MODEL)
    assert api.get_options()["sd_model_checkpoint"] == title
    api.util_set_model(title)
    assert api.get_progress()["state"]["job_count"] == 0
    assert api.get_loras() == [] and api.get_embeddings()["loaded"] == {}
    assert api.png_info(result.image) is not None
    api.interrupt()
    api.refresh_checkpoints()
    api.session.close()


# Pictures as input, by both packages.

PICTURE = as_bytes(smooth(64, 64))


def erased(*box: int) -> bytes:
    """A mask as OpenAI's API means it: what is transparent is painted anew."""
    mask = Image.new("RGBA", (64, 64), "black")
    mask.paste((0, 0, 0, 0), box)
    return as_bytes(mask)


def kept(server: Server, settings: dict[str, Any], name: str) -> Image.Image:
    """The picture or mask of an image."""
    return Image.open(io.BytesIO(requests.get(f"{server.url}/v1/uploads/{settings[name]}").content))


def newest(server: Server) -> dict[str, Any]:
    return requests.get(f"{server.url}/v1/jobs?limit=1").json()["jobs"][0]["settings"]


def test_openai_edits_a_picture(server: Server, client: openai.OpenAI) -> None:
    extra = {"strength": 0.25, "steps": 8, "seed": 5, "guidance_interval": [0.0, 0.5]}
    extra["guidance_interval"] = json.dumps(extra["guidance_interval"])
    answer = client.images.edit(image=("a.png", PICTURE), prompt="a cube", n=2, extra_body=extra)
    assert answer.data is not None and [each.seed for each in answer.data] == [5, 6]  # type: ignore[attr-defined]
    assert answer.size == "64x64", "that of the picture"
    settings = newest(server)
    assert (settings["strength"], settings["steps"], settings["guidance_interval"]) == (0.25, 8, [0, 0.5])
    assert settings["mask"] is None and kept(server, settings, "init_image").size == (64, 64)


def test_openai_repaints_what_is_transparent(server: Server, client: openai.OpenAI) -> None:
    mask = ("m.png", erased(0, 0, 32, 64))
    client.images.edit(image=[("a.png", PICTURE)], mask=mask, prompt="a cube", extra_body={"seed": 1})
    settings = newest(server)
    assert settings["strength"] == 1.0
    grey = kept(server, settings, "mask")
    assert grey.mode == "L" and (grey.getpixel((8, 8)), grey.getpixel((50, 8))) == (255, 0)


def test_openai_varies_a_picture_by_the_prompt_of_its_recipe(server: Server, client: openai.OpenAI) -> None:
    first = client.images.generate(prompt="a blue cone", size="128x128", extra_body={"seed": 2})
    assert first.data is not None
    known = base64.b64decode(first.data[0].b64_json or "")
    for picture, prompt in ((known, "a blue cone"), (PICTURE, "a picture")):
        with pytest.warns(DeprecationWarning):
            answer = client.images.create_variation(image=("a.png", picture))
        assert answer.data
        assert (newest(server)["prompt"], newest(server)["strength"]) == (prompt, 0.6)


def test_openai_streams_an_edit(client: openai.OpenAI) -> None:
    stream = client.images.edit(image=("a.png", PICTURE), prompt="x", stream=True, partial_images=0)
    assert [each.type for each in stream] == ["image_edit.completed"]


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"image": [("a.png", PICTURE), ("b.png", PICTURE)]}, "image has 2 files: this server takes one"),
        ({"mask": ("m.png", PICTURE)}, "mask has no transparency"),
        ({"mask": ("m.png", as_bytes(Image.new("RGBA", (64, 64)))[:50])}, "not a readable"),
        ({"mask": ("m.png", as_bytes(Image.new("RGBA", (64, 64), "red")))}, "transparent nowhere"),
        ({"mask": ("m.png", as_bytes(Image.new("RGBA", (64, 9))))}, "same aspect ratio"),
        ({"image": ("a.png", b"no picture")}, "not a readable PNG, JPEG or WebP"),
        ({"extra_body": {"strength": "much"}}, "strength is 'much': it must be a number"),
        ({"extra_body": {"strength": 1.5}}, "strength is 1.5: it must be a number from 0 to 1"),
        ({"extra_body": {"strenght": 0.5}}, "did you mean 'strength'"),
        ({"extra_body": {"steps": 2, "strength": 0.1}}, "none is left to run"),
        ({"n": 65}, "allows 1 to 64"),
    ],
)  # fmt: skip
def test_openai_says_what_is_wrong_with_an_edit(
    client: openai.OpenAI, given: dict[str, Any], words: str
) -> None:
    with pytest.raises(openai.BadRequestError, match=words):
        client.images.edit(**{"image": ("a.png", PICTURE), "prompt": "x", **given})


@pytest.mark.parametrize("path", ["edits", "variations"])
@pytest.mark.parametrize(
    ("sent", "words"),
    [
        ({"data": b"x", "headers": {"content-type": "multipart/form-data"}}, "boundary"),
        ({"data": b"--b\r\nx", "headers": {"content-type": "multipart/form-data; boundary=b"}}, "image is"),
        ({"data": b"\xff" * 99, "headers": {"content-type": "multipart/form-data; boundary=b"}}, ""),
        ({"json": {"prompt": "x"}}, "must be of content-type multipart/form-data"),
        ({"data": {"prompt": "x", "image": "a.png"}}, "must be of content-type"),
        ({"files": {"image": (None, "a text")}}, "image is missing: send it as a file"),
        ({"files": {"image": b""}}, ""),
        ({"files": [("image[]", PICTURE)] * 40}, "files"),
    ],
)
def test_a_damaged_form_is_one_error(server: Server, path: str, sent: dict[str, Any], words: str) -> None:
    answer = requests.post(f"{server.url}/v1/images/{path}", timeout=60, **sent)
    assert answer.status_code == 400 and words in answer.json()["error"]["message"], answer.text


def white(*box: int) -> Image.Image:
    mask = Image.new("L", (64, 64), 0)
    mask.paste(255, box)
    return mask


def test_webuiapi_changes_a_picture(server: Server) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    api = webuiapi.WebUIApi(host=host, port=int(port))
    picture = Image.open(io.BytesIO(PICTURE))
    common: dict[str, Any] = {"images": [picture], "prompt": "a cube", "steps": 20, "width": 64, "height": 64}
    result = api.img2img(**common, denoising_strength=0.5, seed=3)
    assert result.info["denoising_strength"] == 0.5 and result.parameters["init_images"] is None
    assert "Denoising strength: 0.5" in result.info["infotexts"][0]
    settings = newest(server)
    assert (settings["strength_steps"], settings["resize_mode"]) == ("a1111", "stretch")
    mask = white(0, 0, 32, 64)
    api.img2img(**common, mask_image=mask)  # "only masked" is the package's default
    settings = newest(server)
    assert (settings["mask_area"], settings["mask_padding"]) == ("masked", 0)
    for invert in (0, 1):
        api.img2img(**common, mask_image=mask, inpaint_full_res=False, mask_blur=0, inpainting_fill=1,
                    inpainting_mask_invert=invert)  # fmt: skip
        grey = kept(server, newest(server), "mask")
        assert (grey.getpixel((8, 8)), grey.getpixel((50, 8))) == ((0, 255) if invert else (255, 0))
        assert kept(server, newest(server), "init_image").tobytes() == picture.tobytes()
    api.session.close()


def img2img(server: Server, **given: Any) -> requests.Response:
    body = {"prompt": "x", "steps": 4, "init_images": [base64.b64encode(PICTURE).decode()], **given}
    return requests.post(f"{server.url}/sdapi/v1/img2img", json=body, timeout=60)


def test_a_blur_lies_around_what_was_painted_and_fills_are_named(server: Server) -> None:
    mask = base64.b64encode(as_bytes(white(0, 0, 32, 64))).decode()
    assert img2img(server, mask=f"data:image/png;base64,{mask}", mask_blur=4).ok
    grey = kept(server, newest(server), "mask")
    assert [grey.getpixel((x, 30)) for x in (8, 31, 60)] == [255, 255, 0]
    assert 0 < int(grey.getpixel((35, 30))) < 255  # type: ignore[arg-type]
    assert newest(server)["mask_content"] == "fill"
    for number, name in enumerate(("fill", "original", "noise", "nothing")):
        assert img2img(server, mask=mask, mask_blur=0, inpainting_fill=number).ok
        assert newest(server)["mask_content"] == name
    # With the transparency of a picture as the mask, which is rounded.
    clear = Image.new("RGBA", (64, 64), (9, 9, 9, 120))
    clear.paste((9, 9, 9, 140), (0, 0, 32, 64))
    mask = base64.b64encode(as_bytes(clear)).decode()
    assert img2img(server, mask=mask, mask_blur=0, inpainting_fill=1).ok
    grey = kept(server, newest(server), "mask")
    assert (grey.getpixel((8, 8)), grey.getpixel((50, 8))) == (255, 0)


def test_a_missing_strength_is_automatic1111s(server: Server) -> None:
    assert img2img(server).ok and newest(server)["strength"] == 0.75


@pytest.mark.parametrize(
    ("given", "status", "words"),
    [
        ({"init_images": []}, 404, "Init image not found"),
        ({"init_images": None}, 404, "Init image not found"),
        ({"init_images": ["a", "b"]}, 422, "has 2 pictures: send one"),
        ({"init_images": [base64.b64encode(PICTURE).decode()[:-7]]}, 422, "no valid base64, perhaps cut off"),
        ({"init_images": ["aGkh"]}, 422, "not a readable PNG, JPEG or WebP"),
        ({"init_images": ["http://localhost/a.png"]}, 422, "no valid base64"),
        ({"init_images": ["/etc/hostname"]}, 422, "no valid base64"),
        ({"resize_mode": 2}, 422, "resize_mode is 2: allowed are 0 (just resize), 1 (crop and resize)"),
        ({"resize_mode": 3}, 422, "resize_mode is 3"),
        ({"mask": "aGkh"}, 422, "not a readable"),
        ({"mask": "a", "inpainting_fill": 4}, 422, "inpainting_fill is 4: allowed are 0 (fill), 1"),
        ({"enable_hr": True}, 422, "enable_hr is for txt2img"),
        ({"mask_blur": -1}, 422, "mask_blur is -1"),
        ({"denoising_strength": 2}, 422, "strength is 2"),
        ({"initial_noise_multiplier": 1.2}, 422, "initial_noise_multiplier"),
    ],
)
def test_what_img2img_cannot_do_is_said(
    server: Server, given: dict[str, Any], status: int, words: str
) -> None:
    answer = img2img(server, **given)
    assert answer.status_code == status and words in answer.json()["detail"], answer.text


# Programs, by what they send.


def test_open_webui(server: Server) -> None:
    """It reads the options, posts them back with one change, and needs ``info``."""
    headers = {"authorization": "Basic "}
    base = f"{server.url}/sdapi/v1"
    options = requests.get(f"{base}/options", headers=headers).json()
    models = requests.get(f"{base}/sd-models", headers=headers).json()
    assert {"title", "model_name"} <= models[0].keys()
    options["sd_model_checkpoint"] = models[0]["title"]
    assert requests.post(f"{base}/options", json=options, headers=headers).status_code == 200
    body = {"prompt": "a cube", "batch_size": 2, "width": 128, "height": 128, "steps": 4, "cfg_scale": 3}
    answer = requests.post(f"{base}/txt2img", json=body, headers=headers).json()
    assert len(answer["images"]) == 2 and json.loads(answer["info"])["seed"] >= 0
    edited = requests.post(
        f"{server.url}/v1/images/generations",
        json={
            "model": "dall-e-2",
            "prompt": "a cube",
            "n": 1,
            "size": "128x128",
            "response_format": "b64_json",
        },
    ).json()
    assert edited["data"][0]["b64_json"]


def test_sillytavern(server: Server) -> None:
    """It posts its own address and password in the body, and reads lists that must be there."""
    base = f"{server.url}/sdapi/v1"
    for path in (
        "options",
        "samplers",
        "schedulers",
        "sd-models",
        "sd-vae",
        "upscalers",
        "latent-upscale-modes",
    ):
        assert requests.get(f"{base}/{path}").status_code == 200
    assert requests.get(f"{base}/upscalers").json()[0]["name"] == "None"
    body = {
        "url": "http://localhost:7860", "auth": "user:secret", "prompt": "a cube", "negative_prompt": "bad",
        "sampler_name": "DPM++ 2M", "scheduler": "karras", "steps": 3, "cfg_scale": 4, "width": 128,
        "height": 128, "restore_faces": False, "enable_hr": False, "hr_upscaler": "None", "hr_scale": 2,
        "denoising_strength": 0.7, "hr_second_pass_steps": 0, "clip_skip": 1, "save_images": True,
        "override_settings": {"CLIP_stop_at_last_layers": 1, "sd_vae": "Automatic"}, "send_images": True,
        "override_settings_restore_afterwards": True,
        "do_not_save_grid": False, "do_not_save_samples": False,
    }  # fmt: skip
    answer = requests.post(f"{base}/txt2img", json=body)
    assert answer.status_code == 200 and not answer.json()["images"][0].startswith("data:")
    assert "secret" not in answer.text
    idle = requests.get(f"{base}/progress").json()
    assert idle["progress"] == 0.0 and idle["state"]["job_count"] == 0


def test_librechat(server: Server) -> None:
    """It names no sampler, and reads ``infotexts[0]`` out of JSON in text."""
    body = {
        "prompt": "a cube",
        "negative_prompt": "blurry",
        "cfg_scale": 4.5,
        "steps": 3,
        "width": 128,
        "height": 128,
    }
    answer = requests.post(f"{server.url}/sdapi/v1/txt2img", json=body).json()
    info = json.loads(answer["info"])
    assert "Steps:" in info["infotexts"][0] or info["infotexts"][0]
    assert answer["images"][0].split(",")[0] == answer["images"][0]


def test_gimp(server: Server) -> None:
    """Its addresses end in a bare question mark, and its sampler's name holds the schedule."""
    assert requests.get(f"{server.url}/sdapi/v1/options?").status_code == 200
    assert requests.get(f"{server.url}/controlnet/model_list?").json() == {"model_list": ["mini-control"]}
    body = {
        "prompt": "a cube", "sampler_index": "DPM++ 2M Karras", "seed": 3, "steps": 3, "batch_size": 2,
        "width": 128, "height": 128, "cfg_scale": 7.5,
    }  # fmt: skip
    answer = requests.post(f"{server.url}/sdapi/v1/txt2img?", json=body).json()
    assert json.loads(answer["info"])["all_seeds"] == [3, 4]


def test_a_second_pass_and_a_variation(server: Server) -> None:
    names = [each["name"] for each in requests.get(f"{server.url}/sdapi/v1/upscalers", timeout=60).json()]
    modes = requests.get(f"{server.url}/sdapi/v1/latent-upscale-modes", timeout=60).json()
    assert names == ["None", "Lanczos", "Nearest"] and {"name": "Latent (bicubic)"} in modes
    body = {
        "prompt": "a cat", "steps": 2, "width": 64, "height": 64, "enable_hr": True, "hr_scale": 1.5,
        "hr_upscaler": "Latent (bicubic)", "hr_second_pass_steps": 3, "denoising_strength": 0.6,
        "hr_sampler_name": "Use same sampler", "hr_scheduler": "Karras", "subseed": 7,
        "subseed_strength": 0.25, "seed_resize_from_w": 100, "seed_resize_from_h": 64,
    }  # fmt: skip
    answer = requests.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=60)
    assert answer.ok, answer.text
    found = newest(server)
    expected = {
        "hires_scale": 1.5, "hires_upscaler": "latent-bicubic", "hires_steps": 3, "hires_strength": 0.6,
        "hires_sampler": None, "hires_schedule": "karras", "variation_seed": 7, "variation_strength": 0.25,
        "seed_resize_width": 96, "seed_resize_height": 64,
    }  # fmt: skip
    assert {name: found[name] for name in expected} == expected
    info = json.loads(answer.json()["info"])
    assert (info["subseed"], info["subseed_strength"]) == (7, 0.25)
    assert (info["seed_resize_from_w"], info["seed_resize_from_h"]) == (96, 64)
    assert "Hires upscaler: Latent (bicubic)" in info["infotexts"][0]
    more = {**body, "hr_resize_x": 96, "hr_resize_y": 128, "hr_upscaler": None}
    assert requests.post(f"{server.url}/sdapi/v1/txt2img", json=more, timeout=60).ok
    found = newest(server)
    assert (found["hires_width"], found["hires_height"], found["hires_upscaler"]) == (96, 128, "latent")


# What is common to the synchronous APIs.


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"enable_hr": True, "hr_scale": 99}, "hires_scale is 99"),
        ({"enable_hr": True, "hr_upscaler": "4x-UltraSharp"}, "unknown upscaler '4x-UltraSharp'"),
        ({"tiling": True}, "tiling is not available yet"),
        ({"restore_faces": True}, "restore_faces"),
        ({"subseed": 3, "subseed_strength": 2}, "variation_strength is 2"),
        ({"seed_resize_from_w": 512}, "seed_resize_width needs seed_resize_height"),
        ({"refiner_checkpoint": "refiner"}, "refiner_checkpoint"),
        ({"init_images": ["aGk="]}, "init_images are for img2img"),
        ({"alwayson_scripts": {"ADetailer": {"args": [True]}}}, "Script not found: 'ADetailer'"),
        ({"prompt": "a cat <lora:crisp:0.8>"}, "this server has no LoRAs"),
    ],
)
def test_what_would_change_the_image_and_is_not_there_is_refused(
    server: Server, given: dict[str, Any], message: str
) -> None:
    body = {"prompt": "a cat", "steps": 2, **given}
    answer = requests.post(f"{server.url}/sdapi/v1/txt2img", json=body, timeout=60)
    assert answer.status_code == 422 and message in answer.json()["detail"]
    off = {name: None for name in given if name != "prompt"}
    assert requests.post(f"{server.url}/sdapi/v1/txt2img", json={"prompt": "a cat", "steps": 2, **off}).ok


@pytest.mark.parametrize("path", ["/sdapi/v1/txt2img", "/v1/images/generations"])
@pytest.mark.parametrize("waiting", [True, False])
def test_a_client_that_leaves_cancels_its_job(tmp_path: Path, path: str, waiting: bool) -> None:
    plan = Plan(seconds=0.05)
    with serving(tmp_path, plan, max_batch=1) as server:
        if waiting:
            requests.post(f"{server.url}/v1/jobs", json={"prompt": "busy", "steps": 40}).raise_for_status()
        leave(server, path, "left alone", steps=100)
        wait_for(lambda: states(server.url)["left alone"] == "cancelled")
        assert ["left alone"] not in plan.batches if waiting else plan.steps < 60


def test_an_interrupt_stops_the_callers_own_job(tmp_path: Path) -> None:
    plan = Plan(seconds=0.05)
    with serving(tmp_path, plan) as server:
        answers: list[requests.Response] = []

        def generate() -> None:
            answers.append(
                requests.post(f"{server.url}/sdapi/v1/txt2img", json={"prompt": "mine", "steps": 100})
            )

        thread = threading.Thread(target=generate)
        thread.start()
        while not plan.batches:
            time.sleep(0.01)
        progress = requests.get(f"{server.url}/sdapi/v1/progress").json()
        assert 0 < progress["progress"] < 1 and progress["state"]["sampling_steps"] == 100
        assert requests.post(f"{server.url}/sdapi/v1/interrupt").json() == {}
        thread.join(10)
        assert answers[0].status_code == 409
        assert plan.steps < 60


def test_events_of_a_job_end_with_it(server: Server) -> None:
    id = requests.post(f"{server.url}/v1/jobs", json={"prompt": "followed", "steps": 3}).json()["id"]
    with requests.get(f"{server.url}/v1/jobs/{id}/events", stream=True, timeout=60) as stream:
        lines = [line.decode() for line in stream.iter_lines() if line.startswith(b"data:")]
    last = json.loads(lines[-1].removeprefix("data:"))
    assert last["state"] == "done" and last["images"][0]["url"].startswith("/v1/pictures/")
    assert requests.get(server.url + last["images"][0]["url"]).headers["content-type"] == "image/png"


def test_an_interrupted_client_gets_the_images_that_are_finished(tmp_path: Path) -> None:
    plan = Plan()
    with serving(tmp_path, plan, max_batch=1) as server:
        answers: list[requests.Response] = []
        body = {"prompt": "a cube", "steps": 2, "width": 64, "height": 64, "n_iter": 2, "seed": 3}
        url = f"{server.url}/sdapi/v1"
        # The first of both images is stored already.
        assert requests.post(f"{url}/txt2img", json={**body, "n_iter": 1}).status_code == 200
        plan.gate.clear()
        thread = threading.Thread(target=lambda: answers.append(requests.post(f"{url}/txt2img", json=body)))
        thread.start()
        deadline = time.monotonic() + 30
        while requests.get(f"{url}/progress").json()["state"]["job_no"] != 1:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        requests.post(f"{url}/interrupt")
        plan.gate.set()
        thread.join(30)
        (answer,) = answers
        assert answer.status_code == 200, answer.text
        assert len(answer.json()["images"]) == 1 and json.loads(answer.json()["info"])["all_seeds"] == [3]


def test_the_native_api_takes_the_names_of_options(server: Server) -> None:
    body = {"prompt": "a cube", "size": "128x64", "cfg": 3, "negative": "blurry", "sampler": "euler"}
    settings = requests.post(f"{server.url}/v1/check", json=body, timeout=60).json()["settings"]
    names = ("width", "height", "guidance_scale", "negative_prompt")
    assert [settings[name] for name in names] == [128, 64, 3, "blurry"]


def test_settings_without_effect_are_advice_and_what_an_answer_says_is_quiet(server: Server) -> None:
    def advice(path: str, **body: Any) -> tuple[list[str], dict[str, Any]]:
        answer = requests.post(f"{server.url}{path}", json=body, timeout=60).json()
        return [each for each in answer["advice"] if "no effect" in each], answer["settings"]

    given = {"prompt": "a cube", "variation_seed": 7, "mask_padding": 8}
    lines = [
        "variation_seed: no effect without variation_strength",
        "mask_padding: no effect without mask_area masked",
    ]
    for path in ("/v1/check", "/v1/jobs"):
        assert advice(path, **given)[0] == lines
        plain, settings = advice(path, prompt="a cube", seed=3)
        assert plain == [] == advice(path, **settings)[0]


# Models of few steps, whose settings differ from those of others.


def test_a_few_step_model_is_chosen_by_each_api_and_brings_its_settings(tmp_path: Path) -> None:
    """It has its base's folder, so its file's name would be that of the base, too."""
    turbo = f"{MODEL}-turbo"

    with serving(tmp_path, Plan(), model=(turbo, MODEL)) as server, connected(server) as client:

        def ask(path: str, **body: Any) -> Any:
            answer = requests.post(f"{server.url}{path}", json={"prompt": "x", **body}, timeout=60)
            assert answer.ok, answer.text
            return answer.json()

        def made(name: str) -> tuple[str, int, float, str]:
            """What AUTOMATIC1111's API makes with a model."""
            info = json.loads(
                ask("/sdapi/v1/txt2img", override_settings={"sd_model_checkpoint": name})["info"]
            )
            return info["sd_model_name"], info["steps"], info["cfg_scale"], info["sampler_name"]

        assert [each.id for each in client.models.list()] == [turbo, MODEL]
        job = ask("/v1/jobs", model=turbo)
        assert (job["settings"]["steps"], job["settings"]["guidance_scale"], job["advice"]) == (4, 1.0, [])
        image = client.images.generate(model=turbo, prompt="x").data
        assert image and "Steps: 4, Sampler: LCM" in image_of(image[0].b64_json or "").text["parameters"]  # type: ignore[attr-defined]
        for model in requests.get(f"{server.url}/sdapi/v1/sd-models", timeout=60).json():
            name = model["model_name"]
            expected = (name, 4, 1.0, "LCM") if name == turbo else (name, 20, 4.0, "UniPC")
            for known in (name, model["title"], model["filename"], model["hash"]):
                assert made(known) == expected
        checked = ask("/v1/check", model=turbo, steps=30, guidance_scale=7, negative_prompt="y")
        assert [line.split()[0] for line in checked["advice"]] == ["guidance_scale", "steps"]
        (line,) = ask("/v1/check", model=turbo, negative_prompt="y")["advice"]
        assert line.startswith("negative prompt: it is ignored")
