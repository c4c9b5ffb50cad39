"""Exponential integrators of the stochastic equation, with the denoised latent as a polynomial.

SEEDS: Gonzalez et al. 2023, arXiv 2305.14267. ER-SDE-Solver: Cui et al. 2023, arXiv 2309.06169. SA-Solver: Xue et al.
2023, arXiv 2309.05019.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from typing import TYPE_CHECKING

from claygraph.diffusion.rows import in_window
from claygraph.diffusion.samplers_step import Denoise, Noise, ancestral_step, blend, integral, lagrange, phi_2
from claygraph.diffusion.schedules import sigma_table

if TYPE_CHECKING:
    from torch import Tensor


async def seeds_2(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """SEEDS-2: a step to the geometric middle, then all of it with what was seen there."""
    for sigma, lower in pairwise(sigmas):
        denoised = await denoise(x, sigma)
        if lower == 0:
            return denoised
        middle = math.sqrt(sigma * lower)
        drawn = _carried(None, noise, sigma, middle)
        there = await denoise(blend(x, denoised, (middle / sigma) ** 2) + drawn, middle)
        x = blend(x, there, (lower / sigma) ** 2) + _carried(drawn, noise, middle, lower)
    return x


async def seeds_3(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """SEEDS-3: the same with stops at a third and two thirds of the step, in log sigma."""
    for sigma, lower in pairwise(sigmas):
        denoised = await denoise(x, sigma)
        if lower == 0:
            return denoised
        h = math.log(sigma / lower)
        early, late = sigma * math.exp(-h / 3), sigma * math.exp(-2 * h / 3)
        drawn = _carried(None, noise, sigma, early)
        change = await denoise(blend(x, denoised, (early / sigma) ** 2) + drawn, early) - denoised
        drawn = _carried(drawn, noise, early, late)
        ahead = blend(x, denoised, (late / sigma) ** 2) + change * (2 * phi_2(2 * h / 3)) + drawn
        change = await denoise(ahead, late) - denoised
        drawn = _carried(drawn, noise, late, lower)
        x = blend(x, denoised, (lower / sigma) ** 2) + change * (1.5 * phi_2(h)) + drawn
    return x


def _carried(drawn: Tensor | None, noise: Noise, sigma: float, lower: float) -> Tensor:
    """Fresh noise for a part of a step, and what is left of that drawn for the parts before."""
    down, up = ancestral_step(sigma, lower)
    fresh = noise(sigma, lower) * up
    return fresh if drawn is None else fresh + drawn * (down / sigma)


def er_scale(sigma: float) -> float:
    """The noise scale the authors of ER-SDE-Solver settled on."""
    return sigma * (math.exp(sigma**0.3) + 10)


async def er_sde(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """ER-SDE-Solver-3: Taylor steps up to third order of a reverse equation with a noise scale of its own."""
    past: list[Tensor] = []
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        denoised = await denoise(x, sigma)
        if lower == 0:
            return denoised
        kept = er_scale(lower) / er_scale(sigma)
        x = blend(x, denoised, kept)
        past = _divided([denoised, *past], sigmas[max(0, step - 2) : step + 1][::-1])
        for change, weight in zip(past[1:], er_weights(sigma, lower), strict=False):
            x = x + change * weight
        x = x + noise(sigma, lower) * math.sqrt(max(0.0, lower**2 - (sigma * kept) ** 2))
    return x


def _divided(values: Sequence[Tensor], places: Sequence[float]) -> list[Tensor]:
    """The newest value, and its first and second derivative from differences with the ones before.

    ``values`` are the new value and what this returned for the one before; ``places`` are where they were taken.
    """
    results = [values[0]]
    for n, last in enumerate(values[1 : len(places)], start=1):
        results.append((results[-1] - last) * (n / (places[0] - places[n])))
    return results


def er_weights(sigma: float, lower: float) -> tuple[float, float]:
    """What the first and second derivative of the denoised latent add over a step: sums over 200 places, as theirs."""
    width = (sigma - lower) / 200
    places = [lower + k * width for k in range(200)]
    scales = [er_scale(place) for place in places]
    once = width * sum(1 / scale for scale in scales)
    twice = width * sum((place - sigma) / scale for place, scale in zip(places, scales, strict=True))
    fall = lower - sigma
    return fall + once * er_scale(lower), fall**2 / 2 + twice * er_scale(lower)


PREDICTOR_ORDER, CORRECTOR_ORDER = 3, 4


async def sa_solver(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """SA-Solver: a stochastic Adams predictor of order 3 and corrector of order 4."""
    return await _sa_solver(denoise, x, sigmas, noise, again=False)


async def sa_solver_pece(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """SA-Solver that asks the model again after each correction."""
    return await _sa_solver(denoise, x, sigmas, noise, again=True)


async def _sa_solver(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise, again: bool) -> Tensor:
    past: list[Tensor] = []
    drawn: Tensor | float = 0.0
    before = predicted = x
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        past = [await denoise(predicted, sigma), *past[: CORRECTOR_ORDER - 1]]
        left = len(sigmas) - 1 - step if sigmas[-1] == 0 else CORRECTOR_ORDER
        x = predicted
        if step > 0 and (lower > 0 or again):
            nodes = sigmas[: step + 1][::-1][: min(CORRECTOR_ORDER, left)]
            x = adams(before, past, nodes, sigmas[step - 1], sigma) + drawn
            if again:
                past[0] = await denoise(x, sigma)
        if lower == 0:
            return past[0]
        nodes = sigmas[: step + 1][::-1][: min(PREDICTOR_ORDER, left - 1)]
        up = lower * math.sqrt(-math.expm1(-2 * tau(lower) ** 2 * math.log(sigma / lower)))
        drawn = noise(sigma, lower) * up if up else 0.0
        before, predicted = x, adams(x, past, nodes, sigma, lower) + drawn
    return predicted


def tau(sigma: float) -> float:
    """How noisy a step to ``sigma`` is: 1 from 20 to 80 % of SDXL's training schedule, both included, 0 outside."""
    return float(in_window(sigma, 0.2, 0.8, sigma_table()))


def adams(x: Tensor, past: Sequence[Tensor], nodes: Sequence[float], sigma: float, lower: float) -> Tensor:
    """A step of the linear equation, with the denoised latent as the polynomial in log sigma through those ``past``."""
    speed = 1 + tau(lower) ** 2
    logs = [-math.log(node / lower) for node in nodes]

    def weighted(chosen: int, place: float) -> float:
        return speed * math.exp(speed * place) * lagrange(logs, chosen, place)

    x = x * (lower / sigma) ** speed
    for k in range(len(nodes)):
        x = x + past[k] * integral(partial(weighted, k), -math.log(sigma / lower), 0.0)
    return x
