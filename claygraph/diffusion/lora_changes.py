"""What LoRA files do to a weight, by formula: each kind of change as a map added to a layer's output.

Formulas: LoRA (arXiv 2106.09685), LoHa and LoKr (LyCORIS, arXiv 2309.14859; LoHa first in FedPara, arXiv 2108.06098),
DoRA (arXiv 2402.09353). Alphas count as in kohya's and ComfyUI's loaders: alpha / rank, 1 where there is none.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn import functional

Layer = torch.nn.Linear | torch.nn.Conv2d | torch.nn.GroupNorm | torch.nn.LayerNorm
Found = Mapping[str, Tensor]


def apply(layer: Layer, x: Tensor, weight: Tensor) -> Tensor:
    """What the layer would make of ``x`` with this weight and no bias."""
    if isinstance(layer, torch.nn.Linear):
        return functional.linear(x, weight)
    if isinstance(layer, torch.nn.Conv2d):
        return functional.conv2d(x, weight, None, layer.stride, layer.padding, layer.dilation)
    if isinstance(layer, torch.nn.LayerNorm):
        return functional.layer_norm(x, layer.normalized_shape, weight, None, layer.eps)
    return functional.group_norm(x, layer.num_groups, weight, None, layer.eps)


def per_row(strength: Tensor, like: Tensor) -> Tensor:
    """Strengths ``[rows]`` with as many axes as ``like``."""
    return strength.view(-1, *(1 for _ in like.shape[1:]))


def channels(vector: Tensor, layer: Layer) -> Tensor:
    """A vector of output or input channels, shaped to multiply what flows through the layer."""
    return vector if isinstance(layer, torch.nn.Linear | torch.nn.LayerNorm) else vector[:, None, None]


class Change(torch.nn.Module):
    """A change of one weight. ``relative`` ones depend on the weight as it was changed before them.

    ``rank`` is how many products are added up for each number of the changed weight.
    """

    relative = False
    rank = 1

    @property
    def numbers(self) -> int:
        """How many numbers make the change, each of which is multiplied once at every position."""
        return sum(each.numel() for each in self.parameters())

    def keep(self, **tensors: Tensor) -> None:
        """Hold tensors as parameters that are never trained."""
        for name, tensor in tensors.items():
            self.register_parameter(name, torch.nn.Parameter(tensor.contiguous(), requires_grad=False))

    def add(self, layer: Layer, x: Tensor, output: Tensor, strength: Tensor) -> Tensor:
        """The output for a batch whose rows have these strengths ``[rows]``; a row of strength 0 is left as it was."""
        return output + per_row(strength, output) * self.of(layer, x)

    def of(self, layer: Layer, x: Tensor) -> Tensor:
        """The change of the output at strength 1, for changes that only add."""
        raise NotImplementedError

    def merged(self, weight: Tensor, strength: float) -> Tensor:
        """The weight with the change in it: what ``add`` must agree with."""
        raise NotImplementedError


class LowRank(Change):
    """``W + s up down``; for a convolution ``down`` is a kernel and ``up`` a 1x1 kernel."""

    down: Tensor
    up: Tensor

    def __init__(self, down: Tensor, up: Tensor) -> None:
        super().__init__()
        self.keep(down=down, up=up)
        self.rank = len(down)

    def add(self, layer: Layer, x: Tensor, output: Tensor, strength: Tensor) -> Tensor:
        inner = apply(layer, x, self.down)
        return output + self._up(inner * per_row(strength, inner))

    def of(self, layer: Layer, x: Tensor) -> Tensor:
        return self._up(apply(layer, x, self.down))

    def _up(self, inner: Tensor) -> Tensor:
        return functional.linear(inner, self.up) if self.up.ndim == 2 else functional.conv2d(inner, self.up)

    def merged(self, weight: Tensor, strength: float) -> Tensor:
        up, down = (part.to(weight.dtype).flatten(1) for part in (self.up, self.down))
        return weight + strength * (up @ down).reshape(weight.shape)


class Dense(Change):
    """``W + s D`` with ``D`` of the weight's shape."""

    delta: Tensor

    def __init__(self, delta: Tensor) -> None:
        super().__init__()
        self.keep(delta=delta)

    def of(self, layer: Layer, x: Tensor) -> Tensor:
        return apply(layer, x, self.delta)

    def merged(self, weight: Tensor, strength: float) -> Tensor:
        return weight + strength * self.delta.to(weight.dtype)


class Whole(Change):
    """Another weight instead, whatever the strength, unless that is 0."""

    relative = True
    weight: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.keep(weight=weight)

    def add(self, layer: Layer, x: Tensor, output: Tensor, strength: Tensor) -> Tensor:
        return torch.where(per_row(strength, output) == 0, output, with_bias(layer, apply(layer, x, self.weight)))

    def merged(self, weight: Tensor, strength: float) -> Tensor:
        return self.weight.to(weight.dtype) if strength else weight


class Decomposed(Change):
    """DoRA: ``V = W + D``, ``V`` times ``magnitude / norm`` along one axis, and ``s`` of the way from ``W`` to that.

    ``inner`` makes D. The norm is, for LyCORIS' ``dora_scale``, that of W along output rows (as ComfyUI computes it) or
    of V along input columns, plus the dtype's epsilon; for peft's magnitude vector that of V along output rows. ``add``
    is exact where ``weight`` is the one the layer has, that is where no other change comes before.
    """

    relative = True
    magnitude: Tensor
    gain: Tensor

    def __init__(self, inner: Change, magnitude: Tensor, weight: Tensor, peft: bool) -> None:
        super().__init__()
        self.inner, self.peft, self.rank = inner, peft, inner.rank + 1
        self.rows = peft or magnitude.shape[0] == weight.shape[0]
        self.keep(magnitude=magnitude.flatten())
        wide = weight.to(torch.promote_types(weight.dtype, torch.float32))
        self.keep(gain=(self._gain(wide) - 1).to(weight.dtype))  # less 1, which a half float holds more exactly

    def _gain(self, weight: Tensor) -> Tensor:
        """magnitude / norm, ``[outputs]`` or ``[inputs]``."""
        changed = self.inner.merged(weight, 1.0)
        normed = weight if self.rows and not self.peft else changed
        norm = (normed if self.rows else normed.transpose(0, 1)).flatten(1).norm(dim=1)
        gain: Tensor = self.magnitude.to(weight.dtype) / (norm + (0 if self.peft else torch.finfo(weight.dtype).eps))
        return gain

    def add(self, layer: Layer, x: Tensor, output: Tensor, strength: Tensor) -> Tensor:
        more = channels(self.gain, layer)
        if self.rows:
            change = more * with_bias(layer, output, -1) + (1 + more) * self.inner.of(layer, x)
        else:
            change = apply(layer, x * more, layer.weight) + self.inner.of(layer, x * (1 + more))
        return output + per_row(strength, output) * change

    def merged(self, weight: Tensor, strength: float) -> Tensor:
        gain, rest = self._gain(weight), (1 for _ in weight.shape[2:])
        shaped = gain.view(-1, 1, *rest) if self.rows else gain.view(1, -1, *rest)
        return weight + strength * (shaped * self.inner.merged(weight, 1.0) - weight)


def with_bias(layer: Layer, output: Tensor, sign: int = 1) -> Tensor:
    """The output plus (or, for ``sign`` -1, less) the layer's bias, where it has one."""
    return output if layer.bias is None else output + sign * channels(layer.bias, layer)


def make(found: Found, scale: float, layer: Layer) -> Change | None:
    """The change that a file's tensors make to a layer's weight; None where they change its bias alone.

    ``scale`` is alpha / rank. Everything is computed in float32 or wider and kept in the weight's dtype.
    """
    weight, wide = layer.weight, torch.promote_types(layer.weight.dtype, torch.float32)
    tensors = {role: tensor.to(wide) for role, tensor in found.items()}
    change = _additive(tensors, scale, layer)
    magnitude = tensors.get("dora_scale", tensors.get("magnitude"))
    if change is None and "set" in tensors:
        return Whole(tensors["set"].reshape(weight.shape).to(weight.dtype))
    return (
        change if magnitude is None or change is None else Decomposed(change, magnitude, weight, "magnitude" in found)
    )


def _additive(found: Found, scale: float, layer: Layer) -> Change | None:
    weight = layer.weight
    if "down" in found:
        down, up = _pair(found, scale, layer)
        return LowRank(down.to(weight.dtype), up.to(weight.dtype))
    delta = _loha(found) if "hada_w1_a" in found else _lokr(found) if _is_lokr(found) else found.get("diff")
    return None if delta is None else Dense((scale * delta).reshape(weight.shape).to(weight.dtype))


def _pair(found: Found, scale: float, layer: Layer) -> tuple[Tensor, Tensor]:
    """``down`` and scaled ``up`` as matrices for a linear layer, as kernels for a convolution, however stored."""
    down, up = found["down"], scale * found["up"].flatten(1)
    if "mid" in found:
        down = torch.einsum("orhw,ri->oihw", found["mid"], down.flatten(1))
    if up.shape[1] != len(down):
        raise ValueError(f"the rank of one half is {up.shape[1]}, of the other {len(down)}")
    if isinstance(layer, torch.nn.Conv2d):
        return down.reshape(len(down), *layer.weight.shape[1:]), up[:, :, None, None]
    return down.flatten(1), up


def _loha(found: Found) -> Tensor:
    return _factor(found, "hada", 1) * _factor(found, "hada", 2)


def _is_lokr(found: Found) -> bool:
    return any(role.startswith("lokr") for role in found)


def _lokr(found: Found) -> Tensor:
    first, second = _factor(found, "lokr", 1), _factor(found, "lokr", 2)
    first = first[:, :, None, None] if second.ndim == 4 else first
    return torch.kron(first.contiguous(), second.contiguous())


def _factor(found: Found, kind: str, number: int) -> Tensor:
    """One of LoHa's or LoKr's two factors: whole, a product, or a product through a core (CP, Tucker)."""
    stem = f"{kind}_w{number}"
    if stem in found:
        return found[stem]
    first, second, core = found[f"{stem}_a"], found[f"{stem}_b"], found.get(f"{kind}_t{number}")
    return first @ second if core is None else torch.einsum("ijkl,jr,ip->prkl", core, second, first)
