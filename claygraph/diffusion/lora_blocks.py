"""Strengths block by block, as block weights of LoRAs are written: BASE, IN00 to IN08, MID, OUT00 to OUT08."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from claygraph.diffusion.lora_names import BLOCKS
from claygraph.errors import SettingError, check_range, nearest
from claygraph.values import Lora

GROUPS = ("IN", "OUT")
ALIASES = {"M00": "MID", "MID00": "MID"}
NAMES = (*BLOCKS, *GROUPS)


def block_weights(setting: str, given: Mapping[str, float]) -> tuple[tuple[str, float], ...]:
    """The multipliers of a mapping by their standard names; raises ``SettingError`` for what is no block.

    ``IN`` and ``OUT`` stand for all blocks of that side, and a single block's own number wins over its side's.
    """
    found: dict[str, float] = {}
    for key, value in given.items():
        name = _standard(str(key))
        if name not in NAMES:
            raise SettingError(f"{setting}.{key} is no block{nearest(str(key).upper(), NAMES)}")
        check_range(f"{setting}.{key}", value, -10, 10)
        found[name] = float(value)
    return tuple(found.items())


def _standard(key: str) -> str:
    name = key.upper()
    side = name.rstrip("0123456789")
    number = name.removeprefix(side)
    return ALIASES.get(name, f"{side}{int(number):02}" if side in GROUPS and number else name)


def by_block(lora: Lora) -> tuple[float, ...]:
    """A LoRA's strength in each of ``BLOCKS``."""
    weights = dict(lora.blocks)
    return tuple(lora.model * weights.get(name, weights.get(name.rstrip("0123456789"), 1.0)) for name in BLOCKS)


def summed(strengths: Iterable[tuple[str, tuple[float, ...]]]) -> dict[str, tuple[float, ...]]:
    """Strengths by digest, in order; those of a file that is listed twice add up."""
    total: dict[str, tuple[float, ...]] = {}
    for digest, values in strengths:
        before = total.get(digest, (0.0,) * len(values))
        total[digest] = tuple(a + b for a, b in zip(before, values, strict=True))
    return total
