"""The errors a caller can act on.

ClaygraphError
├── RequestError          the request cannot be met as written: exit code 2
│   ├── GraphError        stages cannot be wired together; carries every fault found
│   ├── SettingError      a stage was given a setting it cannot use
│   └── WeightsError      a weight file is missing, refused or not what its stage needs
└── PictureError          one picture cannot be read or written; the others go on: exit code 1
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from difflib import get_close_matches

MOST_NAMES = 20
_allowed: ContextVar[dict[str, str] | None] = ContextVar("allowed", default=None)


class ClaygraphError(Exception):
    """Base of every error that is explained in one sentence."""


class RequestError(ClaygraphError):
    """The request cannot be met as written."""


class GraphError(RequestError):
    """The stages cannot be wired together; ``faults`` holds one sentence for each reason."""

    def __init__(self, faults: Sequence[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = tuple(faults)


class SettingError(RequestError):
    """A stage was given a setting it cannot use."""


class WeightsError(RequestError):
    """A weight file is missing, refused, or not what its stage needs."""


class PictureError(ClaygraphError):
    """One picture cannot be read or written."""


def nearest(name: str, names: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest of ``names``, or else the list of them all."""
    known = sorted({str(n) for n in names})
    close = get_close_matches(str(name), known, n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]!r}?"
    more = ", ..." if len(known) > MOST_NAMES else ""
    return f"; known names: {', '.join(known[:MOST_NAMES])}{more}." if known else "."


@contextmanager
def noting_checks() -> Iterator[dict[str, str]]:
    """While it lasts, the checks below refuse nothing and note what each setting may be: range or choices, in words."""
    noted: dict[str, str] = {}
    token = _allowed.set(noted)
    try:
        yield noted
    finally:
        _allowed.reset(token)


def _noted(setting: str, allowed: str) -> bool:
    """Whether that is all that is wanted of a check."""
    noted = _allowed.get()
    if noted is not None:
        noted[setting] = allowed
    return noted is not None


def check_choice(setting: str, value: str, choices: Iterable[str]) -> None:
    """Raise ``SettingError`` unless ``value`` is one of ``choices``."""
    choices = list(choices)
    if not _noted(setting, ", ".join(choices)) and value not in choices:
        raise SettingError(f"{setting}={value!r} is not known{nearest(value, choices)}")


def check_range(setting: str, value: float, low: float, high: float) -> None:
    """Raise ``SettingError`` unless ``value`` is a number in ``[low, high]``."""
    if _noted(setting, f"{low:g} to {high:g}"):
        return
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if not number or not low <= value <= high:
        raise SettingError(f"{setting}={value!r} is out of range; give a number from {low:g} to {high:g}.")


def check_whole(setting: str, value: float, low: int, high: int) -> None:
    """Raise ``SettingError`` unless ``value`` is a whole number in ``[low, high]``."""
    check_range(setting, value, low, high)
    if not _noted(setting, f"{low} to {high}") and not isinstance(value, int):
        raise SettingError(f"{setting}={value!r} is no whole number; give one from {low} to {high}.")


def check_flag(setting: str, value: bool) -> None:
    """Raise ``SettingError`` unless ``value`` is true or false: any other word would count as true."""
    if not isinstance(value, bool):
        raise SettingError(f"{setting}={value!r} is not known; give true or false.")


def check_tiles(stage: str, tile: int, overlap: int) -> None:
    """Raise ``SettingError`` unless a picture can be worked on in such tiles (pixels; 0: whole) and overlaps."""
    check_whole(f"{stage}.tile", tile, 0, 8192)
    check_whole(f"{stage}.overlap", overlap, 0, tile // 4 if tile else 2048)
    for setting, value, unit in (("tile", tile, 64), ("overlap", overlap, 8)):
        if value % unit:
            raise SettingError(f"{stage}.{setting}={value} is no multiple of {unit} pixels; give one.")
