"""Step `latents`: encode every pair and many base pictures once; statistics of the latents normalise them.

`latents/{pairs,twins}/HxW.safetensors`: `picture`, `clay` [N,4,h,w] fp16, unit-variance scaled latents.
`latents/base/HxW.safetensors` likewise `picture`, with its tags in `HxW.json` (a list of lists).
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import save_file

from claygraph.miniature.family import final_vae
from claygraph.miniature.networks import Vae
from claygraph.miniature.pictures import Pool
from claygraph.miniature.train_vae import load_vae, to_tensor
from claygraph.miniature.training import device

BASE_SHAPES = {(256, 256): 700, (224, 288): 250, (288, 224): 250, (128, 128): 900, (160, 160): 400}
"""How many pictures of each shape in pixels the base model is trained on, beside the pairs' pictures."""


def latents(work: Path) -> None:
    """Measure the statistics, then encode; finished files are kept."""
    folder = work / "latents"
    for part in ("pairs", "twins", "base"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _statistics(work, folder / "statistics.json")
    vae = final_vae(work).to(device())
    for file in sorted(f for kind in ("pairs", "twins") for f in (work / kind).glob("*.npz")):
        target = folder / file.parent.name / f"{file.stem}.safetensors"
        if not target.exists() and ".part" not in file.name:
            stored = np.load(file)
            save_file({kind: encode(vae, stored[kind]) for kind in ("picture", "clay")}, target)
            print(f"latents: {file.parent.name} {file.stem}", flush=True)
    for number, ((height, width), count) in enumerate(BASE_SHAPES.items()):
        _base(folder / "base", vae, Pool(work, 50 + number), height, width, count)


def encode(vae: Vae, pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Scaled latents [N,4,H/4,W/4] fp16 of RGB pictures (the posterior's mode)."""
    place = next(vae.parameters()).device
    with torch.no_grad():
        parts = [
            vae.encode(to_tensor(pictures[i : i + 8]).to(place)).latent_dist.mode() * vae.config.scaling_factor
            for i in range(0, len(pictures), 8)
        ]
    return torch.cat(parts).half().cpu().contiguous()


def _statistics(work: Path, file: Path) -> None:
    if file.exists():
        return
    vae, stored = load_vae(work), np.load(work / "pairs/256x256.npz")
    both = np.concatenate([stored["picture"][:100], stored["clay"][:60]])
    raw = torch.cat([vae.encode(to_tensor(both[i : i + 8])).latent_dist.mode().detach() for i in range(0, 160, 8)])
    channels = raw.transpose(0, 1).flatten(1)
    file.write_text(json.dumps({"mean": channels.mean(1).tolist(), "deviation": channels.std(1).tolist()}))


def _base(folder: Path, vae: Vae, pool: Pool, height: int, width: int, count: int) -> None:
    file = folder / f"{height}x{width}.safetensors"
    if file.exists():
        return
    drawn = [pool.any(height, width, (0.5, 0.12, 0.28, 0.10)) for _ in range(count)]
    file.with_suffix(".json").write_text(json.dumps([p.tags for p in drawn]))
    save_file({"picture": encode(vae, np.stack([p.pixels for p in drawn]))}, file)
    print(f"latents: base {file.stem}", flush=True)
