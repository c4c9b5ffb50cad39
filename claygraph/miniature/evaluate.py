"""`python -m claygraph.miniature.evaluate`: what the bundled family does on photographs kept out of its training.

Everything runs through the same graph as `python -m claygraph`. Prints a table of figures and their bounds, writes a
page of pictures, and exits with 1 where a bound is missed.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from claygraph.miniature import WEIGHTS, figures
from claygraph.miniature.figures import Bench, Figure
from claygraph.miniature.page import write_page

PARTS = {
    "vae": figures.vae,
    "clay": figures.clay,
    "toy": figures.toy,
    "controlnet": figures.controlnet,
    "ip_adapter": figures.ip_adapter,
    "text": figures.text,
    "taggers": figures.taggers,
    "speed": figures.speed,
    "size": figures.size,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the chosen parts; 1 where a bound is missed."""
    options = _parser().parse_args(arguments)
    held = np.load(options.work / "held_out/128x128.npz")
    chosen = slice(options.count)
    bench = Bench(options.work, held["picture"][chosen], held["clay"][chosen], options.seeds)
    found = [figure for part in options.part or PARTS for figure in PARTS[part](bench)]
    Console().print(table(found, options.count, options.seeds))
    if options.json:
        options.json.write_text(json.dumps([figure.as_dict() for figure in found], indent=1))
    write_page(options.page or options.work / "evaluation.html", bench.pictures, found)
    return int(not all(figure.met for figure in found))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("python -m claygraph.miniature.evaluate", description=__doc__)
    parts, work = ", ".join(PARTS), Path("miniature-work")
    parser.add_argument("part", nargs="*", choices=[[], *PARTS], metavar="part", help=f"default all: {parts}")
    parser.add_argument(
        "--work", type=Path, default=work, help=f"the recipe's folder, after its fetch (default {work})"
    )
    parser.add_argument("--count", type=int, default=100, help="pictures (default 100)")
    parser.add_argument("--seeds", type=int, default=3, help="seeds of each picture (default 3)")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--page", type=Path, help="the page of pictures (default evaluation.html in the work folder)")
    return parser


def table(found: Sequence[Figure], count: int, seeds: int) -> Table:
    """The figures beside their bounds."""
    shown = Table("part", "figure", "value", "bound", "met", title=f"{WEIGHTS.name}: {count} pictures, {seeds} seeds")
    for figure in found:
        shown.add_row(figure.part, figure.what, f"{figure.value:.3f}", figure.bound, "yes" if figure.met else "NO")
    return shown


if __name__ == "__main__":
    raise SystemExit(main())
