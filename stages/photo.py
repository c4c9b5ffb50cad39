"""Reads a photo, whatever its format, and cuts it to a shape the model was trained on."""

from __future__ import annotations

import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from difflib import get_close_matches
from math import log, sqrt
from pathlib import Path
from typing import IO, TYPE_CHECKING

from claygraph.errors import PictureError, check_choice, check_whole
from claygraph.files import locate
from claygraph.stage import Stage
from claygraph.values import Image

if TYPE_CHECKING:
    import PIL.Image

FITS = ("bucket", "area", "none")
FORMATS = ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF")
MAX_PIXELS = 200_000_000
ORIENTATION = 0x0112
TURNS = {
    2: "FLIP_LEFT_RIGHT",
    3: "ROTATE_180",
    4: "FLIP_TOP_BOTTOM",
    5: "TRANSPOSE",
    6: "ROTATE_270",
    7: "TRANSVERSE",
    8: "ROTATE_90",
}
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
    share batches; "area" keeps the aspect at about size x size pixels; "none" cuts and never scales. ``name`` is what
    the result is saved under, by default the file's own.

    Raises:
        PictureError: the file cannot be read, with what would help.
    """

    path: str
    size: int = 256
    fit: str = "bucket"
    name: str = ""

    def __post_init__(self) -> None:
        check_choice("photo.fit", self.fit, FITS)
        check_whole("photo.size", self.size, 16, 4096)

    def files(self) -> Sequence[str]:
        return [str(_find(self.path))]

    def run(self) -> Image:
        import numpy as np

        path = _find(self.path)
        return Image(np.array(_fitted(read_rgb(path), self.size, self.fit, path)), self.name or path.stem)


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
    from PIL.Image import Resampling

    (width, height), (wide, high) = picture.size, shape_for(*picture.size, size, fit)
    if not wide or not high:
        raise PictureError(
            f"{_shown(path)} has only {width} x {height} pixels, and photo.fit=none never scales; use photo.fit=bucket."
        )
    scale = 1.0 if fit == "none" else max(wide / width, high / height)
    across, down = min(width, wide / scale), min(height, high / scale)
    left, top = int((width - across) / 2), int((height - down) / 2)
    return picture.resize((wide, high), Resampling.LANCZOS, box=(left, top, left + across, top + down))


def read_rgb(path: Path) -> PIL.Image.Image:
    """A picture file as 8-bit RGB: upright by its EXIF, transparency on white, the first of several frames.

    The size is read from the header, and more than ``MAX_PIXELS`` are refused before anything is decompressed.

    Raises:
        PictureError: it is no picture, of another format, too large, cut short or damaged.
    """
    from PIL.Image import Transpose

    with _explained(path), path.open("rb") as file:
        picture = _header(file, path)
        _check_header(picture, path)
        picture.load()
        turn, rgb = TURNS.get(_orientation(picture)), _rgb(picture)
        return rgb.transpose(Transpose[turn]) if turn else rgb


def _find(path: str) -> Path:
    found = Path(path)
    try:
        found = locate(path)
        mode = found.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:
        raise PictureError(f"{_shown(found)} cannot be opened: {_reason(error)}{_similar(found)}") from error
    if stat.S_ISDIR(mode):
        raise PictureError(f"{_shown(found)} is a folder; photo.path takes one picture, image=FOLDER all in a folder.")
    if not stat.S_ISREG(mode):
        raise PictureError(f"{_shown(found)} is a device or a pipe; give a picture file.")
    return found


def _shown(path: Path) -> str:
    """How a message names a file: quoted, its control characters escaped, its length bounded."""
    name = repr(path.name)
    return f"the picture {name}" if len(name) < 100 else f"the picture {name[:60]}...{name[-30:]}"


def _reason(error: Exception) -> str:
    return (getattr(error, "strerror", None) or str(error)).lower()


def _similar(path: Path) -> str:
    try:
        names = {entry.name for entry in path.parent.iterdir()} - {path.name}
    except (OSError, ValueError):
        return f"; the folder {str(path.parent)!r} cannot be opened either."
    close = get_close_matches(path.name, names, n=1)
    return f"; did you mean {close[0]!r}?" if close else "; check the path."


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turn whatever a decoder raises into one sentence."""
    try:
        yield
    except PictureError:
        raise
    except MemoryError as error:
        raise PictureError(f"{_shown(path)} does not fit into memory; make it smaller first.") from error
    except Exception as error:  # a hostile file can make a decoder raise anything
        if getattr(error, "errno", None):
            raise PictureError(f"{_shown(path)} cannot be read: {_reason(error)}.") from error
        raise PictureError(f"{_shown(path)} is cut short or damaged; fetch or save it again.") from error


def _header(file: IO[bytes], path: Path) -> PIL.Image.Image:
    """Open by signature alone. ``PIL.Image.open`` would bring in a limit and a warning of its own."""
    from PIL import Image as Pillow

    Pillow.init()
    start = file.read(16)
    file.seek(0)
    for name in FORMATS:
        opens, accepts = Pillow.OPEN[name]
        if accepts and accepts(start) is True:
            return opens(file, "")
    found = "is empty" if not start else "is no PNG, JPEG, WebP, BMP, TIFF or GIF, whatever its name says"
    raise PictureError(f"{_shown(path)} {found}; give a picture, other formats (HEIC, AVIF, SVG) converted to PNG.")


def _check_header(picture: PIL.Image.Image, path: Path) -> None:
    width, height = picture.size
    if picture.mode == "LAB":
        raise PictureError(f"{_shown(path)} has Lab colours, which are not read; save it as RGB first.")
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{_shown(path)} has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} megapixels are read, "
            "so make it smaller first."
        )


def _orientation(picture: PIL.Image.Image) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to refuse the picture
        return 1


def _rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import Image as Pillow

    if picture.mode == "F" or picture.mode.startswith("I"):
        picture = _eight_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Pillow.new("RGB", picture.size, "white")
    white.paste(layer, mask=layer)
    return white


def _eight_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """16-bit grey by 255 / 65535; 32-bit and float grey by 255 over the first of 1, 255, 65535 that holds its peak."""
    import numpy as np
    from PIL import Image as Pillow

    values = np.nan_to_num(np.asarray(picture, np.float32), posinf=0, neginf=0)
    peak = 65535 if picture.mode.startswith("I;16") else float(values.max())
    top = next((top for top in (1, 255, 65535) if peak <= top), peak)
    grey = Pillow.fromarray(np.rint(values.clip(0, top) * np.float32(255 / top)).astype(np.uint8))
    clear = picture.info.get("transparency")
    if isinstance(clear, int):
        grey.putalpha(Pillow.fromarray(np.where(values == clear, 0, 255).astype(np.uint8)))
    return grey
