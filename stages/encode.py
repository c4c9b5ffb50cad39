"""The photo into latents."""

from __future__ import annotations

from dataclasses import dataclass

from claygraph.diffusion.calls import EncodeImage
from claygraph.stage import Stage
from claygraph.values import Image, Latent, Model


@dataclass(frozen=True)
class Encode(Stage):
    """The checkpoint's VAE encoder: the mean of the posterior."""

    async def run(self, checkpoint: Model, photo: Image) -> Latent:
        return await EncodeImage(checkpoint.checkpoint, photo)
