"""The rows of one UNet batch: each call's guidance has a positive half and, where it counts, a negative one."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

import torch

from claygraph.diffusion.prediction import table_of
from claygraph.diffusion.schedules import Table, sigma_at_percent

if TYPE_CHECKING:
    from claygraph.diffusion.calls import Denoise
    from claygraph.values import Conditioning, Control, ImagePrompt, Model

ROUNDING = 1e-6
T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Row:
    """One half of one call."""

    call: Denoise
    negative: bool

    @property
    def model(self) -> Model:
        """What the row is denoised by."""
        return self.call.model

    @property
    def conditioning(self) -> Conditioning:
        """The half's encoded prompt."""
        return self.call.prompt.negative if self.negative else self.call.prompt.positive

    def active(self, item: ImagePrompt | Control) -> bool:
        """Whether the row's sigma lies in the item's window."""
        return in_window(self.call.sigma, item.start, item.end, table_of(self.model.checkpoint))


def rows_of(calls: Sequence[Denoise]) -> list[Row]:
    """The rows of a batch in order, each call's negative half before its positive one."""
    return [Row(call, negative) for call in calls for negative in ((True, False) if call.has_negative else (False,))]


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


def in_window(sigma: float, start: float, end: float, table: Table) -> bool:
    """Whether ``sigma`` lies between two fractions of the training schedule (0 pure noise, 1 clean), both included."""
    high, low = sigma_at_percent(start, table), sigma_at_percent(end, table)
    return low * (1 - ROUNDING) <= sigma <= high * (1 + ROUNDING)
