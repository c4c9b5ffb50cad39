"""Per-file licences from Debian's machine-readable copyright files, and the list of those we train on."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

_OPEN = re.compile(r"(CC0(-1\.0)?|public-domain|CC-BY(-SA)?-[234]\.[05]|MIT|Expat|BSD(-[23]-Clause)?|Apache-2\.0)$")
_SUFFIXES = (".webp", ".jpg", ".jpeg", ".png", ".svg")


@dataclass(frozen=True)
class Licence:
    """One stanza of a copyright file: file patterns, licence name, authors and where the work came from."""

    patterns: tuple[str, ...]
    name: str
    author: str
    origin: str = ""

    @property
    def open(self) -> bool:
        """Whether pictures under this licence are used for training."""
        return bool(_OPEN.match(self.name))


def read_copyright(file: Path) -> list[Licence]:
    """The `Files:` stanzas of a DEP-5 copyright file in their order."""
    stanzas = re.split(r"\n\s*\n", file.read_text(encoding="utf-8", errors="replace"))
    fields = [dict(re.findall(r"^(\S[^:\n]*):[ \t]*(.*(?:\n[ \t].*)*)", stanza, re.M)) for stanza in stanzas]
    return [
        Licence(
            tuple(f["Files"].split()),
            f.get("License", "").split("\n")[0].strip(),
            " ".join(f.get("Copyright", "").split()),
            " ".join(f.get("Comment", "").split()),
        )
        for f in fields
        if "Files" in f
    ]


def licence_of(path: str, stanzas: list[Licence], *, any_suffix: bool = False) -> Licence | None:
    """The last stanza that names `path` (DEP-5's rule); `any_suffix` also accepts another picture suffix."""
    names = {path} | ({str(PurePosixPath(path).with_suffix(s)) for s in _SUFFIXES} if any_suffix else set())
    hits = [s for s in stanzas if any(fnmatchcase(name, p) for name in names for p in s.patterns)]
    return hits[-1] if hits else None
