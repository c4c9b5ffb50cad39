"""The IP-Adapter of the full type: each patch of the picture is a token; key/value matrices in every cross-attention.

Patches, since the four tokens of a plain adapter learned a picture's colours, but not where they lie.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from claygraph.miniature.family import Base
from claygraph.miniature.image_encoder import GRID, HIDDEN
from claygraph.miniature.networks import TEXT_WIDTH, Unet
from claygraph.miniature.training import load_average

CONTEXT = 2 * TEXT_WIDTH


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
    layers = {
        "proj.0": nn.Linear(HIDDEN, HIDDEN),
        "proj.2": nn.Linear(HIDDEN, CONTEXT),
        "proj.3": nn.LayerNorm(CONTEXT),
    }
    projection = {f"{n}.{p}": t.detach() for n, layer in layers.items() for p, t in layer.named_parameters()}
    state: State = {"image_proj": projection, "ip_adapter": {}}
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


class Gaze:
    """Watches where style and composition look, so that training can teach them to look at the patch where they are.

    Left to itself, attention over the patches stays even for hundreds of steps, and what is read is their mean.
    """

    def __init__(self, unet: Unet) -> None:
        self.seen: dict[str, torch.Tensor] = {}
        blocks = BLOCK_SETS["style and composition"].blocks
        watched = [a for block, a in zip(FILE_ORDER, cross_attentions(unet), strict=True) if block in blocks]
        self.heads: int = watched[0].heads  # type: ignore[assignment]
        for number, attention in enumerate(watched):
            keys = attention.processor.to_k_ip[0]  # type: ignore[union-attr, index]
            for name, layer in ((f"query {number}", attention.to_q), (f"key {number}", keys)):
                layer.register_forward_hook(self._watch(name))  # type: ignore[union-attr]

    def _watch(self, name: str) -> Callable[[nn.Module, Any, torch.Tensor], None]:
        def keep(_module: nn.Module, _given: Any, found: torch.Tensor) -> None:
            self.seen[name] = found.float().unflatten(-1, (self.heads, -1)).transpose(-3, -2)

        return keep

    def loss(self, height: int, width: int) -> torch.Tensor:
        """Cross-entropy of the attention in the last call with latents of this size, a mean over those that looked."""
        wanted = nearest_patches(-(-height // 4), -(-width // 4))
        losses = [self._of(key, wanted) for key in self.seen if key.startswith("key")]
        self.seen.clear()
        return torch.stack(losses).mean() if losses else torch.zeros(())

    def _of(self, key: str, wanted: torch.Tensor) -> torch.Tensor:
        keys, queries = self.seen[key].flatten(0, -4), self.seen[key.replace("key", "query")]
        scores = (queries @ keys.mT) * queries.shape[-1] ** -0.5
        return F.cross_entropy(scores.flatten(0, -2), wanted.to(scores.device).repeat(scores.shape[:-2].numel()))


def nearest_patches(height: int, width: int) -> torch.Tensor:
    """For each position of a grid, row by row, the number of the patch token that lies there; 0 is no place."""
    rows, columns = (((torch.arange(n) + 0.5) / n * GRID).long() for n in (height, width))
    return (1 + GRID * rows[:, None] + columns).flatten()


def ip_tensors(unet: Unet) -> dict[str, torch.Tensor]:
    """The adapter in file form: `image_proj.proj.{0,2,3}.*` and `ip_adapter.N.to_{k,v}_ip.weight`, N odd."""
    projection = unet.encoder_hid_proj.image_projection_layers[0]
    names = {"proj.0": projection.ff.net[0].proj, "proj.2": projection.ff.net[2], "proj.3": projection.norm}
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
    if (file := work / "checkpoints/base.safetensors").exists():
        load_average(file, base, "base.")
