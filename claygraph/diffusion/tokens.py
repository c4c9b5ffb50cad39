"""ComfyUI's prompt grammar, and prompts of any length as rows of 77 tokens. Needs no torch."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from math import isfinite
from typing import NamedTuple, TypeAlias

from claygraph.values import Weights

BOS, EOS = 49406, 49407
ROW = 77
UNSPLIT = 8
EMPHASIS = 1.1
HIDE = {r"\(": "\x01", r"\)": "\x02"}
SHOW = {"\x01": "(", "\x02": ")"}
MENTION = re.compile(r"(?:^|(?<=[ \n]))embedding:(\S+)")


class Learned(NamedTuple):
    """A token that is no word: row ``row`` of the tensor ``key`` of a textual inversion's file."""

    weights: Weights
    key: str
    row: int


Token: TypeAlias = int | Learned


class Chunk(NamedTuple):
    """One row of at most 77 tokens with their weights: BOS to EOS, not padded."""

    tokens: tuple[Token, ...]
    weights: tuple[float, ...]

    def padded(self, pad: int) -> tuple[int, ...]:
        """The 77 token ids, filled up with ``pad``; 0 where a learned vector takes a token's place."""
        ids = tuple(token if isinstance(token, int) else 0 for token in self.tokens)
        return ids + (pad,) * (ROW - len(ids))

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


def mentions(text: str) -> list[str]:
    """What follows each ``embedding:`` of a prompt, commas included."""
    return [name for segment, _ in parse(text) for name in MENTION.findall(segment)]


def chunks(
    text: str, tokenise: Callable[[str], Sequence[int]], learned: Mapping[str, Sequence[Token]] | None = None
) -> list[Chunk]:
    """A prompt as rows of at most 77 tokens; ``tokenise`` gives the ids of words without BOS and EOS.

    ``learned`` holds the tokens that ``embedding:NAME`` stands for. A segment (within it an embedding, and the words
    before and after) that does not fit is cut at the row's end if it has 8 tokens or more, and moves to the next row
    otherwise.
    """
    rows: list[list[tuple[Token, float]]] = [[]]
    for segment, weight in parse(text):
        for group in _groups(segment, tokenise, learned or {}):
            _append(rows, [(token, weight) for token in group])
    return [_close(row) for row in rows]


def _groups(
    segment: str, tokenise: Callable[[str], Sequence[int]], learned: Mapping[str, Sequence[Token]]
) -> Iterator[Sequence[Token]]:
    start = 0
    for found in MENTION.finditer(segment):
        name = found[1] if found[1] in learned else found[1].rstrip(",")
        if name in learned:
            yield tokenise(segment[start : found.start()])
            yield learned[name]
            start = found.start(1) + len(name)
    yield tokenise(segment[start:])


def _append(rows: list[list[tuple[Token, float]]], group: list[tuple[Token, float]]) -> None:
    large = len(group) >= UNSPLIT
    while group:
        room = ROW - 2 - len(rows[-1])
        taken = len(group) if len(group) <= room else room if large else 0
        rows[-1] += group[:taken]
        group = group[taken:]
        if group:
            rows.append([])


def _close(row: Iterable[tuple[Token, float]]) -> Chunk:
    tokens, weights = zip(*row, strict=True) if row else ((), ())
    return Chunk((BOS, *tokens, EOS), (1.0, *weights, 1.0))
