"""The whole family in memory: each part from its checkpoint, or untrained before its step has run."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from diffusers.models.attention_processor import AttnProcessor
from torch import nn

from claygraph.miniature.networks import ControlNet, Unet, Vae, make_controlnet, make_unet
from claygraph.miniature.text import TextEncoders, Vocabulary
from claygraph.miniature.train_vae import load_vae
from claygraph.miniature.training import load_average


class Base(nn.Module):
    """UNet and text encoders."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.unet: Unet = make_unet()
        self.unet.set_attn_processor(AttnProcessor())  # trains a tenth faster on a CPU than the fused one
        self.text = TextEncoders(vocabulary)


def vocabulary(work: Path) -> Vocabulary:
    """The words of all captions; kept in a file so that every step numbers them alike."""
    file = work / "captions.json"
    if not file.exists():
        listing = json.loads((work / "sources.json").read_text())
        words = [s["caption"] for s in listing["photos"]] + [e["name"] for e in listing["emoji"]]
        file.write_text(json.dumps(words))
    from claygraph.miniature.train_taggers import TAGS

    return Vocabulary([*json.loads(file.read_text()), *TAGS])


def load_base(work: Path) -> Base:
    """The trained base model."""
    torch.manual_seed(0)
    base = Base(vocabulary(work))
    if (file := work / "checkpoints/base.safetensors").exists():
        load_average(file, base, "base.")
    return base.eval()


def load_controlnet(work: Path, base: Base) -> ControlNet:
    """The trained ControlNet."""
    controlnet = make_controlnet(base.unet)
    if (file := work / "checkpoints/base.safetensors").exists():
        load_average(file, controlnet, "controlnet.")
    return controlnet.eval()


def fold_latents(vae: Vae, mean: torch.Tensor, deviation: torch.Tensor) -> None:
    """Shift and scale the latent space through the two 1x1 convolutions around it.

    `mean`, `deviation` [4] are those of the latents before; after, mean is 0 and deviation 1 / scaling_factor.
    """
    size = deviation * vae.config.scaling_factor
    enter, leave = vae.quant_conv, vae.post_quant_conv
    with torch.no_grad():
        enter.weight[:4] /= size.view(4, 1, 1, 1)
        enter.bias[:4] = (enter.bias[:4] - mean) / size
        enter.bias[4:] -= 2 * size.log()
        leave.bias += leave.weight[:, :, 0, 0] @ mean
        leave.weight *= size.view(1, 4, 1, 1)


def final_vae(work: Path) -> Vae:
    """The trained autoencoder with normalised latents."""
    vae = load_vae(work)
    if (file := work / "latents/statistics.json").exists():
        statistics = json.loads(file.read_text())
        fold_latents(vae, torch.tensor(statistics["mean"]), torch.tensor(statistics["deviation"]))
    return vae
