"""The projections of IP-Adapter files: CLIP's view of a picture as tokens for the UNet's cross-attention.

Module names are the tensor names of the published files (Ye et al. 2023, arXiv 2308.06721).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

HEAD = 64
AnyProjection: TypeAlias = "Projection | FullProjection | Resampler"


class Projection(nn.Module):
    """The plain type: one embedding ``[B, E]`` through a linear layer and a norm, as tokens ``[B, T, channels]``."""

    reads_patches = False

    def __init__(self, embedding: int, tokens: int, channels: int) -> None:
        super().__init__()
        self.width = embedding
        self.proj = nn.Linear(embedding, tokens * channels)
        self.norm = nn.LayerNorm(channels)

    def forward(self, embeds: Tensor) -> Tensor:
        """Image embeddings ``[B, E]`` to tokens ``[B, T, channels]``."""
        tokens: Tensor = self.norm(self.proj(embeds).unflatten(1, (-1, self.norm.weight.shape[0])))
        return tokens


class FullProjection(nn.Module):
    """The full type: each of CLIP's patch features ``[B, N, E]`` through two layers and a norm becomes a token."""

    reads_patches = True

    def __init__(self, embedding: int, channels: int) -> None:
        super().__init__()
        self.width = embedding
        widen, norm = nn.Linear(embedding, channels), nn.LayerNorm(channels)
        self.proj = nn.Sequential(nn.Linear(embedding, embedding), nn.GELU(), widen, norm)

    def forward(self, features: Tensor) -> Tensor:
        """Patch features ``[B, N, E]`` to as many tokens ``[B, N, channels]``."""
        tokens: Tensor = self.proj(features)
        return tokens


class PerceiverAttention(nn.Module):
    """Learned queries attend to the picture's features and to themselves."""

    def __init__(self, width: int, inner: int) -> None:
        super().__init__()
        self.heads = max(1, inner // HEAD)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_q = nn.Linear(width, inner, bias=False)
        self.to_kv = nn.Linear(width, 2 * inner, bias=False)
        self.to_out = nn.Linear(inner, width, bias=False)

    def forward(self, features: Tensor, latents: Tensor) -> Tensor:
        """Features ``[B, N, width]`` read by latents ``[B, T, width]``; shaped like the latents."""
        features, latents = self.norm1(features), self.norm2(latents)
        key, value = self.to_kv(torch.cat([features, latents], 1)).chunk(2, 2)
        heads = [part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in (self.to_q(latents), key, value)]
        read: Tensor = self.to_out(scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2))
        return read


class Resampler(nn.Module):
    """The plus type: CLIP's patch features ``[B, N, E]``, read by learned queries, as tokens ``[B, T, channels]``."""

    reads_patches = True

    def __init__(
        self, embedding: int, tokens: int, width: int, inner: int, hidden: int, depth: int, channels: int
    ) -> None:
        super().__init__()
        self.width = embedding
        self.latents = nn.Parameter(torch.zeros(1, tokens, width))
        self.proj_in = nn.Linear(embedding, width)
        self.proj_out = nn.Linear(width, channels)
        self.norm_out = nn.LayerNorm(channels)
        self.layers = nn.ModuleList(
            nn.ModuleList([PerceiverAttention(width, inner), _feed_forward(width, hidden)]) for _ in range(depth)
        )

    def forward(self, features: Tensor) -> Tensor:
        """Patch features ``[B, N, E]`` to tokens ``[B, T, channels]``."""
        features = self.proj_in(features)
        latents: Tensor = self.latents.expand(len(features), -1, -1)
        for layer in self.layers:
            attention, feed_forward = layer.children()
            latents = latents + attention(features, latents)
            latents = latents + feed_forward(latents)
        tokens: Tensor = self.norm_out(self.proj_out(latents))
        return tokens


def _feed_forward(width: int, hidden: int) -> nn.Sequential:
    linear = nn.Linear(width, hidden, bias=False), nn.Linear(hidden, width, bias=False)
    return nn.Sequential(nn.LayerNorm(width), linear[0], nn.GELU(), linear[1])


def projection(tensors: Mapping[str, Tensor]) -> AnyProjection:
    """The projection whose weights these are; its sizes are read from their shapes."""
    with torch.device("meta"):
        module = _empty(tensors)
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)


def _empty(tensors: Mapping[str, Tensor]) -> AnyProjection:
    if "latents" in tensors:
        return _resampler(tensors)
    if "proj.3.weight" in tensors:
        channels, embedding = tensors["proj.2.weight"].shape
        return FullProjection(embedding, channels)
    return _projection(tensors)


def _projection(tensors: Mapping[str, Tensor]) -> Projection:
    rows, embedding = tensors["proj.weight"].shape
    channels = tensors["norm.weight"].shape[0]
    return Projection(embedding, rows // channels, channels)


def _resampler(tensors: Mapping[str, Tensor]) -> Resampler:
    _, tokens, width = tensors["latents"].shape
    depth = len({name.split(".")[1] for name in tensors if name.startswith("layers.")})
    inner, hidden = tensors["layers.0.0.to_q.weight"].shape[0], tensors["layers.0.1.1.weight"].shape[0]
    channels = tensors["proj_out.weight"].shape[0]
    return Resampler(tensors["proj_in.weight"].shape[1], tokens, width, inner, hidden, depth, channels)
