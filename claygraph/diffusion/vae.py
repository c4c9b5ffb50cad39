"""Pictures to latents and back, in batches of one size; in tiles where asked, or where memory does not hold a whole."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import torch
from torch import Tensor

from claygraph.diffusion.checkpoint import load_vae
from claygraph.diffusion.tiles import in_tiles
from claygraph.values import Checkpoint, Image, Latent

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    from claygraph.diffusion.calls import DecodeLatent, EncodeImage
    from claygraph.memory import Memory
    from claygraph.values import Bytes

    Calls: TypeAlias = Sequence[EncodeImage] | Sequence[DecodeLatent]

TILE, OVERLAP = 512, {"encode": 64, "decode": 128}
"""Pixels of a tile, and of its overlap, where a whole picture does not fit into memory: ComfyUI's."""
log = logging.getLogger(__name__)


@torch.inference_mode()
def encode(calls: Sequence[EncodeImage], memory: Memory) -> list[Latent]:
    """Encode pictures of one size: the mean of the posterior, not scaled; cropped around the centre where needed."""
    checkpoint = calls[0].checkpoint
    vae = _vae(checkpoint, memory)
    pixels = np.stack([crop(call.image.pixels, checkpoint.downscale) for call in calls])
    batch = torch.from_numpy(pixels).to(memory.device).permute(0, 3, 1, 2).float() / 127.5 - 1

    def mean(part: Tensor) -> Tensor:
        latent: Tensor = vae.encode(part.to(vae.dtype)).latent_dist.mode()
        return latent.float()

    def tiled(tile: int, overlap: int) -> Tensor:
        return in_tiles(mean, batch, tile, overlap, 1 / checkpoint.downscale)

    latents = _whole_or_tiled("encode", calls, lambda: mean(batch), tiled).cpu().numpy()
    return [Latent(latent) for latent in latents]


def crop(pixels: Bytes, multiple: int) -> Bytes:
    """Centre of ``[H, W, 3]`` whose sides are multiples of ``multiple``; an odd pixel more goes from the far side."""
    height, width = (side - side % multiple for side in pixels.shape[:2])
    top, left = (side % multiple // 2 for side in pixels.shape[:2])
    return pixels[top : top + height, left : left + width]


@torch.inference_mode()
def decode(calls: Sequence[DecodeLatent], memory: Memory) -> list[Image]:
    """Decode latents of one size to pictures; 255 x is cut off to a whole number, not rounded, as ComfyUI saves it."""
    checkpoint = calls[0].checkpoint
    vae = _vae(checkpoint, memory)
    batch = torch.from_numpy(np.stack([call.latent.samples for call in calls])).to(memory.device, vae.dtype)

    def picture(part: Tensor) -> Tensor:
        pixels: Tensor = vae.decode(part).sample
        return pixels.float()

    def tiled(tile: int, overlap: int) -> Tensor:
        tile, overlap = tile // checkpoint.downscale, overlap // checkpoint.downscale
        return in_tiles(picture, batch, tile, overlap, checkpoint.downscale)

    decoded = _whole_or_tiled("decode", calls, lambda: picture(batch), tiled)
    pixels = ((decoded + 1) / 2).clamp(0, 1).mul(255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image(picture) for picture in pixels]


def _whole_or_tiled(
    stage: str, calls: Calls, whole: Callable[[], Tensor], tiled: Callable[[int, int], Tensor]
) -> Tensor:
    """As the calls ask; a single picture that does not fit into memory whole is done in tiles, with a log line."""
    if calls[0].tile:
        return tiled(calls[0].tile, calls[0].overlap)
    try:
        return whole()
    except torch.OutOfMemoryError:
        if len(calls) > 1:  # fewer at a time are tried first
            raise
    log.warning("%s: memory does not hold the picture whole; made in tiles, as by %s.tile=%d.", stage, stage, TILE)
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
    return tiled(TILE, OVERLAP[stage])


def _vae(checkpoint: Checkpoint, memory: Memory) -> AutoencoderKL:
    key = ("vae", checkpoint.vae or checkpoint.weights, checkpoint.config)
    return memory.get(key, lambda: load_vae(checkpoint, memory))
