"""One picture from a cold process: from its start to the picture on disk, beside the same by hand with diffusers.

python -m benchmarks.cold [--runs 5] [--size 256] [--steps 8] [--device cpu|cuda] [--json FILE]
    [--model miniature|sdxl] [--weights DIR]

Every run of a side is a process of its own; the files are in the page cache. ``peak`` rows are the most memory a
process held, in MB.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, replace
from itertools import count
from multiprocessing import get_context
from pathlib import Path

from benchmarks import photos
from benchmarks.by_hand import Settings
from benchmarks.measure import Ended, Row, alternately, fresh, parser, report
from benchmarks.models import Weights
from benchmarks.ours import fresh_folder, overrides
from benchmarks.sides import DTYPES, options_of, prepared

Process = Callable[[], Ended]


def processes(options: argparse.Namespace, weights: Weights, folder: Path) -> tuple[Process, Process]:
    """A fresh process of ours, and one of theirs."""
    (photo,), numbers = photos.cut(folder / "photos", 1, options.size), count()
    settings = replace(Settings(), steps=options.steps)
    place = {"device": options.device, "dtype": DTYPES[options.device.partition(":")[0]]}
    for name, content in {"parts": asdict(weights.parts) | place, "settings": asdict(settings)}.items():
        (folder / f"{name}.json").write_text(json.dumps(content), encoding="utf-8")
    common = [f"device={options.device}", f"photo.size={options.size}", "store=null", *weights.overrides]
    environment = {"OMP_NUM_THREADS": str(options.threads)} if options.threads else {}

    def ours() -> Ended:
        out = folder / f"ours_{next(numbers)}"
        return fresh(
            ["-m", "claygraph", f"image={photo}", f"out={out}", *common, *overrides(settings)], environment=environment
        )

    def theirs() -> Ended:
        files = [str(folder / "parts.json"), str(photo), str(folder / "settings.json")]
        out = str(folder / f"theirs_{next(numbers)}.png")
        return fresh(["-m", "benchmarks.by_hand", *files, out], environment=environment)

    return ours, theirs


def measure(options: argparse.Namespace) -> list[Row]:
    """Seconds from start to end, and peak memory."""
    with fresh_folder() as folder:
        with ProcessPoolExecutor(1, get_context("spawn")) as apart:  # for a child's peak is its parent's at least
            weights = apart.submit(prepared, options, folder).result()
        both = processes(options, weights, folder)
        seen: list[list[Ended]] = [[], []]
        first, second = (_noting(process, into, options.clock) for process, into in zip(both, seen, strict=True))
        first(), second()
        row = alternately("from a cold process", first, second, options.runs)
    peaks = [sorted(each.peak / 1e6 for each in side)[len(side) // 2] for side in seen]
    return [row, Row("peak memory", peaks[0], peaks[1], "MB")]


def _noting(process: Process, into: list[Ended], clock: str) -> Callable[[], float]:
    def run() -> float:
        into.append(process())
        return into[-1].seconds if clock == "wall" else into[-1].cpu

    return run


def main() -> None:
    """Print the table."""
    about = parser(__doc__)
    about.add_argument("--steps", type=int, default=8, help="denoising steps (8)")
    options = options_of(about)
    rows = measure(options)
    report(rows, rows[0].ratio, options)


if __name__ == "__main__":
    main()
