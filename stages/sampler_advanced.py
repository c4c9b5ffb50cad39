"""KSamplerAdvanced: some steps of a schedule, so that several samplers can share one picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from claygraph.diffusion.prediction import table_of
from claygraph.diffusion.samplers import SAMPLERS
from claygraph.diffusion.sampling import Run, sample
from claygraph.diffusion.schedules import SCHEDULES, Table, sigmas_for
from claygraph.diffusion.windows import planned
from claygraph.errors import check_choice, check_flag, check_range, check_whole
from claygraph.stage import Stage
from claygraph.values import Latent, Mask, Model, Prompt


@dataclass(frozen=True)
class KSamplerAdvanced(Stage):
    """Go through a schedule of ``steps`` from ``start_at_step`` to ``end_at_step`` (0 to 10000, where it has so many).

    ``add_noise`` false takes the latent as one that was left with noise. What an end before the last step leaves is
    kept with ``return_with_leftover_noise``; otherwise the last step that is run goes down to no noise. ``noise_seed``
    seeds all noise. ``cfg`` 1 leaves the negative prompt out, except with the samplers in ``_cfg_pp``; with a ``mask``
    only what it marks is made anew.
    """

    sampler_name: str = "euler"
    scheduler: str = "normal"
    steps: int = 20
    cfg: float = 7.0
    add_noise: bool = True
    noise_seed: int = 0
    start_at_step: int = 0
    end_at_step: int = 10000
    return_with_leftover_noise: bool = False

    def __post_init__(self) -> None:
        check_choice("sampler.sampler_name", self.sampler_name, SAMPLERS)
        check_choice("sampler.scheduler", self.scheduler, SCHEDULES)
        check_whole("sampler.steps", self.steps, 1, 1000)
        check_range("sampler.cfg", self.cfg, 0, 100)
        check_flag("sampler.add_noise", self.add_noise)
        check_flag("sampler.return_with_leftover_noise", self.return_with_leftover_noise)
        check_whole("sampler.noise_seed", self.noise_seed, 0, 2**64 - 2)
        check_whole("sampler.start_at_step", self.start_at_step, 0, 10000)
        check_whole("sampler.end_at_step", self.end_at_step, 0, 10000)

    def sigmas(self, table: Table) -> list[float]:
        """The part of the schedule that is run through."""
        drop = SAMPLERS[self.sampler_name].drop_penultimate
        whole = sigmas_for(self.scheduler, self.steps, 1.0, drop, table)
        part = whole[: self.end_at_step + 1]
        if not self.return_with_leftover_noise:
            part[-1] = 0.0
        return part[self.start_at_step :]

    def denoising_steps(self) -> int:
        return max(0, min(self.steps, self.end_at_step) - self.start_at_step)

    def notes(self, upstream: Mapping[str, Stage]) -> Sequence[str]:
        return planned(upstream, self.sigmas)

    async def run(self, controlnet: Model, prompt: Prompt, encode: Latent, mask: Mask | None = None) -> Latent:
        sigmas = self.sigmas(table_of(controlnet.checkpoint))
        run = Run(self.sampler_name, sigmas, self.cfg, self.noise_seed, self.add_noise)
        return await sample(run, controlnet, prompt, encode, mask)
