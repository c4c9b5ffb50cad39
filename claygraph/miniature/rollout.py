"""Pictures in the middle of their own sampling, as training inputs.

A network that has only seen noised pictures believes whatever its input shows, so sampling keeps the large blotches of
the first noise: exposure bias. The remedy is to train, as well, on the inputs that its own steps lead to (Ross, Gordon,
Bagnell 2011, "A Reduction of Imitation Learning and Structured Prediction to No-Regret Online Learning").
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from claygraph.miniature.diffusion import Noise, Noised

Velocity = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""A network under its conditions: the v-prediction for noised latents [B,4,h,w] and timesteps [B]."""
MOST = 3
"""Steps at most before the one that is trained."""


@torch.no_grad()
def rollout(
    noise: Noise, level: Noised, x: torch.Tensor, until: torch.Tensor, velocity: Velocity
) -> tuple[Noised, torch.Tensor]:
    """One to `MOST` even Euler steps from latents `x` at `level` down to the timesteps `until` [B]: where they lead."""
    steps = int(torch.randint(1, MOST + 1, ()))
    for left in range(steps, 0, -1):
        predicted = velocity(x, level.timesteps)
        timesteps = level.timesteps + (until - level.timesteps) // left
        clean, found = level.clean_of(x, predicted), level.noise_of(x, predicted)
        level = noise.at(timesteps, found)
        x = level.add(clean)
    return level, x


def below(timesteps: torch.Tensor, longest: float = 0.6) -> torch.Tensor:
    """Timesteps [B] that a sampler reaches from these, at most this share of the schedule further down."""
    fall = 40 + torch.rand(len(timesteps), device=timesteps.device) * longest * 1000
    return (timesteps - fall.long()).clamp(min=0)
