"""Raw values of a config: what is plain, what links to what."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

LINK = re.compile(r"\$\{([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*)\}")
CONSTANT = re.compile(r"\$\{now:[^${}]*\}")  # the same in all jobs of a run
MISSING = "???"


def is_plain(value: Any) -> bool:
    """Whether a value means nothing to OmegaConf but itself."""
    if isinstance(value, list):
        return all(not isinstance(each, dict) and is_plain(each) for each in value)
    if isinstance(value, str):
        return "$" not in value and value != MISSING
    return value is None or isinstance(value, bool | int | float)


def with_(value: Any, path: tuple[str, ...], new: Any) -> Any:
    """A copy in which one entry is another; what lies beside its path is shared."""
    return {**value, path[0]: with_(value[path[0]], path[1:], new)} if path else new


def roots(value: Any) -> Iterator[str]:
    """The sections a raw value names; ``""`` for what may be anywhere."""
    if isinstance(value, dict):
        for each in value.values():
            yield from roots(each)
    elif isinstance(value, list):
        for each in value:
            yield from roots(each)
    elif isinstance(value, str) and "$" in value:
        yield from (path.partition(".")[0] for path in LINK.findall(value))
        if "$" in CONSTANT.sub("", LINK.sub("", value)):
            yield ""
