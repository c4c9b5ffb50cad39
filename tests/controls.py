"""What the tests of ControlNets share: controls on small networks, and diffusers asked the same by hand."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.schedules import sigma_table, sigmas_for
from claygraph.stages.sampler import KSampler
from claygraph.values import Control, Latent, Model, Weights
from tests import tiny_adapters
from tests.denoising import by_hand, diffusers_unet, floats, memory, picture, prompt, weights

CLOSE = 5e-5
HINT = picture(7, 64, 64)
Weigh = Callable[[int, bool, list[Tensor]], Sequence[Tensor]]


def canny() -> Weights:
    """A ControlNet folder."""
    return weights(tiny_adapters.controlnet, "canny")


def depth() -> Weights:
    """Another one."""
    return weights(tiny_adapters.controlnet, "depth", seed=41)


def control(strength: float = 1.0, start: float = 0.0, end: float = 1.0, **other: Any) -> Control:
    """A control on ``HINT``; keywords are further fields."""
    return replace(Control(canny(), HINT, strength, start, end), **other)


@cache
def diffusers_network(folder: str) -> Any:
    """The ControlNet of a folder in diffusers' hands."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    return ControlNetModel.from_pretrained(folder).float().requires_grad_(False)


def as_given(place: int, negative: bool, residuals: list[Tensor]) -> Sequence[Tensor]:
    """Residuals as they are."""
    return residuals


def diffusers_result(
    one: Denoise,
    hints: Sequence[NDArray[Any]] = (HINT.pixels,),
    weigh: Weigh = as_given,
    networks: Sequence[Any] = (),
    unet: Any = None,
) -> Tensor:
    """A call with controls, as a pipeline of several ControlNets computes it; hints are given at their final size.

    ``weigh`` may change the residuals (the middle last) of the control at a place of the stack, in one half.
    """
    networks = networks or [diffusers_network(each.weights.path) for each in one.model.controls]

    def add_residuals(arguments: dict[str, Any], negative: bool) -> None:
        shared = dict(arguments)
        total: list[Tensor] = []
        for place, (each, hint) in enumerate(zip(one.model.controls, hints, strict=True)):
            pixels = torch.from_numpy(hint / np.float32(255)).permute(2, 0, 1)[None]
            down, middle = networks[place](
                **shared, controlnet_cond=pixels, conditioning_scale=each.strength, return_dict=False
            )
            found = weigh(place, negative, [*down, middle])
            total = [a + b for a, b in zip(total, found, strict=True)] if total else list(found)
        arguments["down_block_additional_residuals"] = tuple(total[:-1])
        arguments["mid_block_additional_residual"] = total[-1]

    return by_hand(unet or diffusers_unet(), one, add_residuals)


def schedule(denoise: float = 1.0, steps: int = 6) -> list[float]:
    """The sigmas of a ``simple`` schedule."""
    return sigmas_for("simple", steps, denoise, table=sigma_table())


def sampled(stage: KSampler, model: Model) -> Latent:
    """What a stage makes when its calls are run one by one."""
    task = stage.run(model, prompt(), Latent(floats(3, 4, 8, 8)))
    value: Any = None
    while True:
        try:
            call = task.send(value)
        except StopIteration as done:
            return cast(Latent, done.value)
        [value] = type(call).run_batch([call], memory())
