"""ControlNet: what a hint picture adds to the UNet's skip connections and middle (arXiv 2302.05543).

Strengths, windows, layer weights and masks are data: rows that differ in them share one forward pass, and so do rows
with different ControlNets or none, each network being asked about the rows it acts on and no others.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from claygraph.diffusion.alike import distinct
from claygraph.diffusion.compiled import fast, padded
from claygraph.diffusion.controlnet_files import Network, load
from claygraph.diffusion.keyframes import in_force, layer_factors, passed_by
from claygraph.diffusion.prediction import table_of
from claygraph.values import LayerWeights

if TYPE_CHECKING:
    from claygraph.diffusion.rows import Row
    from claygraph.memory import Memory
    from claygraph.values import Bytes, Control, Image, Weights

PIXELS_PER_LATENT = 8
Prepare = Callable[[Sequence["Row"]], None]


@dataclass(frozen=True, eq=False)
class Use:
    """A control that acts on a row: where the row stands in the batch, how much the control counts, and by layer."""

    place: int
    row: Row
    control: Control
    strength: float
    layers: LayerWeights


def residuals(
    unet: Any, rows: Sequence[Row], inputs: dict[str, Any], memory: Memory, prepare: Prepare
) -> dict[str, Any]:
    """The UNet's extra arguments: the sum of what all controls add, or nothing where none acts.

    ``inputs`` are the arguments that ControlNets and the UNet share; ``prepare`` readies the UNet's own layers, which a
    Control-LoRA borrows, for a batch of these rows.
    """
    total: list[Tensor] = []
    for (weights, _), uses in sorted(_uses(rows).items(), key=lambda item: (item[0][0].digest, item[0][1])):
        added = _spread(_added(load(weights, unet, memory), uses, inputs, memory, prepare), uses, len(rows))
        total = [a + b for a, b in zip(total, added, strict=True)] if total else added
    if not total:
        return {}
    return {"down_block_additional_residuals": tuple(total[:-1]), "mid_block_additional_residual": total[-1]}


def _uses(rows: Sequence[Row]) -> Mapping[tuple[Weights, int], list[Use]]:
    """What acts, by network; a network that acts twice on a row is asked twice."""
    found: dict[tuple[Weights, int], list[Use]] = defaultdict(list)
    for place, row in enumerate(rows):
        seen: Counter[Weights] = Counter()
        for control in row.model.controls:
            strength, layers = _strength(row, control)
            if strength:
                found[control.weights, seen[control.weights]].append(Use(place, row, control, strength, layers))
                seen[control.weights] += 1
    return found


def _strength(row: Row, control: Control) -> tuple[float, LayerWeights]:
    """How much a control counts in a row at its sigma, 0 outside the control's window, and the layer weights then."""
    passed = passed_by(row.call.sigma, row.call.sigmas)
    keyframe, layers = in_force(control, passed, table_of(row.model.checkpoint))
    half = layers.uncond if row.negative else 1.0
    return control.strength * keyframe * half * row.active(control), layers


def _added(
    network: Network, uses: Sequence[Use], inputs: dict[str, Any], memory: Memory, prepare: Prepare
) -> list[Tensor]:
    """What the network adds to the rows it acts on, weighed; the middle last."""
    parts = _answers(network, uses, inputs, memory, prepare)
    factors = [[use.strength * factor for factor in layer_factors(use.layers, len(parts) - 1)] for use in uses]
    columns = torch.tensor(factors).to(parts[0]).T[:, :, None, None, None]
    size = inputs["sample"].shape[2:]
    return [part * column * _masks(network, uses, part, size) for part, column in zip(parts, columns, strict=True)]


def _answers(
    network: Network, uses: Sequence[Use], inputs: dict[str, Any], memory: Memory, prepare: Prepare
) -> list[Tensor]:
    """What the network says of each row, the middle last. It is asked once about rows that differ in strength alone."""
    asked, places = distinct(
        uses, lambda use: use.row, lambda use: (id(use.control.hint), network.borrows and id(use.row))
    )
    count, asked = len(asked), padded(asked) if memory.compile else asked
    if network.borrows:
        prepare([use.row for use in asked])
    rows = [use.place for use in asked]
    everyone = rows == list(range(len(inputs["sample"])))
    own = inputs if everyone else _rows_of(inputs, torch.tensor(rows, device=inputs["sample"].device))
    hints = torch.cat([_embedded(network, use.control.hint, own["sample"]) for use in asked])
    down, middle = fast(network.model, memory)(**own, controlnet_cond=hints, return_dict=False)
    return [part[:count] if count == len(uses) else part[places] for part in (*down, middle)]


def _rows_of(value: Any, places: Tensor) -> Any:
    """The rows at these places of a batched tensor, or of every tensor in a dictionary."""
    return {k: _rows_of(v, places) for k, v in value.items()} if isinstance(value, dict) else value[places]


def _spread(parts: list[Tensor], uses: Sequence[Use], count: int) -> list[Tensor]:
    """The parts at the places of their rows among ``count``, zeros elsewhere."""
    if len(uses) == count:
        return parts
    places = torch.tensor([use.place for use in uses], device=parts[0].device)
    return [part.new_zeros(count, *part.shape[1:]).index_copy(0, places, part) for part in parts]


def _embedded(network: Network, hint: Image, sample: Tensor) -> Tensor:
    """The hint as the network's first layers see it, ``[1, channels, h, w]``: the same at every step, so kept."""
    kept = network.hints.setdefault(hint, {})
    size = (int(sample.shape[2]), int(sample.shape[3]))
    if size not in kept:
        height, width = (network.stride * side for side in size)
        picture = fit(hint.pixels, height, width).to(sample)[None]
        kept[size] = network.embedding(picture.flip(1) if network.bgr else picture)
    return kept[size].to(sample)


def fit(pixels: Bytes, height: int, width: int) -> Tensor:
    """uint8 ``[H, W, 3]`` as float32 ``[3, height, width]`` in 0..1: the middle of that aspect, nearest pixels."""
    picture = torch.tensor(pixels).permute(2, 0, 1)
    high, wide = picture.shape[1:]
    top = round((high - wide * height / width) / 2) if high * width > wide * height else 0
    left = round((wide - high * width / height) / 2) if high * width < wide * height else 0
    middle = picture[None, :, top : high - top, left : wide - left].float() / 255
    return interpolate(middle, (height, width), mode="nearest-exact")[0]


def _masks(network: Network, uses: Sequence[Use], part: Tensor, latent: torch.Size) -> Tensor | float:
    """Where the controls count in a residual, ``[uses, 1, h, w]``; 1 where no control has a mask."""
    if not any(use.control.mask for use in uses):
        return 1.0
    size = (int(part.shape[2]), int(part.shape[3]))
    whole = torch.ones(1, 1, *size)
    masks = [_mask(network, use.control.mask, size, latent) if use.control.mask else whole for use in uses]
    return torch.cat(masks).to(part)


def _mask(network: Network, mask: Image, size: tuple[int, int], latent: torch.Size) -> Tensor:
    """The mask shrunk, kept for all steps as hints are."""
    kept = network.masks.setdefault(mask, {})
    if (size, latent) not in kept:
        kept[size, latent] = shrunk(mask, size, latent)
    return kept[size, latent]


def shrunk(mask: Image, size: tuple[int, int], latent: Sequence[int]) -> Tensor:
    """A mask's red channel as float32 ``[1, 1, h, w]`` in 0..1: bilinear to eight pixels a latent pixel, then again."""
    red = torch.tensor(mask.pixels[:, :, 0])[None, None].float() / 255
    full = interpolate(red, [PIXELS_PER_LATENT * side for side in latent], mode="bilinear")
    return interpolate(full, size, mode="bilinear")
