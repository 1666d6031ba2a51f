"""Enlarge image files by interpolation or with a network; their recipes stay in them."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, NamedTuple

from PIL import Image

from ssd1b.actions.loading import Progress, silent
from ssd1b.decoding import MAX_FILE_BYTES, layered, opened, upright_size
from ssd1b.enlarging import (
    LARGEST_TILE,
    SMALLEST_TILE,
    TILE,
    Network,
    check_area,
    enlarge,
    load_network,
    plan,
)
from ssd1b.errors import NotFoundError, prefix_errors, unknown
from ssd1b.files import disk_error, expand_path, named, read_file
from ssd1b.images import FORMATS, POSTPROCESSING, encode_image, kept_texts, write_new
from ssd1b.inputs import InputFile
from ssd1b.picture_names import PICTURES
from ssd1b.runtime import choose_device
from ssd1b.saving import check_folder
from ssd1b.upscalers import DEFAULT_UPSCALER, PIXEL_UPSCALERS, find_upscaler, upscaler_label
from ssd1b.validation import Range, check

SCALE = 2.0
"""Default factor of upscalers that are no network."""

Scale = Annotated[float, Range(1, 16)]
Tile = Annotated[int, Range(SMALLEST_TILE, LARGEST_TILE)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upscaled:
    """An image that was enlarged.

    Attributes:
        source: path of the file that was read.
        path: path of the new one.
        width: of the new image in pixels.
        height: of the new image in pixels.
    """

    source: Path
    path: Path
    width: int
    height: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Upscaler:
    """How images are enlarged.

    Attributes:
        by: a name of ``upscalers.PIXEL_UPSCALERS``, or a network.
        label: AUTOMATIC1111's name, or the name of the network's file.
        scale: factor.
        tile: see ``enlarging.enlarge``.
    """

    by: str | Network
    label: str
    scale: float
    tile: int = TILE

    @classmethod
    def load(
        cls,
        model: str | InputFile,
        scale: float | None = None,
        tile: int = TILE,
        device: str | None = None,
    ) -> "Upscaler":
        """Load a network, if it is one.

        Args:
            model: a name of ``upscalers.PIXEL_UPSCALERS``, or the file of a network.
            scale: 1 to 16; None is that of the network, or ``SCALE``.
            tile: 64 to 4096.
            device: where a network runs, as for ``Pipeline.load``.

        Raises:
            InputError: the name is unknown, the file has no such network, or a value is not allowed.
        """
        tile = check("tile", tile, Tile)
        scale = None if scale is None else check("scale", scale, Scale)
        found = find_upscaler(model, PIXEL_UPSCALERS) if isinstance(model, str) else model
        label = upscaler_label(found)
        if isinstance(found, InputFile):
            network = load_network(found, choose_device(device))
            return cls(by=network, label=label, scale=scale or float(network.scale), tile=tile)
        return cls(by=found, label=label, scale=scale or SCALE, tile=tile)

    def size(self, image: Image.Image) -> tuple[int, int]:
        """Width and height that an image will have."""
        width, height = upright_size(image)
        return max(round(width * self.scale), 1), max(round(height * self.scale), 1)

    def tiles(self, image: Image.Image) -> int:
        """Count the tiles in which an image is enlarged; its pixels are not needed.

        Raises:
            InputError: the enlarged image would be too large.
        """
        size = self.size(image)
        check_area(size)
        return 1 if isinstance(self.by, str) else plan(upright_size(image), size, self.by, self.tile).tiles

    def enlarged(
        self,
        data: bytes,
        format: str | None = None,
        cover: tuple[int, int] | None = None,
        crop: bool = False,
        watch: Callable[[int], object] = lambda tiles: None,
    ) -> "Enlarged":
        """Enlarge an image file: upright, in 8 bits, with its transparency, colour profile and settings.

        Args:
            data: PNG, JPEG or WebP.
            format: of ``images.FORMATS``; None is that of the file.
            cover: width and height that the new image is to cover, instead of ``scale``.
            crop: cut it to them, equally on both sides.
            watch: called with 1 after each tile.

        Raises:
            InputError: it is no image, is damaged, or too large.
        """
        with opened(data) as image:
            size = self.size(image) if cover is None else _covering(upright_size(image), cover)
            check_area(size)
            profile = None if image.mode in ("CMYK", "L", "LA") else image.info.get("icc_profile")
            texts, format = kept_texts(image), format or str(image.format).lower()
            pixels = layered(image)
        done = f"Postprocess upscale by: {size[0] / pixels.width:g}, Postprocess upscaler: {self.label}"
        texts[POSTPROCESSING] = ", ".join(filter(None, [texts.get(POSTPROCESSING), done]))
        large = enlarge(pixels, size, self.by, tile=self.tile, watch=watch)
        if isinstance(self.by, str):
            watch(1)
        if cover is not None and crop:
            left, top = ((have - want) // 2 for have, want in zip(size, cover, strict=True))
            large, size = large.crop((left, top, left + cover[0], top + cover[1])), cover
        if format == "jpeg" and large.mode == "RGBA":
            large = Image.alpha_composite(Image.new("RGBA", large.size, "white"), large).convert("RGB")
        return Enlarged(encode_image(large, texts, format, icc_profile=profile), format, *size)


class Enlarged(NamedTuple):
    """An enlarged image file: its content, a name of ``images.FORMATS``, and its width and height."""

    data: bytes
    format: str
    width: int
    height: int


def _covering(size: tuple[int, int], wanted: tuple[int, int]) -> tuple[int, int]:
    """Scale a size so that it covers another one; one side is equal."""
    factor = max(want / have for have, want in zip(size, wanted, strict=True))
    width, height = (max(round(side * factor), want) for side, want in zip(size, wanted, strict=True))
    return width, height


def upscale(
    images: str | Path | Iterable[str | Path],
    out: str | Path,
    *,
    model: str | Path = DEFAULT_UPSCALER,
    scale: float | None = None,
    tile: int = TILE,
    format: str | None = None,
    device: str | None = None,
    progress: Progress = silent,
    wrote: Callable[[Upscaled], object] = lambda image: None,
) -> list[Upscaled]:
    """Enlarge image files.

    The new files have the names of the old ones with the factor after them, like ``photo-4x.png``; a number
    is added to a name that is taken. They keep transparency and the settings of the image; in PNG, a text
    ``postprocessing`` says what was done, as in AUTOMATIC1111.

    Args:
        images: files and folders, or one; of a folder its PNG, JPEG and WebP files.
        out: folder for the new files.
        model: ``lanczos``, ``bicubic`` or ``nearest``, or the safetensors file of a network such as ESRGAN.
        scale: factor, 1 to 16; None is that of the network, or 2. A network is run again until the image is
            large enough, and the result is scaled down.
        tile: side in pixels of the parts that a network reads at once, 64 to 4096; a smaller one takes less
            memory.
        format: of the new files, ``png``, ``jpeg`` or ``webp``; None is that of each old one.
        device: where a network runs, as for ``Pipeline.load``.
        progress: shows the progress in tiles.
        wrote: called with each new file.

    Raises:
        InputError: a file is missing, no image or too large, or the model is unknown. All files are looked at
            before the first is enlarged.
    """
    if format is not None and format not in FORMATS:
        raise unknown("image format", format, FORMATS)
    folder = Path(expand_path(str(out)))
    check_folder(folder)
    files = picture_files([images] if isinstance(images, str | Path) else images)
    upscaler = Upscaler.load(str(model), scale, tile, device)
    total = 0
    for path in files:
        data = read_file(path, most=MAX_FILE_BYTES)
        with prefix_errors(named(path)), opened(data) as image:
            total += upscaler.tiles(image)
    done: list[Upscaled] = []
    with progress("upscale", total) as advance:
        for path in files:
            data = read_file(path, most=MAX_FILE_BYTES)
            with prefix_errors(named(path)):
                large = upscaler.enlarged(data, format, watch=advance)
            stem = f"{path.stem}-{upscaler.scale:g}x"
            try:
                folder.mkdir(parents=True, exist_ok=True)
                written = write_new(large.data, folder, stem, FORMATS[large.format])
            except OSError as error:
                raise disk_error(f"cannot write {named(folder)}", error) from None
            done.append(Upscaled(source=path, path=written, width=large.width, height=large.height))
            wrote(done[-1])
    return done


def picture_files(images: Iterable[str | Path]) -> Sequence[Path]:
    """List image files, and those in folders, sorted by name.

    Raises:
        InputError: a folder has none or cannot be read, or there are none at all.
    """
    found: list[Path] = []
    for each in images:
        path = Path(expand_path(str(each)))
        if not path.is_dir():
            found.append(path)
            continue
        try:
            inside = sorted(file for file in path.iterdir() if file.suffix.lower() in PICTURES)
        except OSError as error:
            raise disk_error(f"cannot read {named(path)}", error) from None
        if not inside:
            raise NotFoundError(f"{named(path)}: no PNG, JPEG or WebP in this folder")
        found += inside
    if not found:
        raise NotFoundError("no images: name files or folders")
    return found
