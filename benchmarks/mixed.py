"""32 requests with different samplers, steps and prompts, beside the loop a user writes around a warm pipeline.

python -m benchmarks.mixed [--runs 5] [--count 32] [--size 256] [--device cpu|cuda] [--json FILE]
    [--model miniature|sdxl] [--weights DIR]

4 samplers (euler, euler_ancestral, heun, dpmpp_2m) x 4 numbers of steps x 2 prompts. The other side runs diffusers'
scheduler of the same name for as many steps (its pipeline gives Heun half as many model calls a step on the way, so
steps are halved there: the model is asked as often on both sides, or once less on theirs).
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from itertools import count, product
from pathlib import Path

from benchmarks.by_hand import CLAY, Settings, opened
from benchmarks.measure import Row, alternately, report, timed
from benchmarks.ours import knob, overrides
from benchmarks.sides import Sides, options_of, sides
from benchmarks.sweep import sized

AXES = {
    "sampler": ("euler", "euler_ancestral", "heun", "dpmpp_2m"),
    "steps": (4, 6, 8, 10),
    "text": (CLAY, "a plasticine figure on a table, studio light, thumb prints"),
}


def axes_for(number: int) -> dict[str, tuple[object, ...]]:
    """The axes for ``number`` pictures or fewer: fewer steps first, then one prompt, then fewer samplers."""
    axes: dict[str, tuple[object, ...]] = dict(AXES)
    for name in ("steps", "steps", "text", "sampler", "sampler"):
        if len(variants_of(axes)) > number:
            axes[name] = axes[name][: len(axes[name]) // 2]
    return axes


def variants_of(axes: dict[str, tuple[object, ...]]) -> list[Settings]:
    """The settings of every request."""
    combined = (dict(zip(axes, values, strict=True)) for values in product(*axes.values()))
    return [replace(Settings(), **each) for each in combined]  # type: ignore[arg-type]


def ours(both: Sides, axes: dict[str, tuple[object, ...]], out: Path) -> None:
    """All requests at once."""
    (photo,) = both.photos(1)
    fixed = [each for each in overrides(Settings()) if not any(each.startswith(knob(axis)) for axis in axes)]
    both.ours.make(["-m", f"image={photo}", *fixed, *(knob(axis, *values) for axis, values in axes.items())], out)


def theirs(both: Sides, variants: list[Settings], out: Path) -> None:
    """One request after another."""
    read = both.theirs.read(opened(both.photos(1)[0]))
    out.mkdir()
    for number, settings in enumerate(variants):
        both.theirs.make(read, settings).save(out / f"{number}.png")


def measure(both: Sides, options: argparse.Namespace) -> list[Row]:
    """One row: all requests."""
    axes, numbers = axes_for(options.count), count()
    variants = variants_of(axes)
    ours(both, axes_for(1), both.folder / "warm_ours")
    theirs(both, variants[:1], both.folder / "warm_theirs")
    mine = timed(lambda: ours(both, axes, both.folder / f"ours_{next(numbers)}"), options.clock)
    other = timed(lambda: theirs(both, variants, both.folder / f"theirs_{next(numbers)}"), options.clock)
    return [alternately(f"{len(variants)} mixed requests", mine, other, options.runs)]


def main() -> None:
    """Print the table."""
    options = options_of(sized(__doc__, 32))
    with sides(options) as both:
        rows = measure(both, options)
    report(rows, rows[0].ratio, options)


if __name__ == "__main__":
    main()
