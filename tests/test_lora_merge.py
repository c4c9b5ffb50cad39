"""LoRAs merged into the weights: the same numbers as beside them, the weights back bit for bit, and when it is done."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from claygraph.diffusion import lora, lora_merge
from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.checkpoint import load_unet
from claygraph.diffusion.describe import describe
from claygraph.diffusion.lora import stack_of
from claygraph.diffusion.lora_merge import Work, arrange, costs, positions, strengths_of
from claygraph.diffusion.rows import rows_of
from claygraph.memory import Memory
from claygraph.values import Lora, Model
from tests import tiny
from tests.denoising import base, call, error, run, weights
from tests.loras import everywhere
from tests.test_lora_kinds import CONV, LINEAR, MEMORY, draw, network, written

CLOSE = 5e-5
MANY = 1000


def stack(model: float = 0.7, seed: int = 10) -> tuple[Lora, ...]:
    given = weights(tiny.lora, f"lora_{seed}.safetensors", parts=("unet",), seed=seed)
    return (Lora(given, model, blocks=(("OUT", 0.5),)), Lora(lora_with_conv(), -0.4))


def lora_with_conv() -> Any:
    return weights(tiny.lora, "merge_conv.safetensors", parts=("unet",), seed=12, conv=True)


def long_call(seed: int = 0, steps: int = MANY, **model: Any) -> Denoise:
    return replace(call(2.0, 2.0, seed, **model), step=1, steps=steps)


def own_memory() -> Memory:
    return Memory("cpu", "float32")


def unet_of(memory: Memory) -> Any:
    return memory.get(("unet", base().weights, None), lambda: load_unet(base(), memory))


def noted(*calls: Denoise, memory: Memory) -> str:
    Denoise.run_batch(calls, memory)
    [how] = {one.notes.get("lora", "") for one in calls}
    return how


def test_merged_is_beside_within_rounding_and_the_weights_come_back_bit_for_bit() -> None:
    memory, merged = own_memory(), long_call(loras=stack())
    before = {name: tensor.clone() for name, tensor in unet_of(memory).state_dict().items()}
    found = Denoise.run_batch([merged], memory)[0]
    assert merged.notes == {"lora": "merged"}
    changed = {name for name, tensor in before.items() if not torch.equal(unet_of(memory).state_dict()[name], tensor)}
    assert len(changed) == len(stack_of(unet_of(memory)).updates)
    beside = replace(merged, step=MANY)
    assert error(found, run(beside)[0]) < CLOSE
    assert beside.notes == {"lora": "beside"}
    plain = call()
    assert torch.equal(Denoise.run_batch([plain], memory)[0], run(plain)[0])
    assert plain.notes == {}
    after = unet_of(memory).state_dict()
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())


STACK = "stack"
CASES = [(kind, ()) for kind in (*LINEAR, STACK)] + [(kind, (3, 3)) for kind in (*CONV, STACK)]


@pytest.mark.parametrize(("kind", "kernel"), CASES)
def test_every_kind_merges_to_what_it_is_beside(kind: str, kernel: tuple[int, ...], tmp_path: Path) -> None:
    net, layer, stem = network(kernel)
    kinds = ("lora", "dora in", "whole", "loha", "dora peft") if kind == STACK else (kind,)
    bias = {"diff_b": draw(3, b=(len(layer.weight),))["b"]}
    files = [written(tmp_path / f"{n}.safetensors", stem, CONV[each](kernel)[0] | bias) for n, each in enumerate(kinds)]
    for each in files:
        lora.attach(net, "unet", each, MEMORY)
    row = {each.digest: everywhere(0.3 + 0.2 * n) for n, each in enumerate(files)}
    x, loaded = draw(9, x=(2, 8, 5, 5) if kernel else (2, 4, 8))["x"], layer.weight
    plain = layer(x)
    lora.set_strengths(net, [row, row])
    beside = layer(x)
    [update], given = stack_of(net).updates.values(), loaded.clone()
    update.merge(row)
    stack_of(net).merged = tuple(row.items())
    assert layer.weight is not loaded
    assert float((layer(x) - beside).abs().max() / beside.abs().max()) <= 1e-12
    assert float((plain - beside).abs().max() / beside.abs().max()) > 0.01
    lora_merge.restore(stack_of(net))
    assert layer.weight is loaded
    assert torch.equal(loaded, given)
    lora.set_strengths(net, [{}, {}])
    assert torch.equal(layer(x), plain)


def test_half_precision_is_merged_in_single(tmp_path: Path) -> None:
    net, layer, stem = network(())
    net.bfloat16()
    tensors, formula = LINEAR["lora"](())
    given = written(tmp_path / "x.safetensors", stem, tensors)
    lora.attach(net, "unet", given, MEMORY)
    wanted = torch.tensor(formula(layer.weight.double().numpy(), 0.3))
    stack_of(net).updates["time_embedding.linear_1"].merge({given.digest: everywhere(0.3)})
    one_unit = 2.0**-8 * wanted.abs().max()
    assert layer.weight.dtype == torch.bfloat16
    assert float((layer.weight.double() - wanted).abs().max()) <= 2 * one_unit


def test_rows_that_do_not_agree_stay_beside() -> None:
    memory = own_memory()
    for others in ([long_call(1, loras=stack(0.5))], [long_call(2)], [long_call(3, loras=stack()[:1])]):
        assert noted(long_call(loras=stack()), *others, memory=memory) == "beside" or others[0].notes == {}
    swapped = long_call(4, loras=stack()[::-1])
    assert noted(long_call(loras=stack()), swapped, memory=memory) == "beside"
    assert noted(long_call(loras=stack()), long_call(5, loras=stack()), memory=memory) == "merged"


def test_blocks_and_sums_count_as_strengths() -> None:
    memory, (first, second) = own_memory(), stack()
    halves = (replace(first, model=0.35), second, replace(first, model=0.35))
    assert strengths_of(halves) == strengths_of((first, second))
    assert noted(long_call(loras=halves), long_call(1, loras=(first, second)), memory=memory) == "merged"
    other = replace(first, blocks=(("OUT", 0.4),))
    assert noted(long_call(loras=(first, second)), long_call(1, loras=(other, second)), memory=memory) == "beside"


def test_what_little_work_follows_is_not_worth_merging() -> None:
    memory, last = own_memory(), long_call(loras=stack(), steps=1)
    assert noted(last, memory=memory) == "beside"
    unet, agreed = unet_of(memory), strengths_of(stack())
    merging, beside = costs(unet, stack_of(unet), agreed, Work((8, 8), 77, 2, 2))
    enough = -(-merging // (2 * beside))
    assert enough > 1
    assert noted(long_call(loras=stack(), steps=enough - 1), memory=memory) == "beside"
    assert noted(long_call(loras=stack(), steps=enough), memory=memory) == "merged"


def test_the_work_is_counted_as_stated() -> None:
    memory = own_memory()
    Denoise.run_batch([long_call(loras=(Lora(lora_with_conv(), 1.0),), steps=1)], memory)
    unet = unet_of(memory)
    found = costs(unet, stack_of(unet), strengths_of((Lora(lora_with_conv(), 1.0),)), Work((8, 8), 77, 2, 2))
    names = [name.removesuffix(".weight") for name in tiny.shapes()["unet"] if tiny.targeted(name, True)]
    merging = beside = 0
    for name in names:
        out, *rest = unet.get_submodule(name).weight.shape
        inputs = int(torch.tensor(rest).prod())
        merging += out * inputs * (4 + 4 * 16)
        beside += positions(name, (8, 8), 77, 3) * (4 * (inputs + out) + 3 * 16 * out)
    assert found == (merging, beside)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("down_blocks.0.resnets.0.conv1", 9 * 13),
        ("down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q", 5 * 7),
        ("down_blocks.2.attentions.0.transformer_blocks.0.attn2.to_k", 77),
        ("mid_block.attentions.0.proj_in", 3 * 4),
        ("up_blocks.0.attentions.1.proj_out", 3 * 4),
        ("up_blocks.2.resnets.0.time_emb_proj", 1),
        ("conv_out", 9 * 13),
    ],
)
def test_positions_of_a_layer(name: str, expected: int) -> None:
    assert positions(name, (9, 13), 77, 3) == expected


def test_positions_are_those_that_pass_through() -> None:
    seen: dict[str, int] = {}
    unet = unet_of(memory := own_memory())
    names = [name.removesuffix(".weight") for name in tiny.shapes()["unet"] if tiny.targeted(name, True)]

    def watch(name: str) -> Callable[..., None]:
        def note(layer: Any, inputs: Any, output: torch.Tensor) -> None:
            seen[name] = output.numel() // len(output) // len(layer.weight)

        return note

    for name in names:
        unet.get_submodule(name).register_forward_hook(watch(name))
    Denoise.run_batch([call(size=(8, 12))], memory)
    wrong = [name for name in names if seen[name] != positions(name, (8, 12), 77, 3) and "samplers" not in name]
    assert wrong == []


def test_strengths_that_take_turns_do_not_merge_at_every_turn() -> None:
    memory, merges = own_memory(), 0
    for turn in range(12):
        one = replace(long_call(loras=stack(0.5 + 0.3 * (turn % 2)), steps=20), cfg=1.0)
        merges += noted(one, memory=memory) == "merged"
    unet = unet_of(memory)
    merging, beside = costs(unet, stack_of(unet), strengths_of(stack()), Work((8, 8), 77, 1, 20))
    assert 0 < merges <= 1 + (20 * beside - merging) / (merging - beside) < 8


def test_without_room_for_the_weights_twice_they_stay_beside(monkeypatch: pytest.MonkeyPatch) -> None:
    memory, seen = own_memory(), list[int]()

    def full(update: lora.Update, strengths: Any) -> None:
        seen.append(1)
        if len(seen) == 3:
            raise torch.OutOfMemoryError
        merge(update, strengths)

    merge = lora.Update.merge
    monkeypatch.setattr(lora.Update, "merge", full)
    one = long_call(loras=stack())
    assert noted(one, memory=memory) == "beside"
    assert len(seen) == 3
    assert error(run(replace(one, step=MANY))[0], Denoise.run_batch([one], memory)[0]) < 1e-6
    assert len(seen) == 3


def test_a_merge_stays_until_another_is_asked_for() -> None:
    memory = own_memory()
    assert noted(long_call(loras=stack()), memory=memory) == "merged"
    unet = unet_of(memory)
    held = unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight
    for step in (2, MANY):
        assert noted(replace(long_call(loras=stack()), step=step), memory=memory) == "merged"
    assert unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q.weight is held


def test_arrange_names_what_it_did() -> None:
    memory, model = own_memory(), Model(describe(base().weights))
    Denoise.run_batch([call(loras=stack())], memory)
    assert arrange(unet_of(memory), rows_of([replace(call(), model=model)])) == ""
