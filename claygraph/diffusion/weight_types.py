"""Named ways to spread one image-prompt strength over SDXL's eleven spatial transformers (names of IPAdapter_plus).

Blocks are numbered as the UNet calls them: 0-3 on the way down, 4 the middle, 5-10 on the way up.
"""

from __future__ import annotations

from collections.abc import Mapping

from claygraph.errors import SettingError, check_choice, check_range

BLOCKS = 11
COMPOSITION, STYLE = 3, 6
MOST = 10.0
PENALTY_WIDTH = 1280


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
    "style transfer precise": _only(STYLE),
    "composition precise": _only(COMPOSITION),
}
"""The share of the strength each block gets."""

WITH_COMPOSITION = ("style and composition", "strong style and composition")
"""The types whose block 3 has a strength of its own."""

SWAPPED: Mapping[str, frozenset[int]] = {
    "style transfer precise": frozenset({COMPOSITION}),
    "composition precise": frozenset(range(BLOCKS)) - {COMPOSITION},
}
"""The blocks in which a type gives the picture to the negative half, and nothing to the positive one."""

BOOSTS: Mapping[str, tuple[float, ...]] = {
    "style transfer precise": _only(COMPOSITION),
    "composition precise": tuple({COMPOSITION: 0.0, STYLE: 1.0}.get(block, 0.1) for block in range(BLOCKS)),
}
"""The share of the boost that the swapped blocks get."""

SCALINGS = ("V only", "K+V", "K+V w/ C penalty", "K+mean(V) w/ C penalty")
"""What a strength multiplies (``embeds_scaling`` of IPAdapter_plus)."""


def block_scales(
    weight_type: str, weight: float, composition: float | None = None, boost: float | None = None
) -> tuple[float, ...]:
    """The strength of each block.

    ``composition`` is block 3's in types ``WITH_COMPOSITION``, where None means 1; ``boost`` is the swapped blocks' in
    the precise types, where None means ``weight``.
    """
    check_choice("weight_type", weight_type, WEIGHT_TYPES)
    boosted = BOOSTS.get(weight_type, (0.0,) * BLOCKS)
    extra = weight if boost is None else boost
    scales = [weight * share + extra * more for share, more in zip(WEIGHT_TYPES[weight_type], boosted, strict=True)]
    if weight_type in WITH_COMPOSITION:
        scales[COMPOSITION] = 1.0 if composition is None else float(composition)
    return tuple(scales)


def listed_scales(setting: str, text: str, weight: float) -> tuple[float, ...]:
    """The strengths that a text such as ``3:2.5, 6:1`` lists, each times ``weight``; blocks it leaves out get 0.

    Raises:
        SettingError: it is not such a list, or names no block of SDXL's.
    """
    listed = dict(_entry(setting, text, part) for part in text.split(","))
    return tuple(weight * listed.get(block, 0.0) for block in range(BLOCKS))


def _entry(setting: str, text: str, part: str) -> tuple[int, float]:
    block, _, strength = part.partition(":")
    try:
        number, value = int(block), float(strength)
    except ValueError:
        raise SettingError(
            f"{setting}={text!r} is not a list of BLOCK:STRENGTH; write, say, '3:2.5, 6:1' for blocks 3 and 6."
        ) from None
    check_block(setting, number)
    check_range(f"{setting} of block {number}", value, -MOST, MOST)
    return number, value


def check_block(setting: str, block: int) -> None:
    """Raise ``SettingError`` unless there is a block of that number."""
    if block not in range(BLOCKS):
        raise SettingError(f"{setting}={block!r} is no block; blocks are numbered 0 to {BLOCKS - 1}.")


def factors(scaling: str, strength: float, width: int) -> tuple[float, float, float]:
    """What a strength multiplies in a layer so wide: the keys, the values' mean over the tokens, the output.

    As in IPAdapter_plus, whose values times a number are here the output times it, which is the same.
    """
    if scaling.endswith("C penalty"):
        strength = strength * width / PENALTY_WIDTH
    if scaling == "V only":
        return 1.0, 1.0, strength
    return (strength, strength, 1.0) if "mean" in scaling else (strength, 1.0, strength)
