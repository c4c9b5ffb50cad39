"""A network over parts of a large picture, blended where they overlap: ComfyUI's tiled VAE."""

from __future__ import annotations

from collections.abc import Callable
from itertools import product

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]


def in_tiles(network: Network, x: Tensor, tile: int, overlap: int, scale: float) -> Tensor:
    """``network`` of ``x`` ``[B, C, H, W]`` from tiles of ``tile``: the mean of square, wide and high ones.

    ``tile`` and ``overlap`` count places of ``x``, ``scale`` is places of the result for each of them.
    """
    shapes = ((tile * 2, tile // 2), (tile // 2, tile * 2), (tile, tile))
    first, second, third = (_blended(network, x, shape, overlap, scale) for shape in shapes)
    return (first + second + third) / 3


def _blended(network: Network, x: Tensor, tile: tuple[int, int], overlap: int, scale: float) -> Tensor:
    """Tiles of one shape (height, width), each weighted by how far its places are from its edges."""
    total = torch.zeros(1, 1, *(round(side * scale) for side in x.shape[2:]), device=x.device)
    weight = total.clone()
    for (top, high), (left, wide) in product(*(_spans(*each, overlap) for each in zip(x.shape[2:], tile, strict=True))):
        part = network(x[:, :, top : top + high, left : left + wide])
        share = torch.outer(*(_ramp(side, round(overlap * scale)) for side in part.shape[2:])).to(part)
        total = total if total.shape[:2] == part.shape[:2] else total.repeat(*part.shape[:2], 1, 1)
        starts = (round(at * scale) for at in (top, left))
        rows, columns = (slice(at, at + side) for at, side in zip(starts, part.shape[2:], strict=True))
        total[:, :, rows, columns] += part * share
        weight[:, :, rows, columns] += share
    return total / weight


def _spans(side: int, tile: int, overlap: int) -> list[tuple[int, int]]:
    """Start and length of the tiles along one side."""
    starts = range(0, side - overlap, tile - overlap) if side > tile else [0]
    return [(start, min(tile, side - start)) for start in starts]


def _ramp(side: int, feather: int) -> Tensor:
    """Weights that rise over ``feather`` places at both ends; none of a tile that is no longer than that."""
    if not 0 < feather < side:
        return torch.ones(side)
    rise = (torch.arange(side) + 1) / feather
    return rise.clamp(max=1) * rise.flip(0).clamp(max=1)
