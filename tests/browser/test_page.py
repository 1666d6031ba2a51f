"""The server's page in a real browser, with a real server that generates with the miniature."""

import io
import json
import re
import signal
import sqlite3
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from playwright.sync_api import BrowserContext, Page, Route, expect
from safetensors.torch import save_file

from adapter_files import attention, random_lora, write_lora
from image_prompt_files import write_adapter, write_encoder
from picture_files import COMFY, as_bytes, smooth
from server_process import ServerProcess
from ssd1b.jobs.queue import Queue
from ssd1b.jobs.store import Store
from ssd1b.layouts import model_layout
from ssd1b.server.routes.page import page_files
from upscaler_files import write_compact
from waiting import PATIENCE

MANY = 10_000
KEY = "a-key-that-is-long-enough"
AXE = (Path(__file__).parent / "axe.min.js").read_text()

SPHERE = "a large red metal sphere on a blue background"
OLD = "an old picture"
TURBO = "mini-ssd-1b-turbo"


class Server(ServerProcess):
    """``ssd1b serve`` on a port of its own."""

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder, *options, key=KEY)

    def clear(self) -> None:
        """Cancel what is not finished."""
        for job in self.ask("GET", "/v1/queue"):
            with suppress(urllib.error.HTTPError):  # it may have finished since
                self.ask("POST", f"/v1/jobs/{job['id']}/cancel")


def fill(folder: Path, count: int) -> None:
    """Put pictures into a store that were generated long ago."""
    with closing(Store(folder)) as store:
        store.claim([])
        path = store.picture("0" * 64)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(as_bytes(smooth(128, 128)))
    with closing(Queue(folder)):
        pass  # makes the tables
    # In one transaction and without checks, which would take longer than all tests.
    with closing(sqlite3.connect(folder / "queue.sqlite")) as database, database:
        database.execute(
            "insert into requests (id, number, state, client, priority, model, dialect, created, finished)"
            " values ('old', 0, 'done', '', 0, 'mini-ssd-1b', 'native', 1e9, 1e9)"
        )
        database.executemany(
            "insert into images (id, request, position, key, settings, prompt, made)"
            " values (?, 'old', ?, ?, ?, ?, ?)",
            [_old(number) for number in range(count)],
        )


def _old(number: int) -> tuple[object, ...]:
    """The row of a picture."""
    prompt = f"{OLD} {number}"
    settings = {
        "prompt": prompt, "negative_prompt": None, "guidance_scale": 4.0, "guidance_rescale": 0.0,
        "guidance_interval": (0.0, 1.0), "feature_reuse": 0.0, "steps": 8, "sampler": "euler",
        "schedule": None, "seed": number, "width": 128, "height": 128, "original_size": (128, 128),
        "crop_top_left": (0, 0), "target_size": (128, 128),
    }  # fmt: skip
    return (f"{number:032x}", number, "0" * 64, json.dumps(settings), prompt, 1e9 + number)


@pytest.fixture(scope="module")
def locked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server that wants a key."""
    folder = tmp_path_factory.mktemp("locked")
    keys = folder / "keys.toml"
    keys.write_text(f'[alice]\nkey = "{KEY}"\n')
    server = Server(folder / "store", "--api-key-file", str(keys))
    yield server
    server.stop(signal.SIGKILL)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, locked: Server) -> Iterator[Server]:
    """A server with both miniatures and a full gallery; both servers load their models at the same time."""
    folder = tmp_path_factory.mktemp("open") / "store"
    fill(folder, MANY)
    layout = model_layout("mini-ssd-1b")
    (folder.parent / "loras").mkdir()
    write_lora(
        folder.parent / "loras" / "pixel-art.safetensors", random_lora(layout, attention(layout)[:8]), layout,
        ss_tag_frequency={"a": {"8 bit": 3}},
    )  # fmt: skip
    few_steps = {"modelspec.title": "DMD2 SDXL 4step LoRA"}
    write_lora(
        folder.parent / "loras" / "quick.safetensors", random_lora(layout, attention(layout)[:8]), layout,
        **few_steps,
    )  # fmt: skip
    models = [text for each in ("mini-ssd-1b", "mini-sdxl", TURBO) for text in ("--model", each)]
    server = Server(folder, *models, "--lora-folder", str(folder.parent / "loras"))
    server.wait()
    yield server
    server.stop()


@pytest.fixture
def wrong() -> list[str]:
    """What the browser's console said; a test that expects something takes it out."""
    return []


@pytest.fixture
def enter(new_context: Callable[..., BrowserContext], wrong: list[str]) -> Iterator[Callable[..., Page]]:
    """``enter(server, **context)`` opens a server's page. Nothing may go wrong; no other host is asked."""
    asked: list[str] = []
    hosts: list[str] = []

    def open_page(server: Server, **options: Any) -> Page:
        hosts.append(server.url)
        page = new_context(**{"viewport": {"width": 1440, "height": 900}, **options}).new_page()
        page.on("console", lambda message: wrong.append(message.text))
        page.on("pageerror", lambda error: wrong.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(server.url)
        return page

    yield open_page
    assert wrong == []
    assert all(url.startswith((*hosts, "data:", f"blob:{hosts[0]}")) for url in asked)


@pytest.fixture
def page(server: Server, enter: Callable[..., Page]) -> Iterator[Page]:
    """The page, with a prompt."""
    page = enter(server)
    page.locator("#prompt").fill(SPHERE)
    expect(page.locator(".tile").first).to_be_visible()
    yield page
    server.clear()


def generate(page: Page, steps: int = 4, **fields: str) -> str:
    """Generate with the button; returns the id of the picture, which is shown."""
    for name, value in {"steps": str(steps), **fields}.items():
        put(page, name, value)
    with page.expect_response(
        lambda answer: answer.request.method == "POST" and "/v1/jobs" in answer.url
    ) as asked:
        page.get_by_role("button", name="Generate", exact=True).click()
    # An earlier picture may be shown meanwhile, and after a reload it may not be there yet.
    result = page.locator(f"#result[data-job='{asked.value.json()['id']}']")
    expect(result).to_be_visible()
    return result.get_attribute("data-id") or ""


def put(page: Page, field: str, value: str) -> None:
    """Write into a field, and leave it."""
    page.locator(f"#{field}").fill(value)
    page.locator(f"#{field}").press("Tab")


def until(page: Page, expression: str) -> None:
    """Wait until JavaScript is true. Playwright's own way needs ``eval``, which the page's policy forbids."""
    deadline = time.monotonic() + PATIENCE
    while not page.evaluate(expression):
        assert time.monotonic() < deadline, expression
        page.wait_for_timeout(20)


# What the server serves


def test_files_have_their_types_and_are_asked_for_again_only_if_they_changed(server: Server) -> None:
    for path, kind in {
        "/": "text/html",
        "/page/app.js": "text/javascript",
        "/page/page.css": "text/css",
    }.items():
        with urllib.request.urlopen(server.url + path) as answer:
            assert answer.headers["content-type"].startswith(kind)
            assert answer.headers["cache-control"] == "no-cache"
            assert "'unsafe-inline'" not in answer.headers["content-security-policy"]
            etag = answer.headers["etag"]
        again = urllib.request.Request(server.url + path, headers={"if-none-match": etag})
        with pytest.raises(urllib.error.HTTPError, match="304"):
            urllib.request.urlopen(again)


@pytest.mark.parametrize(
    "path", ["../app.py", "%2e%2e/app.py", "..%2fapp.py", "/etc/passwd", "vendor", "vendor/../../app.py", ""]
)
def test_nothing_else_is_served(server: Server, path: str) -> None:
    with pytest.raises(urllib.error.HTTPError, match="404"):
        urllib.request.urlopen(f"{server.url}/page/{path}")


def test_every_module_is_asked_for_at_once() -> None:
    """The browser would learn of another one only when the module that imports it has arrived."""
    files = {name: file.content.decode() for name, file in page_files().items()}
    imported = {
        name
        for text in files.values()
        for name in re.findall(r'^(?:import|export) .*?from "\./([\w./]+)";', text, re.MULTILINE)
    }
    preloaded = re.findall(r'modulepreload" href="/page/([\w./]+)"', files["index.html"])
    assert set(preloaded) == imported and len(preloaded) == len(imported) > 20


def test_the_first_paint_needs_no_data(
    server: Server, enter: Callable[..., Page], record_property: Callable[[str, object], None]
) -> None:
    page = enter(server)
    paints = "performance.getEntriesByName('first-contentful-paint').map(each => each.startTime)"
    until(page, f"{paints}.length > 0")
    for _ in range(2):  # the first visit of a process also reads its files
        page.reload()
        until(page, f"{paints}.length > 0")
    record_property("first paint, ms", page.evaluate(paints)[0])
    assert page.evaluate(paints)[0] < 2000, "300 ms on an idle machine"


# Prompt and settings


def test_tokens_are_counted_and_words_weighted_by_keyboard(page: Page) -> None:
    size = page.locator("#prompt-size")
    expect(size).to_have_text("9/75 tokens · 1 chunk")
    prompt = page.locator("#prompt")
    prompt.evaluate("field => field.setSelectionRange(8, 11)")
    prompt.press("Control+ArrowUp")
    expect(prompt).to_have_value(SPHERE.replace("red", "(red:1.1)"))
    prompt.press("Control+ArrowUp")
    expect(prompt).to_have_value(SPHERE.replace("red", "(red:1.2)"))
    for _ in range(3):
        prompt.press("Control+ArrowDown")
    expect(prompt).to_have_value(SPHERE.replace("red", "(red:0.9)"))
    prompt.press("Control+ArrowUp")
    expect(prompt).to_have_value(SPHERE)
    prompt.press("Control+z")
    expect(prompt).to_have_value(SPHERE.replace("red", "(red:0.9)"))
    prompt.fill(f"{SPHERE}, " * 9)
    expect(size).to_contain_text("2 chunks")


def test_presets_fill_the_form(page: Page) -> None:
    page.get_by_label("Add a negative prompt").select_option("adult-content")
    expect(page.locator("#negative")).to_have_value("NSFW, nude, censored")
    page.get_by_label("Add a negative prompt").select_option("basic")
    expect(page.locator("#negative")).to_have_value(re.compile("^NSFW, nude, censored, worst quality"))
    page.locator("#preset").select_option("article-detail")
    expect(page.locator("#guidance_scale")).to_have_value("14.5")
    expect(page.locator("#steps")).to_have_value("25")
    page.get_by_role("button", name="Back to the model's defaults").click()
    expect(page.locator("#guidance_scale")).to_have_value("4")
    expect(page.locator("#negative")).to_have_value("")


def test_advice_appears_beside_the_control_that_is_moved(page: Page) -> None:
    note = page.locator("#steps-note")
    expect(note).to_contain_text("15 to 25 is recommended. Segmind, ")
    page.locator(".slider:has(#steps) input[type=range]").fill("5")
    expect(page.locator("#steps")).to_have_value("5")
    expect(note).to_contain_text("high quality is reached between 15 and 25 steps")
    expect(note).to_contain_text("Segmind")
    put(page, "steps", "40")
    expect(note).to_contain_text("beyond 25 steps")
    put(page, "guidance_scale", "20")
    expect(page.locator("#guidance_scale-note")).to_contain_text("above 19")
    page.locator("#sampler").select_option("heun")
    expect(page.get_by_text("highly recommended are")).to_be_visible()
    page.get_by_label("Width", exact=True).fill("256")
    page.get_by_label("Width", exact=True).press("Tab")
    expect(page.get_by_text("objects that are cut off or repeated")).to_be_visible()
    page.get_by_role("button", name="Swap width and height").click()
    expect(page.get_by_label("Height", exact=True)).to_have_value("256")
    expect(page.get_by_label("Width", exact=True)).to_have_value("128")
    page.locator("#size").select_option("128x128")
    expect(page.get_by_label("Height", exact=True)).to_have_value("128")


def test_measured_curves_mark_the_current_value(page: Page) -> None:
    own = page.locator(".plot svg[aria-label*=guidance_scale]")
    put(page, "guidance_scale", "3")
    expect(own).to_have_attribute("aria-label", "everything right by guidance_scale: about 66% at 3")
    page.locator("#model").select_option("mini-sdxl")
    plot = page.locator(".plot svg[aria-label*=guidance_scale]")
    put(page, "guidance_scale", "3")
    expect(plot).to_have_attribute("aria-label", "everything right by guidance_scale: about 81% at 3")
    before = plot.locator("circle.today").get_attribute("cx")
    put(page, "guidance_scale", "7.5")
    expect(plot).to_have_attribute("aria-label", re.compile("about 52% at 7.5"))
    assert plot.locator("circle.today").get_attribute("cx") != before
    assert plot.locator(".band").count() == 1


def values(page: Page) -> dict[str, str]:
    """The settings that few-step models need their own of."""
    names = ("steps", "guidance_scale", "sampler", "schedule", "timesteps")
    return {name: page.locator(f"#{name}").input_value() for name in names}


def test_a_few_step_model_or_lora_sets_its_settings_and_is_judged_by_its_own_ranges(page: Page) -> None:
    names = ("steps", "guidance_scale", "sampler", "schedule", "timesteps")
    plain = dict(zip(names, ("20", "4", "unipc", "automatic", ""), strict=True))
    turbo = dict(zip(names, ("4", "1", "lcm", "trailing", ""), strict=True))
    model, notes = page.locator("#model"), page.locator("#steps-note")
    assert values(page) == plain
    put(page, "steps", "25")
    page.locator("#sampler").select_option("dpmpp_2m")
    page.locator("#schedule").select_option("karras")
    model.select_option(TURBO)
    assert values(page) == turbo, "what was changed does not suit it"
    expect(notes).to_have_text("4 to 8 is recommended. docs/guide/few-steps.md")
    put(page, "steps", "30")
    expect(notes).to_contain_text("is made for 4 to 8")
    put(page, "guidance_scale", "7")
    expect(page.locator("#guidance_scale-note")).to_contain_text("above 1 colours burn")
    put(page, "guidance_scale", "1")
    page.locator("#negative").fill("blurry")
    expect(page.get_by_text("it is ignored, because without a second pass")).to_be_visible()
    put(page, "steps", "8")
    model.select_option("mini-ssd-1b")
    assert values(page) == plain

    with page.expect_response(
        lambda answer: "/v1/check" in answer.url and "999,749" in (answer.request.post_data or "")
    ) as asked:
        page.locator("#lora").select_option("quick")
    checked = asked.value.json()
    assert (checked["settings"]["timesteps"], checked["steps"]) == ("999,749,499,249", 4)
    assert [line.partition(":")[0] for line in checked["advice"]] == ["negative prompt"]
    dmd = {**turbo, "schedule": "automatic", "timesteps": "999,749,499,249"}
    assert values(page) == dmd
    expect(notes).to_have_text("4 is recommended. README of DMD2, tianweiy/DMD2")
    expect(page.locator(".plot")).to_have_count(0)
    put(page, "steps", "8")
    assert values(page) == {**dmd, "steps": "8", "timesteps": ""}
    expect(notes).to_contain_text("is made for exactly 4")
    put(page, "steps", "4")
    page.get_by_role("button", name="Drop quick").click()
    assert values(page) == plain


def test_a_style_wraps_the_prompt(page: Page, server: Server) -> None:
    size = page.locator("#prompt-size")
    expect(size).to_have_text("9/75 tokens · 1 chunk")
    page.locator("#negative").fill("blurry")
    page.locator("#style").select_option("watercolour")
    expect(page.locator("#style-words")).to_contain_text("watercolour painting of …")
    expect(size).not_to_have_text("9/75 tokens · 1 chunk")
    page.reload()
    expect(page.locator("#style")).to_have_value("watercolour")
    expect(page.locator("#prompt")).to_have_value(SPHERE)
    expect(page.locator("#result")).to_be_visible()  # the old one
    image = generate(page)
    settings = server.ask("GET", f"/v1/pictures/{image}/recipe")["settings"]
    assert settings["prompt"].startswith(f"watercolour painting of {SPHERE}, ")
    assert settings["negative_prompt"].startswith("blurry, photograph, ")
    # Its words are in the prompt now: the style must not be added to them again.
    page.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#prompt")).to_have_value(settings["prompt"])
    expect(page.locator("#style")).to_have_value("")


SDXL_SIZES = [
    [1024, 1024], [1152, 896], [896, 1152], [1216, 832], [832, 1216],
    [1344, 768], [768, 1344], [1536, 640], [640, 1536],
]  # fmt: skip


def test_the_sizes_of_sdxl_can_be_chosen(page: Page) -> None:
    """The miniatures have one size, so the answer for a large model is put in."""

    def enlarge(route: Route) -> None:
        answer = route.fetch()
        options = answer.json()
        options["models"]["mini-ssd-1b"]["sizes"] = SDXL_SIZES
        route.fulfill(response=answer, json=options)

    page.route("**/v1/settings", enlarge)
    page.reload()
    size = page.locator("#size")
    expect(size.locator("option:not([disabled])")).to_have_text([f"{w} × {h}" for w, h in SDXL_SIZES])
    size.select_option("1216x832")
    expect(page.get_by_label("Width", exact=True)).to_have_value("1216")
    expect(page.get_by_label("Height", exact=True)).to_have_value("832")
    page.get_by_role("button", name="Swap width and height").click()
    expect(size).to_have_value("832x1216")
    page.unroute_all()


def test_a_number_that_is_typed_is_a_draft_until_its_field_is_left(page: Page) -> None:
    steps = page.locator("#steps")
    before = steps.input_value()
    steps.fill("")
    steps.press("Tab")
    expect(steps).to_have_value(before)
    steps.press("ArrowUp")
    expect(steps).to_have_value(str(int(before) + 1))
    steps.fill("9")
    page.locator("#prompt").evaluate("field => field.dispatchEvent(new Event('input'))")  # renders the form
    expect(page.locator("#prompt-size")).to_be_visible()
    steps.press("0")
    steps.press("ArrowDown")
    expect(steps).to_have_value("89")


def test_a_seed_is_kept_to_its_last_digit_and_text_is_none(page: Page, wrong: list[str]) -> None:
    seed = page.locator("#seed")
    put(page, "seed", "4294967295")
    put(page, "seed", "12 monkeys")
    expect(seed).to_have_value("4294967295")
    sent = "import('/page/form.js').then(({ body }) => body().seed)"
    assert page.evaluate(sent) == 2**32 - 1
    put(page, "seed", "9007199254740993")  # more digits than JavaScript's numbers have
    expect(page.locator(".field:has(> .seed) .wrong")).to_contain_text("from 0 to 4294967295")
    put(page, "seed", "")
    assert page.evaluate(sent) == -1
    assert all("422" in each for each in wrong)
    wrong.clear()


def test_settings_outlive_a_reload(page: Page) -> None:
    put(page, "steps", "7")
    put(page, "seed", "123")
    page.locator("#schedule").select_option("karras")
    page.reload()
    expect(page.locator("#steps")).to_have_value("7")
    expect(page.locator("#seed")).to_have_value("123")
    expect(page.locator("#schedule")).to_have_value("karras")
    expect(page.locator("#prompt")).to_have_value(SPHERE)
    page.get_by_role("button", name="Random seed").click()
    expect(page.locator("#seed")).to_have_value("")


def test_a_refusal_is_explained_where_it_belongs(page: Page, wrong: list[str]) -> None:
    put(page, "steps", "1000")
    expect(page.locator("#steps-note .wrong")).to_contain_text("from 1 to 150")
    put(page, "steps", "4")
    page.get_by_label("Width", exact=True).fill("100")
    page.get_by_label("Width", exact=True).press("Tab")
    expect(page.locator(".field:has(> .size) .wrong")).to_contain_text("width is 100")
    with page.expect_response("**/v1/jobs"):  # the check of the form has shown the same text already
        page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator(".generate .wrong")).to_contain_text("width is 100")
    page.locator("#size").select_option("128x128")
    expect(page.locator(".generate .wrong")).to_have_count(0)
    page.locator("#prompt").fill(" ")
    page.locator("#prompt").press("Control+Enter")
    expect(page.locator("#prompt-wrong")).to_have_text("Write what to generate first.")
    assert all("422" in each for each in wrong)
    wrong.clear()


def test_a_refusal_of_what_was_changed_meanwhile_does_not_stay(page: Page, wrong: list[str]) -> None:
    late: list[Route] = []
    page.route("**/v1/jobs", lambda route: late.append(route))
    put(page, "steps", "1000")
    page.get_by_role("button", name="Generate", exact=True).click()
    while not late:
        page.wait_for_timeout(20)
    put(page, "steps", "4")
    late[0].continue_()
    expect(page.locator(".notes-layer")).to_contain_text("from 1 to 150")
    expect(page.locator(".generate .wrong")).to_have_count(0)
    assert all("422" in each for each in wrong)
    wrong.clear()


# Results


def test_a_job_is_followed_from_the_key_press_to_the_picture(
    page: Page, record_property: Callable[[str, object], None]
) -> None:
    page.evaluate("""() => {
        window.seen = {previews: new Set(), texts: new Set()};
        const look = () => {
            const result = document.querySelector("#result"), preview = document.querySelector(".preview");
            const text = document.querySelector(".underway span")?.textContent;
            if (preview) seen.previews.add(preview.src);
            if (text) seen.texts.add(text);
            if (result && !result.onload) result.onload = () => seen[result.dataset.id] ??= Date.now() / 1000;
        };
        const everything = {subtree: true, childList: true, attributes: true, characterData: true};
        new MutationObserver(look).observe(document.body, everything);
    }""")
    put(page, "steps", "30")
    page.locator("#prompt").press("Control+Enter")
    expect(page.locator(".underway")).to_be_visible()
    expect(page.locator(".job.running")).to_contain_text(SPHERE)
    whole = """() => {
        const box = (each) => document.querySelector(each)?.getBoundingClientRect();
        const [mat, preview] = [box(".mat"), box(".preview")];
        return preview && preview.height <= mat.height && preview.width <= mat.width;
    }"""
    expect(page.locator(".preview")).to_be_visible()
    assert page.evaluate(whole)
    result = page.locator(f"#result[alt='{SPHERE}']")
    expect(result).to_be_visible()
    until(page, "document.querySelector('#result').complete")
    seen = page.evaluate("({previews: seen.previews.size, texts: [...seen.texts]})")
    assert seen["previews"] > 0
    assert any(re.match(r"Step \d+ of 30", text) for text in seen["texts"])
    image = result.get_attribute("data-id")
    made = page.evaluate(
        f"fetch('/v1/pictures/{image}/recipe').then(answer => answer.json()).then(found => found.made)"
    )
    until(page, f"seen['{image}']")
    late = page.evaluate(f"seen['{image}']") - made
    record_property("done to visible, s", late)
    assert late < 2, "0.2 s on an idle machine"
    expect(page.locator(f".tile [data-id='{image}']")).to_be_visible()
    expect(page.locator(".notes-layer [role=status]").first).to_have_text(f"Done: {SPHERE}")
    page.get_by_role("button", name="Use the last seed").click()
    expect(page.locator("#seed")).to_have_value(re.compile(r"\d+"))


def test_the_time_left_counts_down_from_the_servers_estimate(page: Page) -> None:
    job = {"state": "running", "eta": 10, "heard": 0}
    left = "async ([job, time]) => (await import('/page/result.js')).timeLeft(job, time)"
    assert page.evaluate(left, [job, 1000]) == 9
    assert page.evaluate(left, [job, 11000]) == 0
    assert page.evaluate(left, [{**job, "eta": None}, 1000]) is None


def test_the_queue_is_reordered_cancelled_retried_and_survives_a_reload(page: Page, server: Server) -> None:
    put(page, "steps", "150")
    for name in ("first", "second", "third"):
        page.locator("#prompt").fill(name)
        page.locator("#prompt").press("Control+Enter")
        expect(page.locator(".job", has_text=name)).to_be_visible()
    queued = page.locator(".job.queued .said")
    expect(page.locator(".job.running")).to_contain_text("first")
    expect(queued).to_have_text(["second", "third"])
    page.locator(".job", has_text="third").get_by_role("button", name="Earlier").click()
    expect(queued).to_have_text(["third", "second"])
    page.locator(".job", has_text="third").get_by_role("button", name="Cancel").press("Alt+ArrowDown")
    expect(queued).to_have_text(["second", "third"])
    page.reload()
    expect(queued).to_have_text(["second", "third"])
    expect(page.locator(".underway progress")).to_be_visible()
    page.locator(".job", has_text="first").get_by_role("button", name="Cancel").click()
    page.locator(".job", has_text="third").get_by_role("button", name="Cancel").click()
    for name in ("first", "third"):
        expect(page.locator(".job.cancelled", has_text=name)).to_be_visible()
    page.locator(".job.cancelled", has_text="third").get_by_role("button", name="Retry").click()
    expect(page.locator(".job.queued, .job.running", has_text="third")).to_be_visible()
    assert [job["prompt"] for job in server.ask("GET", "/v1/queue")] == ["second", "third"]
    expect(page.locator(".job", has_text="third").locator(".facts")).to_contain_text("Waiting behind 1")
    page.get_by_role("button", name="Cancel all").click()
    expect(page.locator(".job.queued, .job.running")).to_have_count(0)
    page.get_by_role("button", name="Dismiss").first.click()
    page.get_by_role("button", name="Clear").click()
    expect(page.get_by_text("Nothing is waiting.")).to_be_visible()
    page.reload()
    expect(page.get_by_text("Nothing is waiting.")).to_be_visible()
    page.wait_for_timeout(500)  # what was cancelled would be back by now
    expect(page.locator(".job")).to_have_count(0)


def test_a_failed_job_says_why(page: Page, server: Server) -> None:
    job = server.ask("POST", "/v1/jobs", {"prompt": "it will fail", "steps": 4})
    failed = {
        **job,
        "state": "failed",
        "finished": time.time(),
        "error": "the device failed",
        "code": "FailedError",
    }
    page.route("**/v1/jobs?state=*", lambda route: route.fulfill(json={"jobs": [failed], "next": None}))
    page.reload()
    entry = page.locator(".job.failed")
    expect(entry).to_contain_text("Failed: the device failed")
    expect(entry.get_by_role("button", name="Retry")).to_be_visible()
    page.unroute_all()


# Gallery and light box


def test_the_gallery_stays_small_with_ten_thousand_pictures(
    page: Page, record_property: Callable[[str, object], None]
) -> None:
    tiles = page.locator(".tile")
    begin = time.monotonic()
    first = page.get_by_label(f"{OLD} 0, seed 0")
    while not first.count():
        page.locator(".work").evaluate("work => work.scrollTo(0, work.scrollHeight)")
        page.wait_for_timeout(20)
        assert time.monotonic() - begin < PATIENCE
    record_property("10,000 pictures loaded, s", time.monotonic() - begin)
    assert tiles.count() < 150
    frames = page.evaluate("""async () => {
        const work = document.querySelector(".work"), times = [];
        for (let at = 0; at < 30; at++) {
            const begin = performance.now();
            work.scrollTo(0, work.scrollHeight * at / 30);
            await new Promise(requestAnimationFrame);
            times.push(performance.now() - begin);
        }
        return times.sort((a, b) => a - b);
    }""")
    record_property("a jump in the gallery, ms", frames[15])
    assert frames[15] < 250


def test_a_search_outlives_an_answer_that_comes_late(page: Page) -> None:
    late: list[Route] = []
    page.route(re.compile(r"/v1/pictures\?limit=200$"), lambda route: late.append(route))
    page.reload()
    search = page.locator("#search")
    expect(search).to_be_visible()
    while not late:
        page.wait_for_timeout(20)
    search.press_sequentially("picture 7", delay=20)
    for route in late:
        route.continue_()  # renders the gallery in the middle of the word
    search.press_sequentially("77", delay=20)
    expect(page.locator(".tile")).to_have_count(19)
    page.wait_for_timeout(300)
    expect(search).to_have_value("picture 777")
    expect(page.locator(".tile")).to_have_count(19)
    page.unroute_all()


def test_pictures_are_searched_marked_deleted_and_downloaded(page: Page, server: Server) -> None:
    page.locator("#search").fill("picture 777")
    expect(page.locator(".tile")).to_have_count(19)  # 777, 7770 to 7779 and 1777 to 9777
    tile = page.locator(".tile", has=page.get_by_label(f"{OLD} 777, seed 777"))
    tile.get_by_role("button", name="Favourite").click()
    expect(tile.get_by_role("button", name="Favourite")).to_have_attribute("aria-pressed", "true")
    page.locator("#filter-show").select_option("favourites")
    expect(page.locator(".tile")).to_have_count(1)
    page.locator("#filter-show").select_option("all")
    page.locator("#filter-model").select_option("mini-sdxl")
    expect(page.get_by_text("No picture matches.")).to_be_visible()
    page.locator("#filter-model").select_option("mini-ssd-1b")
    expect(page.locator(".tile")).to_have_count(19)
    thumb = page.get_by_label(f"{OLD} 7775, seed 7775")
    thumb.press("Delete")
    expect(page.locator(".tile")).to_have_count(18)
    assert server.ask("GET", f"/v1/pictures/{7775:032x}/recipe")["deleted"]
    page.get_by_role("button", name="Undo").click()
    expect(thumb).to_be_visible()
    assert not server.ask("GET", f"/v1/pictures/{7775:032x}/recipe")["deleted"]
    with page.expect_download() as download:
        thumb.press("d")
    thumb.press("Delete")
    expect(page.locator(".tile")).to_have_count(18)
    page.locator("#filter-show").select_option("deleted")
    expect(page.locator(".tile")).to_have_count(1)
    page.get_by_role("button", name="Restore").click()
    expect(page.get_by_text("No picture matches.")).to_be_visible()
    page.locator("#filter-show").select_option("all")
    expect(page.locator(".tile")).to_have_count(19)
    assert download.value.suggested_filename == "7775-an-old-picture-7775.png"
    assert Path(download.value.path()).read_bytes().startswith(b"\x89PNG")


def test_the_light_box_shows_the_recipe_compares_and_varies(page: Page, server: Server) -> None:
    page.locator("#search").fill("picture 888")
    expect(page.locator(".tile")).to_have_count(19)
    page.get_by_label(f"{OLD} 8888, seed 8888").press("Enter")
    box = page.get_by_role("dialog", name="Picture")
    expect(box).to_contain_text("Seed8888")
    page.keyboard.press("ArrowRight")
    expect(box).to_contain_text("Seed8887")
    page.keyboard.press("ArrowLeft")
    expect(box).to_contain_text("Seed8888")
    page.keyboard.press("c")
    page.keyboard.press("ArrowRight")
    wipe = box.get_by_label("Position of the wipe")
    wipe.fill("25")
    at = "stage => stage.style.getPropertyValue('--at')"
    assert box.locator(".wipe").evaluate(at) == "25%"
    place = box.locator(".wipe").bounding_box()
    assert place
    page.mouse.move(place["x"] + 0.5 * place["width"], place["y"] + 50)
    page.mouse.down()
    page.mouse.move(place["x"] + 0.75 * place["width"], place["y"] + 50)
    page.mouse.up()
    assert float(box.locator(".wipe").evaluate(at).rstrip("%")) == pytest.approx(75, abs=1)
    expect(wipe).to_have_value("75")
    expect(box.locator(".differences")).to_contain_text("Seed 8888 → 8887")
    page.keyboard.press("Escape")
    expect(box).to_be_hidden()
    page.get_by_label(f"{OLD} 8888, seed 8888").press("Enter")
    box.get_by_role("button", name="Use these settings").click()
    expect(page.locator("#prompt")).to_have_value(f"{OLD} 8888")
    expect(page.locator("#seed")).to_have_value("8888")
    expect(page.locator("#sampler")).to_have_value("euler")
    page.get_by_label(f"{OLD} 8887, seed 8887").press("Enter")
    box.get_by_role("button", name="Vary").click()
    expect(page.locator(".job.running")).to_contain_text("4 images")
    (job,) = server.ask("GET", "/v1/queue")
    assert (job["prompt"], len(job["images"])) == (f"{OLD} 8887", 4)
    assert job["settings"]["steps"] == 8


# Files, grids


def foreign(prompt: str, sampler: str = "Euler a") -> bytes:
    """A picture of AUTOMATIC1111 whose second pass is by another model, which cannot be reproduced."""
    info = PngInfo()
    parameters = (
        f"{prompt}\nNegative prompt: blurry\nSteps: 9, Sampler: {sampler}, CFG scale: 6.5, Seed: 77, "
        "Size: 128x128, Model: dreams, Denoising strength: 0.5, Hires upscale: 2, Hires upscaler: Latent, "
        "Hires checkpoint: other"
    )
    info.add_text("parameters", parameters)
    return as_bytes(smooth(16, 16), pnginfo=info)


DROP = """([bytes, kind]) => {
    const data = new DataTransfer();
    data.items.add(new File([new Uint8Array(bytes)], "other.png", {type: "image/png"}));
    const event = kind === "paste" ? new ClipboardEvent("paste", {clipboardData: data, bubbles: true})
        : new DragEvent(kind, {dataTransfer: data, bubbles: true, cancelable: true});
    document.body.dispatchEvent(event);
}"""


@pytest.mark.parametrize("way", ["choose", "drop", "paste"])
def test_a_picture_file_restores_its_settings(page: Page, way: str) -> None:
    data = foreign(f"a cat, {way}")
    if way == "choose":
        with page.expect_file_chooser() as chooser:
            page.get_by_role("button", name="Read a picture").click()
        chooser.value.set_files({"name": "other.png", "mimeType": "image/png", "buffer": data})
    else:
        page.evaluate(DROP, [list(data), way])
    expect(page.locator("#prompt")).to_have_value(f"a cat, {way}")
    expect(page.locator("#negative")).to_have_value("blurry")
    for name, value in {
        "steps": "9",
        "guidance_scale": "6.5",
        "seed": "77",
        "sampler": "euler_ancestral",
    }.items():
        expect(page.locator(f"#{name}")).to_have_value(value)
    reading = page.locator(".reading")
    expect(reading).to_contain_text("Cannot be reproduced")
    expect(reading).to_contain_text("dreams")
    expect(reading).to_contain_text("ires")
    reading.get_by_role("button", name="Dismiss").click()
    expect(reading).to_be_hidden()


def test_samplers_of_other_programs_are_found_by_their_names(page: Page, wrong: list[str]) -> None:
    page.evaluate(DROP, [list(foreign("one", "DPM++ 2M Karras")), "drop"])
    expect(page.locator("#prompt")).to_have_value("one")
    expect(page.locator("#sampler")).to_have_value("dpmpp_2m")
    expect(page.locator("#schedule")).to_have_value("karras")
    page.evaluate(DROP, [list(foreign("two", "LMS")), "drop"])
    expect(page.locator("#prompt")).to_have_value("two")
    expect(page.locator(".reading")).to_contain_text("sampler 'LMS' is not available here")
    expect(page.locator("#sampler")).to_have_value("dpmpp_2m")
    assert all("422" in each for each in wrong)
    wrong.clear()


def test_a_picture_of_comfyui_restores_its_settings(page: Page, wrong: list[str]) -> None:
    info = PngInfo()
    info.add_text("prompt", json.dumps(COMFY))
    page.evaluate(DROP, [list(as_bytes(smooth(16, 16), pnginfo=info)), "drop"])
    expect(page.locator("#prompt")).to_have_value("a cat")
    expect(page.locator("#negative")).to_have_value("bad")
    for name, value in {"steps": "20", "guidance_scale": "7", "seed": "5", "sampler": "dpmpp_2m"}.items():
        expect(page.locator(f"#{name}")).to_have_value(value)
    expect(page.locator(".reading")).to_contain_text("ComfyUI")
    assert wrong == []


def test_a_file_that_is_no_picture_is_refused_in_words(page: Page, wrong: list[str]) -> None:
    page.evaluate(DROP, [list(b"no picture"), "drop"])
    expect(page.locator(".reading .wrong")).to_contain_text("other.png: ")
    assert all("422" in each for each in wrong)
    wrong.clear()


def test_a_grid_is_a_table_with_labels(page: Page, server: Server, wrong: list[str]) -> None:
    put(page, "steps", "4")
    page.get_by_role("button", name="Grid").click()
    dialog = page.get_by_role("dialog", name="Grid")
    dialog.locator("#across-values").fill("2, x")
    dialog.get_by_role("button", name="Generate grid").click()
    expect(dialog.get_by_role("alert")).to_have_text("Guidance: x is no number")
    dialog.locator("#across-values").fill("2-4 (+2)")
    dialog.locator("#down-setting").select_option("sampler")
    dialog.locator("#down-values").fill("euler, nonsense")
    dialog.get_by_role("button", name="Generate grid").click()
    expect(dialog.get_by_role("alert")).to_contain_text("nonsense")
    assert all("422" in each or "404" in each for each in wrong)
    wrong.clear()
    dialog.locator("#down-values").fill("euler, unipc")
    dialog.get_by_role("button", name="Generate grid").click()
    expect(dialog.locator("thead th")).to_have_text(["Sampler ↓ Guidance →", "2", "4"])
    expect(dialog.locator("tbody th")).to_have_text(["Euler", "UniPC"])
    expect(dialog.locator("td img[src*=thumbnail]")).to_have_count(4)
    jobs = server.ask("GET", "/v1/jobs?limit=4")["jobs"]
    assert {job["priority"] for job in jobs} == {-1}
    assert len({job["settings"]["seed"] for job in jobs}) == 1
    page.reload()
    page.get_by_role("button", name="Grid").click()
    expect(dialog.locator("td img[src*=thumbnail]")).to_have_count(4)
    dialog.locator("td button").first.click()
    expect(page.get_by_role("dialog", name="Picture")).to_contain_text("Guidance2")


# Pictures to start from, masks, LoRAs


@pytest.fixture
def source(page: Page) -> Page:
    """The page, with a picture to start from that is wider than high."""
    choose_source(page, as_bytes(smooth(192, 128)))
    return page


def choose_source(page: Page, data: bytes) -> None:
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Start from a picture…").click()
    chooser.value.set_files({"name": "photo.png", "mimeType": "image/png", "buffer": data})
    expect(page.locator("#source")).to_be_visible()


def mask_of(server: Server) -> Image.Image:
    """The mask of the newest job."""
    (job,) = server.ask("GET", "/v1/jobs?limit=1")["jobs"]
    request = urllib.request.Request(
        f"{server.url}/v1/uploads/{job['settings']['mask']}", headers={"x-api-key": KEY}
    )
    with urllib.request.urlopen(request) as answer:
        return Image.open(io.BytesIO(answer.read()))


def test_images_start_from_a_chosen_picture_and_a_strength_is_a_number_of_steps(
    source: Page, server: Server, wrong: list[str]
) -> None:
    sides = source.locator(".size input")
    expect(sides.nth(0)).to_have_value("192")
    expect(sides.nth(1)).to_have_value("128")
    put(source, "steps", "20")
    note = source.locator("#strength-note")
    expect(note).to_have_text("12 of 20 steps are run.")
    put(source, "strength", "0.5")
    expect(note).to_have_text("10 of 20 steps are run.")
    source.locator("#strength_steps").select_option("a1111")
    expect(note).to_have_text("11 of 20 steps are run.")
    source.locator("#strength_steps").select_option("comfyui")
    expect(note).to_have_text("20 of 40 steps are run.")
    put(source, "strength", "0.01")
    source.locator("#strength_steps").select_option("diffusers")
    expect(note).to_contain_text("none is left to run")
    assert all("422" in each for each in wrong)
    wrong.clear()
    put(source, "strength", "0.4")
    generate(source, steps=5)
    (job,) = server.ask("GET", "/v1/jobs?limit=1")["jobs"]
    assert job["settings"]["strength"] == 0.4 and job["steps"] == 2
    source.reload()
    expect(source.locator("#source")).to_be_visible()
    source.get_by_role("button", name="Do not start from a picture").click()
    expect(source.get_by_role("button", name="Start from a picture…")).to_be_visible()
    generate(source)
    assert server.ask("GET", "/v1/jobs?limit=1")["jobs"][0]["settings"]["init_image"] is None


def test_a_picture_of_the_gallery_is_an_input_and_compared_with_what_became_of_it(page: Page) -> None:
    generate(page)
    page.get_by_role("button", name="Use as input").click()
    expect(page.locator("#source")).to_be_visible()
    page.get_by_role("button", name="Do not start from a picture").click()
    page.locator(".canvas").click()
    dialog = page.get_by_role("dialog", name="Picture")
    expect(dialog.get_by_role("button", name="Before and after")).to_have_count(0)
    dialog.get_by_role("button", name="Use as input").click()
    expect(page.locator("#source")).to_be_visible()
    generate(page, strength="0.5")
    page.locator(".canvas").click()
    page.keyboard.press("b")
    expect(dialog.locator(".wipe.fitted img")).to_have_count(2)
    slide = dialog.get_by_label("Position of the wipe")
    slide.focus()
    slide.press("Home")
    until(page, "document.querySelector('.wipe').style.getPropertyValue('--at') === '0%'")
    boxes = [dialog.locator(".wipe img").nth(number).bounding_box() for number in range(2)]
    assert boxes[0] == boxes[1]
    dialog.get_by_role("button", name="Before and after").click()
    expect(page.locator("#enlarged")).to_be_visible()
    expect(dialog.locator("dl")).to_contain_text("Strength0.5")


@pytest.mark.parametrize("way", ["drop", "paste", "place"])
def test_a_picture_without_settings_is_what_images_start_from(page: Page, way: str, wrong: list[str]) -> None:
    data = list(as_bytes(smooth(64, 64)))
    if way == "place":  # where the picture is chosen, a file is never read for its settings
        page.evaluate(
            DROP.replace("document.body", "document.querySelector('.input')"), [list(foreign("x")), "drop"]
        )
        expect(page.locator("#source")).to_be_visible()
        expect(page.locator("#prompt")).to_have_value(SPHERE)
        return
    page.evaluate(DROP, [data, way])
    expect(page.locator("#source")).to_be_visible()
    expect(page.locator(".reading")).to_contain_text("other.png has no settings: images start from it.")
    assert all("422" in each for each in wrong)
    wrong.clear()


def test_a_file_with_settings_can_also_be_the_input(page: Page) -> None:
    page.evaluate(DROP, [list(foreign("a cat")), "drop"])
    expect(page.locator("#prompt")).to_have_value("a cat")
    expect(page.locator("#hires_scale")).to_have_value("2")
    page.locator(".reading").get_by_role("button", name="Use as input").click()
    expect(page.locator("#source")).to_be_visible()
    expect(page.locator("#hires_scale")).to_have_value("")
    expect(page.locator("#hires_scale")).to_be_disabled()
    with page.expect_response("**/v1/check") as response:
        put(page, "steps", "7")
    assert response.value.ok, "only images from text have a second pass"


def paint(page: Page, *points: tuple[float, float]) -> None:
    """Drag the mouse over the picture, by shares of its width and height."""
    box = page.locator(".board canvas").bounding_box()
    assert box is not None
    for number, (x, y) in enumerate(points):
        page.mouse.move(box["x"] + x * box["width"], box["y"] + y * box["height"], steps=4)
        if number == 0:
            page.mouse.down()
    page.mouse.up()


def test_a_mask_is_painted_rubbed_out_undone_and_inverted(source: Page, server: Server) -> None:
    source.get_by_role("button", name="Paint mask").click()
    painter = source.get_by_role("dialog", name="Mask")
    expect(painter.locator("canvas")).to_be_visible()
    painter.locator("#brush-size").fill("0.2")
    paint(source, (0.1, 0.2), (0.9, 0.2))
    paint(source, (0.1, 0.8), (0.9, 0.8))
    painter.get_by_role("button", name="Undo").click()
    paint(source, (0.5, 0.05), (0.5, 0.4))
    painter.get_by_role("button", name="Eraser").click()
    paint(source, (0.25, 0.1), (0.25, 0.3))
    painter.get_by_role("button", name="Use mask").click()
    expect(source.locator(".veil")).to_be_visible()
    generate(source, strength="0.8")
    mask = mask_of(server)
    assert mask.size == (192, 128)
    grey = mask.convert("L")
    places = {(150, 26): 255, (96, 10): 255, (48, 26): 0, (150, 102): 0, (5, 120): 0}
    assert {place: grey.getpixel(place) for place in places} == places
    # It can be changed: inverted, and with a soft edge.
    source.get_by_role("button", name="Change mask").click()
    expect(painter.locator("canvas")).to_be_visible()
    source.wait_for_timeout(300)
    source.keyboard.press("i")
    painter.locator("#feather").fill("4")
    painter.get_by_role("button", name="Use mask").click()
    expect(painter).to_have_count(0)
    generate(source, strength="0.7")
    grey = mask_of(server).convert("L")
    assert grey.getpixel((150, 26)) < 20 and grey.getpixel((150, 110)) > 235  # type: ignore[operator]
    assert len({grey.getpixel((150, y)) for y in range(128)}) > 8, "the edge is soft"
    source.get_by_role("button", name="Drop mask").click()
    expect(source.locator(".veil")).to_have_count(0)


def test_a_mask_is_painted_by_keyboard(source: Page, server: Server) -> None:
    source.get_by_role("button", name="Paint mask").click()
    canvas = source.locator(".board canvas")
    expect(canvas).to_be_visible()
    canvas.focus()
    for key in ("]", "[", "ArrowLeft", "ArrowLeft", " ", "ArrowRight", "ArrowRight", " ", "Control+z"):
        source.keyboard.press(key)
    source.get_by_role("button", name="Use mask").click()
    expect(source.locator(".veil")).to_be_visible()
    generate(source, strength="0.8")
    grey = mask_of(server).convert("L")
    assert (grey.getpixel((73, 64)), grey.getpixel((96, 64)), grey.getpixel((150, 64))) == (255, 0, 0)
    source.get_by_role("button", name="Change mask").click()
    expect(canvas).to_be_visible()
    source.keyboard.press("Escape")
    expect(source.locator(".veil")).to_be_visible()


def test_a_mask_is_painted_with_a_finger(server: Server, enter: Callable[..., Page]) -> None:
    page = enter(server, viewport={"width": 390, "height": 844}, has_touch=True)
    page.locator("#prompt").fill(SPHERE)
    choose_source(page, as_bytes(smooth(128, 128)))
    page.get_by_role("button", name="Paint mask").tap()
    expect(page.locator(".board canvas")).to_be_visible()
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    page.locator(".board canvas").tap(position={"x": 60, "y": 60})
    expect(page.get_by_role("button", name="Undo")).to_be_enabled()
    page.get_by_role("button", name="Use mask").tap()
    expect(page.locator(".veil")).to_be_visible()


def test_loras_are_chosen_with_strengths_and_trigger_words(
    page: Page, server: Server, wrong: list[str]
) -> None:
    page.locator("#lora").select_option("pixel-art")
    page.get_by_label("Strength of pixel-art").fill("0.4")
    page.get_by_label("Strength of pixel-art").press("Tab")
    page.get_by_role("button", name="8 bit", exact=True).click()
    expect(page.locator("#prompt")).to_have_value(f"{SPHERE}, 8 bit")
    page.get_by_role("button", name="8 bit", exact=True).click()
    expect(page.locator("#prompt")).to_have_value(f"{SPHERE}, 8 bit")
    generate(page)
    (job,) = server.ask("GET", "/v1/jobs?limit=1")["jobs"]
    assert job["settings"]["loras"] == [{"name": "pixel-art", "unet": 0.4, "text": 1}]
    page.get_by_role("button", name="Drop pixel-art").click()
    expect(page.get_by_label("Strength of pixel-art")).to_have_count(0)
    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Strength of pixel-art")).to_have_value("0.4")
    page.locator("#prompt").fill("x <lora:pixl-art:1>")
    expect(page.locator("#loras").get_by_role("alert")).to_contain_text("did you mean 'pixel-art'")
    assert all("404" in each for each in wrong)
    wrong.clear()


def test_controls_a_second_pass_and_a_variation_are_set_compactly(
    page: Page, server: Server, tmp_path: Path, wrong: list[str]
) -> None:
    for closed in ("#hires", "#variation"):
        expect(page.locator(closed)).not_to_have_attribute("open", "")
    page.locator("#control").select_option("mini-control")
    file = tmp_path / "cube.png"
    file.write_bytes(as_bytes(smooth(128, 128)))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose its picture…").click()
    chooser.value.set_files(file)
    expect(page.get_by_alt_text("The picture that mini-control follows")).to_be_visible()
    expect(page.get_by_label("What mini-control reads")).to_have_value("canny")
    page.get_by_label("Scale of mini-control").fill("0.6")
    page.locator("#hires > summary").click()
    page.locator("#hires_scale").fill("1.5")
    page.locator("#hires_scale").press("Tab")
    page.locator("#hires_steps").fill("3")
    page.locator("#variation > summary").click()
    page.locator("#variation_strength").fill("0.2")
    page.locator("#variation_seed").fill("7")
    page.locator("#variation_seed").press("Tab")
    put(page, "seed_resize_width", "64")
    put(page, "seed_resize_height", "96")
    generate(page)
    (job,) = server.ask("GET", "/v1/jobs?limit=1")["jobs"]
    settings = job["settings"]
    (control,) = settings["controls"]
    assert (control["model"], control["scale"], control["preprocess"]) == ("mini-control", 0.6, "canny")
    assert (settings["hires_scale"], settings["hires_steps"]) == (1.5, 3)
    assert (settings["variation_strength"], settings["variation_seed"]) == (0.2, 7)
    assert (settings["seed_resize_width"], settings["seed_resize_height"]) == (64, 96)
    page.get_by_role("button", name="Back to the model's defaults").click()
    expect(page.get_by_label("Scale of mini-control")).to_have_count(0)
    expect(page.locator("#hires_scale")).to_have_value("")
    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Scale of mini-control")).to_have_value("0.6")
    expect(page.locator("#hires_scale")).to_have_value("1.5")
    expect(page.locator("#variation_seed")).to_have_value("7")
    expect(page.locator("#seed_resize_height")).to_have_value("96")
    put(page, "seed_resize_height", "")
    expect(page.locator("#variation .wrong")).to_contain_text("seed_resize_width")
    assert all("422" in each for each in wrong)
    wrong.clear()


@pytest.fixture
def stocked(tmp_path: Path) -> Iterator[Server]:
    """A server with styles, embeddings, an IP-Adapter and an enlarging network."""
    layout = model_layout("mini-ssd-1b")
    folders = {name: tmp_path / name for name in ("embedding", "ip-adapter", "upscaler")}
    for folder in folders.values():
        folder.mkdir()
    write_encoder(folders["ip-adapter"])
    write_adapter(folders["ip-adapter"] / "ip-adapter_mini.safetensors", plus=False, seed=0)
    write_compact(folders["upscaler"] / "2x-tiny.safetensors")
    widths = {"clip_l": layout.text_encoder.hidden_size, "clip_g": layout.text_encoder_2.hidden_size}
    vectors = {name: torch.zeros(2, width) for name, width in widths.items()}
    save_file(vectors, folders["embedding"] / "soft light.safetensors")
    (folders["embedding"] / "broken.safetensors").write_bytes(b"no embedding")
    (tmp_path / "styles.csv").write_text('name,prompt,negative_prompt\nInk,"ink drawing of {prompt}",photo\n')
    options = [each for name, folder in folders.items() for each in (f"--{name}-folder", str(folder))]
    server = Server(tmp_path / "store", "--styles", str(tmp_path / "styles.csv"), *options)
    server.wait()
    yield server
    server.stop()


def test_what_the_servers_folders_have_is_chosen_by_name(
    stocked: Server, enter: Callable[..., Page], tmp_path: Path
) -> None:
    page = enter(stocked)
    page.locator("#prompt").fill(SPHERE)
    page.locator("#style").select_option(label="Ink")
    expect(page.locator("#style-words")).to_have_text("Sent as “ink drawing of …”, away from “photo”.")
    expect(page.locator("#embedding option[disabled]").first).to_have_text("broken (damaged)")
    page.locator("#embedding").select_option("negative_prompt soft light")
    expect(page.locator("#negative")).to_have_value("soft light")
    page.locator("#image-prompt").select_option("ip-adapter_mini")
    expect(page.get_by_text("It counts when it has a picture.")).to_be_visible()
    file = tmp_path / "cube.png"
    file.write_bytes(as_bytes(smooth(128, 96)))
    with page.expect_file_chooser() as chooser:
        page.get_by_role("button", name="Choose its picture…").click()
    chooser.value.set_files(file)
    expect(page.get_by_alt_text("The picture that ip-adapter_mini shows")).to_be_visible()
    page.get_by_label("Scale of ip-adapter_mini").fill("0.4")
    page.get_by_label("Scale of ip-adapter_mini").press("Tab")
    page.get_by_label("What ip-adapter_mini counts in").select_option("style")
    page.locator("#hires > summary").click()
    put(page, "hires_scale", "1.5")
    page.locator("#hires_upscaler").select_option("2x-tiny")
    assert problems(page) == []
    generate(page)
    (job,) = stocked.ask("GET", "/v1/jobs?limit=1")["jobs"]
    settings = job["settings"]
    assert settings["prompt"] == f"ink drawing of {SPHERE}"
    assert settings["negative_prompt"] == "soft light, photo"
    assert settings["embeddings"] == [{"name": "soft light", "word": "soft light"}]
    (prompt,) = settings["image_prompts"]
    assert (prompt["adapter"], prompt["scale"], prompt["layers"]) == ("ip-adapter_mini", 0.4, ["style"])
    assert settings["hires_upscaler"] == "2x-tiny"
    page.get_by_role("button", name="Back to the model's defaults").click()
    expect(page.get_by_label("Scale of ip-adapter_mini")).to_have_count(0)
    page.get_by_role("button", name="Use these settings").click()
    expect(page.get_by_label("Scale of ip-adapter_mini")).to_have_value("0.4")
    expect(page.get_by_label("What ip-adapter_mini counts in")).to_have_value("style")
    expect(page.locator("#style")).to_have_value("")


def test_a_seed_that_is_none_is_reported(page: Page) -> None:
    page.locator("#seed").fill("abc")
    page.locator("#seed").press("Tab")
    expect(page.get_by_text("“abc” is no seed")).to_be_visible()


def test_a_preset_takes_back_what_the_one_before_it_set(page: Page, server: Server) -> None:
    presets = server.ask("GET", "/v1/settings")["presets"]
    first = next(each for each in presets if "steps" in each["settings"])
    others = [each for each in presets if "steps" not in each["settings"]]
    second = next(each for each in others if {*each["settings"]} != {"negative_prompt"})
    before = page.locator("#steps").input_value()
    page.locator("#preset").select_option(first["name"])
    expect(page.locator("#steps")).to_have_value(str(first["settings"]["steps"]))
    page.locator("#preset").select_option(second["name"])
    expect(page.locator("#steps")).to_have_value(before)


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious_about_inputs(
    server: Server, enter: Callable[..., Page], theme: str, width: int
) -> None:
    page = enter(server, color_scheme=theme, viewport={"width": width, "height": 900})
    page.locator("#prompt").fill(SPHERE)
    choose_source(page, as_bytes(smooth(192, 128)))
    page.locator("#lora").select_option("pixel-art")
    expect(page.get_by_role("button", name="8 bit", exact=True)).to_be_visible()
    assert problems(page) == []
    page.get_by_role("button", name="Paint mask").click()
    expect(page.locator(".board canvas")).to_be_visible()
    paint(page, (0.2, 0.2), (0.6, 0.6))
    assert problems(page) == []
    assert page.evaluate("document.documentElement.scrollWidth") == width
    page.get_by_role("button", name="Use mask").click()
    expect(page.locator(".veil")).to_be_visible()
    assert problems(page) == []
    if width == 390:  # a phone folds the settings
        page.get_by_text("Settings", exact=True).click()
    generate(page, strength="0.6")
    page.locator(".canvas").click()
    page.get_by_role("button", name="Before and after").click()
    assert problems(page) == []


# Keyboard, themes, phones


def test_everything_works_by_keyboard(page: Page) -> None:
    page.keyboard.press("Escape")  # leaves the prompt
    page.keyboard.press("?")
    expect(page.get_by_role("dialog", name="Keyboard shortcuts")).to_be_visible()
    page.keyboard.press("Escape")
    expect(page.get_by_role("dialog")).to_have_count(0)
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("picture 555")
    expect(page.locator(".tile")).to_have_count(19)
    focused = "document.activeElement.getAttribute('aria-label')"
    for _ in range(6):
        page.keyboard.press("Tab")
        if OLD in (page.evaluate(focused) or ""):
            break
    first = page.evaluate(focused)
    assert OLD in first
    page.keyboard.press("PageDown")
    until(page, f"{focused} !== {json.dumps(first)}")
    page.keyboard.press("Home")
    until(page, f"{focused} === {json.dumps(first)}")
    page.keyboard.press("ArrowRight")
    until(page, f"{focused} !== {json.dumps(first)}")
    second = page.evaluate(focused)
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(page.get_by_role("dialog", name="Picture")).to_be_visible()
    page.keyboard.press("Escape")
    until(page, f"{focused} === {json.dumps(second)}")
    page.keyboard.press("f")
    expect(page.locator(".tile", has=page.get_by_label(second)).locator(".star")).to_have_attribute(
        "aria-pressed", "true"
    )
    page.keyboard.press("Delete")
    expect(page.get_by_label(second)).to_have_count(0)
    until(page, f"({focused} ?? '').startsWith({json.dumps(OLD)})")  # the next one has the focus
    page.keyboard.press("z")
    expect(page.get_by_label(second)).to_be_visible()


def test_a_phone_has_room_and_no_motion_is_forced(server: Server, enter: Callable[..., Page]) -> None:
    page = enter(server, viewport={"width": 390, "height": 844}, reduced_motion="reduce", has_touch=True)
    page.get_by_text("Settings", exact=True).click()
    page.locator("#model").select_option("mini-sdxl")
    wide = "document.documentElement.scrollWidth"
    expect(page.locator(".tile").first).to_be_attached()
    assert page.evaluate(wide) == 390
    expect(page.get_by_role("button", name="Generate", exact=True)).to_be_in_viewport()
    # The stage is out of sight there, so a picture opens in the light box.
    page.locator(".tile .thumb").first.click()
    expect(page.get_by_role("dialog", name="Picture")).to_be_visible()
    assert page.evaluate(wide) == 390
    page.keyboard.press("Escape")
    page.locator(".canvas").click()
    expect(page.get_by_role("dialog", name="Picture")).to_be_visible()
    page.keyboard.press("Escape")
    page.get_by_role("button", name="Grid").click()
    assert page.evaluate(wide) == 390
    assert page.evaluate("[...document.getAnimations()].length") == 0


def test_a_gallery_far_below_the_window_has_one_row_of_tiles(
    server: Server, enter: Callable[..., Page]
) -> None:
    page = enter(server, viewport={"width": 390, "height": 300})
    expect(page.locator(".tile").first).to_be_attached()
    assert page.locator(".tile").count() <= 12
    page.locator(".tiles").evaluate("tiles => tiles.scrollIntoView()")
    expect(page.locator(".tile img").first).to_be_in_viewport()
    expect(page.locator(".tile img").nth(12)).to_be_attached()


def problems(page: Page) -> list[str]:
    """What axe finds that is serious or critical."""
    page.evaluate(AXE)
    found = page.evaluate("axe.run(document, {resultTypes: ['violations']})")["violations"]
    return [
        f"{each['id']}: {[node['html'][:200] for node in each['nodes']]}"
        for each in found
        if each["impact"] in ("serious", "critical")
    ]


@pytest.mark.parametrize("width", [1440, 390])
@pytest.mark.parametrize("theme", ["light", "dark"])
def test_axe_finds_nothing_serious(
    server: Server, enter: Callable[..., Page], theme: str, width: int
) -> None:
    page = enter(server, color_scheme=theme, viewport={"width": width, "height": 900})
    page.locator("#prompt").fill(SPHERE)
    if width < 700:
        page.get_by_text("Settings", exact=True).click()
    page.locator("#style").select_option("anime")
    page.locator("#model").select_option("mini-sdxl")
    put(page, "guidance_scale", "20")
    expect(page.locator(".tile").first).to_be_visible()
    assert problems(page) == []
    page.locator(".canvas").click()
    assert problems(page) == []
    page.keyboard.press("Escape")
    for name in ("Grid", "Keyboard shortcuts"):
        page.get_by_role("button", name=name).click()
        assert problems(page) == []
        page.keyboard.press("Escape")
    put(page, "steps", "150")
    for _ in range(2):
        page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator(".preview")).to_be_visible()
    assert problems(page) == []
    server.clear()
    expect(page.locator(".job.cancelled").first).to_be_visible()
    assert problems(page) == []


def test_the_theme_can_be_switched(page: Page) -> None:
    ground = "getComputedStyle(document.body.parentElement).backgroundColor"
    light = page.evaluate(ground)
    page.get_by_role("button", name="Theme: auto. Change to light").click()
    page.get_by_role("button", name="Theme: light. Change to dark").click()
    assert page.evaluate(ground) != light
    page.reload()
    expect(page.get_by_role("button", name="Theme: dark. Change to auto")).to_be_visible()
    assert page.evaluate(ground) != light


# Keys and lost connections


def test_a_key_is_asked_for_and_a_lost_server_found_again(
    locked: Server, enter: Callable[..., Page], wrong: list[str]
) -> None:
    locked.wait()
    page = enter(locked)
    dialog = page.get_by_role("dialog", name="API key")
    dialog.get_by_label("Key").fill("not the right one")
    dialog.get_by_role("button", name="Continue").click()
    expect(dialog.get_by_role("alert")).to_have_text("The server does not accept this key.")
    dialog.get_by_label("Key").fill(KEY)
    dialog.get_by_role("button", name="Continue").click()
    page.locator("#prompt").fill(SPHERE)
    generate(page)
    expect(page.locator("#result")).to_have_attribute("src", re.compile("^blob:"))
    until(page, "document.querySelector('#result').naturalWidth === 128")
    with page.expect_download() as download:
        page.get_by_role("button", name="Download").click()
    assert b"ssd1b" in Path(download.value.path()).read_bytes()
    page.reload()
    expect(page.locator("#result")).to_be_visible()
    expect(dialog).to_have_count(0)
    put(page, "steps", "60")
    page.locator("#prompt").fill("it goes on")
    page.get_by_role("button", name="Generate", exact=True).click()
    expect(page.locator(".job", has_text="it goes on")).to_be_visible()
    assert all("401" in each for each in wrong)
    locked.stop(signal.SIGKILL)
    expect(page.locator(".connection")).to_have_text("Connection lost. Trying again…")
    locked.begin()
    expect(page.locator(".connection")).to_have_text("")
    expect(page.locator("#result[alt='it goes on']")).to_be_visible()
    expect(page.get_by_text("Nothing is waiting.")).to_be_visible()
    assert all("401" in each or "ERR_" in each for each in wrong)
    wrong.clear()
