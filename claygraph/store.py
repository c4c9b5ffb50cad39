"""Results on disk, by the key of the work they are the result of.

One file an entry, in 256 folders: 8 bytes that say what it is, the sha256 of the rest, the packed value. An entry is
written under another name first and then renamed, so that no reader ever sees half of one, in whichever process; the
checksum is verified each time it is read. The time an entry was last used is its file's.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterable, Iterator
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from threading import Lock
from time import time
from typing import Any, NamedTuple
from uuid import uuid4

from claygraph.locks import locked
from claygraph.packing import VALUES, DamagedError, Kinds, pack, stage_of, unpack
from claygraph.sizes import in_bytes

MAGIC = b"clay\x00\x00\x00\x01"
START = len(MAGIC) + 32
FOLDER = "claygraph/store"
SUFFIX, PART = ".clay", ".clay-part"  # no file of another name is ever removed, wherever ``store`` points
KEY = re.compile(r"[0-9a-z]{4,128}")
ROOM = 0.9  # what is kept of the limit once it is passed, so that the next entries need no room made for them
STALE = 3600  # seconds after which an unfinished file is one that nobody will finish

log = logging.getLogger(__name__)


class Entry(NamedTuple):
    """One stored result: its file, how many bytes that takes, and when it was last used (seconds since 1970)."""

    path: Path
    size: int
    used: float

    @property
    def key(self) -> str:
        return self.path.stem

    def stage(self) -> str:
        """The stage that made it, as MODULE.CLASS; empty where the entry cannot be read."""
        with suppress(OSError, DamagedError), self.path.open("rb") as file:
            start = file.read(START + 8)
            return stage_of(start[START:] + file.read(int.from_bytes(start[START:], "little") & 0xFFFFFF))
        return ""


class Store:
    """Values by key in ``folder``, at most ``limit`` bytes of them: those unused for longest make room.

    Nothing here fails a run: what cannot be read counts as absent, what cannot be written is not kept, and either is
    told in one sentence. ``kinds`` are the classes that reading may make. Several processes may share a folder.
    """

    def __init__(self, folder: Path, limit: int, kinds: Kinds = VALUES) -> None:
        self.folder, self.limit, self.kinds = folder, limit, kinds
        self._told, self._uncounted, self._counting = False, 0, Lock()

    def has(self, key: str) -> bool:
        """Whether there is an entry; only ``load`` tells whether it is sound."""
        path = self._path(key)
        with suppress(OSError):  # a folder that may not be looked into
            return path.is_file()
        return False

    def load(self, key: str) -> Any:
        """The value; raises ``KeyError`` where there is none. A damaged entry is removed and counts as none."""
        path = self._path(key)
        try:
            value = unpack(checked(path.read_bytes()), self.kinds)
        except OSError:
            raise KeyError(key) from None
        except DamagedError as error:
            log.warning("the stored result %s is damaged (%s) and is made anew.", key, error)
            with suppress(OSError):
                path.unlink()
            raise KeyError(key) from None
        with suppress(OSError):
            os.utime(path)
        return value

    def save(self, key: str, value: Any, stage: str = "") -> bool:
        """Keep a value; whether that is done. From then on every process has it, also if this one is killed.

        A value of a type that cannot be packed is not kept.
        """
        try:
            packed = pack(value, stage)
        except TypeError:
            return False
        try:
            self._write(self._path(key), MAGIC + sha256(packed).digest() + packed)
        except OSError as error:
            self._tell(error)
            return False
        return True

    def sync(self, key: str) -> None:
        """Wait until an entry would outlive a power failure. One lost before that is damaged, and so made anew."""
        with suppress(OSError), self._path(key).open("rb+") as file:
            os.fsync(file.fileno())

    def entries(self) -> Iterator[Entry]:
        """Every entry, in no order."""
        for shard in self.folder.glob("[0-9a-z][0-9a-z]"):
            yield from filter(None, map(_entry, shard.glob(f"{shard.name}*{SUFFIX}")))

    def damaged(self) -> Iterator[tuple[Entry, str]]:
        """Every entry that cannot be what was written, with the reason. Reads all of them."""
        for entry in self.entries():
            try:
                stage_of(checked(entry.path.read_bytes()))
            except FileNotFoundError:  # another process made room
                continue
            except (OSError, DamagedError) as error:
                yield entry, str(error)

    def shrink(self, limit: int) -> tuple[int, int]:
        """Remove what was unused for longest until at most ``limit`` bytes are left: entries and bytes removed."""
        if not self.folder.is_dir():
            return 0, 0
        with locked(self.folder / "lock"):
            removed = list(self._remove(limit))
            self._note(self._total())
        return len(removed), sum(entry.size for entry in removed)

    def _path(self, key: str) -> Path:
        if not KEY.fullmatch(key):
            raise KeyError(key)
        return self.folder / key[:2] / f"{key}{SUFFIX}"

    def _write(self, path: Path, content: bytes) -> None:
        part = self.folder / "parts" / f"{uuid4().hex}{PART}"
        for folder in (part.parent, path.parent):
            folder.mkdir(parents=True, exist_ok=True)
        try:
            part.write_bytes(content)
            part.replace(path)
        finally:
            part.unlink(missing_ok=True)
        self._grown(len(content))

    def _tell(self, error: OSError) -> None:
        if not self._told:
            self._told = True
            log.warning("store=%r cannot take results (%s); they are not kept.", str(self.folder), error.strerror)

    def _grown(self, size: int) -> None:
        """Count what was written, over all processes, and make room where it is too much.

        While another process does, what is written here waits to be counted, and nobody waits for the lock.
        """
        with self._counting, locked(self.folder / "lock", wait=False) as held:
            self._uncounted += size
            if held:
                total, self._uncounted = self._counted() + self._uncounted, 0
                self._note(total if total <= self.limit else self._made_room())

    def _made_room(self) -> int:
        if self._total() > self.limit:  # what was written twice was counted twice
            list(self._remove(int(self.limit * ROOM)))
        return self._total()

    def _counted(self) -> int:
        try:
            return int((self.folder / "size").read_text())
        except (OSError, ValueError):  # new, or cut short by a kill
            return self._total() - self._uncounted

    def _total(self) -> int:
        return sum(entry.size for entry in self.entries())

    def _note(self, total: int) -> None:
        (self.folder / "size").write_text(str(total))

    def _remove(self, limit: int) -> Iterator[Entry]:
        entries = sorted(self.entries(), key=lambda entry: entry.used)
        left = sum(entry.size for entry in entries)
        for entry in entries:
            if left <= limit:
                break
            left -= entry.size
            entry.path.unlink(missing_ok=True)
            yield entry
        _remove_old(self.folder.glob(f"parts/*{PART}"))


def open_store(folder: object, size: object) -> Store | None:
    """The store that the settings ``store`` and ``store_size`` name; none where ``store`` is null.

    ``auto`` is in the user's cache folder, ``$XDG_CACHE_HOME`` or ``~/.cache``. Raises ``SettingError`` for a size that
    is none.
    """
    if folder is None:
        return None
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    path = cache / FOLDER if folder == "auto" else Path(str(folder))
    return Store(path.expanduser(), in_bytes("store_size", size))


def checked(content: bytes) -> bytes:
    """The packed value in an entry's bytes; raises ``DamagedError`` unless the checksum is right."""
    if not content.startswith(MAGIC):
        raise DamagedError("it does not begin as an entry does")
    if sha256(content[START:]).digest() != content[len(MAGIC) : START]:
        raise DamagedError("its checksum is wrong")
    return content[START:]


def _entry(path: Path) -> Entry | None:
    try:
        status = path.stat()
    except OSError:  # another process made room
        return None
    return Entry(path, status.st_size, status.st_mtime)


def _remove_old(parts: Iterable[Path]) -> None:
    for part in parts:
        with suppress(OSError):
            if time() - part.stat().st_mtime > STALE:
                part.unlink()
