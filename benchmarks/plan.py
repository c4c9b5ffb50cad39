"""Seconds and memory to compose and plan a sweep of 100, 1,000 and 10,000 variants, each in a process of its own.

python -m benchmarks.plan [--runs 5] [--clock cpu] [--json FILE]

Ours is a whole process, from the start of Python to checked graphs of every variant. Theirs is Hydra's own composition
alone, of ``SAMPLE`` of the same variants one by one in a process of its own, per variant times their number; it plans
nothing. The variants are combinations of three knobs: 10 guidances, 10 LoRA strengths, and as many seeds as are needed.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from statistics import median
from time import perf_counter, process_time

from benchmarks.measure import Row, fresh, parser, report

NUMBERS = (100, 1_000, 10_000)
SAMPLE = 20
KNOBS = {"sampler.cfg": [1 + level / 4 for level in range(10)], "lora.clay.model": [level / 10 for level in range(10)]}


def sweep(number: int) -> list[str]:
    """The overrides of a sweep with so many variants."""
    axes = [f"{key}={','.join(map(str, levels))}" for key, levels in KNOBS.items()]
    return ["out=planned", *axes, f"sampler.seed=range(0,{number // 100})"]


def plan(number: int) -> None:
    """Compose and plan them all, as ``plan`` and a run do."""
    from claygraph.composing import compose_and_run
    from claygraph.jobs import Job
    from claygraph.plan import plan_all

    def check(jobs: Sequence[Job]) -> int:
        graphs = [each.graph for each in plan_all(jobs) if each.graph is not None]
        return 0 if len(graphs) == number else 1

    sys.exit(compose_and_run(check, ["-m", *sweep(number)]))


def compose_some() -> None:
    """Compose some of the variants by Hydra; prints wall-clock and processor seconds of one."""
    from hydra import compose, initialize_config_module

    with initialize_config_module("claygraph.conf", version_base="1.3"):
        compose("config", ["out=planned"])  # pays for what is imported once
        begun, used = perf_counter(), process_time()
        for level in range(SAMPLE):
            compose(
                "config", ["out=planned", f"sampler.cfg={level / 8}", "lora.clay.model=0.3", f"sampler.seed={level}"]
            )
        print((perf_counter() - begun) / SAMPLE, (process_time() - used) / SAMPLE)


def row(number: int, runs: int, clock: str) -> Row:
    """Both sides by turns, for one number of variants."""
    ended, composed = [], []
    for _ in range(runs):
        ended.append(fresh(["-m", "benchmarks.plan", "--plan", str(number)]))
        composed.append([float(word) for word in fresh(["-m", "benchmarks.plan", "--compose"]).output.split()])
    ours = median(each.cpu if clock == "cpu" else each.seconds for each in ended)
    theirs = median(wall_and_cpu[clock == "cpu"] for wall_and_cpu in composed) * number
    notes = {"MB at most": max(each.peak for each in ended) / 1e6, "ms a variant": ours / number * 1e3}
    return Row(f"{number} variants", ours, theirs, notes=notes)


def main() -> None:
    """Print the table."""
    made = parser(__doc__)
    made.add_argument("--plan", type=int, help="only plan so many, in this process")
    made.add_argument("--compose", action="store_true", help="only compose some, in this process")
    options = made.parse_args()
    if options.plan:
        plan(options.plan)
    if options.compose:
        compose_some()
        return
    rows = [row(number, options.runs, options.clock) for number in NUMBERS]
    report(rows, rows[-1].ratio, options)


if __name__ == "__main__":
    main()
