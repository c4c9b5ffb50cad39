"""The pictures of a sweep, made small; and their sources, cut as the results are, to lay under them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from io import BytesIO
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from claygraph.errors import PictureError
from claygraph.files import write_over
from claygraph.pictures import cut, find, read_rgb
from claygraph.recipes import read_recipe

if TYPE_CHECKING:
    import PIL.Image

SOURCES = "sources"
SIDES = {60: 256, 300: 192, inf: 144}
"""The longer side of a thumbnail in pixels, by how many pictures there are at most."""


@dataclass(frozen=True)
class Cell:
    """One picture of a sweep.

    ``entry`` is what sweep.json says of it, ``path`` the PNG relative to the sweep's folder (none where it failed),
    ``thumb`` the picture made small, ``size`` its full width and height. ``source`` is the path of the source, cut
    alike, relative to the folder, and ``reason`` why a picture that was made cannot be shown.
    """

    entry: Mapping[str, Any]
    path: str = ""
    thumb: PIL.Image.Image | None = None
    size: tuple[int, int] = (0, 0)
    source: str = ""
    reason: str = ""


def cells_of(folder: Path, sweep: Mapping[str, Any]) -> list[Cell]:
    """A cell for each job of a sweep, in order; the sources are written below ``folder``."""
    entries = sweep["jobs"]
    side = next(side for most, side in SIDES.items() if len(entries) <= most)
    with ThreadPoolExecutor(4) as pool:
        cells = list(pool.map(partial(_cell, folder.resolve(), side), entries))
    return _with_sources(folder, cells)


def _cell(folder: Path, side: int, entry: Mapping[str, Any]) -> Cell:
    saved = str(next(iter(entry["saved"]), ""))
    if not saved:
        return Cell(entry)
    path = (folder / saved).resolve()
    if not path.is_relative_to(folder):
        return Cell(entry, reason=f"{saved!r} lies outside the sweep's folder and is not shown.")
    try:
        picture = read_rgb(find(str(path)))
    except PictureError as error:
        return Cell(entry, reason=str(error))
    size = picture.size
    picture.thumbnail((side, side))
    return Cell(entry, path.relative_to(folder).as_posix(), picture, size)


def _with_sources(folder: Path, cells: Sequence[Cell]) -> list[Cell]:
    """The cells with their sources: one file for each picture and size."""
    wanted = {(cell.entry["image"], cell.size): cell for cell in cells if cell.path}
    found = {key: _source(folder, place, cell) for place, (key, cell) in enumerate(wanted.items())}
    return [Cell(c.entry, c.path, c.thumb, c.size, found.get((c.entry["image"], c.size), ""), c.reason) for c in cells]


def _source(folder: Path, place: int, cell: Cell) -> str:
    """Write the source of a cell as the photo stage cuts it: the centre, at the size of the result."""
    try:
        picture = read_rgb(find(str(cell.entry["image"])))
    except PictureError:  # moved since: the report does without it
        return ""
    (width, height), (wide, high) = picture.size, cell.size
    scale = 1.0 if _never_scales(folder / cell.path) else max(wide / width, high / height)
    content = BytesIO()
    cut(picture, cell.size, scale).save(content, "PNG")
    write_over(folder / SOURCES / f"{place}.png", content.getvalue())
    return f"{SOURCES}/{place}.png"


def _never_scales(path: Path) -> bool:
    try:
        photo = json.loads(read_recipe(path).config).get("photo")
    except PictureError:
        return False
    return isinstance(photo, dict) and photo.get("fit") == "none"
