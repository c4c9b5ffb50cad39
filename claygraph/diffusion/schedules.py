"""Sigma schedules, in ComfyUI's arithmetic.

A table holds the sigma of every training timestep, ascending; a schedule is a falling list of sigmas that ends in 0.
Intermediate results are rounded to single precision where ComfyUI's are: Brownian step noise is looked up by sigma, and
a change in the seventh digit of a sigma changes it in the third.
"""

from __future__ import annotations

import math
import operator
from array import array
from bisect import bisect_left
from collections.abc import Callable, Mapping
from functools import cache
from itertools import accumulate
from typing import TypeAlias

from claygraph.errors import check_choice, check_range

Table: TypeAlias = tuple[float, ...]
Schedule: TypeAlias = Callable[[int, Table], list[float]]

BETA_POWERS = {"linear": 1, "scaled_linear": 2}


def single(*values: float) -> list[float]:
    """``values`` rounded to single precision."""
    return array("f", values).tolist()


def ramp(start: float, end: float, count: int) -> list[float]:
    """``count`` equally spaced numbers from ``start``, counted from the nearer end; ``start`` alone if it is one."""
    start, end = single(start, end)
    (step,) = single((end - start) / max(count - 1, 1))
    half = max(count // 2, 1)
    return single(*(start + step * k if k < half else end - step * (count - 1 - k) for k in range(count)))


@cache
def sigma_table(
    beta_start: float = 0.00085, beta_end: float = 0.012, kind: str = "scaled_linear", count: int = 1000
) -> Table:
    """``sqrt((1 - a) / a)`` for the running product ``a`` of ``1 - beta``; the defaults are SDXL's."""
    check_choice("beta_schedule", kind, BETA_POWERS)
    power = BETA_POWERS[kind]
    low, high = beta_start ** (1 / power), beta_end ** (1 / power)
    betas = ((low + (high - low) * k / (count - 1)) ** power for k in range(count))
    return tuple(math.sqrt((1 - a) / a) for a in accumulate((1 - b for b in betas), operator.mul))


def timestep_of(sigma: float, table: Table) -> int:
    """The training timestep whose sigma is nearest in the logarithm."""
    above = min(max(bisect_left(table, sigma), 1), len(table) - 1)
    return above if sigma**2 > table[above - 1] * table[above] else above - 1


def sigma_at(timestep: float, table: Table) -> float:
    """The sigma of a fractional timestep from 0 to ``len(table) - 1``, interpolated in the logarithm."""
    below = min(int(timestep), len(table) - 2)
    lower, upper = single(math.log(table[below]), math.log(table[below + 1]))
    (log,) = single(sum(single((below + 1 - timestep) * lower, (timestep - below) * upper)))
    return math.exp(log)


def sigma_at_percent(percent: float, table: Table) -> float:
    """The sigma at a share of the training schedule, counted from its noisy end: infinite at 0, and 0 at 1."""
    if percent <= 0:
        return math.inf
    return 0.0 if percent >= 1 else sigma_at((1 - percent) * (len(table) - 1), table)


def normal(steps: int, table: Table) -> list[float]:
    """Equal steps in the timestep, both ends included."""
    return [sigma_at(t, table) for t in ramp(len(table) - 1, 0, steps)] + [0.0]


def sgm_uniform(steps: int, table: Table) -> list[float]:
    """Equal steps in the timestep, without the lowest."""
    return [*normal(steps + 1, table)[:-2], 0.0]


def simple(steps: int, table: Table) -> list[float]:
    """Equal strides through the table from its top."""
    return [table[-1 - int(k * (len(table) / steps))] for k in range(steps)] + [0.0]


def ddim_uniform(steps: int, table: Table) -> list[float]:
    """Whole strides through the table from timestep 1 up; more steps than asked for where they do not divide it."""
    return [*table[1 :: max(len(table) // steps, 1)][::-1], 0.0]


def beta(steps: int, table: Table) -> list[float]:
    """Equal steps in probability of the timestep, Beta(0.6, 0.6) distributed (Lee et al. 2024, arXiv 2407.12173)."""
    from scipy.special import betaincinv

    shares = (1 - k / steps for k in range(steps))
    timesteps = (round(float(betaincinv(0.6, 0.6, share)) * (len(table) - 1)) for share in shares)
    return [table[t] for t in dict.fromkeys(timesteps)] + [0.0]


def karras(steps: int, table: Table) -> list[float]:
    """Equal steps in the seventh root of sigma (Karras et al. 2022, eq. 5)."""
    low, high = (sigma ** (1 / 7) for sigma in single(table[0], table[-1]))
    start, span = single(high, low - high)
    roots = single(*(start + part for part in single(*(share * span for share in ramp(0, 1, steps)))))
    return [root**7 for root in roots] + [0.0]


def exponential(steps: int, table: Table) -> list[float]:
    """Equal steps in the logarithm of sigma."""
    return [math.exp(log) for log in ramp(math.log(table[-1]), math.log(table[0]), steps)] + [0.0]


def kl_optimal(steps: int, table: Table) -> list[float]:
    """Equal steps in the arctangent of sigma (Sabour et al. 2024, arXiv 2404.14507, eq. 20)."""
    low, high = single(math.atan(table[0]), math.atan(table[-1]))
    angles = single(*(sum(single(share * low, (1 - share) * high)) for share in ramp(0, 1, steps)))
    return [math.tan(angle) for angle in angles] + [0.0]


def linear_quadratic(steps: int, table: Table) -> list[float]:
    """Down by 2.5 % in a line over the first half of the steps, the rest in a parabola (genmo's Mochi)."""
    if steps == 1:
        return [table[-1], 0.0]
    half, drop = steps // 2, 0.025
    pace = drop / half
    bend = (1 - drop - pace * (steps - half)) / (steps - half) ** 2
    left = single(*(1 - pace * k - bend * max(k - half, 0) ** 2 for k in range(steps)))
    (high,) = single(table[-1])
    return [share * high for share in left] + [0.0]


AYS_TIMESTEPS = (999, 845, 730, 587, 443, 310, 193, 116, 53, 13, 0)


def align_your_steps(steps: int, table: Table) -> list[float]:
    """Ten steps optimised for SDXL (Sabour et al. 2024, arXiv 2404.14507); other numbers interpolated in log sigma."""
    logs = [math.log(table[timestep]) for timestep in AYS_TIMESTEPS]
    places = (divmod(k * (len(logs) - 1) / steps, 1) for k in range(steps))
    return [math.exp(logs[int(k)] * (1 - part) + logs[int(k) + 1] * part) for k, part in places] + [0.0]


SCHEDULES: Mapping[str, Schedule] = {
    "normal": normal,
    "karras": karras,
    "exponential": exponential,
    "sgm_uniform": sgm_uniform,
    "simple": simple,
    "ddim_uniform": ddim_uniform,
    "beta": beta,
    "linear_quadratic": linear_quadratic,
    "kl_optimal": kl_optimal,
    "align_your_steps": align_your_steps,
}


def sigmas_for(
    schedule: str, steps: int, denoise: float = 1.0, drop_penultimate: bool = False, table: Table | None = None
) -> list[float]:
    """The sigmas to sample through: ``steps`` of them and 0, strictly falling; none at all where ``denoise`` is 0.

    ``denoise`` below 1 takes the end of a longer schedule, so the number of steps stays. A sigma that single precision
    or the table's grain repeats is dropped: multistep samplers divide by the length of a step.
    """
    check_choice("schedule", schedule, SCHEDULES)
    check_range("steps", steps, 1, 10_000)
    if denoise <= 0:
        return []
    partial = denoise <= 0.9999
    total = int(steps / denoise) if partial else steps
    sigmas = SCHEDULES[schedule](total + drop_penultimate, table or sigma_table())
    if drop_penultimate:
        del sigmas[-2]
    return list(dict.fromkeys(single(*sigmas[-(steps + 1) :] if partial else sigmas)))
