"""Rows of a batch that ask a network the same: it need be asked once."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from typing import TYPE_CHECKING, TypeVar

import torch

if TYPE_CHECKING:
    from claygraph.diffusion.rows import Row

T = TypeVar("T")


def distinct(items: Sequence[T], row: Callable[[T], Row], key: Callable[[T], Hashable]) -> tuple[list[T], list[int]]:
    """The items without those that ask what another asks, and for every item the place of its answer among them.

    ``row`` is an item's row. Two ask the same where their ``key``, sigma, prompt and latent agree, as at the first step
    of a sweep, and up to where a window opens.
    """
    found: list[T] = []
    alike: dict[Hashable, list[int]] = {}
    places = []
    for item in items:
        mine = row(item)
        others = alike.setdefault((key(item), mine.call.sigma, id(mine.conditioning)), [])
        place = next((n for n in others if torch.equal(row(found[n]).call.x, mine.call.x)), len(found))
        if place == len(found):
            others.append(place)
            found.append(item)
        places.append(place)
    return found, places
