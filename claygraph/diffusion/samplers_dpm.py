"""DPM-Solver of mixed orders (Lu et al. 2022, arXiv 2206.00927): within a step it asks the model up to three times.

Both samplers end at the lowest sigma above 0, as k-diffusion's do, so the schedule should come near 0 by itself
(``karras`` does, ``sgm_uniform`` does not). A schedule of one step ends at the denoised latent. None draws noise.
"""

# ruff: noqa: ARG001
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from claygraph.diffusion.samplers_step import Denoise, Noise, slope

if TYPE_CHECKING:
    from torch import Tensor

RELATIVE, ABSOLUTE, SAFETY, FIRST_STEP = 0.05, 0.0078, 0.81, 0.05
"""k-diffusion's tolerances of ``dpm_adaptive``, the share of them a step may use up, and its first width."""


def between(sigma: float, lower: float, share: float) -> float:
    """The sigma at a share of the way, in log sigma."""
    return math.exp(math.log(sigma) + share * math.log(lower / sigma))


def bend(sigma: float, lower: float) -> float:
    """What a slope that changes by 1 in log sigma over the step adds to ``x``, beyond its first value."""
    return lower - (sigma - lower) / math.log(sigma / lower)


async def _second(denoise: Denoise, x: Tensor, sigma: float, lower: float, here: Tensor) -> Tensor:
    middle = between(sigma, lower, 1 / 2)
    there = await slope(denoise, x + here * (middle - sigma), middle)
    return x + there * (lower - sigma)


async def _third(denoise: Denoise, x: Tensor, sigma: float, lower: float, here: Tensor) -> tuple[Tensor, Tensor]:
    """The third-order step, and the second-order one that its first two slopes make."""
    early, late = between(sigma, lower, 1 / 3), between(sigma, lower, 2 / 3)
    change = await slope(denoise, x + here * (early - sigma), early) - here
    ahead = x + here * (late - sigma) + change * (2 * bend(sigma, late))
    final = await slope(denoise, ahead, late) - here
    straight = x + here * (lower - sigma)
    return straight + final * (1.5 * bend(sigma, lower)), straight + change * (1.5 * (lower - sigma))


def fast_orders(evaluations: int) -> list[int]:
    """The orders of steps that use up so many evaluations: threes, and at the end 2 and 1, or what is left."""
    threes, left = divmod(evaluations, 3)
    return [3] * threes + [left] if left else [3] * (threes - 1) + [2, 1]


async def dpm_fast(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver-fast: steps equal in log sigma, as many evaluations as the schedule has steps."""
    ends = [sigma for sigma in sigmas if sigma > 0]
    if len(ends) < 2:
        return await denoise(x, ends[0]) if ends else x
    orders = fast_orders(len(sigmas) - 1)
    stops = [between(ends[0], ends[-1], k / len(orders)) for k in range(len(orders) + 1)]
    for order, (sigma, lower) in zip(orders, pairwise(stops), strict=True):
        here = await slope(denoise, x, sigma)
        if order == 1:
            x = x + here * (lower - sigma)
        elif order == 2:
            x = await _second(denoise, x, sigma, lower, here)
        else:
            x, _ = await _third(denoise, x, sigma, lower, here)
    return x


async def dpm_adaptive(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver-23 with steps as wide as its two orders agree, so that the schedule does not decide their number."""
    ends = [sigma for sigma in sigmas if sigma > 0]
    if len(ends) < 2:
        return await denoise(x, ends[0]) if ends else x
    sigma, h, low = ends[0], FIRST_STEP, x
    here: Tensor | None = None
    while math.log(sigma / ends[-1]) > 1e-5:
        here = await slope(denoise, x, sigma) if here is None else here
        lower = max(ends[-1], sigma * math.exp(-h))
        third, second = await _third(denoise, x, sigma, lower, here)
        allowed = (RELATIVE * second.abs().maximum(low.abs())).clamp(min=ABSOLUTE)
        error = ((second - third) / allowed).square().mean().sqrt().item()
        change = 1 + math.atan((error + 1e-8) ** (-1 / 3) - 1)
        h *= change
        if change >= SAFETY:
            x, low, sigma, here = third, second, lower, None
    return x
