"""One sampler's run from latents to latents; every call to the model in it is awaited, and shares batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.prediction import into_model, out_of_model, table_of
from claygraph.diffusion.samplers import SAMPLERS
from claygraph.diffusion.windows import never_act, warn_once, windows_of
from claygraph.values import Latent, Mask, Model, Prompt

if TYPE_CHECKING:
    from torch import Tensor

    from claygraph.diffusion.samplers import Denoise as Denoiser

NEW_NOISE_AROUND = ("ddim",)
"""Samplers for which ComfyUI draws the noise outside of a mask anew, from seed + 1."""


@dataclass(frozen=True)
class Run:
    """A sampler by name, the falling sigmas it goes through, the guidance, and the seed of all noise.

    Without ``add_noise`` the latent is taken to hold the noise of the first sigma already.
    """

    sampler: str
    sigmas: Sequence[float]
    cfg: float
    seed: int
    add_noise: bool = True


async def sample(run: Run, model: Model, prompt: Prompt, latent: Latent, mask: Mask | None = None) -> Latent:
    """The latent after the run, with what noise the last sigma leaves; unchanged where there is no step to take.

    Outside of ``mask`` the latent keeps what it was.
    """
    import torch

    from claygraph.diffusion import noise

    sampler, sigmas, checkpoint = SAMPLERS[run.sampler], run.sigmas, model.checkpoint
    if len(sigmas) < 2:
        return latent
    for warning in never_act(windows_of(model), sigmas, table_of(checkpoint)):
        warn_once(warning)

    def denoise(x: Tensor, sigma: float) -> Denoise:
        step = sum(passed >= sigma for passed in sigmas)
        return Denoise(model, prompt, x, sigma, run.cfg, step, len(sigmas) - 1, sampler.both, sigmas)

    source = into_model(torch.tensor(latent.samples)[None], checkpoint)
    drawn = noise.initial(run.seed, source.shape) if run.add_noise else torch.zeros_like(source)
    around = noise.initial(run.seed + 1, source.shape) if run.sampler in NEW_NOISE_AROUND else drawn
    x = noise.noised(source, drawn, sigmas[0], table_of(checkpoint)[-1])
    ask = denoise if mask is None else held_outside(mask, denoise, source, around)
    x = await sampler.run(ask, x, sigmas, noise.step_noise(sampler.noise, run.seed, x, sigmas))
    return Latent(out_of_model(x, checkpoint)[0].numpy())


def held_outside(mask: Mask, denoise: Denoiser, source: Tensor, noise: Tensor) -> Denoiser:
    """A denoiser that keeps ``source`` (at the sampler's scale) outside of a mask.

    The model sees the source there with as much ``noise`` as the sigma says, and its answer there is the source.
    """
    import torch
    from torch.nn.functional import interpolate

    share = interpolate(torch.tensor(mask.share)[None, None], source.shape[2:], mode="bilinear")

    async def inside(x: Tensor, sigma: float) -> Tensor:
        found = await denoise(x * share + (source + noise * sigma) * (1 - share), sigma)
        return torch.cat([found[:1] * share + source * (1 - share), found[1:]])

    return inside
