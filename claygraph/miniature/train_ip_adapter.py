"""Step `ip_adapter`: the adapter alone, under noise that hides colours and layout.

Plain noise leaves the means of large areas readable at every level, so training never needs the picture's embedding,
and sampling, which starts from noise alone, never gets to use it. Here large areas are drowned as well.
"""

from __future__ import annotations

from pathlib import Path

import torch
import torch.nn.functional as F

from claygraph.miniature.diffusion import Latents, Noise, Noised
from claygraph.miniature.networks import added
from claygraph.miniature.train_base import Joint, image_prompt
from claygraph.miniature.train_lora import load_joint
from claygraph.miniature.training import Group, Trainer, device, half

ENDS = ("processor.", "encoder_hid_proj.")


def train_ip_adapter(work: Path, minutes: float) -> None:
    """Train the projection and the image keys and values on the frozen base."""
    torch.manual_seed(6)
    joint = load_joint(work).requires_grad_(False).to(device())
    parameters = [p for n, p in joint.base.unet.named_parameters() if any(end in n for end in ENDS)]
    for parameter in parameters:
        parameter.requires_grad_(True)
    data, noise = Latents(work, 6, "pictures"), Noise()
    trainer = Trainer(work / "checkpoints/ip_adapter.safetensors", joint.base, [Group(parameters, 5e-3)], decay=0.99)
    trainer.run(lambda progress: ip_loss(joint, data, noise, progress), minutes)


def ip_loss(joint: Joint, data: Latents, noise: Noise, progress: float) -> torch.Tensor:
    """The loss of one random batch; half of the prompts are empty."""
    batch = data.draw(progress, dropped=0.5)
    noised = drowned(noise.like(batch.picture, low=0.3))
    x = noised.add(batch.picture)
    with half():
        hidden, pooled = joint.base.text(batch.prompts)
        conditions = added(pooled, x) | image_prompt(joint, batch, data, True)
        velocity = joint.base.unet(x, noised.timesteps, hidden, added_cond_kwargs=conditions).sample
    return noised.velocity_loss(velocity.float(), batch.picture)


def drowned(noised: Noised) -> Noised:
    """The same levels with noise that is as loud in areas of an eighth and of the whole picture."""
    count, channels, height, width = noised.noise.shape
    coarse = [torch.randn(count, channels, cells, cells, device=noised.noise.device) for cells in (1, 8)]
    areas = [F.interpolate(c, (height, width), mode="bilinear") for c in coarse]
    return Noised(noised.timesteps, noised.signal, noised.sigma, noised.noise + 0.4 * sum(areas))
