"""Step `ip_adapter`: a picture's embedding steers colours and layout; base and ControlNet are frozen."""

from __future__ import annotations

from pathlib import Path

import torch

from claygraph.miniature.diffusion import Latents, Noise
from claygraph.miniature.family import Base, load_base, load_controlnet
from claygraph.miniature.image_encoder import load_image_encoder, normalise
from claygraph.miniature.ip_adapter import add_ip_adapter, ip_parameters
from claygraph.miniature.networks import ControlNet, ImageEncoder, added
from claygraph.miniature.train_controlnet import residuals
from claygraph.miniature.training import Trainer, device, half


def train_ip_adapter(work: Path, minutes: float) -> None:
    """Train the projection and the image keys and values."""
    torch.manual_seed(6)
    base = load_base(work).requires_grad_(False)
    controlnet = load_controlnet(work, base).requires_grad_(False).to(device())
    encoder = load_image_encoder(work).requires_grad_(False).to(device())
    add_ip_adapter(base.unet)
    base.to(device())
    parameters = ip_parameters(base.unet)
    for parameter in parameters:
        parameter.requires_grad_(True)
    data, noise = Latents(work, seed=6), Noise()
    trainer = Trainer(work / "checkpoints/ip_adapter.safetensors", base, [(parameters, 2e-3)], decay=0.995)
    trainer.run(lambda progress: ip_loss(base, controlnet, encoder, data, noise, progress), minutes)


def ip_loss(
    base: Base,
    controlnet: ControlNet,
    encoder: ImageEncoder,
    data: Latents,
    noise: Noise,
    progress: float,
) -> torch.Tensor:
    """The loss of one random batch of photos or of clay; the ControlNet is on in four of ten."""
    batch = data.draw(progress, dropped=0.5)
    noised = noise.like(batch.picture, low=0.25)
    x = noised.add(batch.picture)
    with half():
        with torch.no_grad():
            hidden, pooled = base.text(batch.prompts)
            embedding = encoder(normalise(batch.pixels)).image_embeds
            control = data.random.random() < 0.4
            extra = residuals(controlnet, batch, x, noised.timesteps, hidden, pooled) if control else {}
        embedding = embedding * (torch.rand(len(x), 1, device=x.device) > 0.08)
        conditions = {**added(pooled, x), "image_embeds": [embedding[:, None]]}
        velocity = base.unet(x, noised.timesteps, hidden, added_cond_kwargs=conditions, **extra).sample
    return noised.velocity_loss(velocity.float(), batch.picture)
