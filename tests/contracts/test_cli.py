"""The command line's promises: its words stay, its help is instant, its mistakes are found before torch."""

import resource
import subprocess
import sys
import time

import click
import pytest

from ssd1b.cli import main
from ssd1b.cli.app import COMMANDS, cli
from ssd1b.cli.command import TEXT, Command
from ssd1b.server.options import OPTIONS as SERVER_OPTIONS

HEAVY = {"torch", "numpy", "PIL", "transformers", "safetensors", "huggingface_hub"}

SETTINGS = {
    "--negative", "--negative-prompt", "--negative-preset", "--guidance", "--guidance-scale",
    "--guidance-rescale", "--guidance-interval", "--feature-reuse", "--steps", "--sampler", "--schedule",
    "--seed", "--size", "--preset", "--from", "--init-image", "--mask", "--strength", "--denoising-strength",
    "--strength-steps", "--resize-mode", "--lora", "--mask-change", "--mask-blur", "--mask-content",
    "--mask-area", "--mask-padding", "--outpaint", "--outpaint-fill", "--variation-seed", "--subseed",
    "--variation-strength", "--subseed-strength", "--hires-scale", "--hr-scale", "--hires-size",
    "--hires-strength", "--hires-upscaler", "--hr-upscaler", "--hires-steps", "--hires-sampler",
    "--hires-schedule", "--hires-guidance", "--hires-prompt", "--hires-negative", "--timesteps", "--gamma",
    "--seed-resize-from", "--control", "--ip-adapter", "--embedding", "--prompt-editing",
}  # fmt: skip
MODEL = {
    "--model", "--device", "--dtype", "--threads", "--offline", "--prediction", "--vae", "--unet",
    "--text-encoder", "--text-encoder-2",
}  # fmt: skip
CLUSTER = {"--ray", "--ray-actors", "--ray-gpus", "--ray-cpus"}
COMPUTING = {"--compile", "--quantize", "--memory", "--backend"}
ADAPTER = {"--out", "--dialect", "--dtype", "--overwrite", "--dry-run", "--json"}
CUT = {"--rank", "--energy", "--sv-fro", "--sv-cumulative", "--sv-ratio"}

OPTIONS = {
    "generate": {
        "--file", "--count", "--out", "--format", "--preview", "--json", "--lora-folder",
        "--embedding-folder", "--style", "--styles", "--dynamic-prompts", "--wildcard-folder",
        "--speed", *SETTINGS, *MODEL, *COMPUTING
    },
    "evaluate": {"--captions", "--seeds", "--data", "--versus", "--judge", "--out", "--overwrite", "--json",
                 "--speed", *SETTINGS, *MODEL, *CLUSTER, *COMPUTING},
    "sweep": {
        "--file", "--axis", "--axes", "--seeds", "--out", "--retry", "--dry-run", *SETTINGS, *MODEL, *CLUSTER
    },
    "bulk": {
        "--out", "--as", "--shard", "--part", "--format", "--keep", "--work", "--retry", "--dry-run",
        *SETTINGS, *MODEL, *CLUSTER,
    },
    "report": {"--sweep", "--metric", "--out", "--overwrite", "--verify", "--list"},
    "tune": {
        "--file", "--axis", "--metric", "--guard", "--budget", "--trials", "--minutes", "--pairs", "--fresh",
        "--out", "--overwrite", *SETTINGS, *MODEL, *CLUSTER,
    },
    "guide": {
        "--file", "--pairs", "--only", "--out", "--overwrite", *SETTINGS - {"--preset"}, *MODEL, *CLUSTER
    },
    "presets": {"--keep", "--name", "--finetune", "--json"},
    "finetune": {
        "--data", "--preset", "--method", "--file", "--out", "--cache", "--kind", "--rank", "--alpha",
        "--rslora", "--targets", "--block", "--text-encoders", "--text-rate", "--int8-base", "--token",
        "--vectors", "--init-word", "--template", "--steps", "--epochs", "--batch-size", "--learning-rate",
        "--optimizer", "--gradient-checkpointing", "--seed", "--size", "--flip", "--trigger",
        "--caption-dropout", "--caption-lines", "--shuffle-captions", "--keep-tokens", "--tag-dropout",
        "--masks", "--unmasked-weight", "--controls", "--init-control", "--sample-control", "--weighting",
        "--min-snr", "--noise-offset", "--zero-terminal-snr",
        "--prior", "--prior-prompt", "--prior-weight", "--validation", "--validation-steps", "--sample",
        "--names", "--no-metadata", "--dry-run", "--resume", "--overwrite", "--model", "--device",
        "--offline", "--prediction",
    },
    "distill": {
        "--teacher", "--student", "--data", "--stages", "--out", "--cache", "--steps", "--batch-size",
        "--steps-method", "--inference-steps", "--rank", "--seed", "--dry-run", "--resume", "--overwrite",
        "--device", "--offline", "--prediction", *CLUSTER,
    },
    "bench": {
        "--layout", "--part", "--latent", "--batch", "--steps", "--peers", "--rounds", "--device", "--dtype",
        "--json", "--out", "--overwrite",
    },
    "selftest": {"--steps", "--size", "--device", "--dtype", "--minutes", "--offline", "--json"},
    "serve": {f"--{name.replace('_', '-')}" for name in SERVER_OPTIONS} | {"--config", "--open"},
    "rerun": {"--out", "--trust-recipe", "--inputs", *MODEL, *COMPUTING},
    "upscale": {"--model", "--scale", "--tile", "--out", "--format", "--device", "--json"},
    "inspect": {"--json", "--model"},
    "lora convert": {"--to", "--transfer", "--teacher", "--partial", "--model", *ADAPTER},
    "lora merge": {"--model", *ADAPTER, *CUT},
    "lora resize": {"--model", *ADAPTER, *CUT},
    "lora extract": {"--unet-only", "--small", *ADAPTER, *CUT},
    "lora bake": {"--lora", "--out", "--dtype", "--overwrite", "--dry-run"},
    "lora inspect": {"--json", "--model"},
    "models": {"--json"},
    "env": {"--json"},
    "tabletop render": {"--count", "--seed", "--split", "--subject", "--world", "--out", "--overwrite"},
    "tabletop show": {"--count", "--seed", "--split", "--world", "--model", "--out", "--overwrite"},
    "tabletop examine": {"--count", "--through", "--judge", "--out", "--overwrite"},
    "tabletop train": {
        "--out", "--from", "--steps", "--batch-size", "--seed", "--world", "--resume", "--device"
    },
}  # fmt: skip
"""Scripts depend on these: none may go without a deprecation."""

MAX_SECONDS = 0.3

CONTEXT = click.Context(cli)


def in_process(*arguments: str) -> tuple[str, set[str], float]:
    """Call ``ssd1b`` in a fresh process: what it printed, which heavy modules it imported, its time.

    The time is the processor's, which does not depend on what else the machine does.
    """
    code = (
        "import sys; from ssd1b.cli import main; main(sys.argv[1:]); "
        f"print(*({HEAVY!r} & sys.modules.keys()))"
    )
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    *printed, modules = done.stdout.splitlines()
    seconds = (after.ru_utime - before.ru_utime) + (after.ru_stime - before.ru_stime)
    return "\n".join([*printed, done.stderr]), set(modules.split()), seconds


@pytest.mark.parametrize("command", ["", "tabletop", "lora", *OPTIONS])
def test_help_is_instant_and_complete(command):
    text, heavy, seconds = in_process(*command.split(), "--help")
    assert heavy == set()
    # A busy machine adds to the processor's time: the least of a few counts.
    for _ in range(8):
        if seconds >= MAX_SECONDS:
            time.sleep(0.5)
            seconds = min(seconds, in_process(*command.split(), "--help")[2])
    assert seconds < MAX_SECONDS
    assert text.startswith(f"Usage: ssd1b {command}".rstrip())
    assert all(f" {option}" in text for option in OPTIONS.get(command, ()))


@pytest.mark.parametrize("command", OPTIONS)
def test_options_are_these(command):
    found = cli
    for name in command.split():
        found = found.get_command(CONTEXT, name)
    options = {option for parameter in found.params for option in parameter.opts if option.startswith("--")}
    assert options == OPTIONS[command]


@pytest.mark.parametrize("command", OPTIONS)
def test_no_option_takes_numbers_in_other_digits_or_empty_names(command):
    found = cli
    for name in command.split():
        found = found.get_command(CONTEXT, name)
    assert isinstance(found, Command)
    assert not [each.name for each in found.params if each.type in (click.INT, click.FLOAT, click.STRING)]
    # The last two have checks of their own.
    negatives = {"negative_prompt", "hires_negative_prompt"}
    allowed = {"prompts", "hires_prompt", "axes", "outpaint", "timesteps"} | negatives
    assert {each.name for each in found.params if each.type is TEXT} <= allowed


GROUPS = [name for name in COMMANDS if isinstance(cli.get_command(CONTEXT, name), click.Group)]


@pytest.mark.parametrize("name", GROUPS)
def test_a_group_without_a_command_prints_its_help(name, capsys):
    """On standard error with exit code 2, as uv does; ssd1b itself answers with its help."""
    assert main([name]) == 2
    captured = capsys.readouterr()
    assert main([name, "--help"]) == 0
    assert (captured.out, captured.err) == ("", capsys.readouterr().out)


def test_every_command_bears_its_name():
    assert [cli.get_command(CONTEXT, name).name for name in COMMANDS] == list(COMMANDS)


@pytest.mark.parametrize(
    "arguments",
    [
        ["generate", "a cube", "--sampler", "eulr"],
        ["generate", "a cube", "--guidance", "nan"],
        ["generate", "a (cube:1000)"],
        ["generate", "a cube", "--preset", "nothing"],
        ["generate"],
    ],
)
def test_wrong_settings_are_found_without_torch(arguments):
    text, heavy, _ = in_process(*arguments)
    assert text.startswith("error: ")
    assert heavy == set()


def test_version():
    from importlib.metadata import version

    done = subprocess.run([sys.executable, "-m", "ssd1b", "--version"], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"ssd1b {version('ssd1b')}\n")
