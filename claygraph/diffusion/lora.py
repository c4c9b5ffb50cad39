"""LoRAs beside the weights they change: strengths are data, one per row of the batch and block of the UNet.

``W x + strength * scale * up (down x)`` equals ``(W + strength * scale * up down) x`` up to rounding, so one batch
holds rows of different stacks, and a row without a LoRA, or with strength 0, gets exactly what it got before. So it is
for every change that only adds (LoRA, LoHa, LoKr, whole differences), whatever the order, and for a DoRA or a whole
weight that is the first of its row to change a layer: these go first. Where a row has one after another change, which
depends on what the others left, each distinct set of changes gets its own merged weight, in the order of the row's own
stack. All of this is exact.
"""

from __future__ import annotations

import logging
import operator
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, cast

import torch
from safetensors import safe_open

from claygraph import files
from claygraph.diffusion import lora_files
from claygraph.diffusion.lora_changes import Change, Layer, apply, channels, make, per_row, with_bias
from claygraph.diffusion.lora_files import Roles
from claygraph.diffusion.lora_fit import match
from claygraph.diffusion.lora_names import BLOCKS, block_of
from claygraph.errors import WeightsError
from claygraph.values import Weights

if TYPE_CHECKING:
    from claygraph.memory import Memory

log = logging.getLogger(__name__)
LAYERS = (torch.nn.Linear, torch.nn.Conv2d, torch.nn.GroupNorm, torch.nn.LayerNorm)
STACK = "lora_stack"
Strengths = Mapping[str, tuple[float, ...]]
Merged = tuple[tuple[str, tuple[float, ...]], ...]


@dataclass
class Stack:
    """The LoRAs attached to one module, and the strengths of the batch that runs next.

    ``rows`` has each row's strengths as they were given; ``strengths`` for each file one tensor ``[rows]`` per block,
    None where all are 0. ``merged`` are the strengths that are in the weights instead, which saves ``saved``
    multiply-adds a row; ``owed`` are those that merging took and that were not saved yet.
    """

    rows: Sequence[Strengths] = ()
    strengths: dict[str, list[torch.Tensor | None]] = field(default_factory=dict)
    updates: dict[str, Update] = field(default_factory=dict)
    attached: dict[str, int] = field(default_factory=dict)
    merged: Merged = ()
    saved: float = 0.0
    owed: float = 0.0


class Update(torch.nn.Module):
    """The changes of one layer, added to its output by a forward hook, or merged into its weight for a while.

    ``detach`` takes them off again. ``loaded`` is the layer's own weight while another is in its place.
    """

    layer: Layer
    loaded: torch.nn.Parameter | None

    def __init__(self, layer: Layer, stack: Stack, block: int) -> None:
        super().__init__()
        self.__dict__["layer"] = layer  # no submodule: this is one of it
        self.stack, self.block = stack, block
        self.register_parameter("loaded", None)
        self.kept, self.biases = torch.nn.ModuleDict(), torch.nn.ParameterDict()
        self.changes: dict[str, Change] = {}  # as kept, but quick to look up
        self.relative = self.shifts = False
        self.detach = layer.register_forward_hook(self.add).remove

    def put(self, digest: str, change: Change | None, bias: torch.Tensor | None) -> None:
        """Hold what one file does to the layer's weight and to its bias."""
        if change is not None:
            self.kept[digest] = self.changes[digest] = change
            self.relative = self.relative or change.relative
        if bias is not None:
            self.biases[digest] = torch.nn.Parameter(bias, requires_grad=False)
            self.shifts = True

    def add(self, layer: Layer, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
        """The layer's output with each file's part in it, rows by their strengths."""
        if self.stack.merged:
            return self._with_biases(layer, output) if self.shifts else output
        active = [
            (change, strength)
            for digest, blocks in self.stack.strengths.items()
            if (change := self.changes.get(digest)) is not None and (strength := blocks[self.block]) is not None
        ]
        plain = output
        for change, strength in sorted(active, key=lambda pair: not pair[0].relative) if self.relative else active:
            output = change.add(layer, inputs[0], output, strength)
        for numbers, weight in self._own_weights(layer) if self.relative else ():
            output = output.clone() if output is plain else output
            output[numbers] = with_bias(layer, apply(layer, inputs[0][numbers], weight))
        return self._with_biases(layer, output) if self.shifts else output

    def _own_weights(self, layer: Layer) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Rows with a relative change after another one, and the weight with all their changes in it."""
        rows: dict[tuple[tuple[str, float], ...], list[int]] = defaultdict(list)
        for number, row in enumerate(self.stack.rows):
            rows[self.changed_by(row)].append(number)
        for changes, numbers in rows.items():
            if any(self.changes[digest].relative for digest, _ in changes[1:]):
                yield numbers, self.weight(layer.weight, changes)

    def changed_by(self, row: Strengths) -> tuple[tuple[str, float], ...]:
        """What changes this layer's weight in a row, in the order of its stack, and how strongly."""
        found = ((digest, blocks[self.block]) for digest, blocks in row.items() if digest in self.changes)
        return tuple((digest, strength) for digest, strength in found if strength)

    def weight(self, weight: torch.Tensor, changes: Iterable[tuple[str, float]]) -> torch.Tensor:
        """The weight with changes in it, one after another, computed in float32 or wider."""
        changed = weight.to(torch.promote_types(weight.dtype, torch.float32))
        for digest, strength in changes:
            changed = self.changes[digest].merged(changed, strength)
        return changed.to(weight.dtype)

    @torch.no_grad()
    def merge(self, strengths: Strengths) -> None:
        """Put the changes of a row of these strengths into the layer's weight. Biases stay beside."""
        if changes := self.changed_by(strengths):
            merged = self.weight(self.layer.weight, changes)
            self.loaded = cast(torch.nn.Parameter, self.layer.weight)
            self.layer.weight = torch.nn.Parameter(merged, requires_grad=False)

    def restore(self) -> None:
        """Put the weight back that the layer had before: the very same numbers."""
        if self.loaded is not None:
            self.layer.weight, self.loaded = self.loaded, None

    def _with_biases(self, layer: Layer, output: torch.Tensor) -> torch.Tensor:
        for digest, blocks in self.stack.strengths.items():
            strength = blocks[self.block]
            if digest in self.biases and strength is not None:
                output = output + per_row(strength, output) * channels(self.biases[digest], layer)
        return output


def attach(module: torch.nn.Module, part: str, lora: Weights, memory: Memory) -> int:
    """Put a LoRA on a module, once; how many layers it changes. It does nothing until ``set_strengths`` names it.

    ``part`` is ``unet``, ``text_encoder`` or ``text_encoder_2``. Raises ``WeightsError`` if the file does not fit.
    """
    stack = stack_of(module)
    if lora.digest not in stack.attached:
        path = files.locate(lora.path)
        shapes = {name: tuple(layer.weight.shape) for name, layer in module.named_modules() if _can_change(layer)}
        fit = match(path, part, shapes)
        if fit.missed:
            log.warning("lora %r: %d layers match none of the checkpoint's %s.", path.name, len(fit.missed), part)
        settings, tensors = lora_files.peft_settings(path, part), _read(path, fit.layers, memory.device)
        for name, roles in fit.layers.items():
            found = {role: tensors[tensor] for role, tensor in roles.items()}
            rank = lora_files.rank(found)
            alpha = settings.alpha(fit.spelled[name].removeprefix(f"{part}."), rank)
            _put(module, name, found, _scale(found, alpha, rank), stack, lora)
        stack.attached[lora.digest] = len(fit.layers)
    return stack.attached[lora.digest]


def _can_change(layer: torch.nn.Module) -> bool:
    return isinstance(layer, LAYERS) and layer.weight is not None


def _read(path: Path, layers: Mapping[str, Roles], device: torch.device) -> dict[str, torch.Tensor]:
    """The tensors of these layers, in the file's dtype; raises ``WeightsError`` for one that is not finite."""
    with safe_open(path, framework="pt", device=str(device)) as file:
        tensors = {name: file.get_tensor(name) for roles in layers.values() for name in roles.values()}
    finite = [(tensor if tensor.element_size() > 1 else tensor.float()).isfinite().all() for tensor in tensors.values()]
    if finite and not torch.stack(finite).all():
        name = next(name for name, good in zip(tensors, finite, strict=True) if not good)
        raise WeightsError(
            f"lora {path.name!r} is damaged: {name} holds values that are no numbers (nan or inf); fetch it again."
        )
    return tensors


def _scale(found: Mapping[str, torch.Tensor], alpha: float, rank: int) -> float:
    """alpha / rank, where the file's own alpha counts before ``alpha``; 1 without a rank or an alpha (kohya's rule)."""
    own = float(found["alpha"].flatten()[0]) if "alpha" in found and found["alpha"].numel() else alpha
    return own / rank or 1.0 if rank else 1.0


def _put(
    module: torch.nn.Module, name: str, found: Mapping[str, torch.Tensor], scale: float, stack: Stack, lora: Weights
) -> None:
    layer = cast(Layer, module.get_submodule(name))
    try:
        change = make(found, scale, layer)
        bias = found["diff_b"].to(layer.weight.dtype).reshape(layer.weight.shape[:1]) if "diff_b" in found else None
    except (RuntimeError, ValueError) as error:
        reason = str(error).partition("\n")[0]
        raise WeightsError(
            f"lora {files.locate(lora.path).name!r} does not fit together at {name}: {reason}; fetch it again."
        ) from error
    if name not in stack.updates:
        layer.lora = stack.updates[name] = Update(layer, stack, block_of(name))
    stack.updates[name].put(lora.digest, change, bias)


def set_strengths(module: torch.nn.Module, rows: Sequence[Strengths]) -> None:
    """Strengths of the next batch: for each row, by digest of an attached LoRA, one for each block; absent means 0.

    The blocks are ``lora_names.BLOCKS`` for a UNet; a text encoder has one. A row's files are in its stack's order.
    """
    stack, weight = stack_of(module), next(module.parameters())
    if len(rows) == len(stack.rows) and all(map(operator.is_, rows, stack.rows)):
        return
    made: dict[tuple[float, ...], torch.Tensor | None] = {}
    stack.rows, stack.strengths = rows, {}
    for digest in dict.fromkeys(digest for row in rows for digest in row):
        given = [row.get(digest, ()) for row in rows]
        blocks = list(zip(*(values or (0.0,) * len(BLOCKS) for values in given), strict=False))
        for values in set(blocks) - made.keys():
            made[values] = torch.tensor(values, dtype=weight.dtype, device=weight.device) if any(values) else None
        if any(map(any, blocks)) and stack.attached[digest]:
            stack.strengths[digest] = [made[values] for values in blocks]


def detach(module: torch.nn.Module) -> None:
    """Take every LoRA off a module again."""
    for name, update in stack_of(module).updates.items():
        update.restore()
        update.detach()
        del module.get_submodule(name).lora
    setattr(module, STACK, Stack())


def stack_of(module: torch.nn.Module) -> Stack:
    """The LoRAs on a module."""
    if not hasattr(module, STACK):
        setattr(module, STACK, Stack())
    return cast(Stack, getattr(module, STACK))
