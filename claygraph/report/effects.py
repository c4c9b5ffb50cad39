"""How much each axis of a sweep matters to each metric."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean, pstdev
from typing import Any

FORMULA = (
    "Share of variance explained by one axis alone (eta squared): "
    "sum over its values of n_v (mean_v - mean)^2, divided by the sum over all pictures of (x - mean)^2. "
    "0: the axis makes no difference; 1: it alone decides. "
    "Dots are the means of a value's pictures, lines one standard deviation (population) to either side."
)


@dataclass(frozen=True)
class Level:
    """The pictures with one value of an axis: how many, mean and population standard deviation of their scores."""

    value: str
    count: int
    mean: float
    spread: float


@dataclass(frozen=True)
class Effect:
    """What an axis does to a metric: the share of variance it explains (0 to 1), and each of its values."""

    metric: str
    axis: str
    share: float
    levels: tuple[Level, ...]


def effects(jobs: Sequence[Mapping[str, Any]], axes: Mapping[str, Sequence[str]]) -> list[Effect]:
    """Every axis for every metric, over the pictures that have a score; axes that explain most come first."""
    metrics = dict.fromkeys(name for job in jobs for name in job["metrics"])
    found = []
    for metric in metrics:
        scored = [job for job in jobs if metric in job["metrics"]]
        mine = [effect(scored, metric, axis, values) for axis, values in axes.items()]
        found += sorted(mine, key=lambda each: -each.share)
    return found


def effect(jobs: Sequence[Mapping[str, Any]], metric: str, axis: str, values: Sequence[str]) -> Effect:
    """What one axis does to a metric that all of these jobs have."""
    scores = {value: [float(job["metrics"][metric]) for job in jobs if job["axes"][axis] == value] for value in values}
    levels = tuple(Level(value, len(own), fmean(own), pstdev(own)) for value, own in scores.items() if own)
    return Effect(metric, axis, _share(levels, [x for own in scores.values() for x in own]), levels)


def _share(levels: Sequence[Level], scores: Sequence[float]) -> float:
    """Eta squared; 0 where all scores are equal."""
    mean = fmean(scores)
    total = sum((x - mean) ** 2 for x in scores)
    between = sum(level.count * (level.mean - mean) ** 2 for level in levels)
    return min(1.0, between / total) if total > 1e-12 * max(1.0, mean * mean) else 0.0
