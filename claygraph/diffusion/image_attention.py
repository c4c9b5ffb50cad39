"""Attention to image prompts: tokens beside the text in the UNet's cross-attention (IP-Adapter, arXiv 2308.06721)."""

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
    from claygraph.values import Weights

FAMILIES = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}
Pair = tuple[Tensor, Tensor]


class Layer(NamedTuple):
    """One attention to text, and the number of its block."""

    block: int
    attention: Any


class Images(NamedTuple):
    """Image tokens ``[R, T, channels]`` as one layer sees them: its own key and value weights, a strength per row."""

    tokens: Tensor
    key: Tensor
    value: Tensor
    strength: Tensor


class ImageAttention:
    """Attention processor: to the text as ever, and to sets of image tokens, each with a strength ``[R, 1, 1]``."""

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
    """The rows' image prompts of one place in the stack: weights by layer, tokens, strengths ``[blocks, R, 1, 1]``."""

    pairs: Sequence[Pair]
    tokens: Tensor
    strengths: Tensor
    used: frozenset[int]

    def at(self, layer: int, block: int) -> Images:
        """What one layer, by its number in the file and its block, is to attend to."""
        return Images(self.tokens, *self.pairs[layer], self.strengths[block])


@contextmanager
def image_prompts(unet: Any, rows: Sequence[Row], memory: Memory) -> Iterator[None]:
    """While it lasts the UNet attends to the rows' image prompts, in the blocks where some row's strength is not 0."""
    layers = cross_attentions(unet)
    before = []
    try:
        slots = _slots(layers, rows, memory)
        for number, (block, attention) in enumerate(layers):
            if images := [slot.at(number, block) for slot in slots if block in slot.used]:
                before.append((attention, attention.processor))
                attention.set_processor(ImageAttention(images))
        yield
    finally:
        for attention, processor in before:
            attention.set_processor(processor)


def cross_attentions(unet: Any) -> list[Layer]:
    """The UNet's attentions to text in the order of adapter files: down, up, middle.

    Their blocks, the spatial transformers, are numbered as the UNet calls them: down, middle, up.
    """
    parts = unet.down_blocks, [unet.mid_block], unet.up_blocks
    down, middle, up = ([each for block in part for each in getattr(block, "attentions", ())] for part in parts)
    called = {id(block): number for number, block in enumerate(down + middle + up)}
    return [Layer(called[id(block)], each.attn2) for block in down + up + middle for each in block.transformer_blocks]


def _slots(layers: Sequence[Layer], rows: Sequence[Row], memory: Memory) -> list[Slot]:
    """The places of the stack that some row listens to."""
    places = range(len(rows[0].model.image_prompts))
    strengths = [[_strengths(row, place) for row in rows] for place in places]
    return [_slot(layers, rows, place, strengths[place], memory) for place in places if any(map(any, strengths[place]))]


def _strengths(row: Row, place: int) -> tuple[float, ...]:
    prompt = row.model.image_prompts[place]
    return prompt.scales if row.active(prompt) else (0.0,) * len(prompt.scales)


def _slot(
    layers: Sequence[Layer], rows: Sequence[Row], place: int, strengths: Sequence[Sequence[float]], memory: Memory
) -> Slot:
    prompts = [row.model.image_prompts[place] for row in rows]
    tokens = [prompt.negative if row.negative else prompt.tokens for row, prompt in zip(rows, prompts, strict=True)]
    by_block = torch.tensor(strengths, device=memory.device, dtype=memory.dtype).T[:, :, None, None]
    return Slot(
        _pairs(layers, prompts[0].adapter, rows[0].model.checkpoint.weights, memory),
        torch.stack([torch.tensor(each) for each in tokens]).to(memory.device, memory.dtype),
        by_block,
        frozenset(block for block, each in enumerate(zip(*strengths, strict=True)) if any(each)),
    )


def _pairs(layers: Sequence[Layer], adapter: Weights, checkpoint: Weights, memory: Memory) -> list[Pair]:
    """Key and value weights of every layer, loaded once for an adapter; refused if they are not this UNet's."""
    pairs = memory.get(("ip_adapter", adapter.digest), lambda: _load(adapter, memory))
    wanted = [(attention.inner_kv_dim, attention.cross_attention_dim) for _, attention in layers]
    if [tuple(key.shape) for key, _ in pairs] != wanted:
        raise WeightsError(_misfit(adapter, checkpoint, pairs, wanted))
    return pairs


def _load(adapter: Weights, memory: Memory) -> list[Pair]:
    tensors = read(adapter, "ip_adapter.", memory)
    numbers = sorted({int(name.split(".")[0]) for name in tensors})
    return [(tensors[f"{number}.to_k_ip.weight"], tensors[f"{number}.to_v_ip.weight"]) for number in numbers]


def _misfit(adapter: Weights, checkpoint: Weights, pairs: Sequence[Pair], wanted: Sequence[tuple[int, int]]) -> str:
    file, base = files.locate(adapter.path).name, files.locate(checkpoint.path).name
    found, context = pairs[0][0].shape[1], wanted[0][1]
    if found == context:
        what = f"weights for {len(pairs)} attention layers that are not those of {base!r}, which has {len(wanted)}"
    else:
        what = f"image tokens of width {found}{_family(found)}, but {base!r} reads {context}{_family(context)}"
    return (
        f"ip_adapter={file!r} does not fit the checkpoint: it has {what}; give an adapter for that kind of checkpoint."
    )


def _family(width: int) -> str:
    return f" ({FAMILIES[width]})" if width in FAMILIES else ""
