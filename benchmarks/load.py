"""Loading a full-size SDXL single file (6.9 GB, float16): beside diffusers' from_single_file, in fresh processes.

python -m benchmarks.load [--runs 3] [--device cpu] [--folder FOLDER] [--json FILE]

The file has random weights and is written first, into a temporary folder (7 GB must be free there), and removed
afterwards. Both sides keep float16, read the same file and configs, and end with one element of every 4096 bytes of
every tensor summed, so that a file that is mapped into memory counts only once all of it is there. Imports come before
the clock starts. Sides alternate; medians of seconds and of the process's peak resident memory. The file's digest,
which a first run computes and later ones look up, is a row of its own. diffusers takes half the memory where the
package accelerate is installed; which of the two was measured is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time
from typing import Any

import torch

Begun = tuple[tuple[float, float], list[torch.nn.Module]]
PAGE = 4096
TIME, MEMORY = 0.7, 1.15


def ours(file: Path, device: str) -> Begun:
    """Load with claygraph: when that began (wall clock, processor), and the models."""
    from diffusers.loaders import single_file_utils  # noqa: F401 - before the clock
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL  # noqa: F401
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel  # noqa: F401
    from transformers import CLIPTextModel, CLIPTextModelWithProjection  # noqa: F401

    from claygraph.diffusion.checkpoint import load_text_encoders, load_unet, load_vae
    from claygraph.diffusion.describe import describe
    from claygraph.files import weights
    from claygraph.memory import Memory

    begun = perf_counter(), process_time()
    memory = Memory(device, "float16")
    checkpoint = describe(weights("checkpoint.path", str(file)))
    models = [load_unet(checkpoint, memory), *load_text_encoders(checkpoint, memory), load_vae(checkpoint, memory)]
    return begun, models


def theirs(file: Path, device: str) -> Begun:
    """Load with diffusers, its configs and tokenizers from a folder beside the file."""
    from diffusers import StableDiffusionXLPipeline

    begun = perf_counter(), process_time()
    pipe = StableDiffusionXLPipeline.from_single_file(
        str(file), config=str(file.parent / "config"), torch_dtype=torch.float16, local_files_only=True
    ).to(device)
    return begun, [pipe.unet, pipe.text_encoder, pipe.text_encoder_2, pipe.vae]


SIDES = {"claygraph": ours, "diffusers": theirs}


def work(side: str, file: Path, device: str) -> dict[str, Any]:
    """What one process does and reports."""
    (begun, busy), models = SIDES[side](file, device)
    made = perf_counter() - begun
    numbers = sum(touch(model) for model in models)
    found = {"made": made, "seconds": perf_counter() - begun, "cpu": process_time() - busy, "numbers": numbers}
    return found | {"peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024}


def touch(model: torch.nn.Module) -> int:
    """Read one number from every page of a model's parameters; how many numbers it has."""
    total = 0
    for tensor in model.parameters():
        float(tensor.detach().reshape(-1)[:: PAGE // tensor.element_size()].float().sum())
        total += tensor.numel()
    return total


def configs(folder: Path) -> None:
    """SDXL's configs and tokenizers as a folder that diffusers takes for a pipeline's."""
    from claygraph.diffusion.describe import SHIPPED

    shutil.copytree(SHIPPED, folder)
    parts = {
        "scheduler": ["diffusers", "EulerDiscreteScheduler"],
        "text_encoder": ["transformers", "CLIPTextModel"],
        "text_encoder_2": ["transformers", "CLIPTextModelWithProjection"],
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "tokenizer_2": ["transformers", "CLIPTokenizer"],
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
    index = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": True, **parts}
    (folder / "model_index.json").write_text(json.dumps(index))


def measure(folder: Path, runs: int, device: str) -> list[dict[str, Any]]:
    """Write the file, and load it from fresh processes of either side in turn."""
    from benchmarks.full_size import write
    from claygraph.files import digest

    file = folder / "full.safetensors"
    size = write(file)
    configs(folder / "config")
    begun = perf_counter()
    digest(file)
    rows: list[dict[str, Any]] = [{"side": "digest", "seconds": perf_counter() - begun}]
    seen: dict[str, list[dict[str, Any]]] = {side: [] for side in SIDES}
    for _ in range(runs):
        for side in SIDES:
            seen[side].append(_process(side, file, device))
    for side, found in seen.items():
        middle = {key: statistics.median(each[key] for each in found) for key in ("made", "seconds", "cpu", "peak")}
        rows.append({"side": side, **middle, "peak_of_file": middle["peak"] / size, "numbers": found[0]["numbers"]})
    return rows


def _process(side: str, file: Path, device: str) -> dict[str, Any]:
    command = [sys.executable, "-m", "benchmarks.load", "--worker", side, "--folder", str(file), "--device", device]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{side} failed: {done.stderr[-2000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def main() -> None:
    """Print the table, and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--folder", type=Path, help="where the file is written; the system's temporary folder")
    parser.add_argument("--worker", choices=SIDES, help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    if options.worker:
        print(json.dumps(work(options.worker, options.folder, options.device)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(Path(folder), options.runs, options.device)
    report(rows, options.runs)
    if options.json:
        by_side = {row["side"]: row for row in rows}
        ratio = by_side["diffusers"]["seconds"] / by_side["claygraph"]["seconds"]
        options.json.write_text(json.dumps({"ratio": ratio, "rows": rows}, indent=1) + "\n", encoding="utf-8")


def report(rows: list[dict[str, Any]], runs: int) -> None:
    """The table."""
    accelerate = "with" if find_spec("accelerate") else "without"
    print(f"{platform.machine()}, {os.cpu_count()} cores, torch {torch.__version__}, median of {runs}")
    print(f"diffusers {accelerate} accelerate; digest of the file, once: {rows[0]['seconds']:.1f} s")
    for row in rows[1:]:
        print(
            f"{row['side']:10} {row['seconds']:7.2f} s   peak {row['peak'] / 1e9:5.2f} GB, {row['peak_of_file']:.2f} x"
        )
    mine, other = rows[1:]
    print(f"time {mine['seconds'] / other['seconds']:.2f} x (target: at most {TIME}), ", end="")
    print(f"peak {mine['peak_of_file']:.2f} x the file (target: at most {MEMORY})")


if __name__ == "__main__":
    main()
