"""Which rows of a batch attend to which image tokens in a block, and how strongly: all of it is data."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import interpolate, scaled_dot_product_attention

from claygraph.diffusion.compiled import padded
from claygraph.diffusion.kept import same
from claygraph.diffusion.weight_types import factors

if TYPE_CHECKING:
    from claygraph.diffusion.rows import Row
    from claygraph.memory import Memory
    from claygraph.values import Floats, ImagePrompt, Weights


def attend(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    """Multi-head attention over ``[B, N, width]``."""
    split = (part.unflatten(2, (heads, -1)).transpose(1, 2) for part in (query, key, value))
    return scaled_dot_product_attention(*split).transpose(1, 2).flatten(2)


class Listener(NamedTuple):
    """A row, by its number in the batch, and an image prompt in whose window its sigma lies."""

    row: int
    negative: bool
    prompt: ImagePrompt

    def tokens(self, block: int) -> Floats | None:
        """What the row attends to in a block; None where it is left out."""
        if not self.prompt.scales[block]:
            return None
        if block in self.prompt.swapped:
            return self.prompt.tokens if self.negative else None
        return self.prompt.negative if self.negative else self.prompt.tokens


class Strength(NamedTuple):
    """Factors ``[E, 1, 1]`` of the keys, of the values' mean over the tokens (None: all are 1) and of the output."""

    key: Tensor | None
    mean: Tensor | None
    output: Tensor

    def scaled(self, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
        """Keys and values ``[E, T, width]`` with the factors applied."""
        key = key if self.key is None else key * self.key
        return key, value if self.mean is None else value + value.mean(1, keepdim=True) * (self.mean - 1)


@dataclass
class Masks:
    """The masks of some listeners (None: everywhere), for latents of a size, shaped for tensors like ``like``."""

    masks: Sequence[Floats | None]
    latent: tuple[int, int]
    like: Tensor
    _fitted: dict[int, Tensor] = field(default_factory=dict)

    def at(self, count: int) -> Tensor:
        """The masks ``[E, count, 1]`` where a layer has that many positions."""
        if count not in self._fitted:
            shape = grid(*self.latent, count)
            once = {id(mask): _fit(mask, shape) for mask in self.masks}
            self._fitted[count] = torch.stack([once[id(mask)] for mask in self.masks])[:, :, None].to(self.like)
        return self._fitted[count]


def _fit(mask: Floats | None, shape: tuple[int, int]) -> Tensor:
    if mask is None:
        return torch.ones(shape).flatten()
    return interpolate(torch.tensor(mask)[None, None], shape, mode="bilinear").flatten()


def grid(height: int, width: int, count: int) -> tuple[int, int]:
    """Height and width of the level of a UNet, each half the one before rounded up, that has ``count`` positions."""
    while height * width > count:
        height, width = (height + 1) // 2, (width + 1) // 2
    return height, width


class Group(NamedTuple):
    """Listeners to one adapter with equally many tokens ``[E, T, channels]``.

    ``rows`` says which row of the batch each of them is, None that they are all of them in order.
    """

    adapter: Weights
    tokens: Tensor
    rows: Tensor | None
    strength: Strength
    masks: Masks | None

    def add(self, out: Tensor, query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
        """``out`` and ``query`` are ``[R, N, width]``, keys and values of the tokens, scaled, ``[E, T, width]``."""
        asked = query if self.rows is None else query[self.rows]
        heard = attend(asked, key, value, heads) * self.strength.output
        if self.masks is not None:
            heard = heard * self.masks.at(query.shape[1])
        return out + heard if self.rows is None else out.index_add(0, self.rows, heard)


@dataclass
class Listeners:
    """The listeners of a batch, put together by block and by how wide its layers are."""

    rows: Sequence[Row]
    memory: Memory
    _made: dict[Hashable, list[Group]] = field(default_factory=dict)
    _stacks: dict[Hashable, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._all = [
            Listener(number, row.negative, prompt)
            for number, row in enumerate(self.rows)
            for prompt in row.model.image_prompts
            if row.active(prompt)
        ]

    @property
    def key(self) -> Hashable:
        """What the groups depend on: which row attends to what, and the latent's size."""
        prompts = same(listener.prompt for listener in self._all)
        places = [(listener.row, listener.negative) for listener in self._all]
        return prompts, tuple(places), len(self.rows), self.rows[0].call.x.shape

    def at(self, block: int, width: int) -> list[Group]:
        """The groups that attend in a block whose layers are so wide."""
        if (block, width) not in self._made:
            self._made[block, width] = self._groups(block, width)
        return self._made[block, width]

    def _groups(self, block: int, width: int) -> list[Group]:
        alike = defaultdict(list)
        for listener in self._all:
            if (tokens := listener.tokens(block)) is not None:
                alike[listener.prompt.adapter, tokens.shape].append((listener, tokens))
        return [self._group(block, width, *zip(*some, strict=True)) for some in alike.values()]

    def _group(self, block: int, width: int, some: Sequence[Listener], tokens: Sequence[Floats]) -> Group:
        count, fixed = len(some), self.memory.compile
        some, tokens = (padded(some), padded(tokens)) if fixed else (some, tokens)
        numbers = [listener.row for listener in some]
        everyone = numbers == list(range(len(self.rows))) and not fixed
        stack = self._stack(tokens)
        strengths = [factors(each.prompt.scaling, each.prompt.scales[block], width) for each in some]
        strengths[count:] = [(*each[:2], 0.0) for each in strengths[count:]]
        return Group(
            some[0].prompt.adapter,
            stack,
            None if everyone else torch.tensor(numbers, device=self.memory.device),
            _strength(strengths, stack),
            self._masks([each.prompt.mask for each in some], stack),
        )

    def _stack(self, tokens: Sequence[Floats]) -> Tensor:
        """Tokens on the device, put there once for all blocks that want the same."""
        key = tuple(map(id, tokens))
        if key not in self._stacks:
            stacked = torch.stack([torch.tensor(each) for each in tokens])
            self._stacks[key] = stacked.to(self.memory.device, self.memory.dtype)
        return self._stacks[key]

    def _masks(self, masks: Sequence[Floats | None], like: Tensor) -> Masks | None:
        height, width = self.rows[0].call.x.shape[2:]
        return None if all(mask is None for mask in masks) else Masks(masks, (height, width), like)


def _strength(each: Sequence[tuple[float, float, float]], like: Tensor) -> Strength:
    key, mean, output = ([numbers[place] for numbers in each] for place in range(3))
    return Strength(_unless_one(key, like), _unless_one(mean, like), like.new_tensor(output)[:, None, None])


def _unless_one(numbers: Sequence[float], like: Tensor) -> Tensor | None:
    return None if all(number == 1 for number in numbers) else like.new_tensor(numbers)[:, None, None]
