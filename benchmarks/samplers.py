"""What each sampler costs beside the model: its own arithmetic, noise and driving, per step, in bare denoiser calls.

python -m benchmarks.samplers [--runs 5] [--steps 6] [--size 256] [--json FILE] [NAME ...]

A run is the sampler stage on the bundled miniature (one picture, cfg 1.5, karras, denoise 0.6), its calls run one by
one as the scheduler runs them. What is not spent inside the denoiser is overhead; the bare call is the median of all
calls made (each guided, with a negative half). Both are seconds a step; 0.97 x means that 3 % of it is not the model.
The headline is the worst.
"""

from __future__ import annotations

import statistics
from collections.abc import Coroutine
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.measure import Row, parser, report
from claygraph.batches import run_calls
from claygraph.diffusion.calls import EncodeText
from claygraph.diffusion.samplers import SAMPLERS
from claygraph.memory import Memory
from claygraph.stages.checkpoint import LoadCheckpoint
from claygraph.stages.sampler import KSampler
from claygraph.values import Latent, Model, Prompt


def drive(task: Coroutine[Any, Any, Any], memory: Memory) -> tuple[list[float], float]:
    """Run a stage to its end: the seconds of each of its calls, and those of everything else."""
    calls: list[float] = []
    begun, value = perf_counter(), None
    while True:
        try:
            call = task.send(value)
        except StopIteration:
            return calls, perf_counter() - begun - sum(calls)
        (done,) = run_calls([call], memory)
        if isinstance(done.value, Exception):
            raise done.value
        value = done.value
        calls.append(done.seconds)


def measure(names: list[str], runs: int, steps: int, size: int) -> list[Row]:
    """One row a sampler, the runs of all interleaved so that a busy moment is shared."""
    memory = Memory("cpu", "float32")
    model = LoadCheckpoint("miniature:checkpoint/clay_mini.safetensors").run()
    prompt, latent = inputs(model, memory, size)
    seen: dict[str, list[tuple[list[float], float]]] = {name: [] for name in names}
    for name in names:  # pays for what is loaded once
        drive(KSampler(name, "karras", 3, cfg=1.5, denoise=0.1).run(model, prompt, latent), memory)
    for seed in range(runs):
        for name in names:
            stage = KSampler(name, "karras", steps, cfg=1.5, denoise=0.6, seed=seed)
            seen[name].append(drive(stage.run(model, prompt, latent), memory))
    bare = statistics.median(second for runs_of in seen.values() for calls, _ in runs_of for second in calls)
    return [row(name, seen[name], bare, steps) for name in names]


def inputs(model: Model, memory: Memory, size: int) -> tuple[Prompt, Latent]:
    """A prompt through the miniature's text encoders, and a random latent of the size in pixels."""
    texts = [EncodeText(model.checkpoint, (), text) for text in ("claymation, made-of-clay, a cup", "blurry")]
    side = size // model.checkpoint.downscale
    noise = np.random.default_rng(0).standard_normal((4, side, side)).astype(np.float32)
    positive, negative = EncodeText.run_batch(texts, memory)
    return Prompt(positive, negative), Latent(noise)


def row(name: str, seen: list[tuple[list[float], float]], bare: float, steps: int) -> Row:
    """The medians of one sampler; a step of dpm_adaptive is three calls."""
    calls = len(seen[0][0])
    taken = calls / 3 if name == "dpm_adaptive" else steps
    overhead = statistics.median(rest for _, rest in seen) / taken
    return Row(name, bare + overhead, bare, notes={"calls": calls, "overhead_ms": overhead * 1000})


def main() -> None:
    """Print the table, and write it where asked."""
    about = parser(__doc__)
    about.add_argument("names", nargs="*", choices=[[], *SAMPLERS], default=[], metavar="NAME")
    about.add_argument("--steps", type=int, default=6)
    about.add_argument("--size", type=int, default=256)
    options = about.parse_args()
    rows = measure(options.names or list(SAMPLERS), options.runs, options.steps, options.size)
    report(rows, min(row.ratio for row in rows if row.ratio), options)


if __name__ == "__main__":
    main()
