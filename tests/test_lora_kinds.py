"""Every kind of LoRA on single layers, against the weight computed by the kind's formula written out in numpy."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file
from torch.nn import functional

from claygraph.diffusion import lora
from claygraph.memory import Memory
from claygraph.values import Weights
from tests.loras import error, everywhere, weights

MEMORY = Memory("cpu", "float32")
Array = NDArray[np.float64]
Tensors = dict[str, torch.Tensor]
Formula = Callable[[Array, float], Array]
Kind = tuple[Tensors, Formula]
STRENGTHS = (0.7, 0.0, 1.0, -0.5)
OUT, IN, RANK = 6, 8, 3


def draw(seed: int, **shapes: tuple[int, ...]) -> Tensors:
    generator = torch.Generator().manual_seed(seed)
    return {name: torch.randn(shape, generator=generator, dtype=torch.float64) for name, shape in shapes.items()}


def arrays(tensors: Mapping[str, torch.Tensor]) -> dict[str, Array]:
    return {name: tensor.numpy() for name, tensor in tensors.items()}


def adding(tensors: Tensors, delta: Array) -> Kind:
    return tensors, lambda weight, s: weight + s * delta.reshape(weight.shape)


def lora_kind(kernel: tuple[int, ...], seed: int = 1) -> Kind:
    found = draw(seed, down=(RANK, IN, *kernel), up=(OUT, RANK, *(1 for _ in kernel)))
    down, up = (found[name].flatten(1).numpy() for name in ("down", "up"))
    tensors = {"lora_down.weight": found["down"], "lora_up.weight": found["up"], "alpha": torch.tensor(2.0)}
    return adding(tensors, 2.0 / RANK * np.array([np.outer(up[:, r], down[r]) for r in range(RANK)]).sum(0))


def locon_cp(kernel: tuple[int, ...]) -> Kind:
    found = draw(2, down=(RANK, IN, 1, 1), mid=(RANK, RANK, *kernel), up=(OUT, RANK, 1, 1))
    down, mid, up = (part.numpy() for part in found.values())
    delta = np.einsum("oa,abhw,bi->oihw", up[..., 0, 0], mid, down[..., 0, 0])
    tensors = {f"lora_{name}.weight": part for name, part in found.items()} | {"alpha": torch.tensor(6.0)}
    return adding(tensors, 6.0 / RANK * delta)


def loha(kernel: tuple[int, ...]) -> Kind:
    columns = IN * int(np.prod(kernel))
    found = draw(3, **{f"hada_w{n}_{ab}": shape for n in (1, 2) for ab, shape in _ab(OUT, columns)})
    w1, w2 = (found[f"hada_w{n}_a"].numpy() @ found[f"hada_w{n}_b"].numpy() for n in (1, 2))
    return adding(found | {"alpha": torch.tensor(1.5)}, 1.5 / RANK * w1 * w2)


def _ab(rows: int, columns: int) -> list[tuple[str, tuple[int, int]]]:
    return [("a", (rows, RANK)), ("b", (RANK, columns))]


def loha_cp(kernel: tuple[int, ...]) -> Kind:
    shapes: dict[str, tuple[int, ...]] = {}
    for n in (1, 2):
        shapes |= {f"hada_w{n}_a": (RANK, OUT), f"hada_w{n}_b": (RANK, IN), f"hada_t{n}": (RANK, RANK, *kernel)}
    found = draw(4, **shapes)
    a = arrays(found)
    parts = [np.zeros((OUT, IN, *kernel)), np.zeros((OUT, IN, *kernel))]
    for n, part in enumerate(parts, 1):
        for i in range(RANK):
            for j in range(RANK):
                outer = np.outer(a[f"hada_w{n}_a"][i], a[f"hada_w{n}_b"][j])[:, :, None, None]
                part += outer * a[f"hada_t{n}"][i, j]
    return adding(found, parts[0] * parts[1])


def lokr(first: bool, second: bool, core: bool = False) -> Callable[[tuple[int, ...]], Kind]:
    """LoKr with either factor a product, and the second through a Tucker core."""

    def kind(kernel: tuple[int, ...]) -> Kind:
        (o1, o2), (i1, i2) = (2, OUT // 2), (4, IN // 4)
        shapes: dict[str, tuple[int, ...]] = {"lokr_w1_a": (o1, 2), "lokr_w1_b": (2, i1)} if first else {}
        shapes |= {} if first else {"lokr_w1": (o1, i1)}
        if core:
            shapes |= {"lokr_w2_a": (RANK, o2), "lokr_w2_b": (RANK, i2), "lokr_t2": (RANK, RANK, *kernel)}
        elif second:
            shapes |= {"lokr_w2_a": (o2, RANK), "lokr_w2_b": (RANK, i2 * int(np.prod(kernel)))}
        else:
            shapes |= {"lokr_w2": (o2, i2, *kernel)}
        found = draw(5, **shapes) | {"alpha": torch.tensor(1.25)}
        a = arrays(found)
        w1 = a["lokr_w1_a"] @ a["lokr_w1_b"] if first else a["lokr_w1"]
        w2 = a["lokr_w2"] if "lokr_w2" in a else _second(a, core)
        w2 = w2.reshape(o2, i2, -1)
        delta = np.zeros((OUT, IN, w2.shape[2]))
        for o in range(OUT):
            for i in range(IN):
                delta[o, i] = w1[o // o2, i // i2] * w2[o % o2, i % i2]
        scale = 1.25 / (RANK if second or core else 2) if first or second or core else 1.0
        return adding(found, scale * delta)

    return kind


def _second(a: Mapping[str, Array], core: bool) -> Array:
    if not core:
        return a["lokr_w2_a"] @ a["lokr_w2_b"]
    product: Array = np.einsum("ip,ijhw,jr->prhw", a["lokr_w2_a"], a["lokr_t2"], a["lokr_w2_b"])
    return product


def difference(kernel: tuple[int, ...]) -> Kind:
    found = draw(6, diff=(OUT, IN, *kernel))
    return adding(found, found["diff"].numpy())


def dora(axis: str, inner: Callable[[tuple[int, ...]], Kind] = lora_kind) -> Callable[[tuple[int, ...]], Kind]:
    """DoRA on top of another kind; ``axis`` of dora_scale is ``out`` or ``in``; ``peft`` is its magnitude vector."""

    def kind(kernel: tuple[int, ...]) -> Kind:
        tensors, add = inner(kernel)
        rest = (1,) * len(kernel)
        shape = {"out": (OUT, 1, *rest), "in": (1, IN, *rest), "peft": (1, OUT, *rest) if kernel else (OUT,)}[axis]
        magnitude = draw(7, m=shape)["m"].abs() + 0.5
        name = "lora_magnitude_vector" if axis == "peft" else "dora_scale"
        m = magnitude.numpy().reshape((1, IN, *rest) if axis == "in" else (OUT, 1, *rest))

        def formula(weight: Array, s: float) -> Array:
            changed = add(weight, 1.0)
            axes = tuple(range(1, weight.ndim)) if axis != "in" else (0, *range(2, weight.ndim))
            norm = np.sqrt(((weight if axis == "out" else changed) ** 2).sum(axes, keepdims=True))
            eps = 0.0 if axis == "peft" else float(np.finfo(np.float64).eps)
            moved: Array = weight + s * (changed * m / (norm + eps) - weight)
            return moved

        return tensors | {name: magnitude}, formula

    return kind


def whole(kernel: tuple[int, ...]) -> Kind:
    found = draw(8, set_weight=(OUT, IN, *kernel))
    return found, lambda weight, s: found["set_weight"].numpy() if s else weight


LINEAR: dict[str, Callable[[tuple[int, ...]], Kind]] = {
    "lora": lora_kind,
    "loha": loha,
    "lokr whole": lokr(False, False),
    "lokr first": lokr(True, False),
    "lokr second": lokr(False, True),
    "lokr both": lokr(True, True),
    "difference": difference,
    "dora out": dora("out"),
    "dora in": dora("in"),
    "dora peft": dora("peft"),
    "dora out of loha": dora("out", loha),
    "dora in of lokr": dora("in", lokr(False, True)),
    "whole": whole,
}
CONV = LINEAR | {
    "locon cp": locon_cp,
    "loha cp": loha_cp,
    "lokr tucker": lokr(False, True, core=True),
    "lokr tucker both": lokr(True, True, core=True),
    "dora in of locon cp": dora("in", locon_cp),
}
CASES = [(kind, ()) for kind in LINEAR] + [(kind, (3, 3)) for kind in CONV] + [("lora", (1, 1)), ("dora in", (1, 1))]


def network(kernel: tuple[int, ...]) -> tuple[torch.nn.Module, Any, str]:
    """A net of one layer, the layer, and how kohya's files call it."""
    torch.manual_seed(0)
    if kernel:
        conv = torch.nn.Conv2d(IN, OUT, kernel[0], padding=kernel[0] // 2, stride=2)
        net: torch.nn.Module = torch.nn.ModuleDict({"conv_in": conv})
        return net.double().requires_grad_(False), conv, "lora_unet_input_blocks_0_0"
    linear = torch.nn.Linear(IN, OUT)
    net = torch.nn.ModuleDict({"time_embedding": torch.nn.ModuleDict({"linear_1": linear})})
    return net.double().requires_grad_(False), linear, "lora_unet_time_embed_0"


def written(path: Path, stem: str, tensors: Tensors) -> Weights:
    save_file({f"{stem}.{name}": tensor.clone() for name, tensor in tensors.items()}, path)
    return weights(path)


def through(layer: Any, weight: Array, x: torch.Tensor) -> torch.Tensor:
    """What the layer would make of one row with this weight."""
    if isinstance(layer, torch.nn.Linear):
        return functional.linear(x, torch.tensor(weight), layer.bias)
    return functional.conv2d(x[None], torch.tensor(weight), layer.bias, layer.stride, layer.padding)[0]


def inputs(kernel: tuple[int, ...]) -> torch.Tensor:
    return draw(9, x=(len(STRENGTHS), IN, 5, 5) if kernel else (len(STRENGTHS), 4, IN))["x"]


@pytest.mark.parametrize(("kind", "kernel"), CASES)
def test_a_batch_of_strengths_equals_the_formula_row_by_row(kind: str, kernel: tuple[int, ...], tmp_path: Path) -> None:
    tensors, formula = CONV[kind](kernel)
    net, layer, stem = network(kernel)
    before = layer(inputs(kernel))
    given = written(tmp_path / "x.safetensors", stem, tensors)
    assert lora.attach(net, "unet", given, MEMORY) == 1
    lora.set_strengths(net, [{given.digest: everywhere(s)} for s in STRENGTHS])
    found = layer(inputs(kernel))
    for row, s in enumerate(STRENGTHS):
        wanted = through(layer, formula(layer.weight.numpy(), s), inputs(kernel)[row])
        assert error(found[row], wanted) <= 1e-12
    assert torch.equal(found[1], before[1])
    assert error(found[2], before[2]) > 0.05


STACKS = {
    "additive before dora": ("lora", "dora out"),
    "loha before dora in": ("loha", "dora in"),
    "peft's after lora": ("lora", "dora peft", "difference"),
    "dora first": ("dora in", "lora", "loha"),
    "two doras": ("dora out", "lora", "dora in"),
    "whole in the middle": ("lora", "whole", "dora out", "loha"),
}


@pytest.mark.parametrize("stack", STACKS)
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_a_stack_is_applied_in_order(stack: str, kernel: tuple[int, ...], tmp_path: Path) -> None:
    net, layer, stem = network(kernel)
    kinds = [LINEAR[kind](kernel) for kind in STACKS[stack]]
    made = [written(tmp_path / f"{n}.safetensors", stem, tensors) for n, (tensors, _) in enumerate(kinds)]
    table = [(0.7, 0.3, 1.0, -0.4), (0.0, 1.0, 0.5, 0.2), (0.0, 0.0, 0.0, 0.0), (1.3, 0.0, 0.0, 1.0)]
    before = layer(inputs(kernel))
    for given in made:
        lora.attach(net, "unet", given, MEMORY)
    rows = [{given.digest: everywhere(s) for given, s in zip(made, row, strict=False)} for row in table]
    lora.set_strengths(net, rows)
    found = layer(inputs(kernel))
    for number, row in enumerate(table):
        weight = layer.weight.numpy()
        for (_, formula), s in zip(kinds, row, strict=False):
            weight = formula(weight, s)
        assert error(found[number], through(layer, weight, inputs(kernel)[number])) <= 1e-12
    assert torch.equal(found[2], before[2])


ORDERS = {
    "a dora before and after": ("loha", "dora in"),
    "two doras": ("dora out", "dora peft"),
    "a whole weight": ("whole", "lora"),
    "additive ones": ("lora", "loha", "difference"),
    "all at once": ("lora", "dora out", "whole", "loha", "dora in"),
}


@pytest.mark.parametrize("kinds", ORDERS)
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_rows_with_stacks_in_other_orders_share_a_batch(kinds: str, kernel: tuple[int, ...], tmp_path: Path) -> None:
    net, layer, stem = network(kernel)
    made = [LINEAR[kind](kernel) for kind in ORDERS[kinds]]
    given = [written(tmp_path / f"{n}.safetensors", stem, tensors) for n, (tensors, _) in enumerate(made)]
    for each in given:
        lora.attach(net, "unet", each, MEMORY)
    forth = [(number, 0.3 + 0.4 * number) for number in range(len(made))]
    stacks = [forth, [], forth[::-1], forth[:1], [(number, 0.0 if number else 0.8) for number, _ in forth[::-1]]]
    x = draw(9, x=(len(stacks), IN, 5, 5) if kernel else (len(stacks), 4, IN))["x"]
    before = layer(x)
    lora.set_strengths(net, [{given[number].digest: everywhere(s) for number, s in stack} for stack in stacks])
    found = layer(x)
    for row, stack in enumerate(stacks):
        weight = layer.weight.numpy()
        for number, s in stack:
            weight = made[number][1](weight, s)
        assert error(found[row], through(layer, weight, x[row])) <= 1e-12
    assert torch.equal(found[1], before[1])


def test_the_order_of_a_stack_matters_to_a_dora() -> None:
    weight = draw(0, w=(OUT, IN))["w"].numpy()
    first, second = LINEAR["loha"](())[1], LINEAR["dora in"](())[1]
    assert np.abs(first(second(weight, 1.0), 1.0) - second(first(weight, 1.0), 1.0)).max() > 0.1


@pytest.mark.parametrize("name", ["diff_b", "b_norm"])
@pytest.mark.parametrize("kernel", [(), (3, 3)])
def test_a_bias_is_moved_beside_a_dora(name: str, kernel: tuple[int, ...], tmp_path: Path) -> None:
    net, layer, stem = network(kernel)
    bias, (tensors, formula) = draw(3, b=(OUT,))["b"], LINEAR["dora out"](kernel)
    given = written(tmp_path / "x.safetensors", stem, {**tensors, name: bias})
    lora.attach(net, "unet", given, MEMORY)
    lora.set_strengths(net, [{given.digest: everywhere(s)} for s in STRENGTHS])
    found = layer(inputs(kernel))
    for row, s in enumerate(STRENGTHS):
        wanted = through(layer, formula(layer.weight.numpy(), s), inputs(kernel)[row])
        moved = bias.view(-1, 1, 1) if kernel else bias
        assert error(found[row], wanted + s * moved) <= 1e-12


@pytest.mark.parametrize("names", [("w_norm", "b_norm"), ("diff", "diff_b")])
@pytest.mark.parametrize("grouped", [True, False])
def test_norms_take_differences(names: tuple[str, str], grouped: bool, tmp_path: Path) -> None:
    norm: Any = torch.nn.GroupNorm(2, IN) if grouped else torch.nn.LayerNorm(IN)
    net = torch.nn.ModuleDict({"conv_norm_out": norm}).double().requires_grad_(False)
    found, x = draw(4, w=(IN,), b=(IN,)), draw(5, x=(2, IN, 3, 3) if grouped else (2, 5, IN))["x"]
    tensors = dict(zip(names, found.values(), strict=True))
    given = written(tmp_path / "x.safetensors", "lora_unet_out_0", tensors)
    lora.attach(net, "unet", given, MEMORY)
    lora.set_strengths(net, [{given.digest: everywhere(0.3)}, {}])
    result, plain = norm(x), norm.forward(x)
    changed = norm.weight + 0.3 * found["w"], norm.bias + 0.3 * found["b"]
    if grouped:
        wanted = functional.group_norm(x, 2, *changed, norm.eps)
    else:
        wanted = functional.layer_norm(x, (IN,), *changed, norm.eps)
    assert error(result[0], wanted[0]) <= 1e-12
    assert torch.equal(result[1], plain[1])
