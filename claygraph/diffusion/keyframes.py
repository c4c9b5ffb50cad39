"""Which strength and layer weights of a ControlNet are in force at a step. Light: no torch.

The rules are those of ComfyUI-Advanced-ControlNet (timestep keyframes, scaled soft weights).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import takewhile

from claygraph.diffusion.schedules import Table, sigma_at_percent
from claygraph.values import Control, Keyframe, LayerWeights

ROUNDING = 1e-6

EASINGS: Mapping[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "ease-in": lambda x: x**2,
    "ease-out": lambda x: 1 - (1 - x) ** 2,
    "ease-in-out": lambda x: (1 - math.cos(math.pi * x)) / 2,
}


def in_force(control: Control, passed: Sequence[float], table: Table) -> tuple[float, LayerWeights]:
    """The keyframe strength and layer weights at the last of the sigmas ``passed``, which begin with the run's first.

    A keyframe's turn comes when sigma has fallen to that of its start; it then keeps its guaranteed steps, of which a
    keyframe that starts above the run's first sigma has none.
    """
    frames = sorted([Keyframe(), *control.keyframes], key=lambda frame: frame.start)
    starts = [sigma_at_percent(frame.start, table) / (1 + ROUNDING) for frame in frames]
    held = [f.guarantee_steps if start <= passed[0] else 0 for f, start in zip(frames, starts, strict=True)]
    now, used, weights = 0, 0, control.layers
    for sigma in passed:
        while used >= held[now] and now + 1 < len(frames) and starts[now + 1] * (1 + ROUNDING) ** 2 >= sigma:
            now, used = now + 1, 0
            weights = frames[now].weights or (weights if frames[now].inherit_missing else LayerWeights())
        used += 1
    return frames[now].strength, weights


def passed_by(sigma: float, sigmas: Sequence[float]) -> list[float]:
    """The sigmas of the steps made before ``sigma`` was reached, and ``sigma`` itself."""
    return [*takewhile(lambda step: step > sigma * (1 + ROUNDING), sigmas), sigma]


def interpolated(first: Keyframe, end: float, strength: float, easing: str, intervals: int) -> tuple[Keyframe, ...]:
    """``intervals`` keyframes equally spaced from ``first`` to ``end``, their strengths eased to ``strength``.

    ``easing`` is one of ``EASINGS``. Only the first one's steps are guaranteed.
    """
    shares = [step / (intervals - 1) for step in range(1, intervals)]
    span, rise = end - first.start, strength - first.strength
    later = ((first.start + share * span, first.strength + EASINGS[easing](share) * rise) for share in shares)
    return first, *(replace(first, start=start, strength=level, guarantee_steps=0) for start, level in later)


def layer_factors(weights: LayerWeights, count: int) -> list[float]:
    """What each of ``count`` residuals is multiplied by, and the middle, which comes last."""
    own = weights.layers or (1.0,) * count
    ramp = (weights.soft ** (count - layer) for layer in range(count))
    return [*(a * b for a, b in zip(own, ramp, strict=True)), weights.middle]
