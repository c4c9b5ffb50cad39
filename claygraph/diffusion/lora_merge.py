"""LoRAs in the weights instead of beside them, where all rows of a batch have the same ones and enough work follows.

What is compared is time, counted in multiply-adds, with ``TOUCH`` for each number that is moved. Merging a change of
rank r into a weight W once takes ``size(W) (r + 4 TOUCH)``, and leaving it beside takes at each position of each row
and step its own ``r (inputs + outputs)`` (or the size of its matrix) and ``3 TOUCH outputs``. Merging is chosen when
the row-steps that the batch's calls still have to make cost more beside. A merge whose weights had to go before they
had paid for themselves is charged to the next ones, so that requests of other strengths that take turns stay beside.

The weights before are kept, and put back as they were: nothing is ever subtracted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import torch

from claygraph.diffusion.lora import Merged, Stack, Strengths, stack_of
from claygraph.diffusion.lora_blocks import by_block, summed

if TYPE_CHECKING:
    from claygraph.diffusion.rows import Row
    from claygraph.values import Lora

TOUCH = 16
TEXT_LAYERS = ("attn2.to_k", "attn2.to_v")
VECTOR_LAYERS = ("time_embedding", "add_embedding", "time_emb_proj")


@dataclass(frozen=True)
class Work:
    """What a batch has before it: the latent's size, the tokens of its text, its rows, and those of all its steps."""

    size: tuple[int, int]
    tokens: int
    rows: int
    row_steps: int


def work_of(rows: Sequence[Row]) -> Work:
    """The work before these rows, their step included."""
    first = rows[0]
    height, width = first.call.x.shape[2:]
    left = sum(1 + row.call.steps - max(row.call.step, 1) for row in rows)
    return Work((height, width), len(first.conditioning.hidden), len(rows), left)


@lru_cache(maxsize=1024)
def strengths_of(loras: tuple[Lora, ...]) -> Strengths:
    """The strengths of a stack, as ``set_strengths`` takes them; what is 0 everywhere is left out."""
    total = summed((lora.weights.digest, by_block(lora)) for lora in loras)
    return {digest: blocks for digest, blocks in total.items() if any(blocks)}


def arrange(unet: Any, rows: Sequence[Row]) -> str:
    """Put the LoRAs that all rows have into the UNet's weights if that pays: ``merged``, ``beside``, or "" without any.

    Where they stay beside, the weights are as they were loaded.
    """
    stack, wanted = stack_of(unet), [tuple(strengths_of(row.model.loras).items()) for row in rows]
    agreed = wanted[0] if len(set(wanted)) == 1 else ()
    if stack.merged != agreed:
        restore(stack)
        if agreed:
            _merge_if_it_pays(unet, stack, agreed, work_of(rows))
    if not stack.merged:
        return "beside" if any(wanted) else ""
    stack.owed = max(0.0, stack.owed - stack.saved * len(rows))
    return "merged"


def _merge_if_it_pays(unet: Any, stack: Stack, agreed: Merged, work: Work) -> None:
    cost, saved = costs(unet, stack, dict(agreed), work)
    if stack.owed + cost > saved * work.row_steps:
        return
    try:
        for update in stack.updates.values():
            update.merge(dict(agreed))
    except torch.OutOfMemoryError:
        restore(stack)
        stack.owed = math.inf  # there is no room for the weights twice: not tried again
    else:
        stack.merged, stack.saved, stack.owed = agreed, saved, stack.owed + cost


def restore(stack: Stack) -> None:
    """Give every layer the weight it was loaded with."""
    for update in stack.updates.values():
        update.restore()
    stack.merged = ()


def costs(unet: Any, stack: Stack, agreed: Strengths, work: Work) -> tuple[int, int]:
    """Multiply-adds of merging these LoRAs once, and of having them beside the weights for one row and step."""
    merging = beside = 0
    for name, update in stack.updates.items():
        places = positions(name, work.size, work.tokens, len(unet.down_blocks))
        weight = update.layer.weight
        for digest, _ in update.changed_by(agreed):
            change = update.changes[digest]
            merging += weight.numel() * (change.rank + 4 * TOUCH)
            beside += places * (change.numbers + 3 * TOUCH * len(weight))
    return merging, beside


def positions(name: str, size: tuple[int, int], tokens: int, levels: int) -> int:
    """How many positions of a row a layer sees, by its name: tokens, one vector, or the pixels of its level."""
    if name.endswith(TEXT_LAYERS):
        return tokens
    if any(part in name for part in VECTOR_LAYERS):
        return 1
    level = _level(name, levels)
    return int(-(-size[0] // 2**level) * -(-size[1] // 2**level))


def _level(name: str, levels: int) -> int:
    """How often the picture was halved where a layer stands."""
    side, number = [*name.split("."), ""][:2]
    if side == "down_blocks":
        return int(number)
    return levels - 1 - (int(number) if side == "up_blocks" else 0) if side in ("up_blocks", "mid_block") else 0
