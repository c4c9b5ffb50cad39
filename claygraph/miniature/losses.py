"""The losses of all trainings as one picture."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")  # a file needs no screen
from matplotlib import pyplot

COLUMNS = 3


def plot(work: Path) -> None:
    """Write `losses.png`: the mean loss of every hundred steps of each part that was trained."""
    files = sorted((work / "checkpoints").glob("*.losses"))
    rows = -(-len(files) // COLUMNS)
    if not rows:
        return
    figure, axes = pyplot.subplots(rows, COLUMNS, figsize=(4 * COLUMNS, 2.5 * rows), squeeze=False)
    for axis, file in zip(axes.flat, files, strict=False):
        _draw(axis, file)
    for axis in axes.flat[len(files) :]:
        axis.axis("off")
    figure.tight_layout()
    figure.savefig(work / "losses.png", dpi=100)
    pyplot.close(figure)


def _draw(axis: Any, file: Path) -> None:
    rows = (line.split() for line in file.read_text().splitlines())
    losses = dict(sorted({int(step): float(loss) for step, loss in rows}.items()))  # a resumed training repeats steps
    axis.plot(list(losses), list(losses.values()), linewidth=1)
    axis.set_title(file.stem, fontsize=9)
    axis.tick_params(labelsize=7)
