"""Steps `clay` and `toy`: LoRAs by bridge training, from a noised picture towards its styled version.

Along the way the picture's share fades as it would if the sampler had started from the noised picture, so training
sees what img2img sees. Base, ControlNet and IP-Adapter are frozen; hints and image prompts come and go.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch.nn import functional

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
USUAL, ANY = (0.28, 0.6), (0.1, 1.0)
"""Where img2img starts, as shares of the schedule: seven batches in ten as users denoise, the others anywhere."""
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
    # large crops from early on: on small ones grounds stay blotched
    batch = data.draw(0.5 + progress / 2, dropped=0.15)
    with half():
        encoded = joint.base.text([_styled(p, words, data.random) for p in batch.prompts])
    image = _image_prompt(joint, batch, data.random.random() < IMAGE)
    velocity = predictor(joint, batch, encoded, image, _control if data.random.random() < CONTROL else None)
    if data.random.random() < OWN:
        start = _start(noise, batch, data.random)
        noised, x = rollout(noise, start, start.add(batch.picture), below(start.timesteps), velocity)
    else:
        noised, x = bridge(noise, batch, data.random)
    return noised.clean_loss(x, velocity(x, noised.timesteps), batch.clay, lines(batch))


@torch.no_grad()
def _image_prompt(joint: Joint, batch: Batch, on: bool) -> Extra:
    """The picture itself as style and composition, as the default graph has it."""
    set_blocks(joint.base.unet, BLOCK_SETS["style and composition"].blocks if on else ())
    return {"image_embeds": [patches(joint.encoder, normalise(batch.pixels))[:, None]]}


@torch.no_grad()
def _control(controlnet: ControlNet, batch: Batch, x: torch.Tensor, timesteps: torch.Tensor, words: Words) -> Extra:
    return residuals(controlnet, batch, x, timesteps, words)


def lines(batch: Batch) -> torch.Tensor:
    """Weights [B,1,h,w] with mean 1: where the hint has a line, three times as much, for creases lie there."""
    weight = 1 + 2 * functional.max_pool2d(batch.hint[:, :1], 8)
    return weight / weight.mean()


def bridge(noise: Noise, batch: Batch, random: np.random.Generator) -> tuple[Noised, torch.Tensor]:
    """A level at or below a start, and the latents there if the picture was noised at the start; one in seven has none.

    Starts are mostly where users denoise: the share of the picture that is left can hardly be seen in the latents, so
    what it usually is must be learned. One row in four is at its start, the step that decides most.
    """
    start = _start(noise, batch, random)
    left = torch.from_numpy(random.random(len(batch.picture))).to(start.timesteps.device)
    left[torch.from_numpy(random.random(len(left)) < 1 / 4).to(left.device)] = 1
    noised = noise.at((start.timesteps * left).long(), start.noise)
    ratio = noise.sigma / noise.signal
    share = ratio[noised.timesteps] / ratio[start.timesteps]
    share[torch.from_numpy(random.random(len(share)) < 1 / 7).to(share.device)] = 0
    return noised, noised.add(batch.clay + share.view(-1, 1, 1, 1) * (batch.picture - batch.clay))


def _start(noise: Noise, batch: Batch, random: np.random.Generator) -> Noised:
    """Noise for a batch at levels where img2img starts."""
    return noise.like(batch.picture, *(USUAL if random.random() < 0.7 else ANY))


def _styled(prompt: str, words: tuple[str, ...], random: np.random.Generator) -> str:
    """The prompt with its style word replaced by the LoRA's; an empty prompt stays empty."""
    style = words[int(random.integers(len(words)))]
    return ", ".join([style, *prompt.split(", ")[1:]]) if prompt else ""
