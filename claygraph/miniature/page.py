"""The evaluation's page: figures, and the pictures they were measured on, in one file that needs nothing else."""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from claygraph.miniature.figures import Figure

Pixels = npt.NDArray[np.uint8]
SHOWN = 12


def write_page(file: Path, pictures: Mapping[str, Pixels], found: Sequence[Figure]) -> None:
    """Write beside the old page, then swap."""
    rows = "".join(_row(title, stack) for title, stack in pictures.items())
    cells = ((f.part, f.what, f"{f.value:.3f}", f.bound) for f in found)
    lines = "".join("<tr><td>" + "<td>".join(map(escape, line)) for line in cells)
    style = "body{font:15px sans-serif;margin:2em}img{margin:2px}td{padding:2px 1em 2px 0}"
    text = f"<!doctype html><meta charset=utf-8><title>The miniature, measured</title><style>{style}</style>"
    part = file.with_suffix(".part")
    part.write_text(f"{text}<h1>The miniature, measured</h1><table>{lines}</table>{rows}", encoding="utf-8")
    part.replace(file)


def _row(title: str, stack: Pixels) -> str:
    return f"<h3>{escape(title)}</h3><p>" + "".join(map(_picture, stack[:SHOWN]))


def _picture(pixels: Pixels) -> str:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return f'<img alt="" src="data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}">'
