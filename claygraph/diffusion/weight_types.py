"""Named ways to spread one image-prompt strength over SDXL's eleven spatial transformers (names of IPAdapter_plus)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TypeAlias

from claygraph.errors import check_choice

Shape: TypeAlias = Callable[[int, float, float], float]
"""``shape(block, weight, composition)`` is the strength of one block."""

BLOCKS = 11
COMPOSITION, MIDDLE, STYLE = 3, 4, 6


def _ramp(share: float) -> float:
    return 0.05 + 0.95 * share


def _centred(block: int) -> float:
    return 1 - abs(block - BLOCKS / 2) / (BLOCKS / 2)


WEIGHT_TYPES: Mapping[str, Shape] = {
    "linear": lambda block, weight, composition: weight,
    "ease in": lambda block, weight, composition: weight * _ramp(1 - block / BLOCKS),
    "ease out": lambda block, weight, composition: weight * _ramp(block / BLOCKS),
    "ease in-out": lambda block, weight, composition: weight * _ramp(_centred(block)),
    "reverse in-out": lambda block, weight, composition: weight * _ramp(1 - _centred(block)),
    "weak input": lambda block, weight, composition: weight * (0.2 if block < MIDDLE else 1),
    "weak output": lambda block, weight, composition: weight * (0.2 if block > MIDDLE else 1),
    "weak middle": lambda block, weight, composition: weight * (0.2 if block == MIDDLE else 1),
    "strong middle": lambda block, weight, composition: weight * (1 if block == MIDDLE else 0.2),
    "style transfer": lambda block, weight, composition: weight if block == STYLE else 0,
    "composition": lambda block, weight, composition: weight if block == COMPOSITION else 0,
    "strong style transfer": lambda block, weight, composition: 0 if block == COMPOSITION else weight,
    "style and composition": lambda block, weight, composition: {COMPOSITION: composition, STYLE: weight}.get(block, 0),
    "strong style and composition": lambda block, weight, composition: composition if block == COMPOSITION else weight,
}
"""Strength of a block, in the order the UNet calls them: 0-3 on the way down, 4 the middle, 5-10 on the way up."""


def block_scales(weight_type: str, weight: float, composition: float | None = None) -> tuple[float, ...]:
    """The strength of each block; ``composition`` is that of block 3 in the two ``... and composition`` types, 1 if None."""
    check_choice("weight_type", weight_type, WEIGHT_TYPES)
    shape = WEIGHT_TYPES[weight_type]
    return tuple(float(shape(block, weight, 1.0 if composition is None else composition)) for block in range(BLOCKS))
