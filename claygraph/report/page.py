"""The report as one HTML file that needs nothing else but the pictures beside it."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.resources import files
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from claygraph.record import SWEEP
from claygraph.report.cells import Cell
from claygraph.report.effects import FORMULA, effects
from claygraph.report.layout import is_grid, roles, short_names, usual
from claygraph.results import RESULTS

if TYPE_CHECKING:
    import PIL.Image

QUALITY = 78


def page(folder: Path, sweep: Mapping[str, Any], cells: Sequence[Cell]) -> str:
    """The HTML text. What a user or a file decides is escaped: in the markup by Jinja, in the data by ``embedded``."""
    from jinja2 import Environment
    from markupsafe import Markup

    parts = {name: files(__package__).joinpath(f"report.{name}").read_text(encoding="utf-8") for name in PARTS}
    template = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(parts["html.j2"])
    return template.render(
        title=folder.resolve().name,
        css=Markup(parts["css"]),  # our own files, and what embedded() escapes
        js=Markup(parts["js"]),
        data=Markup(embedded(data_of(sweep, cells))),
        files={"contact sheet": "contact_sheet.png", "results.csv": RESULTS, "sweep.json": SWEEP},
    )


PARTS = ("html.j2", "css", "js")


def embedded(data: Any) -> str:
    """JSON that no content can end early, whatever element it stands in: no ``<``, ``>`` or ``&`` is left in it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # everything beyond ASCII is escaped as well
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def data_of(sweep: Mapping[str, Any], cells: Sequence[Cell]) -> dict[str, Any]:
    """Everything the page shows."""
    axes, jobs = sweep["axes"], sweep["jobs"]
    return {
        "started": sweep["started"],
        "command": sweep["command"],
        "nodes": sweep["nodes"],
        "axes": axes,
        "roles": roles(axes),
        "usual": {} if is_grid(jobs, axes) else usual(jobs, axes),
        "short": short_names(list(axes)),
        "grid": is_grid(jobs, axes),
        "metrics": {name: sweep["metrics"].get(name, "") for job in jobs for name in job["metrics"]},
        "effects": [asdict(each) for each in effects(jobs, axes)],
        "formula": FORMULA,
        "cells": [_shown(cell) for cell in cells],
    }


def _shown(cell: Cell) -> dict[str, Any]:
    entry = cell.entry
    return {
        "index": entry["index"],
        "image": entry["image"],
        "axes": entry["axes"],
        "state": entry["state"],
        "stage": entry["stage"],
        "error": cell.reason or entry["error"],
        "metrics": entry["metrics"],
        "command": entry["command"],
        "path": quote(cell.path),
        "source": quote(cell.source),
        "size": cell.size,
        "thumb": _data_uri(cell.thumb) if cell.thumb is not None else "",
    }


def _data_uri(picture: PIL.Image.Image) -> str:
    content = BytesIO()
    picture.save(content, "WEBP", quality=QUALITY, method=2)
    return f"data:image/webp;base64,{b64encode(content.getvalue()).decode()}"
