"""The plain IP-Adapter: four image tokens from a projection, and key/value matrices for every cross-attention."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from claygraph.miniature.family import Base
from claygraph.miniature.image_encoder import WIDTH
from claygraph.miniature.networks import TEXT_WIDTH, Unet
from claygraph.miniature.training import load_average

IMAGE_TOKENS = 4


@dataclass(frozen=True)
class BlockSet:
    """Spatial transformers (numbered in call order) that read the picture, and how often this set is trained."""

    share: float
    blocks: tuple[int, ...]


BLOCK_SETS = {
    "style and composition": BlockSet(0.4, (3, 6)),
    "style": BlockSet(0.2, (6,)),
    "composition": BlockSet(0.2, (3,)),
    "all": BlockSet(0.2, tuple(range(11))),
}
FILE_ORDER = (0, 1, 2, 3, 5, 6, 7, 8, 9, 10, 4)
"""The block of each cross-attention of `cross_attentions`: files count down, up, middle."""

State = dict[str, dict[str, torch.Tensor]]


def add_ip_adapter(unet: Unet) -> None:
    """Put an untrained adapter into the UNet: image keys and values start as the text's."""
    context = 2 * TEXT_WIDTH
    state: State = {
        "image_proj": {
            "proj.weight": torch.randn(IMAGE_TOKENS * context, WIDTH) * WIDTH**-0.5,
            "proj.bias": torch.zeros(IMAGE_TOKENS * context),
            "norm.weight": torch.ones(context),
            "norm.bias": torch.zeros(context),
        },
        "ip_adapter": {},
    }
    for number, attention in enumerate(cross_attentions(unet)):
        for which in ("k", "v"):
            weight = getattr(attention, f"to_{which}").weight.detach().clone()
            state["ip_adapter"][f"{2 * number + 1}.to_{which}_ip.weight"] = weight * (1.0 if which == "k" else 0.2)
    unet._load_ip_adapter_weights([state])


def cross_attentions(unet: Unet) -> list[nn.Module]:
    """Cross-attention modules in the order of adapter files: down, up, mid."""
    return [unet.get_submodule(n.removesuffix(".processor")) for n in unet.attn_processors if "attn2" in n]


def set_blocks(unet: Unet, blocks: Collection[int]) -> None:
    """Let only these blocks read the picture, each at strength 1."""
    for block, attention in zip(FILE_ORDER, cross_attentions(unet), strict=True):
        attention.processor.scale = [float(block in blocks)]  # type: ignore[union-attr]


def ip_tensors(unet: Unet) -> dict[str, torch.Tensor]:
    """The adapter in file form: `image_proj.*` and `ip_adapter.N.to_{k,v}_ip.weight`, N odd."""
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    names = {"proj": projection.image_embeds, "norm": projection.norm}
    out = {f"image_proj.{n}.{p}": t for n, m in names.items() for p, t in m.state_dict().items()}
    for number, attention in enumerate(cross_attentions(unet)):
        processor = attention.processor
        out[f"ip_adapter.{2 * number + 1}.to_k_ip.weight"] = processor.to_k_ip[0].weight  # type: ignore[index, union-attr]
        out[f"ip_adapter.{2 * number + 1}.to_v_ip.weight"] = processor.to_v_ip[0].weight  # type: ignore[index, union-attr]
    return out


def load_ip_adapter(work: Path, base: Base) -> None:
    """Add the trained adapter (untrained before step `base`), read by all blocks."""
    torch.manual_seed(6)
    add_ip_adapter(base.unet)
    for name in ("base", "ip_adapter"):
        if (file := work / f"checkpoints/{name}.safetensors").exists():
            load_average(file, base, "base.")
