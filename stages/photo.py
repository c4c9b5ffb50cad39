"""Reads a photo, whatever its format, and cuts it to a shape the model was trained on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log, sqrt
from pathlib import Path
from typing import TYPE_CHECKING

from claygraph.errors import PictureError, check_choice, check_whole
from claygraph.pictures import cut, find, read_rgb, shown, size_of
from claygraph.stage import Stage
from claygraph.values import Image

if TYPE_CHECKING:
    import PIL.Image

FITS = ("bucket", "area", "none")
BUCKETS = (
    (1024, 1024),
    (1152, 896),
    (896, 1152),
    (1216, 832),
    (832, 1216),
    (1344, 768),
    (768, 1344),
    (1536, 640),
    (640, 1536),
)


@dataclass(frozen=True)
class Photo(Stage):
    """A photo, upright and on white where it is transparent, with sides a multiple of 16 (of 64 from ``size`` 512).

    ``fit`` "bucket" scales and crops to the nearest shape of ``BUCKETS`` times size / 1024, so that different photos
    share batches; "area" keeps the aspect at about size x size pixels; "none" cuts and never scales.

    Raises:
        PictureError: the file cannot be read, with what would help.
    """

    path: str
    size: int = 256
    fit: str = "bucket"

    def __post_init__(self) -> None:
        check_choice("photo.fit", self.fit, FITS)
        check_whole("photo.size", self.size, 16, 4096)

    def files(self) -> Sequence[str]:
        return [str(find(self.path))]

    def picture_size(self) -> tuple[int, int] | None:
        wide, high = shape_for(*size_of(find(self.path)), self.size, self.fit)
        return high, wide

    def run(self) -> Image:
        import numpy as np

        path = find(self.path)
        return Image(np.array(_fitted(read_rgb(path), self.size, self.fit, path)))


def shape_for(width: int, height: int, size: int, fit: str) -> tuple[int, int]:
    """Width and height that a picture is cut to; 0 where ``fit`` "none" finds less than one step."""
    step = 64 if size >= 512 else 16
    if fit == "none":
        return width // step * step, height // step * step
    if fit == "area":
        root, most = sqrt(width * height), max(step, size * size // step // step * step)
        sides = (int(side * size / root) // step * step for side in (width, height))
        wide, high = (min(max(step, side), most) for side in sides)
        return wide, high
    bucket = min(BUCKETS, key=lambda shape: abs(log(shape[0] / shape[1]) - log(width / height)))
    wide, high = (max(step, int(side * size / 1024 / step + 0.5) * step) for side in bucket)
    return wide, high


def _fitted(picture: PIL.Image.Image, size: int, fit: str, path: Path) -> PIL.Image.Image:
    (width, height), (wide, high) = picture.size, shape_for(*picture.size, size, fit)
    if not wide or not high:
        raise PictureError(
            f"{shown(path)} has only {width} x {height} pixels, and photo.fit=none never scales; use photo.fit=bucket."
        )
    scale = 1.0 if fit == "none" else max(wide / width, high / height)
    return cut(picture, (wide, high), scale)
