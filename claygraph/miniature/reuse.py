"""Take parts of an exported family back into the work folder as if their training had just ended.

So a later training of the other parts builds on them, and a longer training of a part can start where the last ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from claygraph.diffusion.checkpoint import load_vae
from claygraph.diffusion.describe import describe
from claygraph.files import weights as weights_of
from claygraph.memory import Memory
from claygraph.miniature.networks import VAE

Tensors = dict[str, torch.Tensor]


def reuse(work: Path, weights: Path, part: str) -> None:
    """Write the checkpoint of `part` from the exported files below `weights`; one that is there is kept."""
    target = work / f"checkpoints/{part}.safetensors"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        tensors = PARTS[part](work, weights)
        save_file({f"average.{n}": t.float().contiguous() for n, t in tensors.items()}, target, FINISHED)


FINISHED = {"progress": json.dumps({"step": 0, "elapsed": 0.0})}


def _vae(work: Path, weights: Path) -> Tensors:
    """The autoencoder; its latents are normalised already, so the statistics that fold them say so."""
    file = weights / "checkpoint/clay_mini.safetensors"
    tensors = dict(load_vae(describe(weights_of("vae", str(file))), Memory("cpu", "float32")).state_dict())
    deviation = 1 / VAE["scaling_factor"]
    (work / "latents").mkdir(parents=True, exist_ok=True)
    (work / "latents/statistics.json").write_text(json.dumps({"mean": [0.0] * 4, "deviation": [deviation] * 4}))
    return tensors


def _image_encoder(_work: Path, weights: Path) -> Tensors:
    tensors = load_file(weights / "ip_adapter/image_encoder/model.safetensors")
    return {f"encoder.{n}": t for n, t in tensors.items()}


PARTS: dict[str, Callable[[Path, Path], Tensors]] = {"vae": _vae, "image_encoder": _image_encoder}
