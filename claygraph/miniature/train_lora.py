"""Steps `clay` and `toy`: LoRAs by bridge training, from a noised picture towards its styled version.

Along the way the picture's share fades as it would if the sampler had started from the noised picture, so training
sees what img2img sees. Base, ControlNet and IP-Adapter are frozen; hints and image prompts come and go.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch

from claygraph.miniature.diffusion import Batch, Latents, Noise, Noised
from claygraph.miniature.image_encoder import normalise, patches
from claygraph.miniature.ip_adapter import BLOCK_SETS, set_blocks
from claygraph.miniature.lora import add_lora, products
from claygraph.miniature.networks import ControlNet
from claygraph.miniature.rollout import below, rollout
from claygraph.miniature.train_base import Extra, Joint, Words, load_joint, predictor, residuals
from claygraph.miniature.training import Group, Trainer, device, half

CONTROL, IMAGE, OWN = 0.85, 0.75, 0.35
"""Shares of batches with a hint, with an image prompt, and with inputs that the network has drawn itself."""
WORDS: dict[str, tuple[str, ...]] = {
    "clay": ("claymation", "made-of-clay", "clay", "claymation, made-of-clay", "plasticine figure, claymation"),
    "toy": ("vinyl toy", "3d toy", "toy", "3d render, toy"),
}
KINDS = {"clay": "pairs", "toy": "twins"}


def train_lora(work: Path, name: str, minutes: float) -> None:
    """Train one LoRA on UNet and text encoders."""
    torch.manual_seed(4)
    joint = load_joint(work).requires_grad_(False).to(device())
    add_lora(joint.base, name)
    joint.to(device())
    parameters = [p for product in products(joint.base).values() for p in product.parameters()]
    data, noise = Latents(work, 4, KINDS[name]), Noise()
    trainer = Trainer(work / f"checkpoints/lora_{name}.safetensors", joint.base, [Group(parameters, 2.5e-4, muon=True)])
    trainer.run(lambda progress: lora_loss(joint, data, noise, progress, WORDS[name]), minutes)


def lora_loss(joint: Joint, data: Latents, noise: Noise, progress: float, words: tuple[str, ...]) -> torch.Tensor:
    """The loss of one random batch."""
    batch = data.draw(
        0.5 + progress / 2, dropped=0.15
    )  # large crops from early on: on small ones grounds stay blotched
    with half():
        encoded = joint.base.text([_styled(p, words, data.random) for p in batch.prompts])
    image = _image_prompt(joint, batch, data.random.random() < IMAGE)
    velocity = predictor(joint, batch, encoded, image, _control if data.random.random() < CONTROL else None)
    if data.random.random() < OWN:
        start = noise.like(batch.picture, low=0.2, high=0.95)
        noised, x = rollout(noise, start, start.add(batch.picture), below(start.timesteps), velocity)
    else:
        noised = noise.like(batch.clay, high=0.97)
        x = noised.add(batch.clay + mix(noise, noised, data.random) * (batch.picture - batch.clay))
    return noised.clean_loss(x, velocity(x, noised.timesteps), batch.clay)


@torch.no_grad()
def _image_prompt(joint: Joint, batch: Batch, on: bool) -> Extra:
    """The picture itself as style and composition, as the default graph has it."""
    set_blocks(joint.base.unet, BLOCK_SETS["style and composition"].blocks if on else ())
    return {"image_embeds": [patches(joint.encoder, normalise(batch.pixels))[:, None]]}


@torch.no_grad()
def _control(controlnet: ControlNet, batch: Batch, x: torch.Tensor, timesteps: torch.Tensor, words: Words) -> Extra:
    return residuals(controlnet, batch, x, timesteps, words)


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
