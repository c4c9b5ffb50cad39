"""KSampler: image to image through any sampler and schedule."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from claygraph.diffusion.prediction import table_of
from claygraph.diffusion.samplers import SAMPLERS
from claygraph.diffusion.sampling import Run, sample
from claygraph.diffusion.schedules import SCHEDULES, Table, sigmas_for
from claygraph.diffusion.windows import planned
from claygraph.errors import check_choice, check_range, check_whole
from claygraph.stage import Stage
from claygraph.values import Latent, Mask, Model, Prompt


@dataclass(frozen=True)
class KSampler(Stage):
    """Noise the latent, then denoise it.

    ``denoise`` (0 to 1) is how much of the picture is made anew: the schedule for ``steps / denoise`` steps is made and
    its last ``steps`` are run, so the number of steps stays. ``cfg`` 1 leaves the negative prompt out, except with the
    samplers in ``_cfg_pp``, which always use it. With a ``mask`` only what it marks is made anew.
    """

    sampler_name: str = "euler"
    scheduler: str = "normal"
    steps: int = 20
    cfg: float = 7.0
    denoise: float = 1.0
    seed: int = 0

    def __post_init__(self) -> None:
        check_choice("sampler.sampler_name", self.sampler_name, SAMPLERS)
        check_choice("sampler.scheduler", self.scheduler, SCHEDULES)
        check_whole("sampler.steps", self.steps, 1, 1000)
        check_range("sampler.cfg", self.cfg, 0, 100)
        check_range("sampler.denoise", self.denoise, 0, 1)
        check_whole("sampler.seed", self.seed, 0, 2**64 - 2)

    def sigmas(self, table: Table) -> list[float]:
        """The schedule that is run through."""
        drop = SAMPLERS[self.sampler_name].drop_penultimate
        return sigmas_for(self.scheduler, self.steps, self.denoise, drop, table)

    def denoising_steps(self) -> int:
        return self.steps

    def notes(self, upstream: Mapping[str, Stage]) -> Sequence[str]:
        return planned(upstream, self.sigmas)

    async def run(self, controlnet: Model, prompt: Prompt, encode: Latent, mask: Mask | None = None) -> Latent:
        sigmas = self.sigmas(table_of(controlnet.checkpoint))
        return await sample(Run(self.sampler_name, sigmas, self.cfg, self.seed), controlnet, prompt, encode, mask)
