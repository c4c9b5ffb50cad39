"""One picture, warm: claygraph beside the same by hand with diffusers' pipeline, LoRA, IP-Adapter and ControlNet.

python -m benchmarks.one_image [--runs 5] [--size 256] [--device cpu|cuda] [--json FILE]
    [--model miniature|sdxl] [--weights DIR]

Both sides are in one process with their weights loaded, and by turns make the picture from the photo to the PNG file:
tags, edges, prompts, image prompt, VAE, eight guided steps. The second row's other side has its LoRA merged into the
weights, which only who never changes its strength can do. ``psnr`` is how close the two pictures are, in decibels:
timesteps are rounded otherwise, CLIP's input is scaled otherwise, and 8-bit values are rounded there and cut off here.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import count
from pathlib import Path

from benchmarks.by_hand import Settings, opened
from benchmarks.measure import Row, alternately, parser, report, timed
from benchmarks.ours import overrides
from benchmarks.sides import Sides, options_of, psnr, sides


def pair(both: Sides, settings: Settings) -> tuple[Callable[[], Path], Callable[[], Path]]:
    """What makes the picture on our side and on theirs; each time in another place, whose path it returns."""
    (photo,), numbers = both.photos(1), count()

    def ours() -> Path:
        return both.ours.make([f"image={photo}", *overrides(settings)], both.folder / f"ours_{next(numbers)}")

    def theirs() -> Path:
        path = both.folder / f"theirs_{next(numbers)}.png"
        by_hand = both.theirs
        by_hand.make(by_hand.read(opened(photo), settings.cfg > 1), settings).save(path)
        return path

    return ours, theirs


def measure(both: Sides, runs: int, clock: str) -> list[Row]:
    """The row of set strengths, and that of a merged LoRA."""
    ours, theirs = pair(both, Settings())
    likeness = psnr(ours() / "photo_00.png", theirs())  # and both sides are warm
    mine, other = timed(ours, clock), timed(theirs, clock)
    rows = [alternately("one picture", mine, other, runs, psnr=likeness)]
    both.theirs.merge()
    theirs()
    return [*rows, alternately("one picture, their LoRA merged", mine, other, runs)]


def main() -> None:
    """Print the table."""
    options = options_of(parser(__doc__))
    with sides(options) as both:
        rows = measure(both, options.runs, options.clock)
    report(rows, rows[0].ratio, options)


if __name__ == "__main__":
    main()
