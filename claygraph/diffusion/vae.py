"""Pictures to latents and back, in batches of one size."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from claygraph.diffusion.checkpoint import load_vae
from claygraph.values import Checkpoint, Image, Latent

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from claygraph.diffusion.calls import DecodeLatent, EncodeImage
    from claygraph.memory import Memory
    from claygraph.values import Bytes


@torch.inference_mode()
def encode(calls: Sequence[EncodeImage], memory: Memory) -> list[Latent]:
    """Encode pictures of one size: the mean of the posterior, not scaled; cropped around the centre where needed."""
    vae = _vae(calls[0].checkpoint, memory)
    pixels = np.stack([crop(call.image.pixels, call.checkpoint.downscale) for call in calls])
    batch = torch.from_numpy(pixels).to(memory.device).permute(0, 3, 1, 2).float() / 127.5 - 1
    latents = vae.encode(batch.to(vae.dtype)).latent_dist.mode().float().cpu().numpy()
    return [Latent(latent, call.image.name) for latent, call in zip(latents, calls, strict=True)]


def crop(pixels: Bytes, multiple: int) -> Bytes:
    """Centre of ``[H, W, 3]`` whose sides are multiples of ``multiple``; an odd pixel more goes from the far side."""
    height, width = (side - side % multiple for side in pixels.shape[:2])
    top, left = (side % multiple // 2 for side in pixels.shape[:2])
    return pixels[top : top + height, left : left + width]


@torch.inference_mode()
def decode(calls: Sequence[DecodeLatent], memory: Memory) -> list[Image]:
    """Decode latents of one size to pictures; 255 x is cut off to a whole number, not rounded, as ComfyUI saves it."""
    vae = _vae(calls[0].checkpoint, memory)
    samples = np.stack([call.latent.samples for call in calls])
    decoded = vae.decode(torch.from_numpy(samples).to(memory.device, vae.dtype)).sample.float()
    pixels = ((decoded + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image(picture, call.latent.name) for picture, call in zip(pixels, calls, strict=True)]


def _vae(checkpoint: Checkpoint, memory: Memory) -> AutoencoderKL:
    return memory.get(("vae", checkpoint), lambda: load_vae(checkpoint, memory))
