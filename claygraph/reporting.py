"""``claygraph report DIR``, and the report that a sweep makes at its end."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from claygraph.errors import RequestError


def report(arguments: Sequence[str]) -> int:
    """Make the report of a sweep again from its ``sweep.json``; the path is the last line of stdout.

    Raises:
        RequestError: no folder of a sweep is named.
    """
    if len(arguments) != 1 or arguments[0].startswith("-"):
        raise RequestError("report takes one folder: the one that a sweep (-m) was given with out=.")
    from claygraph.report import make

    print(make(Path(arguments[0])))
    return 0


def make_report(folder: Path) -> None:
    """Make the report of a sweep that has just run, and say where it is; that it cannot be made is no failure of it."""
    from claygraph.report import make

    try:
        print(f"report: {make(folder)}", file=sys.stderr)
    except (OSError, RequestError) as error:
        print(f"claygraph: the report cannot be written: {error}; try claygraph report {folder}", file=sys.stderr)
