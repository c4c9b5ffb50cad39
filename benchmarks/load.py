"""Loading a full-size SDXL single file (6.9 GB, float16): beside diffusers' from_single_file, in fresh processes.

python -m benchmarks.load [--runs 3] [--device cpu] [--folder FOLDER] [--json FILE]

The file has random weights and is written first, a minute or two, into a temporary folder (7 GB must be free there, and
in memory), and removed afterwards. Both sides keep float16 (claygraph's VAE becomes bfloat16, for in float16 SDXL's
overflows), read the same file and configs, and end with one element of every 4096 bytes of every tensor summed, so that
a file that is mapped into memory counts only once all of it is there. Imports come before the clock starts. The sides
take turns. The file's digest, which a first run computes and later ones look up, is a row of its own. diffusers does
less work and takes less memory where the package accelerate is installed; the table says which of the two was measured.
"""

from __future__ import annotations

import json
import resource
import shutil
import statistics
import sys
import tempfile
from argparse import SUPPRESS
from importlib.util import find_spec
from pathlib import Path
from time import perf_counter, process_time

import torch

from benchmarks.measure import Row, fresh, parser, report

PAGE = 4096
Begun = tuple[tuple[float, float], list[torch.nn.Module]]


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
    unet = memory.get("unet", lambda: load_unet(checkpoint, memory))
    texts = memory.get("texts", lambda: load_text_encoders(checkpoint, memory))
    return begun, [unet, *texts, memory.get("vae", lambda: load_vae(checkpoint, memory))]


def theirs(file: Path, device: str) -> Begun:
    """Load with diffusers, its configs and tokenizers from a folder beside the file."""
    from diffusers import StableDiffusionXLPipeline

    begun = perf_counter(), process_time()
    pipe = StableDiffusionXLPipeline.from_single_file(
        str(file), config=str(file.parent / "config"), torch_dtype=torch.float16, local_files_only=True
    ).to(device)
    return begun, [pipe.unet, pipe.text_encoder, pipe.text_encoder_2, pipe.vae]


SIDES = {"claygraph": ours, "diffusers": theirs}


def work(side: str, file: Path, device: str) -> dict[str, float]:
    """What one process does and reports."""
    (begun, busy), models = SIDES[side](file, device)
    made = perf_counter() - begun
    numbers = sum(touch(model) for model in models)
    found = {"made": made, "seconds": perf_counter() - begun, "cpu": process_time() - busy, "numbers": numbers}
    unit = 1 if sys.platform == "darwin" else 1024
    return found | {"peak": unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss}


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


def measure(folder: Path, runs: int, device: str) -> list[Row]:
    """Write the file, and load it from fresh processes of either side in turn."""
    from benchmarks.full_size import write
    from claygraph.files import digest

    file = folder / "full.safetensors"
    size = write(file)
    configs(folder / "config")
    begun = perf_counter()
    digest(file)
    digested = perf_counter() - begun
    seen: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(runs):
        for side, found in seen.items():
            found.append(_process(side, file, device))
    mine, other = ({key: statistics.median(one[key] for one in seen[side]) for key in seen[side][0]} for side in SIDES)
    accelerate = {"accelerate": "yes" if find_spec("accelerate") else "no"}
    return [
        Row("load, all pages read", mine["seconds"], other["seconds"], notes=accelerate | {"runs_all": seen}),
        Row("of it models made", mine["made"], other["made"]),
        Row("processor", mine["cpu"], other["cpu"]),
        Row("peak memory", mine["peak"] / 1e9, other["peak"] / 1e9, "GB", {"of_the_file": mine["peak"] / size}),
        Row("digest, once for a file", digested),
    ]


def _process(side: str, file: Path, device: str) -> dict[str, float]:
    command = ["-m", "benchmarks.load", "--worker", side, "--folder", str(file), "--device", device]
    return dict(json.loads(fresh(command).output.splitlines()[-1]))


def main() -> None:
    """Print the table, and write it where asked."""
    made = parser(__doc__)
    made.set_defaults(runs=3)
    made.add_argument("--folder", type=Path, help="where the file is written; the system's temporary folder")
    made.add_argument("--worker", choices=SIDES, help=SUPPRESS)
    options = made.parse_args()
    if options.worker:
        print(json.dumps(work(options.worker, options.folder, options.device)))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        rows = measure(Path(folder), options.runs, options.device)
    report(rows, rows[0].ratio, options)


if __name__ == "__main__":
    main()
