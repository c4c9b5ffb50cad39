"""A lock between processes: a file that one of them holds at a time, given back when it ends, however it ends."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

if sys.platform == "win32":
    import msvcrt

    def _take(file: int, wait: bool) -> None:
        msvcrt.locking(file, msvcrt.LK_LOCK if wait else msvcrt.LK_NBLCK, 1)
else:
    import fcntl

    def _take(file: int, wait: bool) -> None:
        fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)


@contextmanager
def locked(path: Path, wait: bool = True) -> Iterator[bool]:
    """Hold the lock that this file is for as long as the context lasts; closing the file gives it back.

    Whether it is held: without ``wait`` it is not where another has it.
    """
    with path.open("ab") as file:
        try:
            _take(file.fileno(), wait)
        except OSError:
            if wait:
                raise
            yield False
        else:
            yield True
