"""What each sampler costs beside the model: its own arithmetic, noise and driving, per step, in bare denoiser calls.

python -m benchmarks.samplers [--runs 3] [--steps 6] [--size 256] [--json FILE] [NAME ...]

A run is the sampler stage on the bundled miniature (one picture, cfg 1.5, karras, denoise 0.6), its calls run one by
one as the scheduler runs them. What is not spent inside the denoiser is overhead; the bare call is the median of all
calls made (each guided, with a negative half). 1.03 means 3 % of a bare call a step; the headline is the worst.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
from collections.abc import Coroutine
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import torch

from claygraph.batches import run_calls
from claygraph.diffusion.calls import EncodeText
from claygraph.diffusion.samplers import SAMPLERS
from claygraph.memory import Memory
from claygraph.stages.checkpoint import LoadCheckpoint
from claygraph.stages.sampler import KSampler
from claygraph.values import Latent, Model, Prompt

TARGET = 1.03


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


def measure(names: list[str], runs: int, steps: int, size: int) -> list[dict[str, Any]]:
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


def row(name: str, seen: list[tuple[list[float], float]], bare: float, steps: int) -> dict[str, Any]:
    """The medians of one sampler; a step of dpm_adaptive is three calls."""
    calls = len(seen[0][0])
    taken = calls / 3 if name == "dpm_adaptive" else steps
    overhead = statistics.median(rest for _, rest in seen) / taken
    return {"sampler": name, "calls": calls, "bare_s": bare, "overhead_s": overhead, "ratio": 1 + overhead / bare}


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[[], *SAMPLERS], default=[], metavar="NAME")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--steps", type=int, default=6)
    parser.add_argument("--size", type=int, default=256)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = measure(options.names or list(SAMPLERS), options.runs, options.steps, options.size)
    worst = max(rows, key=lambda row: row["ratio"])
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, median of {options.runs}")
    print(f"{options.size} px, a bare call {rows[0]['bare_s'] * 1000:.1f} ms")
    for found in rows:
        print(f"{found['sampler']:32} {found['overhead_s'] * 1000:8.3f} ms a step   {found['ratio']:.4f} x")
    print(f"{worst['sampler']} costs most: {worst['ratio']:.4f} x (target: at most {TARGET})")
    if options.json:
        options.json.write_text(json.dumps({"ratio": worst["ratio"], "rows": rows}, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
