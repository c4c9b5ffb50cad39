"""Two small taggers with WD14's input: MOAT (inverted-bottleneck convolutions, then attention) and a plain ViT."""

from __future__ import annotations

import torch
from torch import nn

SIDE = 96
"""Input side in pixels."""


class Tagger(nn.Module):
    """Wraps a trunk: [N,96,96,3] BGR in 0..255 to tag probabilities [N,tags]; `logits` stops before the sigmoid."""

    def __init__(self, trunk: nn.Module, width: int, tags: int) -> None:
        super().__init__()
        self.trunk, self.head = trunk, nn.Sequential(nn.LayerNorm(width), nn.Linear(width, tags))

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        """[N,tags] before the sigmoid."""
        rgb = pictures.permute(0, 3, 1, 2).flip(1) / 127.5 - 1
        out: torch.Tensor = self.head(self.trunk(rgb).mean(1))
        return out

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """[N,tags] probabilities."""
        return torch.sigmoid(self.logits(pictures))


class Attention(nn.Module):
    """Pre-norm self-attention over tokens [N,T,d] with a residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm, self.qkv, self.out = nn.LayerNorm(width), nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Same shape as x."""
        tokens, width = x.shape[1:]
        parts = self.qkv(self.norm(x)).reshape(-1, tokens, 3, self.heads, width // self.heads)
        q, k, v = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = (q @ k.transpose(-1, -2) * (width // self.heads) ** -0.5).softmax(-1) @ v
        out: torch.Tensor = x + self.out(mixed.transpose(1, 2).reshape(-1, tokens, width))
        return out


class InvertedBottleneck(nn.Module):
    """MBConv: widen, depth-wise 3x3 (stride 1 or 2), narrow; a residual where the shape allows."""

    def __init__(self, into: int, width: int, stride: int) -> None:
        super().__init__()
        hidden = 3 * into
        self.keeps = stride == 1 and into == width
        self.body = nn.Sequential(
            nn.GroupNorm(1, into),
            nn.Conv2d(into, hidden, 1, bias=False),
            nn.GroupNorm(1, hidden),
            nn.GELU(),
            nn.Conv2d(hidden, hidden, 3, stride, 1, groups=hidden, bias=False),
            nn.GroupNorm(1, hidden),
            nn.GELU(),
            nn.Conv2d(hidden, width, 1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N,into,H,W] to [N,width,H/stride,W/stride]."""
        out: torch.Tensor = self.body(x)
        return x + out if self.keeps else out


class MoatBlock(nn.Module):
    """MBConv followed by attention, without an MLP."""

    def __init__(self, into: int, width: int, stride: int) -> None:
        super().__init__()
        self.conv, self.attention = InvertedBottleneck(into, width, stride), Attention(width, width // 32)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[N,into,H,W] to [N,width,H/stride,W/stride]."""
        x = self.conv(x)
        mixed: torch.Tensor = self.attention(x.flatten(2).transpose(1, 2))
        return mixed.transpose(1, 2).reshape(-1, *x.shape[1:])


class _Tokens(nn.Module):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.flatten(2).transpose(1, 2)


class _VitTrunk(nn.Module):
    def __init__(self, width: int, layers: int) -> None:
        super().__init__()
        self.patch = nn.Conv2d(3, width, 8, 8)
        self.place = nn.Parameter(torch.randn(1, (SIDE // 8) ** 2, width) * 0.02)
        self.blocks = nn.Sequential(*(nn.Sequential(Attention(width, 3), _Mlp(width)) for _ in range(layers)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.blocks(self.patch(x).flatten(2).transpose(1, 2) + self.place)
        return out


class _Mlp(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        hidden = 3 * width
        self.body = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = x + self.body(x)
        return out


def make_tagger(name: str, tags: int) -> Tagger:
    """`moat` (0.4 M parameters) or `vit` (0.5 M)."""
    if name == "vit":
        return Tagger(_VitTrunk(96, 5), 96, tags)
    stem = (nn.Conv2d(3, 24, 3, 2, 1), nn.GroupNorm(1, 24), nn.GELU(), nn.Conv2d(24, 32, 3, 2, 1))
    convs = (InvertedBottleneck(32, 32, 1), InvertedBottleneck(32, 64, 2), InvertedBottleneck(64, 64, 1))
    trunk = nn.Sequential(*stem, *convs, MoatBlock(64, 96, 2), MoatBlock(96, 96, 1), MoatBlock(96, 96, 1), _Tokens())
    return Tagger(trunk, 96, tags)
