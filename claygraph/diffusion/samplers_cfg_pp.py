"""CFG++ samplers (Chung et al. 2024, arXiv 2406.08070): denoise by the guided prediction, noise again by the negative.

Their ``denoise`` gives ``[2, C, H, W]``, the guided prediction and the negative half's alone, also at cfg 1. What is
kept of the noise is that of the negative prediction, so a step ends at ``guided + (x - negative) * lower / sigma``.
"""

# ruff: noqa: ARG001
from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

from claygraph.diffusion.samplers_step import Denoise, Noise, ancestral_step, blend, res_share

if TYPE_CHECKING:
    from torch import Tensor


async def both(denoise: Denoise, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The guided and the negative prediction."""
    guided, negative = (await denoise(x, sigma)).chunk(2)
    return guided, negative


async def euler_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Euler."""
    for sigma, lower in pairwise(sigmas):
        guided, negative = await both(denoise, x, sigma)
        x = guided + (x - negative) * (lower / sigma)
    return x


async def euler_ancestral_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Euler to below the next sigma, then noise up to it."""
    for sigma, lower in pairwise(sigmas):
        down, up = ancestral_step(sigma, lower)
        guided, negative = await both(denoise, x, sigma)
        x = guided + (x - negative) * (down / sigma)
        if lower > 0:
            x = x + noise(sigma, lower) * up
    return x


async def gradient_estimation_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """Euler with the change of the negative half's slope carried on."""
    last: Tensor | None = None
    for sigma, lower in pairwise(sigmas):
        guided, negative = await both(denoise, x, sigma)
        here = (x - negative) / sigma
        x = guided + here * lower
        if last is not None and lower > 0:
            x = x + (here - last) * (lower - sigma)
        last = here
    return x


async def dpmpp_2m_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver++(2M): the extrapolation begins at the last negative prediction."""
    last: Tensor | None = None
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        guided, negative = await both(denoise, x, sigma)
        kept = lower / sigma
        x = guided + (x - negative) * kept
        if last is not None and lower > 0:
            ratio = math.log(sigma / lower) / math.log(sigmas[step - 1] / sigma)
            x = x + (guided - last) * ((1 - kept) * ratio / 2)
        last = negative
    return x


async def dpmpp_2s_ancestral_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """DPM-Solver++(2S) from ``x`` moved by the guidance, to below the next sigma, then noise up to it.

    As in ComfyUI the whole step is moved by the way from the middle's negative prediction to the guided one here.
    """
    for sigma, lower in pairwise(sigmas):
        down, up = ancestral_step(sigma, lower)
        guided, negative = await both(denoise, x, sigma)
        if lower == 0:
            return guided
        middle = math.sqrt(sigma * down)
        there, negative = await both(denoise, blend(x + guided - negative, guided, middle / sigma), middle)
        x = blend(x + guided - negative, there, down / sigma) + noise(sigma, lower) * up
    return x


async def res_multistep_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """RES(2M) of the negative predictions, from ``x`` moved by the guidance; Euler at both ends."""
    last: Tensor | None = None
    for step, (sigma, lower) in enumerate(pairwise(sigmas)):
        guided, negative = await both(denoise, x, sigma)
        if last is None or lower == 0:
            x = guided + (x - negative) * (lower / sigma)
        else:
            share = res_share(math.log(sigma / lower), math.log(sigmas[step - 1] / sigma))
            x = blend(x + guided - negative, negative + (negative - last) * share, lower / sigma)
        last = negative
    return x


async def res_multistep_ancestral_cfg_pp(denoise: Denoise, x: Tensor, sigmas: Sequence[float], noise: Noise) -> Tensor:
    """The same to below the next sigma, then noise up to it."""
    last: Tensor | None = None
    h_last = 0.0
    for sigma, lower in pairwise(sigmas):
        guided, negative = await both(denoise, x, sigma)
        if lower == 0:
            return guided
        down, up = ancestral_step(sigma, lower)
        h = math.log(sigma / down)
        if last is None:
            x = guided + (x - negative) * (down / sigma)
        else:
            x = blend(x + guided - negative, negative + (negative - last) * res_share(h, h_last), down / sigma)
        x = x + noise(sigma, lower) * up
        last, h_last = negative, h
    return x
