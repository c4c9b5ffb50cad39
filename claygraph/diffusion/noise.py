"""Noise of one picture, from its own seed, drawn on the CPU: the same on every device and in every batch."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torchsde import BrownianTree

from claygraph.diffusion.samplers import Noise, NoiseKind
from claygraph.diffusion.schedules import single

_TREE_DIGITS = 6  # torchsde's own grain: unrounded ends make it warn about a query outside of them


def initial(seed: int, shape: Sequence[int]) -> Tensor:
    """Unit-variance float32 noise; equal to ComfyUI's for a single picture, bit for bit."""
    return torch.randn(tuple(shape), generator=torch.Generator().manual_seed(seed))


def noised(latent: Tensor, noise: Tensor, sigma: float, sigma_max: float) -> Tensor:
    """``latent`` (in the model's scale) with noise of deviation ``sigma``; at ``sigma_max`` as loud as in training.

    There the noise in ``x / sqrt(1 + sigma**2)``, which is what the model sees, has unit variance.
    """
    at_top = sigma > sigma_max or math.isclose(sigma, sigma_max, rel_tol=1e-5)
    return latent + noise * (math.hypot(1, sigma) if at_top else sigma)


def white(seed: int, shape: Sequence[int]) -> Noise:
    """Independent noise, one draw a call, from ``seed + 1``: the first draw would else repeat the initial noise."""
    generator = torch.Generator().manual_seed((seed + 1) % 2**64)
    return lambda _sigma, _lower: torch.randn(tuple(shape), generator=generator)


def brownian(seed: int, shape: Sequence[int], sigma_min: float, sigma_max: float) -> Noise:
    """Increments of one Brownian path over sigma: steps that overlap share noise, however the range is divided.

    ``sigma_min`` and ``sigma_max`` are the lowest sigma above 0 and the highest one of the schedule. Sigmas are taken
    in single precision, as ComfyUI's are: the path is cut in halves, and the last digits decide where.
    """
    low, high = (round(sigma, _TREE_DIGITS) for sigma in (sigma_min, sigma_max))
    tree = BrownianTree(low, torch.zeros(tuple(shape)), high, entropy=seed)

    def draw(sigma: float, lower: float) -> Tensor:
        start, end = (min(max(round(value, _TREE_DIGITS), low), high) for value in single(lower, sigma))
        increment: Tensor = tree(start, end)
        return -increment / math.sqrt(sigma - lower)

    return draw


def step_noise(kind: NoiseKind, seed: int, x: Tensor, sigmas: Sequence[float]) -> Noise:
    """The step noise a sampler of this ``kind`` draws on its way through ``sigmas``, on the device of ``x``."""
    if kind == "brownian":
        positive = [sigma for sigma in sigmas if sigma > 0]
        draw = brownian(seed, x.shape, min(positive), max(positive))
    else:
        draw = white(seed, x.shape)
    return lambda sigma, lower: draw(sigma, lower).to(x)
