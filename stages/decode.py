"""Latents into a picture."""

from __future__ import annotations

from dataclasses import dataclass

from claygraph.diffusion.calls import DecodeLatent
from claygraph.errors import check_tiles
from claygraph.stage import Stage
from claygraph.values import Image, Latent, Model


@dataclass(frozen=True)
class Decode(Stage):
    """The checkpoint's VAE decoder.

    ``tile`` (pixels, a multiple of 64; 0: the picture whole) works on overlapping parts, for pictures that memory does
    not hold whole; those are done so by themselves, at 512. ``overlap`` (pixels, a multiple of 8) is a quarter of it at
    most.
    """

    tile: int = 0
    overlap: int = 64

    def __post_init__(self) -> None:
        check_tiles("decode", self.tile, self.overlap)

    async def run(self, checkpoint: Model, sampler: Latent) -> Image:
        return await DecodeLatent(checkpoint.checkpoint, sampler, self.tile, self.overlap)
