"""What the scheduler and the samplers cost beside the model: seconds a request-step with a denoiser that does nothing.

python -m benchmarks.overhead [--runs 5] [--requests 64] [--steps 20] [--json FILE]

Each request is the real sampler stage in a graph of its own; all go through the real scheduler, batches included. Only
the denoiser is empty: it gives back what it is given. So a request-step is the forming of its call, its key, its place
in a batch, the sampler's own arithmetic, and its share of starting and ending the request. The target is half a
millisecond; a ratio above 1 is better than that. The headline is euler at 1024 px.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from time import perf_counter, process_time
from unittest.mock import patch

import numpy as np

from benchmarks.measure import Row, parser, report
from claygraph.diffusion.calls import Denoise
from claygraph.graph import Graph, build
from claygraph.memory import Memory
from claygraph.scheduler import Scheduler
from claygraph.stage import Stage
from claygraph.stages.checkpoint import LoadCheckpoint
from claygraph.stages.sampler import KSampler
from claygraph.values import Conditioning, Latent, Model, Prompt

TARGET = 0.5e-3
CASES = [("euler", 1024), ("euler", 256), ("dpmpp_2m", 1024), ("euler_ancestral", 1024), ("heun", 1024)]


@dataclass(frozen=True)
class Given(Stage):
    """A model that is never loaded."""

    path: str = "miniature:checkpoint/clay_mini.safetensors"

    def run(self) -> Model:
        model: Model = LoadCheckpoint(self.path).run()
        return model


@dataclass(frozen=True)
class Words(Stage):
    """An encoded prompt of zeros."""

    def run(self) -> Prompt:
        zeros = Conditioning(np.zeros((77, 2048), np.float32), np.zeros(1280, np.float32))
        return Prompt(zeros, zeros)


@dataclass(frozen=True)
class Blank(Stage):
    """Latents of zeros."""

    pixels: int = 1024

    def run(self) -> Latent:
        return Latent(np.zeros((4, self.pixels // 8, self.pixels // 8), np.float32))


def graphs(sampler: str, pixels: int, requests: int, steps: int) -> list[Graph]:
    """One graph a request; they differ in their seeds, and so share nothing but their inputs."""
    shared = {"controlnet": Given(), "prompt": Words(), "encode": Blank(pixels)}
    stages = [KSampler(sampler, "karras", steps, cfg=5.0, seed=seed) for seed in range(requests)]
    return [build({**shared, "sampler": stage}) for stage in stages]


@dataclass
class Empty:
    """A denoiser that gives back what it is given, and counts."""

    calls: int = 0
    batches: list[int] = field(default_factory=list)

    def __call__(self, calls: list[Denoise], _: Memory) -> list[object]:
        self.calls += len(calls)
        self.batches.append(len(calls))
        return [call.x for call in calls]


def measure(sampler: str, pixels: int, requests: int, steps: int, runs: int) -> Row:
    """The median of a few runs, in milliseconds a call of the denoiser."""
    memory, seen = Memory("cpu", "float32", batch=8), []
    for _ in range(runs):
        empty, planned = Empty(), graphs(sampler, pixels, requests, steps)
        with patch("claygraph.diffusion.denoise.denoise", empty):
            begun, busy = perf_counter(), process_time()
            outcomes = Scheduler(planned, memory).run()
            took, busy = perf_counter() - begun, process_time() - busy
        if error := next((outcome.error for outcome in outcomes if outcome.error), None):
            raise error
        seen.append((1000 * took / empty.calls, 1000 * busy / empty.calls, empty))
    took, busy, empty = sorted(seen, key=lambda each: each[0])[len(seen) // 2]
    notes = {"processor_ms": busy, "calls": empty.calls, "mean_batch": empty.calls / len(empty.batches)}
    return Row(f"{sampler}, {pixels} px", took, 1000 * TARGET, "ms", notes)


def main() -> None:
    """Print the table, and write it where asked."""
    options = parser(__doc__)
    options.add_argument("--requests", type=int, default=64)
    options.add_argument("--steps", type=int, default=20)
    given = options.parse_args()
    rows = [measure(*case, given.requests, given.steps, given.runs) for case in CASES]
    report(rows, rows[0].ratio, given)


if __name__ == "__main__":
    main()
