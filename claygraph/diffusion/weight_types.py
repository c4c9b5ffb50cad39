"""Named ways to spread one image-prompt strength over SDXL's eleven spatial transformers (names of IPAdapter_plus).

Blocks are numbered as the UNet calls them: 0-3 on the way down, 4 the middle, 5-10 on the way up.
"""

from __future__ import annotations

from collections.abc import Mapping

from claygraph.errors import check_choice

BLOCKS = 11
COMPOSITION, STYLE = 3, 6


def _ramp(shares: list[float]) -> tuple[float, ...]:
    return tuple(0.05 + 0.95 * share for share in shares)


def _parts(down: float, middle: float, up: float) -> tuple[float, ...]:
    return (down,) * 4 + (middle,) + (up,) * 6


def _only(chosen: int) -> tuple[float, ...]:
    return tuple(float(block == chosen) for block in range(BLOCKS))


_RISING = [block / BLOCKS for block in range(BLOCKS)]
_CENTRED = [1 - abs(2 * share - 1) for share in _RISING]
_NO_COMPOSITION = tuple(1 - share for share in _only(COMPOSITION))

WEIGHT_TYPES: Mapping[str, tuple[float, ...]] = {
    "linear": _parts(1, 1, 1),
    "ease in": _ramp([1 - share for share in _RISING]),
    "ease out": _ramp(_RISING),
    "ease in-out": _ramp(_CENTRED),
    "reverse in-out": _ramp([1 - share for share in _CENTRED]),
    "weak input": _parts(0.2, 1, 1),
    "weak output": _parts(1, 1, 0.2),
    "weak middle": _parts(1, 0.2, 1),
    "strong middle": _parts(0.2, 1, 0.2),
    "style transfer": _only(STYLE),
    "composition": _only(COMPOSITION),
    "strong style transfer": _NO_COMPOSITION,
    "style and composition": _only(STYLE),
    "strong style and composition": _NO_COMPOSITION,
}
"""The share of the strength each block gets."""

WITH_COMPOSITION = ("style and composition", "strong style and composition")
"""The types whose block 3 has a strength of its own."""


def block_scales(weight_type: str, weight: float, composition: float | None = None) -> tuple[float, ...]:
    """The strength of each block; ``composition`` is block 3's in types ``WITH_COMPOSITION``, where None means 1."""
    check_choice("weight_type", weight_type, WEIGHT_TYPES)
    scales = [weight * share for share in WEIGHT_TYPES[weight_type]]
    if weight_type in WITH_COMPOSITION:
        scales[COMPOSITION] = 1.0 if composition is None else float(composition)
    return tuple(scales)
