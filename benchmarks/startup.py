"""How long a newcomer waits for help and for a wiring error, beside what importing a diffusers pipeline costs.

python -m benchmarks.startup [--runs 5] [--json FILE]

The headline is the slowest of them beside that import. The target is 0.8 s.
"""

from __future__ import annotations

from functools import partial

from benchmarks.measure import Row, alternately, fresh, parser, report

IMPORT = ["-c", "from diffusers import StableDiffusionXLControlNetImg2ImgPipeline"]
CASES = {
    "--help": ["--help"],
    "misspelt key": ["sampler.stesp=6"],
    "unknown choice": ["edges=cany"],
    "missing input": ["~encode"],
    "wrong type": ["+edges.inputs.photo=prompt"],
    "cycle": ["+encode.inputs.photo=decode"],
}


def seconds(arguments: list[str], expected: int, clock: str) -> float:
    """Seconds of one command line of ours in a process of its own, which ends with the expected code."""
    ended = fresh(["-m", "claygraph", *arguments], expected=expected)
    return ended.seconds if clock == "wall" else ended.cpu


def measure(runs: int, clock: str) -> list[Row]:
    """A row for each case."""

    def theirs() -> float:
        ended = fresh(IMPORT)
        return ended.seconds if clock == "wall" else ended.cpu

    return [alternately(name, partial(seconds, case, _code(name), clock), theirs, runs) for name, case in CASES.items()]


def _code(name: str) -> int:
    return 0 if name == "--help" else 2


def main() -> None:
    """Print the table."""
    options = parser(__doc__).parse_args()
    rows = measure(options.runs, options.clock)
    report(rows, min(row.ratio for row in rows if row.ratio), options)


if __name__ == "__main__":
    main()
