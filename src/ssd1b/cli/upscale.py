"""``ssd1b upscale``: larger images."""

import json
from typing import TYPE_CHECKING, Any

import click

from ssd1b.cli.command import Command
from ssd1b.cli.paths import PATH, echo_path, out_option
from ssd1b.inputs import InputFile
from ssd1b.upscalers import DEFAULT_UPSCALER, PIXEL_UPSCALERS, find_upscaler

if TYPE_CHECKING:
    from ssd1b.actions.upscale import Upscaled


def _needs(arguments: Any) -> tuple[str, ...]:
    return ("spandrel",) if isinstance(find_upscaler(arguments["model"], PIXEL_UPSCALERS), InputFile) else ()


@click.command("upscale", cls=Command, needs=_needs)
@click.argument("images", nargs=-1, required=True, type=PATH, metavar="IMAGE|FOLDER...")
@click.option(
    "--model", type=PATH, metavar="NAME|FILE", default=DEFAULT_UPSCALER, show_default=True,
    help=f"{', '.join(PIXEL_UPSCALERS)}, or the safetensors file of an upscaling model such as ESRGAN.",
)  # fmt: skip
@click.option(
    "--scale", type=float, metavar="FACTOR", help="1 to 16. Default: that of the model, otherwise 2."
)
@click.option(
    "--tile", type=int, metavar="PIXELS", default=256, show_default=True,
    help="Side of the parts that a model reads at once; a smaller one takes less memory.",
)  # fmt: skip
@out_option("Where to write images; existing files are kept.", required=True)
@click.option("--format", "image_format", metavar="FORMAT", help="png, jpeg, webp. Default: as each image.")
@click.option("--device", metavar="NAME", help="cpu, cuda, cuda:1, mps, xpu.")
@click.option("--json", "as_json", is_flag=True, help="Print a line of JSON for each image.")
def command(
    images: tuple[str, ...],
    model: str,
    scale: float | None,
    tile: int,
    out: str,
    image_format: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Upscale images, and print the paths of the new ones, named like photo-4x.png.

    A network adds detail; it is run in tiles that overlap, so memory does not limit an image's size.
    Transparency and the settings in an image are kept.

    \b
    Examples:
      ssd1b upscale photo.jpg --scale 1.5 --out large
      ssd1b upscale pictures --model RealESRGAN_x4plus.safetensors --out large
      ssd1b upscale pictures --model 4x-UltraSharp.safetensors --scale 2 --tile 128 --out large
    """  # noqa: D301 (\b keeps click from wrapping)
    from ssd1b.actions.upscale import upscale
    from ssd1b.cli.display import progress
    from ssd1b.progress import above_bar

    def wrote(image: "Upscaled") -> None:
        with above_bar():
            if as_json:
                facts = {"path": str(image.path), "source": str(image.source)}
                click.echo(json.dumps({**facts, "width": image.width, "height": image.height}))
            else:
                echo_path(image.path)

    upscale(
        images, out, model=model, scale=scale, tile=tile, format=image_format, device=device,
        progress=progress, wrote=wrote,
    )  # fmt: skip
