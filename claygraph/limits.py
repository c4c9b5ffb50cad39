"""How many calls of one kind fit into a batch: by a count, by bytes of a row as guessed or measured, by what failed."""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Any

from claygraph.stage import Call


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
