"""UniPC (Zhao et al. 2023, arXiv 2302.04867): a predictor, and a corrector that uses the model at what was predicted.

``uni_pc`` takes the paper's B(h) = h (called bh1), ``uni_pc_bh2`` exp(h) - 1. A final sigma of 0 stands for 0.001, as
in ComfyUI. None draws noise.
"""

# ruff: noqa: ARG001
from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from claygraph.diffusion.samplers_step import Denoise, Noise, blend

if TYPE_CHECKING:
    from torch import Tensor

LAST_SIGMA = 0.001
ORDER = 3


async def uni_pc(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """UniPC of order 3 with B(h) = h."""
    return await _uni_pc(denoise, x, sigmas, lambda h: -h)


async def uni_pc_bh2(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """UniPC of order 3 with B(h) = exp(h) - 1."""
    return await _uni_pc(denoise, x, sigmas, lambda h: math.expm1(-h))


async def _uni_pc(denoise: Denoise, x: Tensor, sigmas: Sequence[float], scale: Callable[[float], float]) -> Tensor:
    stops = [sigma or LAST_SIGMA for sigma in sigmas]
    past: list[Tensor] = [await denoise(x, stops[0])] if stops else []
    for step, lower in enumerate(stops[1:], start=1):
        order = max(1, min(step, ORDER, len(stops) - 2, len(stops) - step))
        sigma, h = stops[step - 1], math.log(stops[step - 1] / lower)
        ratios = [math.log(sigma / stops[step - 1 - k]) / h for k in range(1, order)]
        changes = [(past[k] - past[0]) / ratio for k, ratio in enumerate(ratios, start=1)]
        straight = blend(x, past[0], lower / sigma)
        x = _add(straight, changes, predictor(ratios, h, scale(h)))
        if step < len(stops) - 1:
            past = [await denoise(x, lower), *past[: ORDER - 1]]
            x = _add(straight, [*changes, past[0] - past[1]], corrector(ratios, h, scale(h)))
    return x


def _add(x: Tensor, changes: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    for change, weight in zip(changes, weights, strict=True):
        x = x + change * weight
    return x


def predictor(ratios: Sequence[float], h: float, scale: float) -> list[float]:
    """What each change of the denoised latent adds to ``x``; of a single one half its first-order effect."""
    return [-scale / 2] if len(ratios) == 1 else _solved(ratios, h)


def corrector(ratios: Sequence[float], h: float, scale: float) -> list[float]:
    """The same, with the change over the step itself as the last; where it is the only one, half its effect."""
    return _solved([*ratios, 1.0], h) if ratios else [-scale / 2]


def _solved(ratios: Sequence[float], h: float) -> list[float]:
    """Weights that are exact where the denoised latent is a polynomial of log sigma, of a degree up to their number.

    ``ratios`` are places in steps ``h``. The right side is ``n! h phi_(n+1)(-h)``: B(h) cancels out.
    """
    import numpy as np

    phi, moments = math.expm1(-h) / -h - 1, []
    for n in range(1, len(ratios) + 1):
        moments.append(-phi * math.factorial(n))
        phi = phi / -h - 1 / math.factorial(n + 1)
    solved: list[float] = np.linalg.solve(np.vander(ratios, increasing=True).T, moments).tolist()
    return solved
