"""Step `base`: UNet and text encoders on photos, 3D and flat emoji. Clay is left out: that is the LoRA's part."""

from __future__ import annotations

from pathlib import Path

import torch

from claygraph.miniature.diffusion import Latents, Noise
from claygraph.miniature.family import Base, vocabulary
from claygraph.miniature.networks import added
from claygraph.miniature.training import Trainer, device, half


def train_base(work: Path, minutes: float) -> None:
    """Train with v-prediction on captions of style, subject and colours."""
    torch.manual_seed(0)
    base = Base(vocabulary(work)).to(device())
    with torch.no_grad():
        base.unet.conv_out.weight.mul_(0.1)
    data, noise = Latents(work, seed=0, with_base=True), Noise()
    groups = [(list(base.unet.parameters()), 1.2e-3), (list(base.text.parameters()), 1.0e-3)]
    trainer = Trainer(work / "checkpoints/base.safetensors", base, groups)
    trainer.run(lambda progress: base_loss(base, data, noise, progress), minutes)


def base_loss(base: Base, data: Latents, noise: Noise, progress: float) -> torch.Tensor:
    """The loss of one random batch."""
    batch = data.draw(progress)
    noised = noise.like(batch.picture)
    x = noised.add(batch.picture)
    with half():
        hidden, pooled = base.text(batch.prompts)
        velocity = base.unet(x, noised.timesteps, hidden, added_cond_kwargs=added(pooled, x)).sample
    return noised.loss(x, velocity.float(), batch.picture)
