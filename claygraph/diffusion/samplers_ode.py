"""Deterministic samplers, and the two functions every sampler is given.

A sampler walks ``x`` (``[1, C, H, W]``, the latent plus noise of the first sigma) down strictly falling ``sigmas``,
which usually end in 0. With a denoiser D it solves ``dx/dsigma = (x - D(x, sigma)) / sigma`` (Karras et al. 2022,
equation 1). All take ``noise``, though none here draws any: every sampler has one signature.
"""

# ruff: noqa: ARG001
from __future__ import annotations

import math
from collections.abc import Awaitable, Callable, Sequence
from itertools import pairwise
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


def lagrange_integral(nodes: Sequence[float], chosen: int, start: float, end: float) -> float:
    """Integral of the Lagrange basis polynomial of one of at most four nodes, where two Gauss points are exact."""
    others = [node for k, node in enumerate(nodes) if k != chosen]
    middle, half = (start + end) / 2, (end - start) / 2
    points = (middle - half / math.sqrt(3), middle + half / math.sqrt(3))
    return half * sum(math.prod((p - o) / (nodes[chosen] - o) for o in others) for p in points)


async def lms(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Linear multistep: the polynomial through the last four slopes, integrated over the step."""
    slopes: list[Tensor] = []
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        slopes = [await slope(denoise, x, sigma), *slopes[:3]]
        if lower == 0:
            return x - slopes[0] * sigma
        nodes = sigmas[max(0, step - 3) : step + 1][::-1]
        for k, past in enumerate(slopes):
            x = x + past * lagrange_integral(nodes, k, sigma, lower)
    return x


ADAMS_BASHFORTH = (
    (1.0,),
    (3 / 2, -1 / 2),
    (23 / 12, -16 / 12, 5 / 12),
    (55 / 24, -59 / 24, 37 / 24, -9 / 24),
)
"""Weights of the last slopes, newest first, for orders 1 to 4."""


async def ipndm(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Fourth-order Adams-Bashforth as if the steps were equal (Zhang and Chen 2023, arXiv 2204.13902)."""
    slopes: list[Tensor] = []
    for sigma, lower in pairwise(sigmas):
        slopes = [await slope(denoise, x, sigma), *slopes[:3]]
        weights = ADAMS_BASHFORTH[len(slopes) - 1] if lower > 0 else ADAMS_BASHFORTH[0]
        for weight, past in zip(weights, slopes, strict=False):
            x = x + past * (weight * (lower - sigma))
    return x


async def gradient_estimation(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Euler with each slope carried on by its last change (Permenter and Yuan 2024, arXiv 2306.04848, gamma 2)."""
    last: Tensor | None = None
    for sigma, lower in pairwise(sigmas):
        here = await slope(denoise, x, sigma)
        taken = here if last is None or lower == 0 else 2 * here - last
        x = x + taken * (lower - sigma)
        last = here
    return x


async def dpmpp_2m(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver++(2M): the denoised latent extrapolated in log sigma (Lu et al. 2022, arXiv 2211.01095)."""
    last: Tensor | None = None
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        denoised = target = await denoise(x, sigma)
        if last is not None and lower > 0:
            target = denoised + (denoised - last) * (math.log(sigma / lower) / math.log(sigmas[step - 1] / sigma) / 2)
        x = blend(x, target, lower / sigma)
        last = denoised
    return x


async def res_multistep(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """RES(2M): a second-order exponential integrator in log sigma (Zhang et al. 2023, arXiv 2308.02157)."""
    last: Tensor | None = None
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        denoised = target = await denoise(x, sigma)
        if last is not None and lower > 0:
            h = math.log(sigma / lower)
            carried = (h + math.expm1(-h)) / math.log(sigmas[step - 1] / sigma)
            target = denoised + (denoised - last) * (carried / -math.expm1(-h))
        x = blend(x, target, lower / sigma)
        last = denoised
    return x
