"""What samplers share: the two functions every one is given, and the arithmetic of a step.

A sampler walks ``x`` (``[1, C, H, W]``, the latent plus noise of the first sigma) down strictly falling ``sigmas``,
which usually end in 0. With a denoiser D it solves ``dx/dsigma = (x - D(x, sigma)) / sigma`` (Karras et al. 2022,
equation 1), or the stochastic equation with the same marginals. Every sampler has one signature:
``(denoise, x, sigmas, noise)``. The denoised latent changes evenly in log sigma, so ``h`` is a step's width there.
"""

from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from torch import Tensor

Denoise: TypeAlias = Callable[["Tensor", float], Awaitable["Tensor"]]
"""``await denoise(x, sigma)`` is the denoised latent, of the shape of ``x``."""

Noise: TypeAlias = Callable[[float, float], "Tensor"]
"""``noise(sigma, lower)`` is unit-variance noise for the step between two sigmas, of the shape of ``x``."""


async def slope(denoise: Denoise, x: Tensor, sigma: float) -> Tensor:
    """The derivative of ``x`` by sigma."""
    return (x - await denoise(x, sigma)) / sigma


def blend(x: Tensor, target: Tensor, kept: float) -> Tensor:
    """Where ``x`` ends when ``kept`` of its distance to a fixed denoised ``target`` is left."""
    return kept * x + (1 - kept) * target


def ancestral_step(sigma: float, lower: float) -> tuple[float, float]:
    """The sigma to step down to, and the deviation of the noise to add, so that together they make ``lower``."""
    return lower**2 / sigma, lower * math.sqrt(1 - (lower / sigma) ** 2)


def res_share(h: float, h_last: float) -> float:
    """How far a step of ``h`` carries on the last change of the denoised latent, which took ``h_last``.

    The second coefficient of RES(2M), an exponential integrator (Zhang et al. 2023, arXiv 2308.02157).
    """
    return (h + math.expm1(-h)) / (-math.expm1(-h) * h_last)


def phi_2(h: float) -> float:
    """How much of the change of the denoised latent over a step of ``h`` reaches ``x``, at eta 1."""
    return 1 + math.expm1(-2 * h) / (2 * h)


def lagrange(nodes: Sequence[float], chosen: int, at: float) -> float:
    """The polynomial that is 1 at the chosen node and 0 at the others."""
    return math.prod((at - node) / (nodes[chosen] - node) for k, node in enumerate(nodes) if k != chosen)


@cache
def _gauss_points() -> list[tuple[float, float]]:
    from numpy.polynomial.legendre import leggauss

    places, weights = leggauss(16)
    return list(zip(places.tolist(), weights.tolist(), strict=True))


def integral(function: Callable[[float], float], start: float, end: float) -> float:
    """Gauss-Legendre quadrature with 16 points: exact for polynomials up to degree 31."""
    middle, half = (start + end) / 2, (end - start) / 2
    return half * sum(weight * function(middle + half * place) for place, weight in _gauss_points())
