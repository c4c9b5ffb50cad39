"""sha256 of files. That of a large one is remembered across processes, in the user's cache folder."""

from __future__ import annotations

import hashlib
import json
import os
from functools import lru_cache
from pathlib import Path
from tempfile import NamedTemporaryFile
from time import time_ns
from typing import Any

LARGE = 16 * 2**20
"""Bytes from which a digest is worth remembering: below, computing it takes less than a tenth of a second."""
MOST = 1024
"""Files that are remembered; those asked for longest ago are forgotten first."""
SETTLED = 2 * 10**9
"""Nanoseconds: a file changed so lately might change again and still bear the same time."""
Stamp = tuple[int, int, int]


def digest_of_file(path: Path) -> str:
    """sha256 of a file's content.

    A large file is read once: as long as its path, size, modification time and inode stay the same, the digest is
    taken from ``$XDG_CACHE_HOME/claygraph/digests.json`` (or ``~/.cache``). The known limit: a file edited in place
    whose size and modification time are put back to what they were keeps its old digest; delete ``digests.json`` then.
    """
    return _digest(path, stamp(path))


def stamp(path: Path) -> Stamp:
    """Size, modification time in nanoseconds and inode: a file that still has all three is taken to be the same."""
    status = path.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


@lru_cache(maxsize=65536)
def _digest(path: Path, before: Stamp) -> str:
    if before[0] < LARGE:
        return _computed(path)
    key = str(path.resolve())
    known = _remembered().get(key)
    if isinstance(known, list) and known[:-1] == list(before) and isinstance(known[-1], str):
        return known[-1]
    found = _computed(path)
    if stamp(path) == before and time_ns() - before[1] > SETTLED:
        _remember(key, [*before, found])
    return found


def _computed(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _store() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "claygraph" / "digests.json"


def _remembered() -> dict[str, Any]:
    """What the file holds; nothing where it is missing, cannot be read or is no JSON object."""
    try:
        found = json.loads(_store().read_bytes())
    except (OSError, ValueError, RuntimeError):  # the last: nobody knows where home is
        return {}
    return found if isinstance(found, dict) else {}


def _remember(key: str, entry: list[Any]) -> None:
    """Add an entry. The file is replaced whole, so no process ever sees half of one; where it cannot be, never mind.

    Two processes that write at the same moment may lose one entry, which is then computed again.
    """
    entries = {**{name: old for name, old in _remembered().items() if name != key}, key: entry}
    try:
        store = _store()
        store.parent.mkdir(parents=True, exist_ok=True)
        with NamedTemporaryFile("w", dir=store.parent, suffix=".part", delete=False, encoding="utf-8") as file:
            json.dump(dict(list(entries.items())[-MOST:]), file)
        Path(file.name).replace(store)
    except (OSError, RuntimeError):
        return
