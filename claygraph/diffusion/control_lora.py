"""Control-LoRA (Stability AI, 2023): a ControlNet made of the UNet's own layers and low-rank updates to them.

The file has, by the original names of the layers, either ``up`` and ``down``, whose product is added to the UNet's
weight, or full tensors, which take the place of the UNet's; what it does not name is the UNet's.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from claygraph.diffusion.checkpoint import read
from claygraph.diffusion.lora_names import ldm_name
from claygraph.errors import WeightsError

if TYPE_CHECKING:
    from claygraph.memory import Memory

MARKER = "lora_controlnet"
NORMS = {".norm1": ".in_layers.0", ".norm2": ".out_layers.0"}


class Borrowed(torch.nn.Module):
    """A layer of the UNet, with the LoRAs that are on it, plus a low-rank update and a bias in place of its own."""

    layer: Any
    up: Tensor
    down: Tensor
    shift: Tensor | None

    def __init__(self, layer: Any, up: Tensor, down: Tensor, bias: Tensor | None = None) -> None:
        super().__init__()
        if up.flatten(1).shape[1] != len(down) or (len(up), *down[0].shape) != tuple(layer.weight.shape):
            raise ValueError(f"{tuple(up.shape)} x {tuple(down.shape)} does not make {tuple(layer.weight.shape)}")
        self.layer = layer
        self.register_buffer("up", up.flatten(1) if layer.weight.ndim == 2 else up.flatten(1)[:, :, None, None])
        self.register_buffer("down", down)
        self.register_buffer("shift", None if bias is None else bias - layer.bias)

    def forward(self, x: Tensor) -> Tensor:
        """The layer's output with the update."""
        output: Tensor = self.layer(x)
        if self.layer.weight.ndim == 2:
            return output + functional.linear(functional.linear(x, self.down), self.up, self.shift)
        inner = functional.conv2d(x, self.down, None, self.layer.stride, self.layer.padding)
        return output + functional.conv2d(inner, self.up, self.shift)


def borrow(path: Path, unet: Any, memory: Memory) -> Any:
    """The ControlNet that a Control-LoRA file makes of a UNet, of which it uses the layers themselves.

    Raises ``WeightsError`` where the file does not fit the UNet.
    """
    found, network = _by_layer(read(path, memory.device, memory.dtype)), empty_like_unet(unet)
    lent = dict(unet.named_modules())
    for name, layer in list(_leaves(network)):
        tensors = found.pop(_original(name), {})
        network.set_submodule(name, _layer(path, name, layer, lent.get(name), tensors))
    if found:
        raise _misfit(path, f"no layer is called {next(iter(found))!r}")
    return network.eval().requires_grad_(False)


def empty_like_unet(unet: Any) -> Any:
    """A ControlNet without weights, of the UNet's widths and depths."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    with torch.device("meta"):
        return ControlNetModel.from_unet(unet, load_weights_from_unet=False)


def _by_layer(tensors: dict[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The file's tensors by layer and kind (``weight``, ``bias``, ``up``, ``down``)."""
    found: dict[str, dict[str, Tensor]] = {}
    for name, tensor in tensors.items():
        stem, _, kind = name.rpartition(".")
        if name != MARKER:
            found.setdefault(stem, {})[kind] = tensor
    return found


def _leaves(network: Any) -> Iterator[tuple[str, torch.nn.Module]]:
    """The layers that have weights of their own."""
    for name, layer in network.named_modules():
        if next(layer.parameters(recurse=False), None) is not None:
            yield name, layer


def _layer(path: Path, name: str, layer: Any, own: Any, tensors: dict[str, Tensor]) -> torch.nn.Module:
    """What stands at one place of the network: the UNet's layer, that with an update, or one of the file's own."""
    if own is None and "weight" not in tensors:
        raise _misfit(path, f"it lacks {_original(name)}")
    if own is not None and not tensors:
        return own  # type: ignore[no-any-return]
    try:
        if "up" in tensors:
            return Borrowed(own, **tensors)
        layer.load_state_dict(
            (dict(own.named_parameters(recurse=False)) if own is not None else {}) | tensors, assign=True
        )
    except (RuntimeError, TypeError, ValueError) as error:
        raise _misfit(path, f"{_original(name)} has another shape") from error
    return layer  # type: ignore[no-any-return]


def _misfit(path: Path, why: str) -> WeightsError:
    return WeightsError(
        f"controlnet={path.name!r} is a Control-LoRA that does not fit this checkpoint: {why}; give one made for SDXL."
    )


def _original(name: str) -> str:
    """The name a layer of a ControlNet has in the original layout."""
    part, _, rest = name.partition(".")
    if part == "controlnet_cond_embedding":
        place = {"conv_in": 0, "conv_out": 14}.get(rest)
        return f"input_hint_block.{2 * int(rest.partition('.')[2]) + 2 if place is None else place}"
    if part == "controlnet_down_blocks":
        return f"zero_convs.{rest}.0"
    if part == "controlnet_mid_block":
        return "middle_block_out.0"
    original = ldm_name(name)
    return next((original.removesuffix(k) + v for k, v in NORMS.items() if _resnet_norm(original, k)), original)


def _resnet_norm(name: str, ending: str) -> bool:
    return name.endswith(ending) and "transformer_blocks" not in name
