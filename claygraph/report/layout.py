"""Which axis goes where at first: rows, columns and pages of a grid, or a plain list where a grid would be empty."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any

ROWS, COLUMNS, PAGES = "rows", "columns", "pages"
MOST = {COLUMNS: 8, ROWS: 24}
"""Up to how many columns and rows several axes are put side by side."""
LEAST_FILLED = 0.5


def roles(axes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """What each axis is at first: the last ones columns, those before them rows, as far as they fit; others pages."""
    found, left = dict.fromkeys(axes, PAGES), list(axes)
    for role, most in MOST.items():
        size = 1
        while left and (size == 1 or size * len(axes[left[-1]]) <= most):
            size *= len(axes[left[-1]])
            found[left.pop()] = role
    return found


def is_grid(jobs: Sequence[Any], axes: Mapping[str, Sequence[str]]) -> bool:
    """Whether at least half of all combinations of the axes are there."""
    return bool(axes) and len(jobs) >= LEAST_FILLED * prod(len(values) for values in axes.values())


def label(entry: Mapping[str, Any], keys: Sequence[str]) -> str:
    """The values of some axes of a job, in short: the last part of each name will do."""
    return "  ".join(f"{short(key)}={shorten(entry['axes'][key])}" for key in keys)


def usual(jobs: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[str]]) -> dict[str, str]:
    """For each axis the value that most pictures have, if more than half do: what goes without saying in a list."""
    counts = {axis: Counter(job["axes"][axis] for job in jobs).most_common(1) for axis in axes}
    return {axis: most[0][0] for axis, most in counts.items() if most and 2 * most[0][1] > len(jobs)}


def short_names(keys: Sequence[str]) -> dict[str, str]:
    """The axes' names in short, as far as that tells them apart."""
    found = {key: short(key) for key in keys}
    return {key: name if list(found.values()).count(name) == 1 else key for key, name in found.items()}


def short(key: str) -> str:
    """An axis's name without the parts before its last dot, but for a part that is all digits."""
    parts = key.split(".")
    return ".".join(parts[-2:]) if parts[-1].isdigit() or parts[-1] in ("model", "clip", "path") else parts[-1]


def shorten(text: str, most: int = 28) -> str:
    """A value that fits a label: of a path the file's name, of anything long its end."""
    text = text.strip("'\"").replace("\\", "").rstrip("/").rpartition("/")[2] or text
    return text if len(text) <= most else f"…{text[1 - most :]}"
