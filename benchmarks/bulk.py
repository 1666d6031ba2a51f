"""``ssd1b bulk`` into an object store, killed again and again: nothing is missing and nothing is there twice.

    python benchmarks/bulk.py docs/log/bulk                        # 5,000 images, killed five times
    python benchmarks/bulk.py /tmp/bulk --images 200 --kills 2

Needs moto, s3fs and webdataset beside the development tools: ``pip install 'moto[server]' s3fs webdataset``.
Writes ``bulk.json``. The object store is moto's server on the loopback.
"""

import argparse
import hashlib
import io
import json
import logging
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from importlib import import_module
from pathlib import Path
from typing import Any

import fsspec
from PIL import Image
from pyarrow.parquet import read_table

STEPS = 4
SHARD = 250
OUT = "s3://bulk/images"
PROMPTS = [
    f"a {size} {color} {material} {shape} on a {other} background"
    for size in ("large", "small") for color in ("red", "green", "blue", "yellow")
    for material in ("metal", "rubber") for shape in ("sphere", "cube", "cone") for other in ("blue", "white")
]  # fmt: skip


def generate(rows: Path, work: Path, kills: int) -> tuple[int, float]:
    """Run the command until it ends by itself; return how often it was killed, and the seconds."""
    command = [sys.executable, "-m", "ssd1b", "bulk", str(rows), "--out", OUT, "--work", str(work), "--steps",
               str(STEPS), "--shard", str(SHARD), "--device", "cpu", "--offline"]  # fmt: skip
    begin, killed = time.monotonic(), 0
    moments = random.Random(0)
    while True:
        process = subprocess.Popen(command)
        try:
            # Somewhere in the first shards of each start.
            process.wait(moments.uniform(20, 90) if killed < kills else None)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            killed += 1
            process.wait()
            continue
        if process.returncode:
            raise SystemExit(process.returncode)
        return killed, time.monotonic() - begin


def check(images: int) -> dict[str, Any]:
    """Read everything back, by the manifest and as WebDataset does."""
    store: Any = fsspec.filesystem("s3")
    entries: list[dict[str, Any]] = []
    for name in store.ls("bulk/images/manifest"):
        with store.open(name, "rb") as file:
            entries += read_table(file).to_pylist()
    shards = {name: store.cat_file(f"bulk/images/{name}") for name in {each["file"] for each in entries}}
    wrong = 0
    for each in entries:
        data = shards[each["file"]][each["offset"] : each["offset"] + each["size"]]
        wrong += hashlib.sha256(data).hexdigest() != each["sha256"]
        Image.open(io.BytesIO(data)).verify()
    with tempfile.TemporaryDirectory() as folder:
        for name, data in shards.items():
            Path(folder, Path(name).name).write_bytes(data)
        urls = sorted(str(path) for path in Path(folder).iterdir())
        webdataset: Any = import_module("webdataset")  # which is not a development tool
        read = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("png", "txt")
        sizes = Counter(image.size for image, _ in read)
        command = (
            "distill --teacher mini-sdxl --student mini-ssd-1b --steps 3 --batch-size 4 --offline".split()
        )
        command += ["--data", folder, "--out", f"{folder}/run"]
        subprocess.run([sys.executable, "-m", "ssd1b", *command], check=True)
        distilled = Path(folder, "run/model").is_dir()
    return {
        "rows": images, "entries": len(entries), "different_rows": len({each["row"] for each in entries}),
        "states": Counter(each["state"] for each in entries), "wrong_hashes": wrong,
        "objects": len(store.find("bulk")), "shards": len(shards),
        "read_by_webdataset": {str(size): count for size, count in sizes.items()}, "distilled": distilled,
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--kills", type=int, default=5)
    given = parser.parse_args()
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # a line for each request
    server: Any = import_module("moto.server").ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    _, port = server.get_host_and_port()
    os.environ |= {
        "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}", "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x",
    }  # fmt: skip
    fsspec.filesystem("s3").mkdir("bulk")
    try:
        with tempfile.TemporaryDirectory() as folder:
            rows = Path(folder, "rows.txt")
            rows.write_text("".join(f"{PROMPTS[n % len(PROMPTS)]}\n" for n in range(given.images)))
            killed, seconds = generate(rows, Path(folder, "work"), given.kills)
            found = {"killed": killed, "seconds": seconds, **check(given.images)}
    finally:
        server.stop()
    given.out.mkdir(parents=True, exist_ok=True)
    (given.out / "bulk.json").write_text(json.dumps(found, indent=1))
    print(json.dumps(found))


if __name__ == "__main__":
    main()
