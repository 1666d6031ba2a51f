"""``ssd1b generate``: what it draws, prints and leaves behind."""

import io
import json
import os
import subprocess
import sys

import pytest
from PIL import Image

from ssd1b.execution import Execution
from ssd1b.images import read_recipe
from ssd1b.pipeline import Pipeline
from ssd1b.presets import NEGATIVE_PROMPTS
from ssd1b.speed.int8_cpu import int8_is_fast
from ssd1b.speed.linear_decoder import LinearDecoder


@pytest.fixture
def generate(run, tiny_model):
    def call(*arguments: object, stdin: bytes = b""):
        result = run("generate", *arguments, "--model", tiny_model, stdin=stdin)
        assert result.code == 0, result.err
        return result

    return call


def test_prints_the_path_of_each_picture_and_how_long_it_took(generate, tmp_path, image_at):
    result = generate("a red cube", "--seed", 7)
    assert result.out == "pictures/7-a-red-cube.png\n"
    assert result.err.startswith("1 image: loading ") and len(result.err.splitlines()) == 1
    assert image_at(tmp_path / "pictures/7-a-red-cube.png").size == (64, 64)


def test_seeds_count_on_over_all_prompts(generate):
    result = generate("a cube", "a cone", "--count", 2, "--seed", 2**32 - 2, "--out", "out")
    names = ["4294967294-a-cube", "4294967295-a-cube", "0-a-cone", "1-a-cone"]
    assert result.out.splitlines() == [f"out/{name}.png" for name in names]


def test_a_picture_does_not_depend_on_those_before_it(generate, tmp_path, image_at):
    generate("a cube", "a cone", "--seed", 1, "--sampler", "euler a", "--out", "both")
    generate("a cone", "--seed", 2, "--sampler", "euler a", "--out", "one")
    first, second = (image_at(tmp_path / folder / "2-a-cone.png") for folder in ("both", "one"))
    assert first.tobytes() == second.tobytes()


def test_every_option_reaches_the_recipe(generate, tmp_path):
    generate(
        "a cube", "--negative", "fog", "--guidance", "3.5", "--guidance-rescale", "0.5",
        "--guidance-interval", "0.1", "0.8", "--steps", "3", "--sampler", "DPM++ 2M Karras", "--seed", "9",
        "--size", "72x64", "--dtype", "fp32", "--device", "cpu", "--out", "cube.webp",
    )  # fmt: skip
    recipe = read_recipe(tmp_path / "cube.webp")
    settings = recipe.settings
    assert (settings.prompt, settings.negative_prompt) == ("a cube", "fog")
    assert (settings.guidance_scale, settings.guidance_rescale) == (3.5, 0.5)
    assert settings.guidance_interval == (0.1, 0.8)
    assert (settings.steps, settings.sampler, settings.schedule) == (3, "dpmpp_2m", "karras")
    assert (settings.seed, settings.width, settings.height) == (9, 72, 64)
    assert (recipe.dtype, recipe.device, recipe.batch_size) == ("float32", "cpu", 1)


def test_how_it_computes_reaches_the_recipe_and_its_rerun(generate, run, tmp_path):
    done = generate("a cube", "--memory", "low", "--speed", "fast", "--seed", 1, "--out", "cube.png")
    assert done.err.startswith("speed fast: on mini-ssd-1b 0.59 of the time, 42 dB")
    recipe = read_recipe(tmp_path / "cube.png")
    assert recipe.computing == Execution(memory="low")
    assert recipe.settings.feature_reuse == 0.2
    again = run("rerun", tmp_path / "cube.png", "--trust-recipe", "--out", "again.png")
    assert again.code == 0 and again.err == "bit-equal: every pixel is the same\n"
    options = ("--quantize", "int8-weights", "--out", "other.png")
    other = run("rerun", tmp_path / "cube.png", "--trust-recipe", *options)
    assert "computing low memory, now int8-weights" in other.err


def test_what_is_given_beside_a_speed_wins(generate, tmp_path):
    generate(
        "a cube", "--speed", "fast", "--feature-reuse", 0.05, "--preset", "article-fast",
        "--quantize", "int8-weights", "--out", "c.png",
    )  # fmt: skip
    recipe = read_recipe(tmp_path / "c.png")
    assert (recipe.settings.feature_reuse, recipe.settings.sampler) == (0.05, "unipc")
    assert recipe.computing == Execution(quantized="int8-weights")


@pytest.mark.skipif(not int8_is_fast(), reason="the processor does not multiply eight bits")
def test_fast_is_in_eight_bits_where_that_is_faster(generate, tmp_path, monkeypatch):
    generate("a cube", "--speed", "fast", "--out", "narrow.png")
    assert read_recipe(tmp_path / "narrow.png").computing == Execution()
    monkeypatch.setattr("ssd1b.speed.backends.INT8_MIN_CHANNELS", 1)
    generate("a cube", "--speed", "fast", "--out", "wide.png")
    assert read_recipe(tmp_path / "wide.png").computing == Execution(quantized="int8")
    generate("a cube", "--speed", "balanced", "--out", "balanced.png")
    assert read_recipe(tmp_path / "balanced.png").computing == Execution()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--speed", "fastest"], ["unknown speed 'fastest'", "did you mean 'fast'", "balanced"]),
        (["--memory", "tiny"], ["unknown memory 'tiny'", "low"]),
        (["--memory", "low", "--compile"], ["low memory", "excludes compile"]),
        (["--quantize", "fp8", "--device", "cpu"], ["quantize fp8 needs"]),
        (["--backend", "onnx"], ["unknown backend 'onnx'", "openvino"]),
    ],
)
def test_wrong_ways_to_compute(run, tiny_model, arguments, words):
    done = run("generate", "a cube", "--model", tiny_model, *arguments)
    assert done.code == 2 and done.out == "" and len(done.err.splitlines()) == 1
    assert all(word in done.err for word in words), done.err


def test_words_are_drawn_in_the_prompts_of_the_second_pass(generate, tmp_path):
    (tmp_path / "words").mkdir()
    (tmp_path / "words" / "x.txt").write_text("red")
    found = generate(
        "a cube", "--negative", "__x__ a", "--hires-scale", "1.125", "--hires-prompt", "a __x__ <lora:y:1>",
        "--hires-negative", "{fog|fog}", "--wildcard-folder", "words", "--steps", "1", "--json",
    )  # fmt: skip
    settings = json.loads(found.out)["settings"]
    assert [settings[name] for name in ("negative_prompt", "hires_prompt", "hires_negative_prompt")] == [
        "red a", "a red <lora:y:1>", "fog"
    ]  # fmt: skip
    taken = "advice: taken literally: '<lora:y:1>' (a LoRA or another network: see --lora-folder)\n"
    assert found.err.count("taken literally") == 1 and taken in found.err


def test_one_number_is_the_side_of_a_square(generate, tmp_path, image_at):
    generate("a cube", "--size", "72", "--out", "cube.png")
    assert image_at(tmp_path / "cube.png").size == (72, 72)


@pytest.mark.parametrize(
    ("arguments", "negative"),
    [
        ([], None),
        (["--negative", ""], ""),
        (["--negative-preset", "adult-content"], NEGATIVE_PROMPTS["adult-content"]),
        (["--preset", "adult-content"], NEGATIVE_PROMPTS["adult-content"]),
        (["--preset", "adult-content", "--negative", "fog"], "fog"),
    ],
)
def test_negative_prompt(generate, tmp_path, arguments, negative):
    generate("a cube", *arguments, "--out", "cube.png")
    assert read_recipe(tmp_path / "cube.png").settings.negative_prompt == negative


def test_presets_come_before_the_model_and_after_options(generate, tmp_path):
    (tmp_path / "mine.toml").write_text('[settings]\nsteps = 4\nsampler = "Heun"\nguidance_scale = 2\n')
    generate("a cube", "--preset", "mine.toml", "--guidance", "3", "--out", "cube.png")
    settings = read_recipe(tmp_path / "cube.png").settings
    assert (settings.steps, settings.sampler, settings.guidance_scale) == (4, "heun", 3.0)


def test_what_nobody_chose_is_the_models(generate, tmp_path):
    generate("a cube", "--out", "cube.png")
    settings = read_recipe(tmp_path / "cube.png").settings
    assert (settings.steps, settings.width, settings.height) == (2, 64, 64)


@pytest.mark.parametrize("source", ["file", "stdin"])
def test_prompts_come_one_a_line(generate, tmp_path, source):
    text = "# solids\na cube\n\n  a cone with ünïcode \n".encode()
    (tmp_path / "prompts.txt").write_bytes(text)
    arguments = ["--file", "prompts.txt"] if source == "file" else ["--file", "-"]
    result = generate("a torus", *arguments, "--seed", 1, stdin=text)
    names = ["1-a-torus", "2-a-cube", "3-a-cone-with-unicode"]
    assert result.out.splitlines() == [f"pictures/{name}.png" for name in names]


@pytest.mark.parametrize(
    ("content", "words"),
    [(b"\n# none\n", "has 0 prompts"), (b"a \xff cube", "UTF-8"), (b"x" * (16 * 2**20 + 1), "too large")],
)
def test_files_without_prompts(run, content, words):
    result = run("generate", "--file", "-", stdin=content)
    assert result.code == 2
    assert result.err.startswith("error: the standard input ") and words in result.err


def test_json_is_a_line_for_each_picture_and_nothing_else(generate, tmp_path):
    result = generate("a cube", "--count", 2, "--seed", 3, "--json")
    lines = [json.loads(line) for line in result.out.splitlines()]
    assert [set(line) for line in lines] == [{"path", "seed", "settings", "seconds"}] * 2
    assert [line["seed"] for line in lines] == [3, 4]
    for line in lines:
        settings = read_recipe(tmp_path / line["path"]).settings
        assert line["settings"]["seed"] == settings.seed
        assert line["settings"]["guidance_interval"] == list(settings.guidance_interval)
        assert line["seconds"] > 0


def test_pictures_are_never_overwritten(generate, tmp_path):
    paths = [generate("a cube", "--seed", 1, "--out", "cube.png").out for _ in range(2)]
    assert paths == ["cube.png\n", "cube-2.png\n"]


def test_advice_is_called_advice(generate):
    lines = generate("a cube", "--size", "72", "--variation-seed", "7").err.splitlines()
    assert lines[0].startswith("advice: size 72x72: the model was trained on 64x64")
    assert lines[1] == "advice: variation_seed: no effect without variation_strength"
    assert len(lines) == 3  # and the time


def test_a_terminal_gets_a_progress_bar_that_spares_the_paths(generate, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.setenv("LINES", "24")
    out = generate("a cube", "--count", 2, "--seed", 1, "--steps", "3").out
    assert out == "pictures/1-a-cube.png\npictures/2-a-cube.png\n"
    frames = terminal.getvalue().split("\r")
    # How many frames there are depends on the machine's speed; the first one always is.
    assert any("/6 [" in frame and "<" in frame and "step/s" in frame for frame in frames)


def test_preview_shows_the_picture_while_it_is_drawn(generate, monkeypatch, tmp_path, image_at):
    seen = []
    finish = Pipeline.pictures

    def look(self, *arguments):
        seen.append(image_at(tmp_path / "out/ssd1b-preview.png").size)
        return finish(self, *arguments)

    monkeypatch.setattr(Pipeline, "pictures", look)
    generate("a cube", "--seed", 1, "--preview", "--out", "out")
    assert seen == [(64, 64)]
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["1-a-cube.png"]


def test_preview_costs_little(generate, monkeypatch):
    """A decoding that takes 9 seconds comes again after 81; in between, each step is sketched."""
    clock = [0.0]
    shown, sketched = [], []

    def slow(self, latents):
        clock[0] += 9.0
        shown.append(clock[0])
        return [Image.new("RGB", (64, 64))]

    def quick(self, latents):
        sketched.append(clock[0])
        return self.pixels

    draw = Pipeline.steps

    def second_by_second(self, batch):
        for step in draw(self, batch):
            clock[0] += 10.0
            yield step

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(Pipeline, "steps", second_by_second)
    monkeypatch.setattr(Pipeline, "preview", slow)
    monkeypatch.setattr(LinearDecoder, "forward", quick)
    generate("a cube", "--steps", "12", "--preview")
    assert shown == [19.0, 118.0, 147.0]  # the last is the finished picture
    assert sketched == [29.0, 39.0, 49.0, 59.0, 69.0, 79.0, 89.0, 99.0, 128.0, 138.0]


def test_no_picture_is_sketched_from_the_one_before(generate, monkeypatch):
    clock, sketched = [0.0], []

    def slow(self, latents):
        clock[0] += 9.0
        return [Image.new("RGB", (64, 64))]

    def quick(self, latents):
        sketched.append(latents)
        return self.pixels

    monkeypatch.setattr("time.perf_counter", lambda: clock[0])
    monkeypatch.setattr(Pipeline, "preview", slow)
    monkeypatch.setattr(LinearDecoder, "forward", quick)
    generate("a cube", "--steps", "3", "--count", "2", "--preview")
    assert len(sketched) == 2, "of the first picture, whose first step was decoded; no decoding was due later"


def test_a_prompt_longer_than_one_chunk_draws_without_a_word(generate):
    assert len(generate("a cube and " * 40).err.splitlines()) == 1


def test_a_preview_never_takes_the_users_file_away(generate, tmp_path, monkeypatch):
    """Neither at the beginning nor at the end, nor one that the user puts there meanwhile."""
    (tmp_path / "out").mkdir()
    mine = tmp_path / "out/ssd1b-preview.png"
    Image.new("RGB", (8, 8), "red").save(mine)
    before, seen = mine.read_bytes(), []
    drawn = Pipeline.steps

    def look(self, batch):
        for step in drawn(self, batch):
            yield step
            seen.append(sorted(path.name for path in (tmp_path / "out").iterdir()))
            (tmp_path / "out/ssd1b-preview-2.png").write_text("mine, too")

    monkeypatch.setattr(Pipeline, "steps", look)
    result = generate("a cube", "--seed", 1, "--preview", "--out", "out")
    assert "preview: out/ssd1b-preview-2.png" in result.err.splitlines()
    assert seen[0] == ["ssd1b-preview-2.png", "ssd1b-preview.png"]
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "1-a-cube.png", "ssd1b-preview-2.png", "ssd1b-preview.png"
    ]  # fmt: skip
    assert mine.read_bytes() == before
    assert (tmp_path / "out/ssd1b-preview-2.png").read_text() == "mine, too"


def test_a_preview_that_was_left_behind_is_taken_up(generate, tmp_path, monkeypatch):
    left = []
    finish = Pipeline.pictures

    def keep(self, *arguments):
        left.append((tmp_path / "out/ssd1b-preview.png").read_bytes())
        return finish(self, *arguments)

    monkeypatch.setattr(Pipeline, "pictures", keep)
    generate("a cube", "--seed", 1, "--preview", "--out", "out")
    (tmp_path / "out/ssd1b-preview.png").write_bytes(left[0])
    assert "preview: " not in generate("a cube", "--seed", 2, "--preview", "--out", "out").err
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["1-a-cube.png", "2-a-cube.png"]


def test_a_folder_with_the_previews_name_stays(generate, tmp_path):
    photos = tmp_path / "out/ssd1b-preview.png"
    photos.mkdir(parents=True)
    (photos / "one.jpg").touch()
    generate("a cube", "--seed", 1, "--preview", "--out", "out")
    assert [path.name for path in photos.iterdir()] == ["one.jpg"]


def test_a_finished_picture_whose_folder_is_gone_is_kept_elsewhere(run, tmp_path, tiny_model, monkeypatch):
    """The folder becomes a file after the first picture: the second one is kept, the third is not begun."""
    drawn, begun = Pipeline.steps, []
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", None)

    def spoil(self, batch):
        begun.append(batch[0].seed)
        yield from drawn(self, batch)
        if batch[0].seed == 8:
            (tmp_path / "out/7-a-cube.png").rename(tmp_path / "first.png")
            (tmp_path / "out").rmdir()
            (tmp_path / "out").touch()

    monkeypatch.setattr(Pipeline, "steps", spoil)
    result = run("generate", "a cube", "--seed", 7, "--count", 3, "--out", "out/", "--model", tiny_model)
    assert (result.code, result.out, begun) == (2, "out/7-a-cube.png\n", [7, 8])
    (kept,) = tmp_path.glob("ssd1b-*/8-a-cube.png")
    assert result.err == (
        f"error: cannot write out/: File exists; the image was saved as {kept}, and no other was begun\n"
    )
    assert read_recipe(kept).settings.seed == 8


def test_a_folder_that_is_removed_meanwhile_is_made_again(run, tmp_path, tiny_model, monkeypatch):
    drawn = Pipeline.steps

    def spoil(self, batch):
        yield from drawn(self, batch)
        if batch[0].seed == 8:
            (tmp_path / "out/7-a-cube.png").unlink()
            (tmp_path / "out").rmdir()

    monkeypatch.setattr(Pipeline, "steps", spoil)
    result = run("generate", "a cube", "--seed", 7, "--count", 2, "--out", "out", "--model", tiny_model)
    assert (result.code, result.out) == (0, "out/7-a-cube.png\nout/8-a-cube.png\n")


@pytest.mark.parametrize("place", [["--out", "one.jpg"], ["--out", "out", "--format", "jpeg"]])
def test_a_recipe_that_does_not_fit_is_refused_before_drawing(run, tmp_path, tiny_model, monkeypatch, place):
    monkeypatch.setattr(Pipeline, "steps", lambda *_: pytest.fail("drew"))
    long = ["--negative", "🦊" * 9_000]
    result = run("generate", "a cube", "b" * 9_000, *long, *place, "--model", tiny_model)
    assert result.code == 2
    assert result.err == "error: cannot write the image as jpeg: EXIF data is too long; use png\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["\x1b[31m.png", "a\nb.png", "\udcff.png"])
def test_a_program_gets_the_very_bytes_of_a_path(tiny_model, tmp_path, name):
    call = ["generate", "x", "--model", str(tiny_model), "--steps", "1", "--out", name]
    done = subprocess.run(
        [sys.executable, "-m", "ssd1b", *call], cwd=tmp_path, capture_output=True, check=True
    )
    assert os.path.exists(os.path.join(os.fsencode(tmp_path), done.stdout.removesuffix(b"\n")))
