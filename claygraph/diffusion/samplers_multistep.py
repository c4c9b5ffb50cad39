"""Deterministic multistep samplers: each step also uses what the steps before saw. None draws noise."""

# ruff: noqa: ARG001
from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise, zip_longest
from typing import TYPE_CHECKING

from claygraph.diffusion.samplers_step import Denoise, Noise, blend, integral, lagrange, res_share, slope

if TYPE_CHECKING:
    from torch import Tensor


async def lms(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Linear multistep: the polynomial through the last four slopes, integrated over the step."""
    slopes: list[Tensor] = []
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        slopes = [await slope(denoise, x, sigma), *slopes[:3]]
        if lower == 0:
            return x - slopes[0] * sigma
        nodes = sigmas[max(0, step - 3) : step + 1][::-1]
        for k, past in enumerate(slopes):
            x = x + past * integral(partial(lagrange, nodes, k), sigma, lower)
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


async def ipndm_v(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """iPNDM for unequal steps, fourth order (Zhou et al. 2023, arXiv 2312.00094)."""
    slopes: list[Tensor] = []
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        slopes = [await slope(denoise, x, sigma), *slopes[:3]]
        stops = sigmas[max(0, step - 3) : step + 2][::-1]
        steps = [after - before for after, before in pairwise(stops)] if lower > 0 else [-sigma]
        for weight, past in zip(ipndm_v_weights(steps), slopes, strict=False):
            x = x + past * (weight * (lower - sigma))
    return x


def ipndm_v_weights(steps: Sequence[float]) -> list[float]:
    """Weights of the last slopes for a step, from its width and those of up to three before it, newest first.

    Adams-Bashforth in differences of the slopes, exact up to second order. The third share is exact for equal steps
    only, the fourth never: they are those of the authors' program (diff-sampler), which other programs repeat.
    """
    h, p, q, r = (*steps, 1.0, 1.0, 1.0)[:4]
    part = p * (p + q) / (q * (q + r))
    change = (1, -1 - p / q - part, p / q + part * (1 + q / r), -part * p / q)
    rows = [(1,), (1, -1), (1, -1 - p / q, p / q), change][: len(steps)]
    lean = (1 - h / (3 * (h + p))) / 2 + (1 - h / (2 * (h + p))) * h / (6 * (h + p + q))
    shares = [
        1,
        h / (2 * p),
        (1 - h**2 / (3 * p * (p + q))) / 2,
        lean * h * (h + p) * (h + p + q) / (p * (p + q) * (p + q + r)),
    ]
    columns = zip_longest(*rows, fillvalue=0.0)
    return [sum(share * entry for share, entry in zip(shares, column, strict=False)) for column in columns]


async def deis(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DEIS of order 3: slopes as a polynomial of the VP time, integrated (Zhang and Chen 2022, arXiv 2204.13902)."""
    slopes: list[Tensor] = []
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        slopes = [await slope(denoise, x, sigma), *slopes[:2]]
        times = [vp_time(past) for past in sigmas[max(0, step - 2) : step + 1][::-1]] if lower > 0 else [0.0]
        for k, past in enumerate(slopes[: len(times)]):
            x = x + past * integral(partial(_at_vp_time, times, k), sigma, lower)
    return x


def _at_vp_time(times: Sequence[float], chosen: int, sigma: float) -> float:
    return lagrange(times, chosen, vp_time(sigma))


def vp_time(sigma: float) -> float:
    """The time of the variance-preserving process that has sigma 0.002 at 0.001 and 80 at 1 (Karras et al. 2022)."""
    low, high = math.log1p(0.002**2), math.log1p(80**2)
    change = 2 * (high - low / 0.001) / (1 - 0.001)
    start = high - change / 2
    return (math.sqrt(start**2 + 2 * change * math.log1p(sigma**2)) - start) / change


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
            h, h_last = math.log(sigma / lower), math.log(sigmas[step - 1] / sigma)
            target = denoised + (denoised - last) * res_share(h, h_last)
        x = blend(x, target, lower / sigma)
        last = denoised
    return x
