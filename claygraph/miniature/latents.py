"""Step `latents`: encode every picture and its target once; statistics of the latents normalise them.

`latents/{pictures,pairs,twins}/HxW.safetensors`: `picture` and, where there is a target, `clay` [N,4,h,w] fp16,
unit-variance scaled latents.
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
from claygraph.miniature.train_vae import load_vae, to_tensor
from claygraph.miniature.training import device

KINDS = ("pictures", "pairs", "twins")


def latents(work: Path) -> None:
    """Measure the statistics, then encode; finished files are kept."""
    (work / "latents").mkdir(parents=True, exist_ok=True)
    _statistics(work, work / "latents/statistics.json")
    vae = final_vae(work).to(device())
    for file in sorted(f for kind in KINDS for f in (work / kind).glob("*.npz") if ".part" not in f.name):
        target = work / "latents" / file.parent.name / f"{file.stem}.safetensors"
        if not target.exists():
            _encode_file(vae, file, target)


def _encode_file(vae: Vae, file: Path, target: Path) -> None:
    target.parent.mkdir(exist_ok=True)
    stored = np.load(file)
    part = target.with_suffix(".part")
    save_file({kind: encode(vae, stored[kind]) for kind in ("picture", "clay") if kind in stored}, part)
    part.rename(target)
    print(f"latents: {file.parent.name} {file.stem}", flush=True)


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
