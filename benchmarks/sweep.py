"""A numeric sweep as one graph, beside the same pictures made one after another in one process.

python benchmarks/sweep.py [--runs 3] [--variants 8] [OVERRIDES ...]
"""

from __future__ import annotations

import argparse
import contextlib
import io
import os
import platform
import statistics
import tempfile
import time

import torch

from claygraph.cli import main as claygraph


def seconds(commands: list[list[str]]) -> float:
    """Wall-clock seconds of some command lines, one after another, with weights loaded afresh for each."""
    begun = time.perf_counter()
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        for arguments in commands:
            if claygraph(arguments) != 0:
                raise SystemExit(f"claygraph failed: {' '.join(arguments)}")
    return time.perf_counter() - begun


def main() -> None:
    """Print medians and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--variants", type=int, default=8)
    options, overrides = parser.parse_known_args()
    strengths = [f"{(number + 1) / options.variants:g}" for number in range(options.variants)]
    with tempfile.TemporaryDirectory() as out:
        shared = [f"out={out}", *overrides]
        apart = [[*shared, f"lora.clay.model={strength}"] for strength in strengths]
        together = [["-m", *shared, f"lora.clay.model={','.join(strengths)}"]]
        seconds(apart[:1])  # imports are paid here, by neither side
        times = [(seconds(apart), seconds(together)) for _ in range(options.runs)]
    one, all_at_once = (statistics.median(column) for column in zip(*times, strict=True))
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, median of {options.runs}")
    print(f"{options.variants} LoRA strengths, one after another  {one:7.2f} s")
    print(f"{options.variants} LoRA strengths, one sweep          {all_at_once:7.2f} s   {one / all_at_once:.2f} x")


if __name__ == "__main__":
    main()
