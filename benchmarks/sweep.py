"""A sweep of 64 variants as one graph, beside the loop a user writes around a warm pipeline.

python -m benchmarks.sweep [--runs 5] [--count 64] [--size 256] [--steps 8] [--device cpu|cuda] [--json FILE]
    [--model miniature|sdxl] [--weights DIR]

4 LoRA weights x 4 ControlNet strengths x 2 IP-Adapter scales x 2 cfg. The loop reads the photo (tags, edges, latent,
image embedding) once and then sets adapters, scales and guidance for each picture. Ours is the command line's ``-m``
from composing to the last PNG, weights kept. ``--count`` takes the first values of the axes, for shorter runs.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import replace
from itertools import count, product
from math import prod
from pathlib import Path

from benchmarks.by_hand import Settings, opened
from benchmarks.measure import Row, alternately, parser, report, timed
from benchmarks.ours import knob, overrides
from benchmarks.sides import Sides, options_of, sides

AXES = {
    "lora": (0.4, 0.6, 0.8, 1.0),
    "control": (0.25, 0.5, 0.75, 1.0),
    "image": (0.4, 0.8),
    "cfg": (1.5, 3.0),
}


def axes_for(number: int) -> dict[str, tuple[float, ...]]:
    """The axes, the longest halved again and again until ``number`` pictures or fewer come of them."""
    axes = dict(AXES)
    while prod(map(len, axes.values())) > number:
        name = max(axes, key=lambda axis: len(axes[axis]))
        axes[name] = axes[name][: len(axes[name]) // 2]
    return axes


def ours(both: Sides, axes: dict[str, tuple[float, ...]], settings: Settings, out: Path) -> None:
    """All variants at once."""
    (photo,) = both.photos(1)
    fixed = [each for each in overrides(settings) if not any(each.startswith(knob(axis)) for axis in axes)]
    both.ours.make(["-m", f"image={photo}", *fixed, *(knob(axis, *values) for axis, values in axes.items())], out)


def theirs(both: Sides, variants: Sequence[Settings], out: Path) -> None:
    """One variant after another."""
    read = both.theirs.read(opened(both.photos(1)[0]))
    out.mkdir()
    for number, settings in enumerate(variants):
        both.theirs.make(read, settings).save(out / f"{number}.png")


def measure(both: Sides, options: argparse.Namespace) -> list[Row]:
    """One row: the whole sweep."""
    axes, base, numbers = axes_for(options.count), replace(Settings(), steps=options.steps), count()
    variants = [replace(base, **dict(zip(axes, values, strict=True))) for values in product(*axes.values())]
    ours(both, axes_for(1), base, both.folder / "warm_ours")
    theirs(both, variants[:1], both.folder / "warm_theirs")
    mine = timed(lambda: ours(both, axes, base, both.folder / f"ours_{next(numbers)}"), options.clock)
    other = timed(lambda: theirs(both, variants, both.folder / f"theirs_{next(numbers)}"), options.clock)
    return [alternately(f"sweep of {len(variants)}", mine, other, options.runs)]


def sized(about: str | None, pictures: int) -> argparse.ArgumentParser:
    """The options of a benchmark of many pictures."""
    made = parser(about)
    made.add_argument("--count", type=int, default=pictures, help=f"pictures ({pictures})")
    made.add_argument("--steps", type=int, default=8, help="denoising steps (8)")
    return made


def main() -> None:
    """Print the table."""
    options = options_of(sized(__doc__, 64))
    with sides(options) as both:
        rows = measure(both, options)
    report(rows, rows[0].ratio, options)


if __name__ == "__main__":
    main()
