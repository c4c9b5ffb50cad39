"""Attention to image prompts: IP-Adapter's tokens beside the text in the UNet's cross-attention (arXiv 2308.06721)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import linear, scaled_dot_product_attention

from claygraph import files
from claygraph.diffusion.ip_adapter import read
from claygraph.errors import WeightsError

if TYPE_CHECKING:
    from claygraph.diffusion.rows import Row
    from claygraph.memory import Memory
    from claygraph.values import ImagePrompt, Weights

FAMILIES = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}


class Images(NamedTuple):
    """Image tokens ``[R, T, channels]`` as one layer sees them: its own key and value weights, a strength per row."""

    tokens: Tensor
    key: Tensor
    value: Tensor
    strength: Tensor


class ImageAttention:
    """Attention processor: to the text as ever, and to each set of image tokens with a strength ``[R, 1, 1]`` per row."""

    def __init__(self, images: Sequence[Images]) -> None:
        self.images = images

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        query = attn.to_q(hidden_states)
        text = encoder_hidden_states
        out = attend(query, attn.to_k(text), attn.to_v(text), attn.heads)
        for tokens, key, value, strength in self.images:
            out = out + attend(query, linear(tokens, key), linear(tokens, value), attn.heads) * strength
        projected: Tensor = attn.to_out[0](out)
        return projected


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention over ``[B, N, width]``."""
    split = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


@dataclass(frozen=True)
class Slot:
    """The image prompts of one place in the stack: a pair of weights per layer, and per row tokens and strengths."""

    weights: Sequence[tuple[Tensor, Tensor]]
    tokens: Tensor
    strengths: Tensor
    used: frozenset[int]

    def at(self, layer: int, block: int) -> Images:
        """What the layer of that number in file order, in that block, is to attend to."""
        return Images(self.tokens, *self.weights[layer], self.strengths[block])


@contextmanager
def image_prompts(unet: Any, rows: Sequence[Row], memory: Memory) -> Iterator[None]:
    """While it lasts the UNet attends to the rows' image prompts, in the blocks where some row's strength is not 0."""
    count = len(rows[0].model.image_prompts)
    slots = [slot for place in range(count) if (slot := _slot(unet, rows, place, memory)).used]
    before = []
    try:
        for number, (block, attention) in enumerate(cross_attentions(unet) if slots else ()):
            if images := [slot.at(number, block) for slot in slots if block in slot.used]:
                before.append((attention, attention.processor))
                attention.set_processor(ImageAttention(images))
        yield
    finally:
        for attention, processor in before:
            attention.set_processor(processor)


def cross_attentions(unet: Any) -> list[tuple[int, Any]]:
    """The layers that attend to text, in the order of adapter files (down, up, middle), each with its block's number.

    Blocks are numbered as the UNet calls them: down, middle, up.
    """
    parts = unet.down_blocks, [unet.mid_block], unet.up_blocks
    down, middle, up = ([each for block in part for each in getattr(block, "attentions", ())] for part in parts)
    called = {id(block): number for number, block in enumerate(down + middle + up)}
    return [(called[id(block)], layer.attn2) for block in down + up + middle for layer in block.transformer_blocks]


def _slot(unet: Any, rows: Sequence[Row], place: int, memory: Memory) -> Slot:
    prompts = [row.model.image_prompts[place] for row in rows]
    tokens = [prompt.negative if row.negative else prompt.tokens for row, prompt in zip(rows, prompts, strict=True)]
    scales = [_scales(row, prompt) for row, prompt in zip(rows, prompts, strict=True)]
    layers = cross_attentions(unet)
    by_block = torch.tensor(scales, dtype=memory.dtype, device=memory.device).T[:, :, None, None]
    return Slot(
        _weights_for(unet, layers, prompts[0].adapter, rows[0].model.checkpoint.weights, memory),
        torch.stack([torch.tensor(each) for each in tokens]).to(memory.device, memory.dtype),
        by_block,
        frozenset(block for block, strengths in enumerate(zip(*scales, strict=True)) if any(strengths)),
    )


def _scales(row: Row, prompt: ImagePrompt) -> tuple[float, ...]:
    return prompt.scales if row.active(prompt) else (0.0,) * len(prompt.scales)


def _weights_for(
    unet: Any, layers: Sequence[tuple[int, Any]], adapter: Weights, checkpoint: Weights, memory: Memory
) -> list[tuple[Tensor, Tensor]]:
    pairs = memory.get(("ip_adapter", adapter.digest), lambda: _load_pairs(adapter, memory))
    wanted = [(attention.inner_kv_dim, attention.cross_attention_dim) for _, attention in layers]
    if [tuple(key.shape) for key, _ in pairs] != wanted:
        raise WeightsError(_misfit(adapter, checkpoint, pairs, wanted))
    return pairs


def _load_pairs(adapter: Weights, memory: Memory) -> list[tuple[Tensor, Tensor]]:
    tensors = read(adapter, "ip_adapter.", memory)
    numbers = sorted({int(name.split(".")[0]) for name in tensors})
    return [(tensors[f"{number}.to_k_ip.weight"], tensors[f"{number}.to_v_ip.weight"]) for number in numbers]


def _misfit(adapter: Weights, checkpoint: Weights, pairs: Sequence[tuple[Tensor, Tensor]], wanted: Any) -> str:
    file, base = files.locate(adapter.path).name, files.locate(checkpoint.path).name
    found, context = int(pairs[0][0].shape[1]), int(wanted[0][1])
    if found != context:
        return (
            f"ip_adapter={file!r} has image tokens of width {found}{_family(found)}, but the checkpoint {base!r} attends "
            f"to tokens of width {context}{_family(context)}; give an adapter made for that kind of checkpoint."
        )
    return (
        f"ip_adapter={file!r} has weights for {len(pairs)} layers that are not those of the checkpoint {base!r}, which "
        f"has {len(wanted)}; give an adapter made for that kind of checkpoint."
    )


def _family(width: int) -> str:
    return f" ({FAMILIES[width]})" if width in FAMILIES else ""
