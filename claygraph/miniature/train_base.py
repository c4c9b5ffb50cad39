"""Step `base`: UNet, text encoders, ControlNet and IP-Adapter at once, on photos, 3D and flat emoji.

Together, because each alone learns slowly against a frozen rest: here hints and image prompts come and go at random
from the first step on, so the base works with and without them. Clay is left out: that is the LoRA's part.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

from claygraph.miniature.diffusion import Batch, Latents, Noise
from claygraph.miniature.family import Base, load_base, vocabulary
from claygraph.miniature.image_encoder import load_image_encoder, normalise, patches
from claygraph.miniature.ip_adapter import BLOCK_SETS, Gaze, add_ip_adapter, set_blocks
from claygraph.miniature.networks import ControlNet, ImageEncoder, added, make_controlnet
from claygraph.miniature.rollout import Velocity, below, rollout
from claygraph.miniature.training import Group, Trainer, device, half, load_average

CONTROL, IMAGE, GAZE = 0.55, 0.7, 0.1
"""Shares of batches with a hint and with an image prompt, and how much it counts where that is looked at."""
BLIND = {True: 0.4, False: 0.5}
"""Shares of rows that start from noise alone, with and without an image prompt."""
OWN = 0.35
"""Share of batches whose inputs the network has drawn itself."""
Extra = dict[str, object]
Words = tuple[torch.Tensor, torch.Tensor]
Control = Callable[[ControlNet, Batch, torch.Tensor, torch.Tensor, Words], Extra]


class Joint(nn.Module):
    """What is trained together, and the frozen image encoder beside it."""

    def __init__(self, base: Base, encoder: ImageEncoder) -> None:
        super().__init__()
        self.base = base
        self.controlnet: ControlNet = make_controlnet(base.unet)
        add_ip_adapter(base.unet)
        self.gaze = Gaze(base.unet)
        self.encoder = encoder.requires_grad_(False)

    def groups(self) -> list[Group]:
        """Parameters with their learning rates: Muon inside, AdamW at the ends and for what starts at zero."""
        ends, image = ("conv_in.", "conv_out.", "controlnet_"), ("processor.", "encoder_hid_proj.")
        named = [*self.base.unet.named_parameters(), *self.controlnet.named_parameters()]
        return [
            Group([p for n, p in named if not any(part in n for part in ends + image)], 1.1e-3, muon=True),
            Group([p for n, p in named if any(end in n for end in ends)], 2e-3),
            Group([p for n, p in named if any(part in n for part in image)], 4e-3),
            Group(list(self.base.text.parameters()), 1.0e-3),
        ]


def train_base(work: Path, minutes: float) -> None:
    """Train with v-prediction on captions of style, subject and colours."""
    torch.manual_seed(0)
    base = Base(vocabulary(work))
    with torch.no_grad():
        base.unet.conv_out.weight.mul_(0.1)
    joint = Joint(base, load_image_encoder(work)).to(device())
    data, noise = Latents(work, 0, "pictures", "pairs"), Noise()
    trainer = Trainer(work / "checkpoints/base.safetensors", joint, joint.groups(), decay=0.99)
    trainer.run(lambda progress: base_loss(joint, data, noise, progress), minutes)


def load_joint(work: Path) -> Joint:
    """The trained base with its ControlNet, IP-Adapter and image encoder."""
    joint = Joint(load_base(work), load_image_encoder(work))
    if (file := work / "checkpoints/base.safetensors").exists():
        load_average(file, joint)
    return joint.eval()


def base_loss(joint: Joint, data: Latents, noise: Noise, progress: float) -> torch.Tensor:
    """The loss of one random batch: of noised pictures, or of those that the network is drawing itself."""
    image, control = data.random.random() < IMAGE, data.random.random() < CONTROL
    batch = data.draw(progress, dropped=0.4 if image else 0.1)
    with half():
        words = joint.base.text(batch.prompts)
    velocity = predictor(joint, batch, words, _image_prompt(joint, batch, data, image), residuals if control else None)
    own = data.random.random() < OWN
    noised = noise.like(batch.picture, low=0.3, blind=0.5) if own else noise.like(batch.picture, blind=BLIND[image])
    x = noised.add(batch.picture)
    if own:
        noised, x = rollout(noise, noised, x, below(noised.timesteps), velocity)
    predicted = velocity(x, noised.timesteps)
    looked = joint.gaze.loss(*x.shape[2:]) if image else 0.0
    error = noised.clean_loss(x, predicted, batch.picture) if own else noised.velocity_loss(predicted, batch.picture)
    return error + GAZE * looked


def predictor(joint: Joint, batch: Batch, words: Words, image: Extra, control: Control | None) -> Velocity:
    """The UNet under a batch's prompts, image prompts and, where `control` is given, hints at strength 1."""
    hidden, pooled = words

    def velocity(x: torch.Tensor, timesteps: torch.Tensor) -> torch.Tensor:
        with half():
            extra = control(joint.controlnet, batch, x, timesteps, words) if control else {}
            conditions = added(pooled, x) | image
            out: torch.Tensor = joint.base.unet(x, timesteps, hidden, added_cond_kwargs=conditions, **extra).sample
        return out.float()

    return velocity


def _image_prompt(joint: Joint, batch: Batch, data: Latents, on: bool) -> Extra:
    """Patch features for a random set of blocks; composition alone sees false colours, so that layout is its part."""
    name = str(data.random.choice(list(BLOCK_SETS), p=[b.share for b in BLOCK_SETS.values()])) if on else ""
    set_blocks(joint.base.unet, BLOCK_SETS[name].blocks if on else ())
    pixels = batch.pixels[:, data.random.permutation(3)] if name == "composition" else batch.pixels
    kept = torch.rand(len(pixels), 1, 1, 1, device=pixels.device) > 0.1  # black stands for no picture
    return {"image_embeds": [patches(joint.encoder, normalise(pixels * kept))[:, None]]}


def residuals(controlnet: ControlNet, batch: Batch, x: torch.Tensor, timesteps: torch.Tensor, words: Words) -> Extra:
    """The UNet call's extra arguments from a ControlNet's output at strength 1."""
    hidden, pooled = words
    down, middle = controlnet(x, timesteps, hidden, batch.hint, added_cond_kwargs=added(pooled, x), return_dict=False)
    return {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
