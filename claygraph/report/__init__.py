"""What a sweep looks like: ``report.html``, ``contact_sheet.png`` and ``results.csv``, from its ``sweep.json``."""

from __future__ import annotations

from pathlib import Path

from claygraph.files import write_over
from claygraph.record import read_sweep
from claygraph.results import write_results

REPORT, SHEET = "report.html", "contact_sheet.png"


def make(folder: Path) -> Path:
    """Write all of it anew, in the place of what was there; the path of the report.

    Raises:
        RequestError: the folder holds no readable ``sweep.json``.
        OSError: something cannot be written.
    """
    sweep = read_sweep(folder)
    from claygraph.report.cells import cells_of
    from claygraph.report.page import page
    from claygraph.report.sheet import sheet

    cells = cells_of(folder, sweep)
    write_results(folder, sweep)
    write_over(folder / SHEET, sheet(cells, sweep["axes"]))
    write_over(folder / REPORT, page(folder, sweep, cells).encode())
    return folder / REPORT
