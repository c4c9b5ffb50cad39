"""Small stages for tests of the graph and the scheduler: no model, no picture."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from claygraph.stage import Call, Stage


@dataclass(frozen=True)
class Word:
    text: str


@dataclass(frozen=True)
class Number:
    value: float


@dataclass(frozen=True, eq=False)
class Halve(Call[float]):
    """Halves a number on the "device"; numbers of one sign share a batch."""

    value: float
    step: int = 1
    steps: int = 1
    name: ClassVar[str] = "halve"
    batches: ClassVar[list[int]] = []

    @property
    def batch_key(self) -> Hashable:
        return self.value < 0

    @property
    def progress(self) -> tuple[int, int]:
        return self.step, self.steps

    @classmethod
    def run_batch(cls, calls: Sequence[Halve], memory: Any) -> list[float]:
        cls.batches.append(len(calls))
        if any(call.value == 13 for call in calls):
            raise ValueError("13 cannot be halved")
        return [call.value / 2 for call in calls]


@dataclass(frozen=True)
class Source(Stage):
    value: float = 8.0

    def run(self) -> Number:
        return Number(self.value)


@dataclass(frozen=True)
class Failing(Stage):
    def run(self) -> Number:
        raise OSError("no such number")


@dataclass(frozen=True)
class Halver(Stage):
    times: int = 1

    async def run(self, source: Number) -> Number:
        value = source.value
        for step in range(self.times):
            value = await Halve(value, step + 1, self.times)
        return Number(value)


@dataclass(frozen=True)
class Spell(Stage):
    prefix: str = "="

    def run(self, halver: Number, note: Word | None = None) -> Word:
        return Word(f"{self.prefix}{halver.value:g}{note.text if note else ''}")


@dataclass(frozen=True)
class Loop(Stage):
    def run(self, spell: Word) -> Number:
        return Number(len(spell.text))
