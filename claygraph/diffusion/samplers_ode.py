"""Deterministic samplers whose steps remember nothing of the steps before. All take ``noise``; none draws any."""

# ruff: noqa: ARG001
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from claygraph.diffusion.samplers_step import Denoise, Noise, slope

if TYPE_CHECKING:
    from torch import Tensor


async def euler(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """First order: one straight line a step."""
    for sigma, lower in pairwise(sigmas):
        x = x + await slope(denoise, x, sigma) * (lower - sigma)
    return x


async def heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Second order: the mean of the slopes at both ends of a step (Karras et al. 2022, algorithm 1)."""
    for sigma, lower in pairwise(sigmas):
        here = await slope(denoise, x, sigma)
        if lower > 0:
            here = (here + await slope(denoise, x + here * (lower - sigma), lower)) / 2
        x = x + here * (lower - sigma)
    return x


async def heunpp2(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Heun++: slopes at this sigma and the next two, weighted by sigma (Carzit, sd-webui-samplers-scheduler)."""
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        here = mean = await slope(denoise, x, sigma)
        ahead, current = x, here
        coming = sigmas[step + 1 : -1][:2]
        for before, after in pairwise([sigma, *coming]):
            ahead = ahead + current * (after - before)
            current = await slope(denoise, ahead, after)
            mean = mean + (current - here) * (after / sigmas[0] / (1 + len(coming)))
        x = x + mean * (lower - sigma)
    return x


async def dpm_2(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver-2: the slope at the geometric middle of a step (Lu et al. 2022, arXiv 2206.00927)."""
    for sigma, lower in pairwise(sigmas):
        here = await slope(denoise, x, sigma)
        if lower > 0:
            middle = math.sqrt(sigma * lower)
            here = await slope(denoise, x + here * (middle - sigma), middle)
        x = x + here * (lower - sigma)
    return x
