"""Attention to image prompts: tokens beside the text in the UNet's cross-attention (IP-Adapter, arXiv 2308.06721)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor
from torch.nn.functional import linear

from claygraph import files
from claygraph.diffusion.adapter_files import check_fit
from claygraph.diffusion.image_rows import Group, Listeners, attend
from claygraph.diffusion.ip_adapter import read
from claygraph.diffusion.kept import recent
from claygraph.errors import WeightsError

if TYPE_CHECKING:
    from claygraph.diffusion.rows import Row
    from claygraph.memory import Memory
    from claygraph.values import Checkpoint, Weights

Pair = tuple[Tensor, Tensor]


class Layer(NamedTuple):
    """One attention to text, and the number of its block."""

    block: int
    attention: Any


class ImageAttention:
    """Attention processor: to the text as ever, and of some rows to image tokens by a layer's own keys and values.

    ``images`` are groups of rows with the layer's weights for their adapter.
    """

    def __init__(self, images: Sequence[tuple[Group, Pair]]) -> None:
        made = [(group, linear(group.tokens, key), linear(group.tokens, value)) for group, (key, value) in images]
        self.heard = [(group, *group.strength.scaled(key, value)) for group, key, value in made]

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        query = attn.to_q(hidden_states)
        text = encoder_hidden_states
        out = attend(query, attn.to_k(text), attn.to_v(text), attn.heads)
        for group, key, value in self.heard:
            out = group.add(out, query, key, value, attn.heads)
        projected: Tensor = attn.to_out[0](out)
        return projected


@contextmanager
def image_prompts(unet: Any, rows: Sequence[Row], memory: Memory) -> Iterator[None]:
    """While it lasts the UNet attends to the rows' image prompts, in the blocks where some row's strength is not 0."""
    listeners = Listeners(rows, memory)
    made = recent(unet).get("images", listeners.key, lambda: _processors(unet, listeners, memory))
    before = [(attention, attention.processor) for attention, _ in made]
    try:
        for attention, processor in made:
            attention.set_processor(processor)
        yield
    finally:
        for attention, processor in before:
            attention.set_processor(processor)


def _processors(unet: Any, listeners: Listeners, memory: Memory) -> list[tuple[Any, ImageAttention]]:
    """The attentions in which some row attends to images, and how it does."""
    layers, checkpoint = cross_attentions(unet), listeners.rows[0].model.checkpoint
    pairs = cache(lambda adapter: _pairs(layers, adapter, checkpoint, memory))
    found = [(n, each.attention, listeners.at(each.block, each.attention.inner_dim)) for n, each in enumerate(layers)]
    return [
        (attention, ImageAttention([(group, pairs(group.adapter)[number]) for group in groups]))
        for number, attention, groups in found
        if groups
    ]


def cross_attentions(unet: Any) -> list[Layer]:
    """The UNet's attentions to text in the order of adapter files: down, up, middle.

    Their blocks, the spatial transformers, are numbered as the UNet calls them: down, middle, up.
    """
    parts = unet.down_blocks, [unet.mid_block], unet.up_blocks
    down, middle, up = ([each for block in part for each in getattr(block, "attentions", ())] for part in parts)
    called = {id(block): number for number, block in enumerate(down + middle + up)}
    return [Layer(called[id(block)], each.attn2) for block in down + up + middle for each in block.transformer_blocks]


def _pairs(layers: Sequence[Layer], adapter: Weights, checkpoint: Checkpoint, memory: Memory) -> list[Pair]:
    """Key and value weights of every layer, loaded once for an adapter; refused if they are not this UNet's."""
    pairs = memory.get(("ip_adapter", adapter.digest), lambda: _load(adapter, memory))
    wanted = [(attention.inner_kv_dim, attention.cross_attention_dim) for _, attention in layers]
    if [tuple(key.shape) for key, _ in pairs] != wanted:
        check_fit(adapter, checkpoint)
        file, base = files.locate(adapter.path).name, files.locate(checkpoint.weights.path).name
        raise WeightsError(
            f"ip_adapter={file!r} does not fit the checkpoint: it has weights for {len(pairs)} attention layers that "
            f"are not those of {base!r}, which has {len(wanted)}; give an adapter for that kind of checkpoint."
        )
    return pairs


def _load(adapter: Weights, memory: Memory) -> list[Pair]:
    tensors = read(adapter, "ip_adapter.", memory)
    numbers = sorted({int(name.split(".")[0]) for name in tensors})
    return [(tensors[f"{number}.to_k_ip.weight"], tensors[f"{number}.to_v_ip.weight"]) for number in numbers]
