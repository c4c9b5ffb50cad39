"""How many bytes a value holds: arrays, tensors and modules, alone or inside of containers and dataclasses."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence, Set
from dataclasses import fields, is_dataclass
from itertools import chain
from typing import Any


def bytes_in(value: Any) -> int:
    """Bytes of every array, tensor and module in a value, each counted once; 0 for what holds none."""
    return sum({id(array): int(array.nbytes) for array in _arrays(value)}.values())


def _arrays(value: Any) -> Iterator[Any]:
    """Whatever has ``nbytes``: told apart by what it can do, so that neither numpy nor torch need be imported."""
    if isinstance(value, str | bytes | int | float | None):
        return
    if hasattr(value, "nbytes"):
        yield value
    elif hasattr(value, "parameters") and hasattr(value, "buffers"):
        yield from chain(value.parameters(), value.buffers())
    else:
        for part in _parts(value):
            yield from _arrays(part)


def _parts(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        yield from value.values()
    elif isinstance(value, Sequence | Set):
        yield from value
    elif is_dataclass(value) and not isinstance(value, type):
        yield from (getattr(value, item.name) for item in fields(value))
