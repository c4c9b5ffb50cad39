"""Low-rank adapters in training: each adapted weight is computed as W + up @ down, and only up and down learn."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from claygraph.miniature.family import Base
from claygraph.miniature.training import load_average

RANKS = {"clay": 32, "toy": 16}
UNET_ENDS = (
    *("to_q", "to_k", "to_v", "to_out.0", "proj_in", "proj_out"),
    *("ff.net.0.proj", "ff.net.2", "conv1", "conv2"),
)
TEXT_ENDS = ("q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2")


class LowRank(nn.Module):
    """Adds a product of rank `rank` to a weight [out, in, ...]."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        out, inner = weight.flatten(1).shape
        rank, self.shape = min(rank, out, inner), tuple(weight.shape)
        self.down = nn.Parameter(torch.randn(rank, inner) * inner**-0.5)
        self.up = nn.Parameter(torch.zeros(out, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """The adapted weight, in the same shape."""
        return weight + (self.up @ self.down).view_as(weight)


def adapted(base: Base) -> dict[str, nn.Module]:
    """The layers a LoRA changes, by kohya's component and the layer's name there (dots for underscores)."""
    parts = {"lora_unet": (base.unet, UNET_ENDS), "lora_te1": (base.text.first, TEXT_ENDS)}
    parts["lora_te2"] = (base.text.second, TEXT_ENDS)
    found: dict[str, nn.Module] = {}
    for prefix, (model, ends) in parts.items():
        for name, module in model.named_modules():
            kind = isinstance(module, nn.Linear | nn.Conv2d) and not name.startswith("encoder_hid_proj.")
            if kind and name.endswith(ends):
                within = name if prefix == "lora_unet" or name.startswith("text_model.") else f"text_model.{name}"
                found[f"{prefix}.{within}"] = module
    return found


def add_lora(base: Base, name: str) -> None:
    """Adapt the base by an untrained LoRA of the named size."""
    for module in adapted(base).values():
        parametrize.register_parametrization(module, "weight", LowRank(module.weight, RANKS[name]))  # type: ignore[arg-type]


def products(base: Base) -> dict[str, LowRank]:
    """The products that were added, by layer."""
    return {layer: module.parametrizations.weight[0] for layer, module in adapted(base).items()}  # type: ignore[union-attr, index, misc]


def load_lora(work: Path, base: Base, name: str) -> None:
    """Adapt the base by a trained LoRA (untrained before its step)."""
    torch.manual_seed(4)
    add_lora(base, name)
    if (file := work / f"checkpoints/lora_{name}.safetensors").exists():
        load_average(file, base)


def lora_tensors(base: Base) -> dict[str, Tensor]:
    """The LoRA in kohya form; alpha is the rank."""
    tensors: dict[str, Tensor] = {}
    for layer, product in products(base).items():
        prefix, _, name = layer.partition(".")
        key, shape = f"{prefix}_{name.replace('.', '_')}", product.shape
        down, up = product.down.detach(), product.up.detach()
        if len(shape) > 2:
            down, up = down.view(len(down), *shape[1:]), up.view(*up.shape, 1, 1)
        tensors |= {f"{key}.lora_down.weight": down, f"{key}.lora_up.weight": up}
        tensors[f"{key}.alpha"] = torch.tensor(float(len(product.down)))
    return tensors
