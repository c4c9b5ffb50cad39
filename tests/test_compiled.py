"""``compile: true``: the same numbers, and no new graph for what is only a number or a count."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch._dynamo.utils import counters

from claygraph.diffusion import compiled
from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.compiled import padded
from claygraph.memory import Memory
from claygraph.values import Lora, Weights
from tests import tiny
from tests.controls import control
from tests.denoising import call, error, image_prompt, run, weights

CLOSE = 5e-5


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Memory]:
    """Compiles to graphs that PyTorch runs as they are: what is counted is the graphs."""
    monkeypatch.setattr(compiled, "BACKEND", "eager")
    torch._dynamo.reset()
    counters.clear()
    memory = Memory("cpu", "float32")
    memory.compile = True
    yield memory
    torch._dynamo.reset()


def file() -> Weights:
    return weights(tiny.lora, "lora.safetensors", parts=("unet",))


def graphs() -> int:
    assert not counters["graph_break"]
    return counters["stats"]["unique_graphs"]


def check(memory: Memory, *calls: Denoise) -> int:
    """Compare the calls with what they are uncompiled; how many graphs there are by now."""
    for found, one in zip(Denoise.run_batch(calls, memory), calls, strict=True):
        assert error(found, run(one)[0]) < CLOSE
    return graphs()


def test_rows_are_padded_to_powers_of_two() -> None:
    assert [len(padded(range(count))) for count in (1, 2, 3, 5, 8, 9)] == [1, 2, 4, 8, 8, 16]
    assert padded("abc") == list("abcc")


def test_it_is_off_by_default() -> None:
    assert Memory("cpu").compile is False
    assert compiled.fast(one := object(), Memory("cpu")) is one


@pytest.mark.long
def test_strengths_guidance_and_counts_compile_nothing_anew(memory: Memory) -> None:
    def one(seed: int, strength: float, cfg: float = 2.0) -> Denoise:
        return call(1.0 + seed, cfg, seed, loras=(Lora(file(), strength),))

    assert check(memory, one(0, 0.5)) == 1
    assert (
        check(
            memory,
            one(1, -0.7),
        )
        == 1
    )
    assert check(memory, one(2, 0.0, 7.0)) == 1
    assert check(memory, one(2, 0.3, 1.0), call(0.4, 1.0, 3)) == 1
    assert check(memory, one(0, 0.5), one(1, 0.2, 1.0)) == 2
    assert check(memory, one(4, 1.0), one(5, 0.0)) == 2


@pytest.mark.long
def test_controlnets_and_image_prompts_compile_once_for_each_bucket(memory: Memory) -> None:
    def one(seed: int, strength: float) -> Denoise:
        return call(2.0, 2.0, seed, controls=(control(strength),), image_prompts=(image_prompt(strength, seed),))

    first = check(memory, one(0, 0.5))
    assert first == 2
    assert check(memory, one(1, 0.9)) == first
    assert check(memory, replace(one(2, 0.1), sigma=1.0, cfg=5.0)) == first
