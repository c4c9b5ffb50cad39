"""Qt resource containers (`.rcc`): the pictures of gcompris lie inside such files."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

_DIRECTORY, _ZLIB, _ZSTD = 2, 1, 4
_ENTRY = 22  # bytes of a tree node since format version 2


def entries(file: Path) -> Iterator[tuple[str, bytes]]:
    """Every stored file as (path inside the container, content); zstd-packed entries are skipped."""
    blob = file.read_bytes()
    magic, version, tree, data, names = struct.unpack_from(">4sIIII", blob)
    if magic != b"qres" or version < 2:
        raise ValueError(f"{file.name} is no Qt resource file of version 2 or later")
    yield from _walk(blob, tree, data, names, node=0, path="")


def _walk(blob: bytes, tree: int, data: int, names: int, node: int, path: str) -> Iterator[tuple[str, bytes]]:
    name, flags, first, second = struct.unpack_from(">IHII", blob, tree + node * _ENTRY)
    here = path if node == 0 else f"{path}/{_name(blob, names + name)}"
    if flags & _DIRECTORY:
        for child in range(second, second + first):
            yield from _walk(blob, tree, data, names, child, here)
    elif not flags & _ZSTD:
        yield here.lstrip("/"), _content(blob, data + second, bool(flags & _ZLIB))


def _name(blob: bytes, at: int) -> str:
    (length,) = struct.unpack_from(">H", blob, at)
    return blob[at + 6 : at + 6 + 2 * length].decode("utf-16-be")


def _content(blob: bytes, at: int, packed: bool) -> bytes:
    (size,) = struct.unpack_from(">I", blob, at)
    raw = blob[at + 4 : at + 4 + size]
    return zlib.decompress(raw[4:]) if packed else raw
