"""Pictures and data from strangers: metadata of pictures, metadata.jsonl, tars."""

import io
import json
import tarfile
from contextlib import suppress
from pathlib import Path

from hypothesis import strategies as st
from PIL import Image
from PIL.ExifTags import IFD, Base
from PIL.PngImagePlugin import PngInfo

from fuzzing import as_json, damaged_json, fuzz, mutated_bytes, worded
from ssd1b.images import decode_recipe, open_picture
from ssd1b.recipe import Parameters
from ssd1b.training.data.examples import Columns, Unusable
from ssd1b.training.data.sources import open_source

SECRET = b"\x89PNG a file outside of the data folder"
PARAMETERS = "a cat\nNegative prompt: bad\nSteps: 20, Sampler: Euler a, CFG scale: 7, Seed: 5, Size: 512x512"
GRAPH = {
    "3": {"class_type": "KSampler", "inputs": {
        "seed": 5, "steps": 20, "cfg": 7.0, "sampler_name": "euler", "scheduler": "karras", "denoise": 1.0,
        "model": ["4", 0], "positive": ["6", 0], "negative": ["7", 0], "latent_image": ["5", 0]}},
    "4": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "sdxl.safetensors"}},
    "5": {"class_type": "EmptyLatentImage", "inputs": {"width": 512, "height": 512, "batch_size": 1}},
    "6": {"class_type": "CLIPTextEncode", "inputs": {"text": "a cat", "clip": ["4", 1]}},
    "7": {"class_type": "CLIPTextEncode", "inputs": {"text": "bad", "clip": ["4", 1]}},
}  # fmt: skip
SWARM = {
    "sui_image_params": {
        "prompt": "a cat",
        "steps": 20,
        "cfgscale": 7.0,
        "seed": 5,
        "width": 512,
        "height": 512,
    }
}
INVOKE = {
    "positive_prompt": "a cat",
    "steps": 20,
    "cfg_scale": 7.0,
    "seed": 5,
    "scheduler": "euler",
    "width": 512,
}
FOOOCUS = {
    "prompt": "a cat",
    "steps": 30,
    "resolution": "(512, 512)",
    "sampler": "dpmpp_2m_sde_gpu",
    "seed": "5",
}
NOVELAI = {"prompt": "a cat", "steps": 28, "height": 832, "width": 512, "scale": 5.0, "seed": 5, "uc": "bad"}
KEYS = (
    "parameters", "prompt", "workflow", "invokeai_metadata", "Comment", "Description", "Software", "ssd1b",
    "dream", "fooocus_scheme", "sd-metadata", "XML:com.adobe.xmp",
)  # fmt: skip

json_texts = st.sampled_from((GRAPH, SWARM, INVOKE, FOOOCUS, NOVELAI)).flatmap(damaged_json).map(bytes.decode)
texts = json_texts | worded((PARAMETERS, "\n", "Steps: 20, ", "Seed: ", "{", "[" * 2000, "\0", "9" * 5000))


def saved(format: str, **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGBA" if format == "PNG" else "RGB", (8, 8)).save(file, format, **options)
    return file.getvalue()


def png(chunks: dict[str, str]) -> bytes:
    info = PngInfo()
    for key, text in chunks.items():
        info.add_itxt(key, text.encode("utf-8", "replace").decode(), zip=len(text) % 2 == 0)
    return saved("PNG", pnginfo=info)


def exif(comment: bytes, *, whole: bool = True) -> Image.Exif:
    found = Image.Exif()
    fields = found.get_ifd(IFD.Exif) if whole else found
    fields[Base.UserComment] = comment[:60_000]
    return found


def test_metadata_of_pictures(fuzz_seconds: float) -> None:
    codes = st.sampled_from((b"", b"UNICODE\0", b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b"\0" * 8))
    encodings = st.sampled_from(("utf-16-be", "utf-16-le", "utf-16", "utf-8"))
    comments = st.builds(
        lambda code, encoding, text: code + text.encode(encoding, "replace"), codes, encodings, texts
    ) | st.binary(max_size=200)  # fmt: skip
    formats = st.sampled_from(("JPEG", "WEBP"))
    made = st.builds(
        lambda format, comment, whole: saved(format, exif=exif(comment, whole=whole)),
        formats, comments, st.booleans(),
    )  # fmt: skip
    chunks = st.dictionaries(st.sampled_from(KEYS), texts, min_size=1, max_size=3).map(png)
    comment = exif(b"UNICODE\0" + PARAMETERS.encode("utf-16-be"))
    seeds = [
        png({"parameters": PARAMETERS}),
        png({"prompt": json.dumps(GRAPH)}),
        *(saved(format, exif=each) for format in ("JPEG", "WEBP") for each in (comment, Image.Exif())),
    ]

    def read(data: bytes) -> None:
        recipe = decode_recipe(data)
        if isinstance(recipe, Parameters):
            recipe.settings()

    fuzz(read, chunks | made | mutated_bytes(seeds), seconds=fuzz_seconds)


def test_pictures(tmp_path: Path, fuzz_seconds: float) -> None:
    path = tmp_path / "picture.png"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        open_picture(path).load()

    fuzz(read, mutated_bytes([saved(format) for format in ("PNG", "JPEG", "WEBP")]), seconds=fuzz_seconds)


def consume(path: Path, cache: Path) -> None:
    """Read everything that a source lists; an example that cannot be used is counted and left out."""
    for example in open_source(path, Columns(), cache=cache):
        with suppress(Unusable):
            assert SECRET not in example.picture(), "a file outside of the folder was read"
        with suppress(Unusable):
            example.captions()


def test_metadata_jsonl(tmp_path: Path, fuzz_seconds: float) -> None:
    folder = tmp_path / "data"
    folder.mkdir()
    (tmp_path / "secret.png").write_bytes(SECRET)
    (folder / "link.png").symlink_to(tmp_path / "secret.png")
    (folder / "a.png").write_bytes(saved("PNG"))
    rows = [
        {"file_name": "a.png", "text": "a cat", "caption": ["a", "b"]},
        {"file_name": "../secret.png", "text": "x"},
        {"file_name": str(tmp_path / "secret.png"), "text": "x"},
        {"file_name": "link.png", "text": "x"},
    ]
    lines = st.lists(st.sampled_from(rows).flatmap(damaged_json), min_size=1, max_size=4)
    whole = b"\n".join(as_json(row) for row in rows[:1])

    def read(data: bytes) -> None:
        (folder / "metadata.jsonl").write_bytes(data)
        consume(folder, tmp_path / "cache")

    fuzz(read, lines.map(b"\n".join) | mutated_bytes([whole]), seconds=fuzz_seconds)


def tar(names: list[str], kind: bytes = tarfile.REGTYPE, format: int = tarfile.PAX_FORMAT) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=format) as archive:
        for name in names:
            content = saved("PNG") if name.endswith(".png") else b'{"text": "a cat"}'
            member = tarfile.TarInfo(name)
            member.type, member.size, member.linkname = kind, len(content), "../secret.png"
            with suppress(ValueError):
                archive.addfile(member, io.BytesIO(content) if kind == tarfile.REGTYPE else None)
    return file.getvalue()


def test_tars(tmp_path: Path, fuzz_seconds: float) -> None:
    (tmp_path / "secret.png").write_bytes(SECRET)
    names = ["a.png", "a.json", "b.png", "b.txt", "../c.png", "/d.png", "x" * 300 + ".png"]
    seeds = [
        tar(names, format=each) for each in (tarfile.PAX_FORMAT, tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT)
    ]
    seeds += [
        tar(names, kind) for kind in (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE)
    ]
    path = tmp_path / "shard.tar"

    def read(data: bytes) -> None:
        path.write_bytes(data)
        consume(path, tmp_path / "cache")

    fuzz(read, mutated_bytes(seeds), seconds=fuzz_seconds)
