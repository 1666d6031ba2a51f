"""Time and memory to load a model, compared with diffusers' ``from_pretrained``.

    python benchmarks/loading.py --layout ssd-1b

makes a folder of that layout at full size with random weights (loading does not depend on their values), and
loads it with this package and diffusers in turn, tokenizers included, each time in a fresh process and from a
warm page cache. It prints medians with ranges, and one line of JSON.

``load`` is the call alone. ``ready`` includes touching every weight once, because a mapped file is read on
use. ``process`` includes imports.
"""

import argparse
import json
import platform
import re
import statistics
import subprocess
import sys
import tempfile
import time
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

LAYOUTS = ("mini", "ssd-1b", "sdxl", "vega")
LOADERS = ("ssd1b", "diffusers")
NAMES = ("load_seconds", "load_cpu_seconds", "ready_seconds", "process_seconds", "peak_mb", "weights_mb")
MEGABYTE = 1e6


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--layout", choices=LAYOUTS, default="mini")
    parser.add_argument("--model", type=Path, help="a folder to load instead of a generated one")
    parser.add_argument("--file-dtype", default="float16", help="number format of the generated folder")
    parser.add_argument("--dtype", default="float16", help="number format to load into")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--worker", choices=("make", *LOADERS), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker == "make":
        make_folder(options.model, options.layout, options.file_dtype)
    elif options.worker:
        print(json.dumps(measure(options.worker, options.model, options.dtype)))
    else:
        with tempfile.TemporaryDirectory(prefix="ssd1b-loading-") as temporary:
            report(compare(options, Path(temporary)), options)


def compare(options: argparse.Namespace, temporary: Path) -> dict[str, list[dict[str, float]]]:
    model = options.model or temporary / "model"
    if not options.model:
        run_worker("make", model, "--layout", options.layout, "--file-dtype", options.file_dtype)
    results: dict[str, list[dict[str, float]]] = {loader: [] for loader in LOADERS}
    for turn in range(options.rounds + 1):
        for loader in LOADERS:
            start = time.perf_counter()
            output = run_worker(loader, model, "--dtype", options.dtype)
            result = {**json.loads(output.splitlines()[-1]), "process_seconds": time.perf_counter() - start}
            if turn:  # the first turn fills the page cache
                results[loader].append(result)
    return results


def run_worker(worker: str, model: Path, *options: str) -> str:
    command = [sys.executable, __file__, "--worker", worker, "--model", str(model), *options]
    return subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout


def make_folder(path: Path, layout: str, dtype: str) -> None:
    import torch

    from ssd1b.layouts import CLIP_BIGG, CLIP_L, MINI_SDXL, UNETS, ModelLayout
    from ssd1b.model import NETWORKS, empty_network
    from ssd1b.weights.checkpoint import ModelInfo
    from ssd1b.weights.writing import save_folder

    if layout == "mini":
        model = MINI_SDXL
    else:
        model = ModelLayout(name=layout, unet=UNETS[layout], text_encoder=CLIP_L, text_encoder_2=CLIP_BIGG)
    noise = torch.randn(2**20, generator=torch.Generator().manual_seed(0)).mul(0.02).to(getattr(torch, dtype))

    def random(shape: torch.Size) -> torch.Tensor:
        count = shape.numel()
        return noise.repeat(-(-count // len(noise)))[:count].reshape(shape)

    networks = {part: empty_network(part, getattr(model, part)) for part in NETWORKS}
    weights = {part: {n: random(t.shape) for n, t in m.state_dict().items()} for part, m in networks.items()}
    save_folder(path, ModelInfo(layout=model), weights)


def measure(loader: str, path: Path, dtype_name: str) -> dict[str, float]:
    """Time loading alone; imports count only towards the time of the process."""
    import torch

    dtype = getattr(torch, dtype_name)
    load = {"ssd1b": prepare_ssd1b, "diffusers": prepare_diffusers}[loader]()
    before = resident("VmRSS")
    start, start_cpu = time.perf_counter(), time.process_time()
    networks = load(path, dtype)
    seconds, cpu_seconds = time.perf_counter() - start, time.process_time() - start_cpu
    parameters = [parameter for network in networks for parameter in network.parameters()]
    weights = sum(parameter.nbytes for parameter in parameters)
    for parameter in parameters:  # touch every weight, because mapped files are read on use
        parameter.detach().flatten()[::1024].sum().item()
    ready_seconds = time.perf_counter() - start
    return {
        "load_seconds": seconds,
        "ready_seconds": ready_seconds,
        "load_cpu_seconds": cpu_seconds,
        "peak_mb": (resident("VmHWM") - before) / MEGABYTE,
        "weights_mb": weights / MEGABYTE,
    }


def prepare_ssd1b():
    from ssd1b.model import NETWORKS, Model

    def load(path: Path, dtype: "torch.dtype") -> list[Any]:
        model = Model(name=str(path), path=path, half=dtype.itemsize == 2)
        networks = [model.network(part, dtype=dtype) for part in NETWORKS]
        _ = model.tokenizers  # read on first use
        return networks

    return load


def prepare_diffusers():
    for name in ("modeling_clip", "tokenization_clip"):  # what diffusers imports only when it loads a model
        import_module(f"transformers.models.clip.{name}")
    from diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl import StableDiffusionXLPipeline

    def load(path: Path, dtype: "torch.dtype") -> list[Any]:
        pipeline = StableDiffusionXLPipeline.from_pretrained(path, torch_dtype=dtype, local_files_only=True)
        return [pipeline.unet, pipeline.vae, pipeline.text_encoder, pipeline.text_encoder_2]

    return load


def resident(kind: str) -> int:
    """Read the resident memory in bytes: current (VmRSS) or peak (VmHWM)."""
    found = re.search(rf"{kind}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found, "needs Linux's /proc"
    return int(found[1]) * 1024


def report(results: dict[str, list[dict[str, float]]], options: argparse.Namespace) -> None:
    columns = {
        loader: {name: [run[name] for run in runs] for name in NAMES} for loader, runs in results.items()
    }
    medians = {
        loader: {name: statistics.median(values) for name, values in named.items()}
        for loader, named in columns.items()
    }
    ratios = {name: medians["ssd1b"][name] / medians["diffusers"][name] for name in NAMES}
    print(f"{'':10}" + "".join(f"{name:>26}" for name in NAMES))
    for loader, named in columns.items():
        cells = (f"{statistics.median(v):.2f} ({min(v):.2f}-{max(v):.2f})" for v in named.values())
        print(f"{loader:10}" + "".join(f"{cell:>26}" for cell in cells))
    print(f"{'ratio':10}" + "".join(f"{ratio:>26.2f}" for ratio in ratios.values()))

    import diffusers
    import torch
    import transformers

    line = {
        "benchmark": "loading",
        "layout": str(options.model or options.layout),
        "file_dtype": None if options.model else options.file_dtype,
        "dtype": options.dtype,
        "ratio": ratios,
        "runs": columns,
        "versions": {module.__name__: module.__version__ for module in (torch, diffusers, transformers)},
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    print(json.dumps(line))


if __name__ == "__main__":
    main()
