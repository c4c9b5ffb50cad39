"""The samplers that k-diffusion lacks, as plain loops in double precision, to compare ours with.

Each is written from another form of its formula than ours: integrals are summed over many points of the polynomial that
the closed coefficients stand for, exponentials are left in log sigma, noise of several draws is added term by term.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Any

import numpy as np
import torch
from scipy.interpolate import BarycentricInterpolator
from torch import Tensor

Model = Callable[[Tensor, Any], Tensor]
Noise = Callable[[float, float], Tensor]
Sigmas = Sequence[float]
PLACES, WEIGHTS = np.polynomial.legendre.leggauss(60)


def run(name: str, model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
    """One run in double precision."""
    drawn = lambda sigma, lower: noise(sigma, lower).double()  # noqa: E731
    result: Tensor = PLAIN[name](model, x.double(), sigmas, drawn)
    return result


def log_snr(sigma: float) -> float:
    """Half the log signal-to-noise ratio."""
    return -math.log(sigma)


def polynomial(places: Sigmas, values: Any, at: Any) -> Any:
    """The polynomial through ``values`` (first axis ``places``), as many points of it as ``at`` names."""
    return BarycentricInterpolator(places, values)(at) if len(places) > 1 else np.repeat(values, len(at), axis=0)


def flow(x: Tensor, sigma: float, lower: float, places: Sigmas, values: Sequence[Tensor], tau: float = 0.0) -> Tensor:
    """Variation of constants: the linear part exactly, and the integral of the polynomial through ``values``."""
    start, end, speed = log_snr(sigma), log_snr(lower), 1 + tau**2
    at = (start + end) / 2 + (end - start) / 2 * PLACES
    x0 = polynomial(places, np.stack([value.numpy() for value in values]), at)
    kernel = WEIGHTS * (end - start) / 2 * speed * np.exp(speed * (at - end))
    return x * math.exp(speed * (start - end)) + torch.from_numpy(np.tensordot(kernel, x0, 1))


def down_up(sigma: float, lower: float, eta: float) -> tuple[float, float]:
    """k-diffusion's ancestral step."""
    up = min(lower, eta * (lower**2 * (sigma**2 - lower**2) / sigma**2) ** 0.5)
    return (lower**2 - up**2) ** 0.5, up


def pair(model: Model, x: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """The prediction to denoise by and the one to noise by, which are one unless there are two."""
    predictions = model(x, sigma).split(1)
    return predictions[0], predictions[-1]


def euler(eta: float) -> Any:
    """Euler, CFG++ where there are two predictions."""

    def sample(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
        for sigma, lower in pairwise(sigmas):
            down, up = down_up(sigma, lower, eta)
            toward, back = pair(model, x, sigma)
            x = toward + down * ((x - back) / sigma)
            x = x + noise(sigma, lower) * up if up else x
        return x

    return sample


def gradient_estimation(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
    """Euler by the last two slopes."""
    slopes: list[Tensor] = []
    for sigma, lower in pairwise(sigmas):
        toward, back = pair(model, x, sigma)
        slopes.append((x - back) / sigma)
        x = toward + slopes[-1] * lower
        if len(slopes) > 1 and lower > 0:
            x = x + (2 - 1) * (slopes[-1] - slopes[-2]) * (lower - sigma)
    return x


def dpmpp_2m_cfg_pp(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
    """In log sigma, as ComfyUI has it."""
    old = None
    for i, (sigma, lower) in enumerate(pairwise(sigmas)):
        toward, back = pair(model, x, sigma)
        if lower == 0:
            return toward
        h = log_snr(lower) - log_snr(sigma)
        mix = -math.exp(-h) * back
        if old is not None:
            r = (log_snr(sigma) - log_snr(sigmas[i - 1])) / h
            mix = mix - math.expm1(-h) / (2 * r) * (toward - old)
        x, old = toward + mix + math.exp(-h) * x, back
    return x


def dpmpp_2s_ancestral_cfg_pp(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
    """In log sigma."""
    for sigma, lower in pairwise(sigmas):
        toward, back = pair(model, x, sigma)
        if lower == 0:
            return toward
        down, up = down_up(sigma, lower, 1.0)
        h = log_snr(down) - log_snr(sigma)
        middle = math.exp(-(log_snr(sigma) + h / 2))
        ahead = math.exp(-h / 2) * (x + (toward - back)) - math.expm1(-h / 2) * toward
        there, back = pair(model, ahead, middle)
        x = math.exp(-h) * (x + (toward - back)) - math.expm1(-h) * there + noise(sigma, lower) * up
    return x


def res_multistep(eta: float) -> Any:
    """The denoised latent as a line through the last two, integrated."""

    def sample(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
        old, width = None, 0.0
        for sigma, lower in pairwise(sigmas):
            toward, back = pair(model, x, sigma)
            if lower == 0:
                return toward
            down, up = down_up(sigma, lower, eta)
            if old is None:
                x = toward + down * (x - back) / sigma
            else:
                x = flow(x + (toward - back), sigma, down, [log_snr(sigma) - width, log_snr(sigma)], [old, back])
            x = x + noise(sigma, lower) * up if up else x
            old, width = back, math.log(sigma / down)
        return x

    return sample


def heunpp2(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
    """The slopes at up to three sigmas, none of them 0."""
    steps = len(sigmas) - 1
    for i in range(steps):
        slopes, ahead = [], x
        for j in range(i, min(i + 3, max(steps, i + 1))):
            slopes.append((ahead - model(ahead, sigmas[j])) / sigmas[j])
            ahead = ahead + slopes[-1] * (sigmas[j + 1] - sigmas[j])
        shares = [sigmas[i + k] / (len(slopes) * sigmas[0]) for k in range(1, len(slopes))]
        mean = slopes[0] * (1 - sum(shares))
        for share, slope in zip(shares, slopes[1:], strict=True):
            mean = mean + share * slope
        x = x + mean * (sigmas[i + 1] - sigmas[i])
    return x


def lcm(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
    """The denoised latent, noised again."""
    for sigma, lower in pairwise(sigmas):
        x = model(x, sigma)
        x = x + lower * noise(sigma, lower) if lower else x
    return x


def multistep(weigh: Callable[[Sigmas, int], Sequence[float]]) -> Any:
    """Slopes with weights, newest first, for step i of a schedule; Euler to 0."""

    def sample(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
        slopes: list[Tensor] = []
        for i, (sigma, lower) in enumerate(pairwise(sigmas)):
            slopes.insert(0, (x - model(x, sigma)) / sigma)
            weights = weigh(sigmas, i) if lower else [-sigma]
            for weight, slope in zip(weights, slopes, strict=False):
                x = x + weight * slope
        return x

    return sample


def ipndm(sigmas: Sigmas, i: int) -> Sequence[float]:
    """Adams-Bashforth of equal steps."""
    table: list[list[float]] = [[1], [1.5, -0.5], [23 / 12, -16 / 12, 5 / 12], [55 / 24, -59 / 24, 37 / 24, -9 / 24]]
    return [weight * (sigmas[i + 1] - sigmas[i]) for weight in table[min(i, 3)]]


def ipndm_v(sigmas: Sigmas, i: int) -> Sequence[float]:
    """The published coefficients, each written out."""
    h = [sigmas[i + 1 - k] - sigmas[i - k] for k in range(min(i, 3) + 1)]
    if len(h) == 1:
        return [h[0]]
    r1 = h[0] / h[1]
    if len(h) == 2:
        return [h[0] * (2 + r1) / 2, -h[0] * r1 / 2]
    s2, r2 = h[0] + h[1], h[1] / h[2]
    t1 = (1 - h[0] / (3 * s2) * (h[0] * s2) / (h[1] * (h[1] + h[2]))) / 2
    if len(h) == 3:
        return [h[0] * w for w in ((2 + r1) / 2 + t1, -r1 / 2 - (1 + r2) * t1, t1 * r2)]
    s3, q = s2 + h[2], h[1] * (h[1] + h[2]) / (h[2] * (h[2] + h[3]))
    t2 = (1 - h[0] / (3 * s2)) / 2 + (1 - h[0] / (2 * s2)) * h[0] / (6 * s3)
    t2 *= h[0] * s2 * s3 / (h[1] * (h[1] + h[2]) * (h[1] + h[2] + h[3]))
    weights = [
        (2 + r1) / 2 + t1 + t2,
        -r1 / 2 - (1 + r2) * t1 - (1 + r2 + q) * t2,
        t1 * r2 + (r2 + q * (1 + h[2] / h[3])) * t2,
        -t2 * q * r2,
    ]
    return [h[0] * weight for weight in weights]


def deis(sigmas: Sigmas, i: int) -> Sequence[float]:
    """The polynomials of time, summed by the trapezoid rule over 20,000 sigmas."""
    low, high = math.log(1 + 0.002**2), math.log(1 + 80**2)
    bend = 2 * (low / 1e-3 - high) / (1e-3 - 1)
    start = high - bend / 2

    def time(sigma: Any) -> Any:
        return (np.sqrt(start**2 + 2 * bend * np.log(sigma**2 + 1)) - start) / bend

    nodes = [float(time(np.float64(sigma))) for sigma in sigmas[max(0, i - 2) : i + 1]][::-1]
    grid = np.geomspace(sigmas[i], sigmas[i + 1], 20_001)
    basis = polynomial(nodes, np.eye(len(nodes)), time(grid))
    return [float(np.trapezoid(column, grid)) for column in basis.T]


def er_sde(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
    """In the words of the paper: lambda is sigma, alpha is 1."""

    def scale(at: Any) -> Any:
        return at * (np.exp(at**0.3) + 10.0)

    x0s: list[Tensor] = []
    firsts: list[Tensor] = []
    for i, (s, t) in enumerate(pairwise(sigmas)):
        x0s.append(model(x, s))
        if t == 0:
            return x0s[-1]
        r = float(scale(t) / scale(s))
        x = r * x + (1 - r) * x0s[-1]
        at = t + np.arange(200) * (s - t) / 200
        if i > 0:
            firsts.append((x0s[-1] - x0s[-2]) / (s - sigmas[i - 1]))
            x = x + (t - s + float((1 / scale(at)).sum() * (s - t) / 200 * scale(t))) * firsts[-1]
        if i > 1:
            second = (firsts[-1] - firsts[-2]) / ((s - sigmas[i - 2]) / 2)
            x = x + ((t - s) ** 2 / 2 + float(((at - s) / scale(at)).sum() * (s - t) / 200 * scale(t))) * second
        x = x + noise(s, t) * math.sqrt(t**2 - s**2 * r**2)
    return x


def seeds_2(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
    """With both draws in one sum."""
    for sigma, lower in pairwise(sigmas):
        x0 = model(x, sigma)
        if lower == 0:
            return x0
        h, middle = math.log(sigma / lower), math.sqrt(sigma * lower)
        deviation = math.sqrt(1 - math.exp(-h))
        one, two = noise(sigma, middle), noise(middle, lower)
        ahead = math.exp(-h) * x + (1 - math.exp(-h)) * x0 + middle * deviation * one
        x = math.exp(-2 * h) * x + (1 - math.exp(-2 * h)) * model(ahead, middle)
        x = x + lower * deviation * (math.exp(-h / 2) * one + two)
    return x


def seeds_3(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
    """With all draws in one sum."""
    for sigma, lower in pairwise(sigmas):
        x0 = model(x, sigma)
        if lower == 0:
            return x0
        h = math.log(sigma / lower)
        a, b, c = math.expm1(-2 * h / 3), math.expm1(-4 * h / 3), math.expm1(-2 * h)
        early, late = sigma * math.exp(-h / 3), sigma * math.exp(-2 * h / 3)
        one, two, three = noise(sigma, early), noise(early, late), noise(late, lower)
        fade, deviation = math.exp(-h / 3), math.sqrt(1 - math.exp(-2 * h / 3))
        first = model((1 + a) * x - a * x0 + early * deviation * one, early)
        ahead = (1 + b) * x - b * x0 + 2 * (b / (4 * h / 3) + 1) * (first - x0)
        second = model(ahead + late * deviation * (fade * one + two), late)
        x = (1 + c) * x - c * x0 + 1.5 * (c / (2 * h) + 1) * (second - x0)
        x = x + lower * deviation * (fade**2 * one + fade * two + three)
    return x


def sa_solver(again: bool) -> Any:
    """Adams steps as integrals of polynomials, with noise between the sigmas of timesteps 799.2 and 199.8."""

    def tau(sigma: float) -> float:
        kept = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
        logs = np.log((1 - kept) / kept) / 2
        low, high = np.interp([199.8, 799.2], range(1000), logs)
        return float(low - 1e-6 <= math.log(sigma) <= high + 1e-6)

    def sample(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
        places = [log_snr(sigma) for sigma in sigmas if sigma > 0]
        x0s: list[Tensor] = []
        ahead, drawn = x, torch.zeros_like(x)
        for i, (sigma, lower) in enumerate(pairwise(sigmas)):
            x0s.append(model(ahead, sigma))
            to_end = len(sigmas) - 1 - i
            if i > 0 and (lower > 0 or again):
                k = min(4, i + 1, to_end)
                x = flow(x, sigmas[i - 1], sigma, places[i + 1 - k : i + 1], x0s[-k:], tau(sigma)) + drawn
                x0s[-1] = model(x, sigma) if again else x0s[-1]
            else:
                x = ahead
            if lower == 0:
                return x0s[-1]
            k = min(3, i + 1, to_end - 1)
            ahead = flow(x, sigma, lower, places[i + 1 - k : i + 1], x0s[-k:], tau(lower))
            drawn = torch.zeros_like(x)
            if tau(lower):
                drawn = noise(sigma, lower) * lower * math.sqrt(1 - (lower / sigma) ** 2)
            ahead = ahead + drawn
        return ahead

    return sample


def uni_pc(second: Callable[[float], float]) -> Any:
    """Predictor and corrector as integrals of polynomials, but for the second-order shortcuts of the paper."""

    def sample(model: Model, x: Tensor, sigmas: Sigmas, noise: Noise) -> Tensor:
        stops = [max(sigma, 0.001) for sigma in sigmas]
        places = [log_snr(sigma) for sigma in stops]
        x0s = [model(x, stops[0])]
        last = len(stops) - 1
        for i in range(1, last + 1):
            p = max(1, min(i, 3, last - 1, last + 1 - i))
            h = places[i] - places[i - 1]
            ahead = flow(x, stops[i - 1], stops[i], places[i - p : i], x0s[-p:])
            if p == 2:
                slope = (x0s[-1] - x0s[-2]) / (places[i - 1] - places[i - 2]) * h
                ahead = flow(x, stops[i - 1], stops[i], places[i - 1 : i], x0s[-1:]) + second(h) / 2 * slope
            if i == last:
                return ahead
            x0s.append(model(ahead, stops[i]))
            if p == 1:
                x = flow(x, stops[i - 1], stops[i], places[i - 1 : i], x0s[-2:-1]) + second(h) / 2 * (x0s[-1] - x0s[-2])
            else:
                x = flow(x, stops[i - 1], stops[i], places[i - p : i + 1], x0s[-p - 1 :])
        return x

    return sample


PLAIN: dict[str, Any] = {
    "euler_cfg_pp": euler(0),
    "euler_ancestral_cfg_pp": euler(1),
    "gradient_estimation": gradient_estimation,
    "gradient_estimation_cfg_pp": gradient_estimation,
    "dpmpp_2m_cfg_pp": dpmpp_2m_cfg_pp,
    "dpmpp_2s_ancestral_cfg_pp": dpmpp_2s_ancestral_cfg_pp,
    "res_multistep": res_multistep(0),
    "res_multistep_cfg_pp": res_multistep(0),
    "res_multistep_ancestral": res_multistep(1),
    "res_multistep_ancestral_cfg_pp": res_multistep(1),
    "heunpp2": heunpp2,
    "lcm": lcm,
    "ipndm": multistep(ipndm),
    "ipndm_v": multistep(ipndm_v),
    "deis": multistep(deis),
    "er_sde": er_sde,
    "seeds_2": seeds_2,
    "seeds_3": seeds_3,
    "sa_solver": sa_solver(again=False),
    "sa_solver_pece": sa_solver(again=True),
    "uni_pc": uni_pc(lambda h: h),
    "uni_pc_bh2": uni_pc(lambda h: 1 - math.exp(-h)),
}
