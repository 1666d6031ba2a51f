"""Texts in images: PNG chunks, EXIF, XMP, and the lowest bits of the pixels.

Texts in other formats get the key they would have in PNG: AUTOMATIC1111's text in EXIF's UserComment is
``parameters``, our JSON in MakerNote is ``ssd1b``.
"""

import zlib

import numpy as np
from PIL import Image
from PIL.ExifTags import IFD, Base

from ssd1b.errors import InputError
from ssd1b.foreign import PARAMETERS, XMP

JSON_MARK = b"ssd1b\0"
"""Precedes our JSON in MakerNote."""

UTF16_MARK = b"UNICODE\0"
"""Precedes a UserComment in UTF-16, by EXIF's standard; some programs write UTF-8 after it."""

_CODES = (UTF16_MARK, b"ASCII\0\0\0", b"JIS\0\0\0\0\0", b"\0" * 8)
"""The eight bytes that name a UserComment's encoding; zeros mean unspecified. Some programs omit them."""

_COMFYUI = {"prompt:": "prompt", "workflow:": "workflow"}
"""Keys in PNG by the prefixes that ComfyUI writes to EXIF fields in WebP."""


def read_texts(image: Image.Image) -> dict[str, str]:
    """Read all texts of an image by their PNG keys; some texts of a PNG are available only after loading.

    Raises:
        InputError: the encoding of EXIF's UserComment cannot be determined.
    """
    found: dict[str, str] = {
        str(key): str(value) for key, value in image.info.items() if isinstance(value, str)
    }
    xmp = image.info.get("xmp")
    if isinstance(xmp, bytes):
        found.setdefault(XMP, xmp.decode("utf-8", "replace"))
    if image.format == "PNG" and "exif" not in image.info:  # Pillow would decode the pixels to look for it
        return found
    return _in_exif(image) | found


def _in_exif(image: Image.Image) -> dict[str, str]:
    exif = image.getexif()
    fields = exif.get_ifd(IFD.Exif)
    found: dict[str, str] = {}
    note = fields.get(Base.MakerNote)
    if isinstance(note, bytes) and note.startswith(JSON_MARK):
        found["ssd1b"] = note[len(JSON_MARK) :].decode("utf-8", "replace")
    comment = fields.get(Base.UserComment) or exif.get(Base.UserComment)
    if isinstance(comment, bytes):
        comment = decode_comment(comment)
    if isinstance(comment, str) and comment.strip():
        found[PARAMETERS] = comment
    for field in (Base.Make, Base.Model, Base.ImageDescription):
        text = exif.get(field)
        for prefix, key in _COMFYUI.items():
            if isinstance(text, str) and text.lower().startswith(prefix):
                found[key] = text[len(prefix) :]
    return found


def decode_comment(comment: bytes) -> str:
    """Decode EXIF's UserComment: the text, usually after eight bytes that name its encoding.

    The encoding is guessed from the text, because programs disagree on what UNICODE means and on byte order.
    The text is mostly ASCII, so in UTF-16 every other byte is zero.

    Raises:
        InputError: the encoding cannot be determined.
    """
    code = next((code for code in _CODES if comment.startswith(code)), b"")
    data = comment[len(code) :]
    if code.startswith(b"JIS"):
        encodings = ["iso2022_jp", "shift_jis"]
    elif data.startswith((b"\xff\xfe", b"\xfe\xff")):
        encodings = ["utf-16"]
    else:
        data = data.rstrip(b"\0") if data.count(0) * 3 < len(data) else data[: len(data) // 2 * 2]
        order = "le" if data[1::2].count(0) > data[::2].count(0) else "be"
        encodings = [f"utf-16-{order}"] if b"\0" in data else ["utf-8"]
        encodings += ["utf-16-be"] if code == UTF16_MARK else []
    for encoding in encodings:
        try:
            return data.decode(encoding).removeprefix("\ufeff").rstrip("\0")
        except UnicodeDecodeError:
            continue
    raise InputError("EXIF's UserComment is damaged or in an unknown encoding")


# Text in the pixels, as A1111's "stealth pnginfo" and NovelAI write it: a signature of 15 letters, the text's
# length in bits as 32 bits, and the text, gzipped if the signature ends in "comp"; one bit per pixel in the
# alpha channel, or three in red, green and blue. Pixels are ordered by column.

_SIGNATURES = {
    b"stealth_pnginfo": False,
    b"stealth_pngcomp": True,
    b"stealth_rgbinfo": False,
    b"stealth_rgbcomp": True,
}
"""Whether the text is gzipped, by signature."""

_LETTERS = 15
_GZIP = 31
"""zlib's window bits for gzip."""


def read_stealth(image: Image.Image, *, most: int) -> str | None:
    """Read the text hidden in an image's pixels; None if there is none.

    Args:
        image: RGBA or RGB; images of other modes have no such text.
        most: maximum length of the text in characters.

    Raises:
        InputError: the text is damaged or longer.
    """
    if image.mode not in ("RGB", "RGBA"):
        return None
    columns = np.asarray(image).transpose(1, 0, 2)
    channels = [columns[..., 3:], columns[..., :3]] if image.mode == "RGBA" else [columns]
    for channel in channels:
        bits = channel.reshape(-1)
        signature = _bytes(bits[: 8 * _LETTERS])
        if signature in _SIGNATURES:
            return _decoded(bits[8 * _LETTERS :], compressed=_SIGNATURES[signature], most=most)
    return None


def _decoded(bits: np.ndarray, *, compressed: bool, most: int) -> str:
    length = int.from_bytes(_bytes(bits[:32]), "big")
    data = _bytes(bits[32 : 32 + length])
    damaged = InputError("the text in the image's pixels is damaged")
    if length % 8 or len(data) * 8 < length:
        raise damaged
    try:
        if compressed:
            data = zlib.decompressobj(_GZIP).decompress(data, 4 * most + 1)
        if len(data) > 4 * most:
            raise InputError(
                f"the text in the image's pixels is too long: at most {most} characters are allowed"
            )
        return data.decode("utf-8")
    except (zlib.error, UnicodeDecodeError):
        raise damaged from None


def _bytes(bits: np.ndarray) -> bytes:
    return np.packbits(bits & 1).tobytes()
