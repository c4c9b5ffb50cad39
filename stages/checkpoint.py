"""Names the checkpoint everything else builds on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from claygraph.diffusion.describe import describe
from claygraph.files import weights
from claygraph.stage import Stage
from claygraph.values import Model


@dataclass(frozen=True)
class LoadCheckpoint(Stage):
    """An SDXL checkpoint: a single .safetensors file or a diffusers folder.

    ``config`` is a folder of component configs (unet/config.json, ...) that wins over what the file says;
    ``vae`` replaces the checkpoint's own VAE (a .safetensors file or a diffusers folder).
    """

    path: str
    config: str | None = None
    vae: str | None = None

    def files(self) -> Sequence[str]:
        named = {"checkpoint.path": self.path, "checkpoint.config": self.config, "checkpoint.vae": self.vae}
        return [weights(setting, path).path for setting, path in named.items() if path]

    def run(self) -> Model:
        config = weights("checkpoint.config", self.config) if self.config else None
        vae = weights("checkpoint.vae", self.vae) if self.vae else None
        return Model(describe(weights("checkpoint.path", self.path), config, vae))
