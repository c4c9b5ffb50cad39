"""The rows of one UNet batch: each call's guidance has a positive half and, where it counts, a negative one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from claygraph.diffusion.prediction import table_of
from claygraph.diffusion.schedules import Table, sigma_at_percent

if TYPE_CHECKING:
    from claygraph.diffusion.calls import Denoise
    from claygraph.values import Conditioning, Control, ImagePrompt, Model

ROUNDING = 1e-6


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


def in_window(sigma: float, start: float, end: float, table: Table) -> bool:
    """Whether ``sigma`` lies between two fractions of the training schedule (0 pure noise, 1 clean), both included."""
    high, low = sigma_at_percent(start, table), sigma_at_percent(end, table)
    return low * (1 - ROUNDING) <= sigma <= high * (1 + ROUNDING)
