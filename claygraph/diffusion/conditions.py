"""What the UNet and its ControlNets are told of each row beside the picture: text, size, timestep."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from claygraph.diffusion.prediction import timestep

if TYPE_CHECKING:
    from claygraph.diffusion.rows import Row
    from claygraph.memory import Memory
    from claygraph.values import Size

SIZE_UNIT = 8
MOST_REPEATS = 4
"""How many times the longest text of a forward may stand in it, as in ComfyUI."""
ROUND = 12 * 77
"""Tokens that prompts of 1, 2, 3, 4, 6 and 12 rows all divide, no two of them longer than three times the longer."""


def forwards(lengths: Sequence[int]) -> list[list[int]]:
    """Which texts of these numbers of tokens share a forward: all, unless their common length were out of proportion.

    Then those that go into ``ROUND`` together, and of the others those of one length.
    """
    if math.lcm(*lengths) <= MOST_REPEATS * max(lengths):
        return [list(range(len(lengths)))]
    groups: dict[int, list[int]] = defaultdict(list)
    for number, length in enumerate(lengths):
        groups[length if ROUND % length else ROUND].append(number)
    return list(groups.values())


def inputs(rows: Sequence[Row], sample: Tensor, memory: Memory) -> dict[str, Any]:
    """The arguments that the UNet and ControlNets are both given; ``sample`` is ``[R, C, h, w]``."""
    steps = [timestep(row.call.sigma, row.model.checkpoint) for row in rows]
    sizes = [size_vector(row.conditioning.size, *sample.shape[2:]) for row in rows]
    pooled = torch.stack([torch.tensor(row.conditioning.pooled) for row in rows])
    return {
        "sample": sample.to(memory.dtype),
        "timestep": torch.tensor(steps, device=memory.device),
        "encoder_hidden_states": _text(rows).to(memory.device, memory.dtype),
        "added_cond_kwargs": {
            "text_embeds": pooled.to(memory.device, memory.dtype),
            "time_ids": torch.tensor(sizes, dtype=torch.float32, device=memory.device),
        },
    }


def size_vector(size: Size, height: int, width: int) -> tuple[int, ...]:
    """Height, width, crop from the top, from the left, target height, target width: SDXL's order.

    ``height`` and ``width`` are those of the latent.
    """
    high = SIZE_UNIT * height if size.height is None else size.height
    wide = SIZE_UNIT * width if size.width is None else size.width
    target_high = high if size.target_height is None else size.target_height
    target_wide = wide if size.target_width is None else size.target_width
    return high, wide, size.crop_h, size.crop_w, target_high, target_wide


def _text(rows: Sequence[Row]) -> Tensor:
    """Text states ``[R, T, channels]``; repetition, which attention does not notice, brings them to one length."""
    hidden = [torch.tensor(row.conditioning.hidden) for row in rows]
    length = math.lcm(*{len(each) for each in hidden})
    return torch.stack([each.repeat(length // len(each), 1) for each in hidden])
