"""Whether a window of the training schedule meets the sigmas of a run. Light: ``plan`` asks as well as the run."""

from __future__ import annotations

import logging
import math
from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from claygraph.diffusion.rows import in_window
from claygraph.diffusion.schedules import Table, sigma_at_percent, sigma_table

if TYPE_CHECKING:
    from claygraph.values import Model, Weights

log = logging.getLogger(__name__)


@runtime_checkable
class Windowed(Protocol):
    """What acts from ``start`` to ``end`` only: fractions of the training schedule, 0 noise, 1 the picture."""

    @property
    def start(self) -> float:
        """Where it begins."""

    @property
    def end(self) -> float:
        """Where it ends."""


def planned(parts: Mapping[str, object], schedule: Callable[[Table], Sequence[float]]) -> list[str]:
    """``never_act`` of a graph's parts, before its checkpoint is read: on SDXL's own table.

    The run's ``schedule`` for a table is asked for only where a window is narrower than the whole.
    """
    windowed = {name: part for name, part in parts.items() if isinstance(part, Windowed)}
    narrow = {name: part for name, part in windowed.items() if part.start > 0 or part.end < 1}
    return never_act(narrow, schedule(sigma_table()), sigma_table()) if narrow else []


def windows_of(model: Model) -> dict[str, Windowed]:
    """What steers a model in a window of its own, by the name of its weights."""
    controls = {f"controlnet {_name(control.weights)}": control for control in model.controls}
    prompts = {f"ip_adapter {_name(prompt.adapter)}": prompt for prompt in model.image_prompts}
    return {**controls, **prompts}


def _name(weights: Weights) -> str:
    return Path(weights.path).name


def never_act(items: Mapping[str, Windowed], sigmas: Sequence[float], table: Table) -> list[str]:
    """One sentence for each item, by name, whose window holds none of the sigmas a run's steps begin at.

    ``sigmas`` is the run's falling schedule, the one it ends at included.
    """
    steps = sigmas[:-1]
    return [_why(name, item, steps, table) for name, item in items.items() if steps and not _acts(item, steps, table)]


def _acts(item: Windowed, steps: Sequence[float], table: Table) -> bool:
    return any(in_window(sigma, item.start, item.end, table) for sigma in steps)


def _why(name: str, item: Windowed, steps: Sequence[float], table: Table) -> str:
    first, last = percent_of(steps[0], table), percent_of(steps[-1], table)
    high, low = (sigma_at_percent(share, table) for share in (item.start, item.end))
    if item.end < first:
        remedy = f"give an end of at least {math.ceil(1000 * first) / 1000}, or more denoise"
    elif item.start > last:
        remedy = f"give a start of at most {math.floor(1000 * last) / 1000}, or more steps"
    else:
        remedy = "it lies between two steps: widen it, or take more steps"
    return (
        f"{name} never acts: start {item.start:g} to end {item.end:g} is sigma {high:.3g} to {low:.3g}, and the "
        f"{len(steps)} steps begin at sigma {steps[0]:.3g} to {steps[-1]:.3g}, which is {first:.3f} to {last:.3f} "
        f"of the training schedule; {remedy}."
    )


def percent_of(sigma: float, table: Table) -> float:
    """The share of the training schedule a sigma lies at, 0 pure noise: ``sigma_at_percent`` the other way round."""
    below = min(max(bisect_right(table, sigma) - 1, 0), len(table) - 2)
    low, high = math.log(table[below]), math.log(table[below + 1])
    timestep = below + (math.log(sigma) - low) / (high - low)
    return min(max(1 - timestep / (len(table) - 1), 0.0), 1.0)


@cache
def warn_once(message: str) -> None:
    """Log a warning that all pictures of a run would repeat."""
    log.warning(message)
