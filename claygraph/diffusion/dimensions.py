"""Sizes of an SDXL model's parts, read from the shapes of its tensors."""

from __future__ import annotations

import re
from typing import Any

Shapes = dict[str, tuple[int, ...]]
Config = dict[str, Any]
HEAD = 64


def unet_config(found: Shapes, pooled: int) -> Config:
    """Config entries of a UNet from its LDM-named tensors; ``pooled`` is the width of the pooled text vector."""
    if not found:
        return {}
    levels = _levels(found)
    vector = found["label_emb.0.0.weight"][1]
    return {
        "in_channels": found["input_blocks.0.0.weight"][1],
        "out_channels": found["out.2.weight"][0],
        "block_out_channels": [width for width, _ in levels],
        "down_block_types": [f"{'CrossAttn' if depth else ''}DownBlock2D" for _, depth in levels],
        "up_block_types": [f"{'CrossAttn' if depth else ''}UpBlock2D" for _, depth in reversed(levels)],
        "transformer_layers_per_block": [max(depth, 1) for _, depth in levels],
        "attention_head_dim": [max(width // HEAD, 1) for width, _ in levels],
        "cross_attention_dim": _context(found),
        "use_linear_projection": len(found["middle_block.1.proj_in.weight"]) == 2,
        "addition_time_embed_dim": (vector - pooled) // 6,
        "projection_class_embeddings_input_dim": vector,
    }


def _levels(found: Shapes) -> list[tuple[int, int]]:
    """Channels and transformer depth of each resolution; a ``.0.op`` block closes one."""
    levels, block = [], 1
    while f"input_blocks.{block}.0.out_layers.3.weight" in found:
        width = found[f"input_blocks.{block}.0.out_layers.3.weight"][0]
        levels.append((width, _count(found, rf"input_blocks\.{block}\.1\.transformer_blocks\.(\d+)\.")))
        while f"input_blocks.{block}.0.out_layers.3.weight" in found:
            block += 1
        block += 1
    return levels


def _context(found: Shapes) -> int:
    return next(shape[1] for name, shape in found.items() if name.endswith("attn2.to_k.weight"))


def _count(found: Shapes, pattern: str) -> int:
    return len({match[1] for name in found if (match := re.match(pattern, name))})


def vae_config(found: Shapes) -> Config:
    """Config entries of a VAE from its tensors, named as in LDM or as in diffusers."""
    old = "encoder.down.0.block.0.conv1.weight" in found
    block = "encoder.down.{}.block" if old else "encoder.down_blocks.{}.resnets"
    widths: list[int] = []
    while (name := f"{block.format(len(widths))}.0.conv2.weight") in found:
        widths.append(found[name][0])
    if not widths:
        return {}
    return {
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * len(widths),
        "up_block_types": ["UpDecoderBlock2D"] * len(widths),
        "layers_per_block": _count(found, re.escape(block.format(0)) + r"\.(\d+)\."),
        "latent_channels": found["decoder.conv_in.weight"][1],
    }


def text_config(found: Shapes) -> Config:
    """Config entries of the first text encoder from its tensors, named as in transformers."""
    return _text(found, "text_model.embeddings.", r"text_model\.encoder\.layers\.(\d+)\.", "mlp.fc1")


def text_2_config(found: Shapes) -> Config:
    """Config entries of the second text encoder from its tensors, named as in OpenCLIP."""
    sizes = _text(found, "", r"transformer\.resblocks\.(\d+)\.", "mlp.c_fc")
    bare = found.get("text_projection")
    return sizes | ({"projection_dim": bare[1]} if bare else {})


def _text(found: Shapes, embeddings: str, layers: str, feed_forward: str) -> Config:
    if f"{embeddings}token_embedding.weight" not in found:
        return {}
    tokens, width = found[f"{embeddings}token_embedding.weight"]
    return {
        "vocab_size": tokens,
        "hidden_size": width,
        "projection_dim": width,
        "num_hidden_layers": _count(found, layers),
        "num_attention_heads": max(width // HEAD, 1),
        "intermediate_size": next(s[0] for n, s in found.items() if n.endswith(f"{feed_forward}.weight")),
    }
