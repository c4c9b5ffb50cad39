"""KSampler: image to image through any sampler and schedule."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.prediction import into_model, out_of_model, table_of
from claygraph.diffusion.samplers import SAMPLERS
from claygraph.diffusion.schedules import SCHEDULES, sigmas_for
from claygraph.errors import check_choice, check_range, check_whole
from claygraph.stage import Stage
from claygraph.values import Latent, Model, Prompt

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KSampler(Stage):
    """Noise the latent, then denoise it.

    ``denoise`` (0 to 1) is how much of the picture is made anew: the schedule for ``steps / denoise`` steps is made and
    its last ``steps`` are run, so the number of steps stays. ``cfg`` 1 leaves the negative prompt out.
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

    async def run(self, controlnet: Model, prompt: Prompt, encode: Latent) -> Latent:
        import torch

        from claygraph.diffusion import noise

        checkpoint, sampler = controlnet.checkpoint, SAMPLERS[self.sampler_name]
        table = table_of(checkpoint)
        sigmas = sigmas_for(self.scheduler, self.steps, self.denoise, sampler.drop_penultimate, table)
        if not sigmas:
            return encode

        def denoise(x: Tensor, sigma: float) -> Denoise:
            step = sum(passed >= sigma for passed in sigmas)
            return Denoise(controlnet, prompt, x, sigma, self.cfg, step, len(sigmas) - 1)

        latent = into_model(torch.tensor(encode.samples)[None], checkpoint)
        x = noise.noised(latent, noise.initial(self.seed, latent.shape), sigmas[0], table[-1])
        x = await sampler.run(denoise, x, sigmas, noise.step_noise(sampler.noise, self.seed, x, sigmas))
        return Latent(out_of_model(x, checkpoint)[0].numpy(), encode.name)
