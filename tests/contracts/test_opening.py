"""Files of others are opened in one place, ``ssd1b.files``, which does not wait for a named pipe."""

import ast
from pathlib import Path

import ssd1b

SOURCE = Path(ssd1b.__file__).parent

READERS = {
    "open", "read_text", "read_bytes", "safe_open", "load_file", "connect", "load_from_file", "from_file",
}  # fmt: skip

ALLOWED = {
    "files.py": "the one place",
    "saving.py": "marks and empty files, which are checked or new",
    "weights/files.py": "safetensors opens by name, after check_regular",
    "decoding.py": "what was read already",
    "images.py": "what was read already, and a new file",
    "training/data/pictures.py": "what was read already",
    "training/data/shards.py": "tarfile, on what files opened",
    "tabletop/world/degradations.py": "what is in memory",
    "actions/rerun.py": "Pillow, on what files opened",
    "cli/display.py": "Pillow, on what files opened",
    "lab/report.py": "Pillow, on what files opened; the package's own pages",
    "lab/export.py": "Pillow, on what files opened; a new file",
    "jobs/schema.py": "SQLite opens by name, after kind_of",
    "jobs/store.py": "Pillow, after is_file",
    "jobs/queue.py": "SQLite opens by name, after kind_of",
    "server/routes/openai.py": "Pillow, on what is in memory",
    "server/routes/sdapi.py": "Pillow, on what is in memory",
    "server/routes/pictures.py": "the store's own images, by their keys",
    "server/routes/waiting.py": "the store's own images, by their keys",
    "server/routes/settings.py": "the package's own data",
    "server/routes/page.py": "the package's own data",
    "weights/hub.py": "a reference in the hub's cache, after is_file",
    "weights/download.py": "what was just downloaded, and a reference after is_file",
    "weights/vocabulary.py": "the package's own data",
    "training/checkpoints.py": "a run's own checkpoints",
    "training/logs.py": "a run's own log",
    "training/data/cache.py": "a cache's own entries",
    "tabletop/miniature/cache.py": "a cache's own shards",
    "bulk/rows.py": "URLs of fsspec, and local files after open_regular",
    "bulk/shards.py": "the store's own images, by their keys, and tars and manifests that were written here",
    "cli/app.py": "the null device",
    "cli/process.py": "the null device",
    "bench/contract.py": "safetensors, on files that the checkpoint's reader opened before",
    "bench/one_picture.py": "what Linux says of the process",
    "bench/machine.py": "Linux's description of the processor",
}
"""Modules that open something, with the reason; a new one has to use ``ssd1b.files`` or stand here."""


def openers(text: str) -> list[str]:
    """The calls in a module that open a file."""
    calls = [node.func for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)]
    names = [each.attr if isinstance(each, ast.Attribute) else getattr(each, "id", "") for each in calls]
    return [name for name in names if name in READERS]


def test_files_are_opened_in_one_place():
    found = {
        path.relative_to(SOURCE).as_posix()
        for path in SOURCE.rglob("*.py")
        if openers(path.read_text(encoding="utf-8"))
    }
    assert found - ALLOWED.keys() == set()


def test_the_search_finds_every_way_of_opening():
    for text in ("open(path)", "path.open('rb')", "Image.open(path)", "path.read_text()", "safe_open(path)"):
        assert openers(text), text
    assert not openers("open_regular(path)\nread_file(path, most=3)")
