"""A folder of 64 photos, beside the loop a user writes around a warm pipeline.

python -m benchmarks.folder [--runs 5] [--count 64] [--size 256] [--steps 8] [--device cpu|cuda] [--json FILE]
    [--model miniature|sdxl] [--weights DIR]

The photos are different squares of the bundled ones. Both sides read, tag, encode, denoise and save each of them.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import count
from pathlib import Path

from benchmarks.by_hand import Settings, opened
from benchmarks.measure import Row, alternately, report, timed
from benchmarks.ours import overrides
from benchmarks.sides import Sides, options_of, sides
from benchmarks.sweep import sized


def ours(both: Sides, images: list[Path], settings: Settings, out: Path) -> None:
    """All photos at once; as a user names a folder, where it is the whole folder."""
    both.ours.make([f"image=[{','.join(map(str, images))}]", *overrides(settings)], out)


def theirs(both: Sides, images: list[Path], settings: Settings, out: Path) -> None:
    """One photo after another."""
    out.mkdir()
    for path in images:
        both.theirs.make(both.theirs.read(opened(path)), settings).save(out / path.name)


def measure(both: Sides, options: argparse.Namespace) -> list[Row]:
    """One row: the whole folder."""
    images, settings, numbers = both.photos(options.count), replace(Settings(), steps=options.steps), count()
    ours(both, images[:1], settings, both.folder / "warm_ours")
    theirs(both, images[:1], settings, both.folder / "warm_theirs")
    mine = timed(lambda: ours(both, images, settings, both.folder / f"ours_{next(numbers)}"), options.clock)
    other = timed(lambda: theirs(both, images, settings, both.folder / f"theirs_{next(numbers)}"), options.clock)
    return [alternately(f"folder of {len(images)}", mine, other, options.runs)]


def main() -> None:
    """Print the table."""
    options = options_of(sized(__doc__, 64))
    with sides(options) as both:
        rows = measure(both, options)
    report(rows, rows[0].ratio, options)


if __name__ == "__main__":
    main()
