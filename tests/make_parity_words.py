"""Formulas of the reference set: sigma schedules, and the string a WD14 tagger node writes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from scipy.stats import beta as beta_law

from tests.independent import table

SCHEDULES = (
    "normal", "karras", "exponential", "sgm_uniform", "simple", "ddim_uniform", "beta", "linear_quadratic",
    "kl_optimal",
)  # fmt: skip


def schedule(name: str, steps: int, denoise: float = 1.0, drop: bool = False) -> list[float]:
    """``steps`` sigmas and 0 in float64; ``drop``: one more is made, and the last above 0 taken out."""
    total = steps if denoise > 0.9999 else int(steps / denoise)
    sigmas = [*map(float, _sigmas(name, total + drop)), 0.0]
    if drop:
        del sigmas[-2]
    return sigmas[-(steps + 1) :] if denoise <= 0.9999 else sigmas


def _sigmas(name: str, n: int) -> Any:
    """Closed forms, without the final 0."""
    s = table().numpy()
    low, high, share = s[0], s[-1], np.linspace(0, 1, n)
    stride = max(1000 // n, 1)
    forms: dict[str, Callable[[], Any]] = {
        "normal": lambda: _at(np.linspace(999, 0, n)),
        "sgm_uniform": lambda: _at(np.linspace(999, 0, n + 1)[:-1]),
        "simple": lambda: [s[999 - int(k * 1000 / n)] for k in range(n)],
        "ddim_uniform": lambda: s[1::stride][::-1],
        "karras": lambda: (high ** (1 / 7) + share * (low ** (1 / 7) - high ** (1 / 7))) ** 7,
        "exponential": lambda: np.exp(np.linspace(np.log(high), np.log(low), n)),
        "beta": lambda: s[np.rint(beta_law.ppf(1 - np.arange(n) / n, 0.6, 0.6) * 999).astype(int)],
        "kl_optimal": lambda: np.tan(share * np.arctan(low) + (1 - share) * np.arctan(high)),
        "linear_quadratic": lambda: _linear_quadratic(n) * high,
    }
    return forms[name]()


def _at(timesteps: Any) -> Any:
    """Sigmas of fractional timesteps, linear in the logarithm."""
    return np.exp(np.interp(timesteps, np.arange(1000), np.log(table().numpy())))


def _linear_quadratic(n: int, threshold: float = 0.025) -> Any:
    """Mochi's: linear to ``threshold`` over the first half, then the parabola that goes on smoothly and ends at 1."""
    half = n // 2
    rest, slope = n - half, threshold / half
    square = (1 - threshold - slope * rest) / rest**2
    steps = np.arange(n)
    linear = slope * steps
    after = steps - half
    curve = threshold + slope * after + square * after**2
    return 1 - np.where(steps < half, linear, curve)


class captions:  # noqa: N801 - a name for what belongs together
    """A tagger's vocabulary, and what is written about a picture of one colour."""

    CSV = """tag_id,name,category,count
1,general,9,0
2,red_theme,0,900
3,^_^,0,800
4,star_(symbol),0,700
5,green_eyes,0,600
6,artoria_(fate),4,50
7,odd_one,3,40
"""
    TAGS = (("red_theme", 0), ("^_^", 0), ("star_(symbol)", 0), ("green_eyes", 0), ("artoria_(fate)", 4))

    @staticmethod
    def probabilities(red: int, green: int, blue: int) -> list[float]:
        """What ``tests.taggers`` builds into its model, for the labels of ``TAGS``."""
        mixtures = (red, green, blue, 2 * green - red, 0.5 * green + 0.5 * red)
        return [min(max(value / 255, 0.0), 1.0) for value in mixtures]

    @classmethod
    def written(cls, colour: Sequence[int], settings: Mapping[str, Any]) -> str:
        """The node's string, by its rules: characters, then general; kept above the threshold; escaped last."""
        unwanted = [word.strip() for word in settings.get("exclude_tags", "").lower().split(",")]
        limits = {4: settings.get("character_threshold", 0.85), 0: settings.get("threshold", 0.35)}
        found = []
        for category, limit in limits.items():
            for (tag, kind), probability in zip(cls.TAGS, cls.probabilities(*colour), strict=True):
                spelled = tag.replace("_", " ") if settings.get("replace_underscore") else tag
                if kind == category and probability > limit + 1e-9 and spelled not in unwanted:
                    found.append(spelled.replace("(", "\\(").replace(")", "\\)"))
        if settings.get("trailing_comma"):
            return "".join(f"{tag}, " for tag in found)
        return ", ".join(found)
