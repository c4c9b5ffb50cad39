"""All pictures of a sweep on one: ``contact_sheet.png``, with labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from io import BytesIO
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any

from claygraph.report.cells import Cell
from claygraph.report.layout import COLUMNS, PAGES, ROWS, is_grid, label, roles, usual

if TYPE_CHECKING:
    import PIL.Image
    import PIL.ImageDraw
    import PIL.ImageFont

GAP, LINE, SIZE = 10, 18, 13
MOST = 16_000_000
"""Pixels of a sheet; thumbnails are made smaller for it."""
BACK, INK, RED, PALE = "#faf7f4", "#2b2320", "#b3261e", "#fbe4e1"


@dataclass(frozen=True)
class Block:
    """A titled part of the sheet: rows of cells (None where there is none), with labels for rows and columns."""

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell | None]]]


def sheet(cells: Sequence[Cell], axes: Mapping[str, Sequence[str]]) -> bytes:
    """The sheet as PNG: a grid for each page of the sweep, side by side, or one of all where its axes make no grid."""
    from PIL import Image

    parts = blocks(cells, axes)
    side = _side(parts, max((max(c.thumb.size) for c in cells if c.thumb), default=144))
    drawn = [_draw(block, side) for block in parts]
    wide, high = (max(getattr(each, side) for each in drawn) + GAP for side in ("width", "height"))
    across = max(1, min(len(drawn), round(sqrt(len(drawn) * high / wide))))
    whole = Image.new("RGB", (across * wide + GAP, ceil(len(drawn) / across) * high + GAP), BACK)
    for place, block in enumerate(drawn):
        whole.paste(block, (GAP + place % across * wide, GAP + place // across * high))
    content = BytesIO()
    whole.save(content, "PNG")
    return content.getvalue()


def blocks(cells: Sequence[Cell], axes: Mapping[str, Sequence[str]]) -> list[Block]:
    """How the cells are laid out, in the report's first arrangement."""
    if not is_grid(cells, axes):
        return _flat(cells, axes)
    place = roles(axes)
    by = {role: [key for key in axes if place[key] == role] for role in (PAGES, ROWS, COLUMNS)}
    pages: dict[str, list[Cell]] = {}
    for cell in cells:
        pages.setdefault(label(cell.entry, by[PAGES]), []).append(cell)
    return [_grid(title, own, by[ROWS], by[COLUMNS]) for title, own in pages.items()]


def _flat(cells: Sequence[Cell], axes: Mapping[str, Sequence[str]]) -> list[Block]:
    """Cells below each other in several columns, each beside what makes it differ from most."""
    common = usual([cell.entry for cell in cells], axes)
    named = [
        (_name(cell, [key for key in axes if common.get(key) != cell.entry["axes"][key]]), [cell]) for cell in cells
    ]
    tall = max(1, ceil(sqrt(len(named))))
    return [Block("", [""], named[start : start + tall]) for start in range(0, len(named), tall)]


def _name(cell: Cell, keys: Sequence[str]) -> str:
    return f"#{cell.entry['index']}  {label(cell.entry, keys) or 'baseline'}"


def _grid(title: str, cells: Sequence[Cell], rows: Sequence[str], columns: Sequence[str]) -> Block:
    at = {(label(cell.entry, rows), label(cell.entry, columns)): cell for cell in reversed(cells)}
    down, across = (list(dict.fromkeys(label(cell.entry, keys) for cell in cells)) for keys in (rows, columns))
    return Block(title, across, [(name, [at.get((name, other)) for other in across]) for name in down])


def _side(parts: Sequence[Block], side: int) -> int:
    """The side of a thumbnail with which the sheet is not too large."""
    count = sum(len(block.rows) * len(block.columns) for block in parts)
    return max(24, min(side, int(sqrt(MOST / max(1, count)))))


@cache
def _font() -> PIL.ImageFont.ImageFont | PIL.ImageFont.FreeTypeFont:
    from PIL import ImageFont

    return ImageFont.load_default(SIZE)


def _draw(block: Block, side: int) -> PIL.Image.Image:
    from PIL import Image, ImageDraw

    left = GAP + int(max((_font().getlength(name) for name, _ in block.rows), default=0))
    top = LINE * (bool(block.title) + any(block.columns)) + GAP
    step = side + GAP
    drawn = Image.new("RGB", (left + step * len(block.columns), top + step * len(block.rows)), BACK)
    pen = ImageDraw.Draw(drawn)
    pen.text((0, 0), block.title, INK, _font())
    for column, name in enumerate(block.columns):
        pen.text((left + column * step, top - LINE), _fit(name, side), INK, _font())
    for row, (name, own) in enumerate(block.rows):
        pen.text((0, top + row * step + side // 2 - SIZE), name, INK, _font())
        for column, cell in enumerate(own):
            if cell is not None:
                _put(drawn, pen, cell, (left + column * step, top + row * step), side)
    return drawn


def _fit(text: str, width: int) -> str:
    while text and _font().getlength(text) > width:
        text = text[:-1]
    return text


def _put(drawn: PIL.Image.Image, pen: PIL.ImageDraw.ImageDraw, cell: Cell, at: tuple[int, int], side: int) -> None:
    """A cell's picture in the middle of its square, or in red why there is none."""
    if cell.thumb is not None:
        small: Any = cell.thumb.copy()
        small.thumbnail((side, side))
        drawn.paste(small, (at[0] + (side - small.width) // 2, at[1] + (side - small.height) // 2))
        return
    pen.rectangle((*at, at[0] + side - 1, at[1] + side - 1), PALE, RED)
    words = cell.reason or cell.entry["error"] or cell.entry["state"]
    for line, text in enumerate(_wrapped(str(words), side - 8)[: max(1, side // LINE)]):
        pen.text((at[0] + 4, at[1] + 3 + line * LINE), text, RED, _font())


def _wrapped(text: str, width: int) -> list[str]:
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        fits = not lines[-1] or _font().getlength(longer) <= width
        lines = [*lines[:-1], longer] if fits else [*lines, word]
    return [_fit(line, width) for line in lines]
