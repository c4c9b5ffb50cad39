"""Amounts of bytes as people write them."""

from __future__ import annotations

import re

from claygraph.errors import SettingError

UNITS = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}


def in_bytes(setting: str, text: object) -> int:
    """``10GB``, ``512 MiB`` or a plain number as bytes; raises ``SettingError`` for anything else."""
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]I?)?B?\s*", str(text).upper())
    if not found:
        raise SettingError(f"{setting}={text!r} is no amount of bytes; give one such as 10GB or 500MB.")
    return int(float(found[1]) * UNITS[found[2] or ""])


def shown(size: float) -> str:
    """Bytes in the unit that suits them: 1.2 GB."""
    for unit in ("B", "kB", "MB"):
        if size < 999.5:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    return f"{size:.1f} GB"
