"""What stays the same from one step of a batch to the next is made once: the last few such things of a network."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from typing import Any, TypeVar, cast
from weakref import ref

T = TypeVar("T")
LIMIT = 2
"""How many batches' things are kept at once: as many as take turns while some requests are in one forward."""


class Recent:
    """The last few things that were made, by kind and key; the oldest of a kind goes when one too many comes."""

    def __init__(self, limit: int = LIMIT) -> None:
        self.limit = limit
        self.kinds: dict[str, OrderedDict[Hashable, Any]] = {}

    def get(self, kind: str, key: Hashable, make: Callable[[], T]) -> T:
        """What ``make`` returned for this key, if that is not long ago."""
        found = self.kinds.setdefault(kind, OrderedDict())
        if key in found:
            found.move_to_end(key)
        else:
            found[key] = make()
            if len(found) > self.limit:
                found.popitem(last=False)
        return cast(T, found[key])


def recent(network: Any) -> Recent:
    """What is kept beside a network, and goes with it."""
    return cast(Recent, network.__dict__.setdefault("claygraph_recent", Recent()))


def same(values: Iterable[object]) -> tuple[Hashable, ...]:
    """A key that equals another one while both name the very same living objects; it keeps none of them alive."""
    return tuple(map(ref, values))
