"""Step `controlnet`: edges to structure, against the frozen base without any LoRA, on pictures that are not clay."""

from __future__ import annotations

from pathlib import Path

import torch

from claygraph.miniature.diffusion import Batch, Latents, Noise
from claygraph.miniature.family import Base, load_base
from claygraph.miniature.networks import ControlNet, added, make_controlnet
from claygraph.miniature.training import Group, Trainer, device, half

Residuals = dict[str, object]


def train_controlnet(work: Path, minutes: float) -> None:
    """Train the copy of the encoder half; its new layers learn faster than the copied ones."""
    torch.manual_seed(2)
    base = load_base(work).requires_grad_(False).to(device())
    controlnet = make_controlnet(base.unet).to(device())
    data, noise = Latents(work, seed=2), Noise()
    trainer = Trainer(work / "checkpoints/controlnet.safetensors", controlnet, _groups(controlnet))
    trainer.run(lambda progress: controlnet_loss(base, controlnet, data, noise, progress), minutes)


def _groups(controlnet: ControlNet) -> list[Group]:
    new = [p for n, p in controlnet.named_parameters() if "controlnet_" in n]
    return [(new, 2.5e-3), ([p for n, p in controlnet.named_parameters() if "controlnet_" not in n], 6e-4)]


def controlnet_loss(base: Base, controlnet: ControlNet, data: Latents, noise: Noise, progress: float) -> torch.Tensor:
    """The loss of one random batch; noise levels below a tenth are left out, edges do not matter there."""
    batch = data.draw(progress, dropped=0.3)
    noised = noise.like(batch.picture, low=0.1)
    x = noised.add(batch.picture)
    with half():
        with torch.no_grad():
            hidden, pooled = base.text(batch.prompts)
        extra = residuals(controlnet, batch, x, noised.timesteps, hidden, pooled)
        velocity = base.unet(x, noised.timesteps, hidden, added_cond_kwargs=added(pooled, x), **extra).sample
    return noised.velocity_loss(velocity.float(), batch.picture)


def residuals(
    controlnet: ControlNet, batch: Batch, x: torch.Tensor, t: torch.Tensor, hidden: torch.Tensor, pooled: torch.Tensor
) -> Residuals:
    """The UNet call's extra arguments from a ControlNet's output at strength 1."""
    down, middle = controlnet(x, t, hidden, batch.hint, added_cond_kwargs=added(pooled, x), return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
