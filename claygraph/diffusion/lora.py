"""LoRAs beside the weights they change: strengths are data, one per row of the batch.

``W x + strength * scale * up (down x)`` equals ``(W + strength * scale * up down) x`` up to rounding, so one batch
holds rows of different strengths, and a row whose strength is 0 gets exactly what it got before.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from torch.nn import functional

from claygraph import files
from claygraph.diffusion import lora_files
from claygraph.diffusion.lora_files import Pair
from claygraph.diffusion.lora_names import spellings
from claygraph.errors import WeightsError
from claygraph.values import Weights

if TYPE_CHECKING:
    from claygraph.memory import Memory

log = logging.getLogger(__name__)
Layer = torch.nn.Linear | torch.nn.Conv2d
STACK = "lora_stack"
CONTEXT = ("attn2.to_k", "attn2.to_v")
FAMILIES = {768: "a Stable Diffusion 1.x LoRA", 1024: "a Stable Diffusion 2.x LoRA", 2048: "an SDXL LoRA"}


@dataclass
class Stack:
    """The LoRAs attached to one module, and the strengths of the batch that runs next, ``[rows]`` each."""

    strengths: dict[str, torch.Tensor] = field(default_factory=dict)
    updates: dict[str, Update] = field(default_factory=dict)
    attached: dict[str, int] = field(default_factory=dict)


class Update(torch.nn.Module):
    """The low-rank updates of one layer, added to its output by a forward hook; ``detach`` takes them off again."""

    def __init__(self, layer: Layer, stack: Stack) -> None:
        super().__init__()
        self.stack = stack
        self.down, self.up = torch.nn.ParameterDict(), torch.nn.ParameterDict()
        self.detach = layer.register_forward_hook(self.add).remove

    def add(self, layer: Layer, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """The layer's output plus each LoRA's part, rows weighted by their strengths."""
        for digest, strength in self.stack.strengths.items():
            if digest in self.down:
                output = output + _low_rank(layer, inputs[0], self.down[digest], self.up[digest], strength)
        return output


def _low_rank(
    layer: Layer, x: torch.Tensor, down: torch.Tensor, up: torch.Tensor, strength: torch.Tensor
) -> torch.Tensor:
    if isinstance(layer, torch.nn.Linear):
        inner = functional.linear(x, down)
        return functional.linear(inner * strength.view(-1, *(1 for _ in inner.shape[1:])), up)
    inner = functional.conv2d(x, down, None, layer.stride, layer.padding, layer.dilation)
    return functional.conv2d(inner * strength.view(-1, 1, 1, 1), up)


def attach(module: torch.nn.Module, part: str, lora: Weights, memory: Memory) -> int:
    """Put a LoRA on a module, once; how many layers it changes. It does nothing until ``set_strengths`` names it.

    ``part`` is ``unet``, ``text_encoder`` or ``text_encoder_2``. Raises ``WeightsError`` if the file does not fit.
    """
    stack = _stack(module)
    if lora.digest not in stack.attached:
        path = files.locate(lora.path)
        pairs = _matching(module, part, path, memory.device)
        for name, pair in sorted(pairs.items(), key=lambda item: not item[0].endswith(CONTEXT)):
            _put(module, name, pair, lora.digest, stack, path.name)
        stack.attached[lora.digest] = len(pairs)
    return stack.attached[lora.digest]


def _matching(module: torch.nn.Module, part: str, path: Path, device: torch.device) -> dict[str, Pair]:
    """The file's pairs for this component by the module's own layer names."""
    known = spellings(part, [name for name, layer in module.named_modules() if isinstance(layer, Layer)])
    pairs = {layer: pair for layer, pair in lora_files.load(path, part, device).items() if layer in known}
    found = lora_files.layers(path)
    none = not any(found[name] for name in lora_files.PREFIXES)
    missed = [layer for layer in {**found[part], **(found[""] if part == "unet" or none else {})} if layer not in pairs]
    if none or (found[part] and not pairs):
        raise WeightsError(
            f"lora {path.name!r} fits no layer of this checkpoint's {part}: none of its {len(missed)} layers is known, "
            f"such as {next(iter(missed), None)!r}; give an SDXL LoRA in kohya's, diffusers' or peft's layout."
        )
    if missed:
        log.warning("lora %r: %d layers match none of the checkpoint's %s.", path.name, len(missed), part)
    return {known[layer]: pair for layer, pair in pairs.items()}


def set_strengths(module: torch.nn.Module, rows: Sequence[Mapping[str, float]]) -> None:
    """Strengths of the next batch: for each row, strength by digest of an attached LoRA; absent means 0."""
    used = dict.fromkeys(digest for row in rows for digest, strength in row.items() if strength)
    stack = _stack(module)
    weight = next(module.parameters())
    stack.strengths = {
        digest: torch.tensor([row.get(digest, 0.0) for row in rows], dtype=weight.dtype, device=weight.device)
        for digest in used
        if stack.attached[digest]
    }


def detach(module: torch.nn.Module) -> None:
    """Take every LoRA off a module again."""
    for name, update in _stack(module).updates.items():
        update.detach()
        del module.get_submodule(name).lora
    setattr(module, STACK, Stack())


def _stack(module: torch.nn.Module) -> Stack:
    if not hasattr(module, STACK):
        setattr(module, STACK, Stack())
    return cast(Stack, getattr(module, STACK))


def _put(module: torch.nn.Module, name: str, pair: Pair, digest: str, stack: Stack, file: str) -> None:
    layer = cast(Layer, module.get_submodule(name))
    down, up = _shaped(layer, pair)
    _check_shape(file, name, layer.weight.shape, down, up)
    if name not in stack.updates:
        layer.lora = stack.updates[name] = Update(layer, stack)
    update = stack.updates[name]
    scaled = up.to(torch.promote_types(layer.weight.dtype, torch.float32)) * pair.scale
    for table, tensor in ((update.down, down), (update.up, scaled)):
        moved = tensor.to(layer.weight.device, layer.weight.dtype).contiguous()
        table[digest] = torch.nn.Parameter(moved, requires_grad=False)


def _shaped(layer: Layer, pair: Pair) -> tuple[torch.Tensor, torch.Tensor]:
    """The pair as matrices for a linear layer, as kernels for a convolution, however the file stores it."""
    if isinstance(layer, torch.nn.Linear):
        return pair.down.flatten(1), pair.up.flatten(1)
    down = pair.down if pair.down.ndim == 4 else pair.down[:, :, None, None]
    return down, pair.up.flatten(1)[:, :, None, None]


def _check_shape(file: str, name: str, wanted: torch.Size, down: torch.Tensor, up: torch.Tensor) -> None:
    found = (len(up), *down.shape[1:])
    if found == tuple(wanted):
        return
    if name.endswith(CONTEXT) and found[1] != wanted[1]:
        kind = FAMILIES.get(found[1], "a LoRA for another model")
        why = f"it looks like {kind}: its context width is {found[1]}, this checkpoint wants {wanted[1]}"
    else:
        why = f"at {name} it changes a weight of shape {found}, this checkpoint's is {tuple(wanted)}"
    raise WeightsError(f"lora {file!r} does not fit the checkpoint: {why}; give a LoRA made for this model family.")
