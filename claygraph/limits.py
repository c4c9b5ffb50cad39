"""How many calls of one kind fit into a batch: by a count, by bytes of a row as guessed or measured, by what failed."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from claygraph.errors import SettingError
from claygraph.stage import Call

CPU_BATCH, GPU_BATCH = 8, 64
"""Calls in a batch where the setting is ``auto``: a CPU gains little beyond, a GPU as long as there is memory."""


def most_rows(batch: int | str, device: str) -> int:
    """The most calls of a batch: as the config's ``batch`` says, or what suits a device of this kind for ``auto``."""
    if batch == "auto":
        return CPU_BATCH if device in ("cpu", "auto") else GPU_BATCH
    if not str(batch).isdecimal() or not 1 <= int(batch) <= 4096:
        raise SettingError(f"batch={batch!r} is no number of calls; give a whole number from 1 to 4096, or auto.")
    return int(batch)


@dataclass
class Limits:
    """Rows of a batch by its key (a call's class and its ``batch_key``); ``most`` bounds them all."""

    most: int
    _halved: dict[Hashable, int] = field(default_factory=dict)
    _guessed: dict[Hashable, int] = field(default_factory=dict)
    _measured: dict[Hashable, tuple[int, int]] = field(default_factory=dict)

    def rows(self, key: Hashable, call: Call[Any], room: int) -> int:
        """How many calls like this one may share a batch that has ``room`` bytes for what it computes; 1 at least."""
        most, each = self._halved.get(key, self.most), self.bytes_of_row(key, call)
        return max(1, min(most, room // each if each else most))

    def bytes_of_row(self, key: Hashable, call: Call[Any]) -> int:
        """Bytes that a call takes in a batch: as in the largest batch that was measured, before that as it guesses."""
        if key in self._measured:
            rows, used = self._measured[key]
            return -(-used // rows)
        if key not in self._guessed:
            self._guessed[key] = _guess(call)
        return self._guessed[key]

    def measured(self, key: Hashable, rows: int, used: int) -> None:
        """Note what a batch took beside the weights. A large batch tells more of a row than a small one."""
        if used > 0 and rows >= self._measured.get(key, (0, 0))[0]:
            self._measured[key] = rows, used

    def halve(self, key: Hashable, rows: int) -> None:
        """After a batch of so many rows found no room: from now on half as many."""
        self._halved[key] = max(1, min(rows, self._halved.get(key, rows)) // 2)


def _guess(call: Call[Any]) -> int:
    try:
        return call.row_bytes
    except Exception:  # what is wrong with it is told when it is run
        return 0
