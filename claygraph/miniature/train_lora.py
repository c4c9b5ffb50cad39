"""Step `lora`: the clay and the toy LoRA, bridge-trained: from a noised picture towards its clay (or toy) version.

img2img starts from a noised picture and ends in clay. On that way the latent is
    x_t = signal_t (clay + mix (picture - clay)) + sigma_t noise,   mix = (sigma_t / signal_t) / (sigma_s / signal_s)
with s the timestep of the start, if every step predicts the clay rightly. These are the states trained on.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from claygraph.miniature.diffusion import Batch, Latents, Noise, Noised
from claygraph.miniature.family import LORA_RANKS, Base, add_lora, load_base, load_controlnet
from claygraph.miniature.networks import ControlNet, added
from claygraph.miniature.train_controlnet import Residuals, residuals
from claygraph.miniature.training import Trainer, device, half

WORDS = {
    "clay": ("claymation", "made-of-clay", "clay", "claymation, made-of-clay", "plasticine figure, claymation"),
    "toy": ("vinyl toy", "3d toy", "toy", "3d render, toy"),
}


def train_lora(work: Path, name: str, minutes: float) -> None:
    """Train one LoRA on the frozen base, with the frozen ControlNet randomly on."""
    torch.manual_seed(4)
    base = load_base(work).requires_grad_(False).to(device())
    controlnet = load_controlnet(work, base).requires_grad_(False).to(device())
    add_lora(base, name, LORA_RANKS[name], text=name == "clay")
    data, noise = Latents(work, seed=4, kind="pairs" if name == "clay" else "twins"), Noise()
    groups = [([p for p in base.parameters() if p.requires_grad], 1.5e-3)]
    trainer = Trainer(work / f"checkpoints/lora_{name}.safetensors", base, groups, decay=0.995)
    trainer.run(lambda progress: lora_loss(base, controlnet, data, noise, progress, WORDS[name]), minutes)


def lora_loss(
    base: Base, controlnet: ControlNet, data: Latents, noise: Noise, progress: float, words: tuple[str, ...]
) -> torch.Tensor:
    """The loss of one random batch."""
    batch = data.draw(progress, dropped=0.15)
    noised = noise.like(batch.clay, high=0.95)
    x = noised.add(batch.clay + mix(noise, noised, data.random) * (batch.picture - batch.clay))
    with half():
        hidden, pooled = base.text([_styled(p, words, data.random) for p in batch.prompts])
        extra = _control(controlnet, batch, x, noised, hidden, pooled) if data.random.random() < 0.75 else {}
        velocity = base.unet(x, noised.timesteps, hidden, added_cond_kwargs=added(pooled, x), **extra).sample
    error = (noised.clean_of(x, velocity.float()) - batch.clay).square().mean((1, 2, 3))
    return (error / noised.sigma.flatten().square().clamp(min=0.1)).mean()


@torch.no_grad()
def _control(
    controlnet: ControlNet, batch: Batch, x: torch.Tensor, noised: Noised, hidden: torch.Tensor, pooled: torch.Tensor
) -> Residuals:
    return residuals(controlnet, batch, x, noised.timesteps, hidden, pooled)


def mix(noise: Noise, noised: Noised, random: np.random.Generator) -> torch.Tensor:
    """The picture's share [B,1,1,1] for random starts at or above each timestep; one in seven has none."""
    now = noised.timesteps
    start = (now + torch.from_numpy(random.uniform(0, 500, len(now))).long().to(now.device)).clamp(max=950)
    start = torch.maximum(start, now)
    ratio = noise.sigma / noise.signal
    share = ratio[now] / ratio[start]
    share[torch.from_numpy(random.random(len(now)) < 1 / 7).to(now.device)] = 0
    return share.view(-1, 1, 1, 1)


def _styled(prompt: str, words: tuple[str, ...], random: np.random.Generator) -> str:
    """The prompt with its style word replaced by the LoRA's; an empty prompt stays empty."""
    style = words[int(random.integers(len(words)))]
    return ", ".join([style, *prompt.split(", ")[1:]]) if prompt else ""
