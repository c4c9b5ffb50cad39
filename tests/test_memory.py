"""What is resident and what goes, how large batches are, and that none of it shows in the results."""

from __future__ import annotations

import weakref
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from claygraph.batches import run_calls
from claygraph.errors import SettingError, WeightsError
from claygraph.graph import build
from claygraph.limits import Limits
from claygraph.memory import Memory
from claygraph.scheduler import Scheduler
from claygraph.stage import Call, Stage
from claygraph.weighing import bytes_in
from tests.toys import Number

KILO = 1000


def weights(kilobytes: int) -> torch.nn.Module:
    return torch.nn.Linear(250 * kilobytes, 1, bias=False)


@dataclass(frozen=True, eq=False)
class Ask(Call[float]):
    """Needs weights by these names, each of so many kilobytes, and ``row`` bytes a call."""

    value: float = 1.0
    names: tuple[str, ...] = ()
    size: int = 1
    row: int = 0
    kind: str = ""
    name: ClassVar[str] = "ask"
    batches: ClassVar[list[int]] = []
    most: ClassVar[int] = 1000
    fail: ClassVar[bool] = False

    @property
    def batch_key(self) -> Hashable:
        return self.names, self.kind

    @property
    def row_bytes(self) -> int:
        return self.row

    @classmethod
    def run_batch(cls, calls: Sequence[Ask], memory: Memory) -> list[float]:
        cls.batches.append(len(calls))
        for name in calls[0].names:
            memory.get(name, lambda: weights(calls[0].size))
        if len(calls) > cls.most:
            raise torch.OutOfMemoryError("too many")
        return [2 * call.value for call in calls]


@pytest.fixture(autouse=True)
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    monkeypatch.setattr(Ask, "batches", [])
    return Ask.batches


@dataclass(frozen=True)
class Asks(Stage):
    value: float = 1.0
    row: int = 0
    times: int = 1
    kind: str = ""

    async def run(self) -> Number:
        value = self.value
        for _ in range(self.times):
            value = await Ask(value, row=self.row, kind=self.kind)
        return Number(value)


def run(memory: Memory, *names: str, size: int = 1) -> None:
    (done,) = run_calls([Ask(names=names, size=size)], memory)
    assert done.value == 2


def resident(memory: Memory) -> list[Hashable]:
    return list(memory._resident)


def test_bytes_are_counted_wherever_they_lie() -> None:
    array, linear = np.zeros(5, np.float32), torch.nn.Linear(3, 2)
    linear.register_buffer("seen", torch.zeros(4))
    assert bytes_in(array) == 20
    assert bytes_in(linear) == 4 * (6 + 2 + 4)
    assert bytes_in({"a": [array, (linear,)], "b": array, "c": "text", "d": None}) == 20 + 48


def test_weights_are_loaded_once_while_there_is_room() -> None:
    memory = Memory("cpu", budget=3 * KILO)
    for _ in range(3):
        run(memory, "a")
        run(memory, "b")
    assert memory.loads == {"a": 1, "b": 1}


def test_what_was_unused_for_longest_goes_first() -> None:
    memory = Memory("cpu", budget=3 * KILO)
    for name in ("a", "b", "c", "a", "d"):
        run(memory, name)
    assert resident(memory) == ["c", "a", "d"]
    run(memory, "b")
    assert memory.loads["b"] == 2


def test_what_the_running_batch_uses_stays_whatever_the_budget() -> None:
    memory = Memory("cpu", budget=2 * KILO)
    run(memory, "a", "b", "c", "d")
    assert resident(memory) == ["a", "b", "c", "d"]
    run(memory, "e")
    assert resident(memory) == ["d", "e"]


def test_what_an_earlier_batch_of_the_kind_used_may_go() -> None:
    memory = Memory("cpu", budget=2 * KILO)

    class OfOneKind(Ask):
        @property
        def batch_key(self) -> Hashable:
            return "all"

    for name in ("a", "b", "c", "d"):
        run_calls([OfOneKind(names=(name,))], memory)
    assert resident(memory) == ["c", "d"]


def test_what_takes_no_room_stays() -> None:
    memory = Memory("cpu", budget=1)
    memory.get("tokenizer", lambda: "words")
    run(memory, "a")
    run(memory, "b")
    assert resident(memory) == ["tokenizer", "b"]


def test_room_is_made_before_what_was_loaded_once_is_loaded_again() -> None:
    memory, seen = Memory("cpu", budget=4 * KILO), []
    for name in ("a", "b", "a"):
        with memory.running(name, Ask(), 1):
            memory.get(name, lambda: (seen.append(memory.used()), weights(3))[1])
    assert seen == [0, 3 * KILO, 0]  # before "b" nobody knows how large it is


def test_weights_that_grow_are_weighed_again() -> None:
    memory, module = Memory("cpu", budget=10 * KILO), weights(1)
    with memory.running("a", Ask(), 1):
        memory.get("a", lambda: module)
        module.adapter = weights(2)
    assert memory.used() == 3 * KILO


@pytest.mark.parametrize("budget", ["lots", "-1GB", "6 apples"])
def test_a_budget_that_is_none_is_refused(budget: str) -> None:
    with pytest.raises(SettingError, match=r"memory=.* is no amount of bytes; give one such as"):
        Memory("cpu", budget=budget)


@pytest.mark.parametrize("batch", [0, -1, "many", 1.5, 5000])
def test_a_batch_that_is_none_is_refused(batch: Any) -> None:
    with pytest.raises(SettingError, match=r"batch=.* give a whole number from 1 to 4096, or auto"):
        Memory("cpu", batch=batch)


@pytest.mark.parametrize("device", ["cuda:97", "cuda:x", "gpu", "meta", ""])
def test_a_device_that_is_not_there_is_told_in_a_sentence(device: str) -> None:
    with pytest.raises(SettingError) as caught:
        Memory(device)
    message = str(caught.value)
    assert message.startswith(f"device={device!r} ")
    assert message.endswith(".")
    assert "auto, cpu" in message
    assert "\n" not in message


def test_a_batch_without_memory_is_halved_and_stays_small(batches: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Ask, "most", 3)
    graphs = [build({"asks": Asks(float(value), times=3)}) for value in range(16)]
    outcomes = Scheduler(graphs, Memory("cpu", batch=16)).run()
    assert [outcome.values["asks"].value for outcome in outcomes] == [8.0 * value for value in range(16)]
    assert batches == [16, 8, 4] + 3 * 8 * [2]


def test_other_batches_stay_as_large(batches: list[int]) -> None:
    memory = Memory("cpu", batch=8)
    memory.shrink((Ask, ("a", "")), 8)
    assert memory.rows((Ask, ("a", "")), Ask()) == 4
    assert memory.rows((Ask, ("b", "")), Ask()) == 8


def test_a_single_call_without_memory_is_tried_again_when_the_rest_is_out() -> None:
    memory, others = Memory("cpu"), []

    class Greedy(Ask):
        @classmethod
        def run_batch(cls, calls: Sequence[Ask], memory: Memory) -> list[float]:
            others.append(memory.used())
            if memory.used():
                raise torch.OutOfMemoryError("no room beside the others")
            return [1.0]

    run(memory, "a", "b")
    assert run_calls([Greedy()], memory)[0].value == 1
    assert others == [2 * KILO, 0]


def test_rows_are_bounded_by_what_weights_leave(batches: list[int]) -> None:
    graphs = [build({"asks": Asks(float(value), row=KILO)}) for value in range(1, 8)]
    Scheduler(graphs, Memory("cpu", batch=8, budget=3500)).run()
    assert batches == [3, 3, 1]
    memory = Memory("cpu", batch=8, budget=6500)
    run_calls([Ask(names=("a", "b"), row=KILO)], memory)
    assert memory.rows((Ask, (("a", "b"), "")), Ask(row=KILO)) == 4
    assert memory.rows((Ask, (("new",), "")), Ask(row=KILO)) == 6


def test_others_make_room_for_the_rows_of_a_batch() -> None:
    memory = Memory("cpu", budget=5 * KILO)
    run(memory, "a", size=2)
    run(memory, "b", size=2)
    run_calls([Ask(names=("b",), row=KILO, kind="x")] * 3, memory)
    assert resident(memory) == ["b"]


def test_what_was_measured_replaces_the_guess_and_large_batches_count() -> None:
    limits, call = Limits(most=64), Ask(row=100)
    assert limits.rows("key", call, 1000) == 10
    limits.measured("key", 2, 100)
    assert limits.rows("key", call, 1000) == 20
    limits.measured("key", 10, 400)
    limits.measured("key", 3, 300)
    assert limits.rows("key", call, 1000) == 25
    assert limits.rows("key", call, 10**9) == 64
    assert limits.rows("key", call, -5) == 1


def test_a_call_that_cannot_guess_fails_no_earlier_than_when_it_is_run() -> None:
    class Lost(Ask):
        @property
        def row_bytes(self) -> int:
            raise OSError("no such file")

    assert Limits(most=8).rows("key", Lost(), 1000) == 8


def test_a_file_that_cannot_be_used_is_tried_once_for_a_batch() -> None:
    tries = []

    class Broken(Ask):
        @classmethod
        def run_batch(cls, calls: Sequence[Ask], memory: Memory) -> list[float]:
            return memory.get("broken", lambda: tries.append(1) or _refuse())

    def _refuse() -> list[float]:
        raise WeightsError("cut short; fetch it again.")

    memory = Memory("cpu")
    for _ in range(2):
        done = run_calls([Broken(), Broken(), Broken()], memory)
        assert [str(each.value) for each in done] == ["cut short; fetch it again."] * 3
    assert len(tries) == 1
    run_calls([Broken(kind="of another kind, which may be able to use it")], memory)
    assert len(tries) == 2


def test_a_failure_does_not_hold_on_to_tensors() -> None:
    alive: list[weakref.ref[torch.Tensor]] = []

    class Failing(Ask):
        @classmethod
        def run_batch(cls, calls: Sequence[Ask], memory: Memory) -> list[float]:
            large = torch.zeros(1000)
            alive.append(weakref.ref(large))
            raise ValueError("after the tensor was made")

    (done,) = run_calls([Failing()], Memory("cpu"))
    assert str(done.value) == "after the tensor was made"
    assert alive[0]() is None
