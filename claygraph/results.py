"""A sweep as a table: ``results.csv``, one row a picture."""

from __future__ import annotations

import csv
import math
import shlex
from collections.abc import Mapping, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from claygraph.files import write_over

RESULTS = "results.csv"
LEADS_FORMULA = ("=", "+", "-", "@", "\t", "\r")
Entry = Mapping[str, Any]


def write_results(folder: Path, sweep: Entry) -> None:
    """Write ``results.csv``: one row a picture, a column for each axis and metric."""
    axes = list(sweep["axes"])
    metrics = list(dict.fromkeys(name for entry in sweep["jobs"] for name in entry["metrics"]))
    text = StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow(["index", *axes, "overrides", *metrics, "state", "path", "error"])
    for entry in sweep["jobs"]:
        rows.writerow([_cell(value) for value in _row(entry, axes, metrics)])
    write_over(folder / RESULTS, text.getvalue().encode())


def _row(entry: Entry, axes: Sequence[str], metrics: Sequence[str]) -> list[Any]:
    settings = [entry["axes"].get(axis, "") for axis in axes]
    scores = [entry["metrics"].get(metric, "") for metric in metrics]
    words = shlex.join(entry["overrides"])
    return [entry["index"], *settings, words, *scores, entry["state"], "; ".join(entry["saved"]), entry["error"]]


def _cell(value: Any) -> Any:
    """A value that no spreadsheet takes for a formula; numbers stay numbers."""
    text = str(value)
    return f"'{text}" if text.startswith(LEADS_FORMULA) and not _is_number(text) else value


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
