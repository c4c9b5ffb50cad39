"""Writes test pictures: plain ones, and files a picture library is not meant to be given."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from claygraph.values import Image as Picture

GREY, RGB, PALETTE, GREY_ALPHA, RGBA = 0, 2, 3, 4, 6


def chunk(name: bytes, body: bytes) -> bytes:
    """A PNG chunk."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def png(path: Path, size: tuple[int, int], depth: int, colour: int, rows: bytes, *before: bytes) -> Path:
    """A PNG of (width, height) from raw scan lines, each led by its filter byte, with chunks ``before`` the pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", *size, depth, colour, 0, 0, 0))
    body = b"".join(before) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + header + body)
    return path


def save(path: Path, pixels: Any, mode: str | None = None, **options: Any) -> Path:
    """Rows of pixel values, written by Pillow in the format of the suffix."""
    array: NDArray[Any] = np.asarray(pixels)
    image = Image.fromarray(array if array.dtype.itemsize > 1 and array.dtype != np.int64 else array.astype(np.uint8))
    (image if mode is None else image.convert(mode)).save(path, **options)
    return path


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Random RGB pixels."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def square(level: int = 255) -> Picture:
    """A square of 16 x 16 in the middle of 32 x 32 black pixels: rows and columns 8 to 23."""
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[8:24, 8:24] = level
    return Picture(pixels)


def hostile(folder: Path) -> dict[str, Path]:
    """Files that are no readable picture, by what is wrong with them."""
    whole = save(folder / "whole.png", noise(64, 64)).read_bytes()
    jpeg = save(folder / "whole.jpg", noise(64, 64)).read_bytes()
    files = {
        "empty": b"",
        "text": b"This is no picture at all.\n",
        "one byte": b"\x89",
        "signature": whole[:8],
        "header": whole[:33],
        "half": whole[: len(whole) // 2],
        "half jpeg": jpeg[: len(jpeg) // 2],
        "bad checksum": whole[:60] + bytes([whole[60] ^ 255]) + whole[61:],
        "no pixels": whole[:16] + bytes(8) + whole[24:],
        "tiff": b"II*\0" + b"\xff" * 40,
        "gif": b"GIF89a" + b"\xff" * 40,
        "bmp": b"BM" + b"\xff" * 60,
        "webp": b"RIFF\xff\xff\xff\xffWEBPVP8X" + b"\xff" * 40,
        "svg": b"<svg xmlns='http://www.w3.org/2000/svg'/>",
        "postscript": b"%!PS-Adobe-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
    }
    for name, content in files.items():
        (folder / f"{name}.png").write_bytes(content)
    return {name: folder / f"{name}.png" for name in files}
