"""ComfyUI's prompt grammar, and prompts of any length as rows of 77 tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from math import isfinite
from typing import NamedTuple

BOS, EOS = 49406, 49407
ROW = 77
UNSPLIT = 8
EMPHASIS = 1.1
HIDE = {r"\(": "\x01", r"\)": "\x02"}
SHOW = {"\x01": "(", "\x02": ")"}


class Chunk(NamedTuple):
    """One row of at most 77 tokens with their weights: BOS to EOS, not padded."""

    ids: tuple[int, ...]
    weights: tuple[float, ...]

    def padded(self, pad: int) -> tuple[int, ...]:
        """The 77 token ids, filled up with ``pad``."""
        return self.ids + (pad,) * (ROW - len(self.ids))

    def padded_weights(self) -> tuple[float, ...]:
        """The 77 weights, filled up with 1."""
        return self.weights + (1.0,) * (ROW - len(self.weights))


EMPTY = Chunk((BOS, EOS), (1.0, 1.0))


def parse(text: str) -> list[tuple[str, float]]:
    """Segments of a prompt with their weights.

    ``(words)`` weigh 1.1 times what surrounds them, ``(words:1.3)`` weigh 1.3 whatever surrounds them, and ``\\(``
    is a plain bracket. Brackets that do not pair up are read as ComfyUI reads them.
    """
    hidden = _replace(text, HIDE)
    return [(_replace(segment, SHOW), weight) for segment, weight in _weighted(hidden, 1.0)]


def _replace(text: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        text = text.replace(old, new)
    return text


def _weighted(text: str, weight: float) -> Iterator[tuple[str, float]]:
    for piece in _pieces(text):
        if len(piece) >= 2 and piece[0] == "(" and piece[-1] == ")":
            yield from _weighted(*_group(piece[1:-1], weight))
        else:
            yield piece, weight


def _group(inner: str, outer: float) -> tuple[str, float]:
    words, colon, number = inner.rpartition(":")
    weight = _number(number) if colon and words else None
    return (inner, outer * EMPHASIS) if weight is None else (words, weight)


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if isfinite(value) else None


def _pieces(text: str) -> Iterator[str]:
    """Split at the outermost brackets; the depth goes below zero at a stray ``)`` and is not mended."""
    depth, start = 0, 0
    for position, letter in enumerate(text):
        if letter == "(":
            if depth == 0 and position > start:
                yield text[start:position]
            start = position if depth == 0 else start
            depth += 1
        elif letter == ")":
            depth -= 1
            if depth == 0:
                yield text[start : position + 1]
                start = position + 1
    if start < len(text):
        yield text[start:]


def chunks(text: str, tokenise: Callable[[str], Sequence[int]]) -> list[Chunk]:
    """A prompt as rows of at most 77 tokens; ``tokenise`` gives the ids of a segment without BOS and EOS.

    A segment that does not fit is cut at the row's end if it has 8 tokens or more, and moves to the next row otherwise.
    """
    rows: list[list[tuple[int, float]]] = [[]]
    for segment, weight in parse(text):
        _append(rows, [(token, weight) for token in tokenise(segment)])
    return [_close(row) for row in rows]


def _append(rows: list[list[tuple[int, float]]], group: list[tuple[int, float]]) -> None:
    large = len(group) >= UNSPLIT
    while group:
        room = ROW - 2 - len(rows[-1])
        taken = len(group) if len(group) <= room else room if large else 0
        rows[-1] += group[:taken]
        group = group[taken:]
        if group:
            rows.append([])


def _close(row: Iterable[tuple[int, float]]) -> Chunk:
    ids, weights = zip(*row, strict=True) if row else ((), ())
    return Chunk((BOS, *ids, EOS), (1.0, *weights, 1.0))
