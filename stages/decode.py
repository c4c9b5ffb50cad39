"""Latents into a picture."""

from __future__ import annotations

from dataclasses import dataclass

from claygraph.diffusion.calls import DecodeLatent
from claygraph.stage import Stage
from claygraph.values import Image, Latent, Model


@dataclass(frozen=True)
class Decode(Stage):
    """The checkpoint's VAE decoder."""

    async def run(self, checkpoint: Model, sampler: Latent) -> Image:
        return await DecodeLatent(checkpoint.checkpoint, sampler)
