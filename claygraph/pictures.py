"""Reads picture files that may be damaged or hostile: upright, 8-bit, with one sentence for whatever is wrong."""

from __future__ import annotations

import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches
from pathlib import Path
from typing import IO, TYPE_CHECKING

from claygraph.errors import PictureError
from claygraph.files import locate

if TYPE_CHECKING:
    import PIL.Image

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


def find(path: str, setting: str = "photo.path") -> Path:
    """The picture file that a setting names; raises ``PictureError`` where there is none."""
    found = Path(path)
    try:
        found = locate(path)
        mode = found.stat().st_mode
    except (OSError, ValueError, RuntimeError) as error:
        raise PictureError(f"{shown(found)} cannot be opened: {_reason(error)}{_similar(found)}") from error
    if stat.S_ISDIR(mode):
        raise PictureError(f"{shown(found)} is a folder; {setting} takes one picture, image=FOLDER all in a folder.")
    if not stat.S_ISREG(mode):
        raise PictureError(f"{shown(found)} is a device or a pipe; give a picture file.")
    return found


def size_of(path: Path) -> tuple[int, int]:
    """Width and height of a picture as it is shown, upright by its EXIF, from its header alone.

    Raises:
        PictureError: it is no picture, or of another format.
    """
    with _explained(path), path.open("rb") as file:
        picture = _header(file, path)
        sideways = _orientation(picture) >= 5
        return (picture.height, picture.width) if sideways else picture.size


def read_rgb(path: Path) -> PIL.Image.Image:
    """A picture file as 8-bit RGB: upright by its EXIF, transparency on white, the first of several frames.

    The size is read from the header, and more than ``MAX_PIXELS`` are refused before anything is decompressed.

    Raises:
        PictureError: it is no picture, of another format, too large, cut short or damaged.
    """
    return _read(path, _rgb)


def read_alpha(path: Path) -> PIL.Image.Image:
    """The opacity of a picture file as 8-bit grey, upright: 255 where it is opaque. Raises as ``read_rgb`` does."""
    return _read(path, _alpha)


def cut(picture: PIL.Image.Image, size: tuple[int, int], scale: float, smooth: bool = False) -> PIL.Image.Image:
    """The centre of a picture at ``scale``, as large as ``size`` (width, height).

    Lanczos resampling; with ``smooth`` bilinear, which makes nothing lighter or darker than it was.
    """
    from PIL.Image import Resampling

    (width, height), (wide, high) = picture.size, size
    across, down = min(width, wide / scale), min(height, high / scale)
    left, top = int((width - across) / 2), int((height - down) / 2)
    how = Resampling.BILINEAR if smooth else Resampling.LANCZOS
    return picture.resize(size, how, box=(left, top, left + across, top + down))


def _read(path: Path, convert: Callable[[PIL.Image.Image], PIL.Image.Image]) -> PIL.Image.Image:
    from PIL.Image import Transpose

    with _explained(path), path.open("rb") as file:
        picture = _header(file, path)
        _check_header(picture, path)
        picture.load()
        turn, made = TURNS.get(_orientation(picture)), convert(picture)
        return made.transpose(Transpose[turn]) if turn else made


def shown(path: Path) -> str:
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
        raise PictureError(f"{shown(path)} does not fit into memory; make it smaller first.") from error
    except Exception as error:  # a hostile file can make a decoder raise anything
        if getattr(error, "errno", None):
            raise PictureError(f"{shown(path)} cannot be read: {_reason(error)}.") from error
        raise PictureError(f"{shown(path)} is cut short or damaged; fetch or save it again.") from error


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
    raise PictureError(f"{shown(path)} {found}; give a picture, other formats (HEIC, AVIF, SVG) converted to PNG.")


def _check_header(picture: PIL.Image.Image, path: Path) -> None:
    width, height = picture.size
    if picture.mode == "LAB":
        raise PictureError(f"{shown(path)} has Lab colours, which are not read; save it as RGB first.")
    if width * height > MAX_PIXELS:
        raise PictureError(
            f"{shown(path)} has {width} x {height} pixels; at most {MAX_PIXELS // 10**6} megapixels are read, "
            "so make it smaller first."
        )


def _orientation(picture: PIL.Image.Image) -> int:
    try:
        return int(picture.getexif().get(ORIENTATION, 1))
    except Exception:  # damaged EXIF is no reason to refuse the picture
        return 1


def _rgb(picture: PIL.Image.Image) -> PIL.Image.Image:
    from PIL import Image as Pillow

    picture = _eight_bits(picture)
    if not picture.has_transparency_data:
        return picture.convert("RGB")
    layer = picture.convert("RGBA")
    white = Pillow.new("RGB", picture.size, "white")
    white.paste(layer, mask=layer)
    return white


def _alpha(picture: PIL.Image.Image) -> PIL.Image.Image:
    return _eight_bits(picture).convert("RGBA").getchannel("A")


def _eight_bits(picture: PIL.Image.Image) -> PIL.Image.Image:
    """16-bit grey by 255 / 65535; 32-bit and float grey by 255 over the first of 1, 255, 65535 that holds its peak."""
    if picture.mode != "F" and not picture.mode.startswith("I"):
        return picture
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
