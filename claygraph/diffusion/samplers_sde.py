"""Samplers that add noise at every step: ancestral ones, and solvers of the reverse stochastic equation.

With ``kept = (lower / sigma) ** 2``, all of them but ``lcm`` leave ``kept`` of the distance to the denoised latent, and
add fresh noise of deviation ``lower * sqrt(1 - kept)``: the exact step for a fixed denoised latent (eta 1).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from claygraph.diffusion.samplers_step import Denoise, Noise, ancestral_step, blend, phi_2, res_share, slope

if TYPE_CHECKING:
    from torch import Tensor


async def euler_ancestral(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Euler to below the next sigma, then noise up to it."""
    for sigma, lower in pairwise(sigmas):
        down, up = ancestral_step(sigma, lower)
        x = x + await slope(denoise, x, sigma) * (down - sigma)
        if lower > 0:
            x = x + noise(sigma, lower) * up
    return x


async def dpm_2_ancestral(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver-2 to below the next sigma, then noise up to it."""
    for sigma, lower in pairwise(sigmas):
        down, up = ancestral_step(sigma, lower)
        here = await slope(denoise, x, sigma)
        if lower == 0:
            x = x - here * sigma
            continue
        middle = math.sqrt(sigma * down)
        here = await slope(denoise, x + here * (middle - sigma), middle)
        x = x + here * (down - sigma) + noise(sigma, lower) * up
    return x


async def dpmpp_2s_ancestral(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver++(2S) to below the next sigma, then noise up to it (Lu et al. 2022, arXiv 2211.01095)."""
    for sigma, lower in pairwise(sigmas):
        down, up = ancestral_step(sigma, lower)
        denoised = await denoise(x, sigma)
        if lower == 0:
            x = denoised
            continue
        middle = math.sqrt(sigma * down)
        denoised = await denoise(blend(x, denoised, middle / sigma), middle)
        x = blend(x, denoised, down / sigma) + noise(sigma, lower) * up
    return x


async def dpmpp_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver++ SDE: a stochastic step to the geometric middle, then the whole step with what was seen there."""
    for sigma, lower in pairwise(sigmas):
        denoised = await denoise(x, sigma)
        if lower == 0:
            x = denoised
            continue
        middle = math.sqrt(sigma * lower)
        down, up = ancestral_step(sigma, middle)
        ahead = blend(x, denoised, down / sigma) + noise(sigma, middle) * up
        denoised = await denoise(ahead, middle)
        down, up = ancestral_step(sigma, lower)
        x = blend(x, denoised, down / sigma) + noise(sigma, lower) * up
    return x


async def dpmpp_2m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver++(2M) SDE, extrapolating the denoised latent by the midpoint rule."""
    last: Tensor | None = None
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        denoised = target = await denoise(x, sigma)
        if lower == 0:
            return denoised
        if last is not None:
            target = denoised + (denoised - last) * (math.log(sigma / lower) / math.log(sigmas[step - 1] / sigma) / 2)
        down, up = ancestral_step(sigma, lower)
        x = blend(x, target, down / sigma) + noise(sigma, lower) * up
        last = denoised
    return x


async def dpmpp_2m_sde_heun(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver++(2M) SDE, integrating the linear change of the denoised latent exactly."""
    last: Tensor | None = None
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        denoised = await denoise(x, sigma)
        if lower == 0:
            return denoised
        down, up = ancestral_step(sigma, lower)
        x = blend(x, denoised, down / sigma) + noise(sigma, lower) * up
        if last is not None:
            h, h_last = math.log(sigma / lower), math.log(sigmas[step - 1] / sigma)
            x = x + (denoised - last) * (phi_2(h) * h / h_last)
        last = denoised
    return x


async def dpmpp_3m_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver++(3M) SDE: the denoised latent as a parabola in log sigma (K. Crowson, k-diffusion)."""
    past: list[Tensor] = []
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        denoised = await denoise(x, sigma)
        if lower == 0:
            return denoised
        down, up = ancestral_step(sigma, lower)
        x = blend(x, denoised, down / sigma) + noise(sigma, lower) * up
        h = math.log(sigma / lower)
        past = [denoised, *past[:2]]
        widths = [math.log(before / after) / h for before, after in pairwise(sigmas[max(0, step - 2) : step + 1])]
        x = x + _curvature(past, widths[::-1], h)
    return x


def _curvature(past: Sequence[Tensor], widths: Sequence[float], h: float) -> Tensor | float:
    """What the differences of the last denoised latents add to a step ``h``; ``widths`` of past steps are in ``h``."""
    if not widths:
        return 0.0
    first = (past[0] - past[1]) / widths[0]
    if len(widths) == 1:
        return first * phi_2(h)
    change = (first - (past[1] - past[2]) / widths[1]) / (widths[0] + widths[1])
    return (first + change * widths[0]) * phi_2(h) - change * (phi_2(h) / (2 * h) - 0.5)


async def lcm(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Latent consistency: the denoised latent, noised again to the next sigma (Luo et al. 2023, arXiv 2310.04378)."""
    for sigma, lower in pairwise(sigmas):
        x = await denoise(x, sigma)
        if lower > 0:
            x = x + noise(sigma, lower) * lower
    return x


async def res_multistep_ancestral(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """RES(2M) to below the next sigma, then noise up to it."""
    last: Tensor | None = None
    h_last = 0.0
    for sigma, lower in pairwise(sigmas):
        denoised = target = await denoise(x, sigma)
        if lower == 0:
            return denoised
        down, up = ancestral_step(sigma, lower)
        h = math.log(sigma / down)
        if last is not None:
            target = denoised + (denoised - last) * res_share(h, h_last)
        x = blend(x, target, down / sigma) + noise(sigma, lower) * up
        last, h_last = denoised, h
    return x
