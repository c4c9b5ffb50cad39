"""Guesses of the bytes a call takes beside weights, for batches to fit where nobody counts (CPU), and for the first.

All are in float32 and for the widest moment, as numbers per pixel and channel of the first (widest) layers. Measured on
the bundled miniature: 15.6 for the UNet, 7.5 for the VAE's decoder, 4.4 for its encoder (peak resident memory of one
forward, Linux, at 64 and 96 latent pixels a side); SDXL has more layers but the same proportions. What is assumed is
more: a ControlNet's residuals come on top of the UNet.
"""

from __future__ import annotations

from claygraph.diffusion import describe
from claygraph.values import Checkpoint

BYTES = 4
UNET, DECODER, ENCODER = 24, 9, 6


def unet(checkpoint: Checkpoint, height: int, width: int, rows: int) -> int:
    """So many rows of latents ``[C, height, width]`` through the UNet."""
    return rows * UNET * BYTES * height * width * _channels(checkpoint, "unet")


def decoder(checkpoint: Checkpoint, height: int, width: int, tile: int) -> int:
    """A picture of ``height`` x ``width`` pixels from the VAE's decoder; of it at most a tile at a time (0: whole)."""
    return DECODER * BYTES * _pixels(height, width, tile) * _channels(checkpoint, "vae")


def encoder(checkpoint: Checkpoint, height: int, width: int, tile: int) -> int:
    """A picture of ``height`` x ``width`` pixels into the VAE's encoder; of it at most a tile at a time (0: whole)."""
    return ENCODER * BYTES * _pixels(height, width, tile) * _channels(checkpoint, "vae")


def _pixels(height: int, width: int, tile: int) -> int:
    return min(height, tile or height) * min(width, tile or width)


def _channels(checkpoint: Checkpoint, part: str) -> int:
    return int(describe.component(checkpoint, part)["block_out_channels"][0])
