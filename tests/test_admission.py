"""Many graphs are under way a few at a time, and nothing of those that have ended stays but how they ended."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from claygraph.admission import Values
from claygraph.graph import Graph, Node, build
from claygraph.memory import Memory
from claygraph.scheduler import Event, Scheduler
from claygraph.stage import Stage
from claygraph.values import Image
from tests.toys import Failing, Halver, Number, Source, Spell


@dataclass(frozen=True)
class Large(Stage):
    """A value of a megabyte and a half."""

    number: int = 0

    def run(self) -> Image:
        return Image(np.zeros((500, 1000, 3), np.uint8))


@dataclass(frozen=True)
class Middle(Stage):
    def run(self, large: Image) -> Number:
        return Number(float(large.pixels[0, 0, 0]))


@dataclass(frozen=True)
class Last(Stage):
    number: int = 0

    def run(self, middle: Number, large: Image) -> Number:
        return Number(middle.value + self.number)


def graphs(count: int) -> list[Graph]:
    return [build({"large": Large(number), "middle": Middle(), "last": Last(number)}) for number in range(count)]


def most_held(count: int, **settings: Any) -> tuple[int, int]:
    """The most bytes of values and the most values that there were at once, ends aside."""
    seen: list[tuple[int, int]] = []

    def tell(event: Event) -> None:
        values = scheduler.flow.values
        seen.append((values.held, sum(node.name != "last" for node in values)))

    scheduler = Scheduler(graphs(count), Memory("cpu"), tell=tell, **settings)
    assert [outcome.values["last"].value for outcome in scheduler.run()] == list(range(count))
    bytes_held, values_held = zip(*seen, strict=True)
    return max(bytes_held), max(values_held)


@pytest.mark.parametrize("count", [6, 60])
def test_values_do_not_pile_up_however_many_graphs_there_are(count: int) -> None:
    held, values = most_held(count, window=3)
    assert held <= 3 * 1_500_000
    assert values <= 6


@pytest.mark.parametrize(("hold", "most"), [(20_000_000, 6), (4_000_000, 2), (1, 1)])
def test_fewer_graphs_are_let_in_when_their_values_are_large(hold: int, most: int) -> None:
    seen: dict[int, int] = {}

    def tell(event: Event) -> None:
        if event.what == "started" and isinstance(event.node.stage, Large):
            seen[event.node.stage.number] = len(scheduler._admission._open)

    scheduler = Scheduler(graphs(24), Memory("cpu"), threads=1, window=6, hold=hold, tell=tell)
    scheduler.run()
    assert {seen[number] for number in range(6)} == {6}  # before the first have ended nobody knows how large they are
    assert max(seen[number] for number in range(12, 24)) == most


def test_bytes_of_values_are_counted_in_and_out() -> None:
    values, (first, second, _) = Values(), graphs(1)[0]
    values[first] = Image(np.zeros((2, 2, 3), np.uint8))
    values[second] = Number(1.0)
    values[first] = Image(np.zeros((4, 2, 3), np.uint8))
    assert values.held == 24
    del values[first]
    assert values.held == 0


def test_what_has_ended_leaves_its_outcome_and_nothing_else() -> None:
    parts = [{"source": Source(value + 0.25), "halver": Halver(2), "spell": Spell()} for value in range(40)]
    many = [build(part) for part in [*parts, {**parts[0], "source": Failing()}]]
    scheduler = Scheduler(many, Memory("cpu"))
    outcomes = scheduler.run()
    assert [isinstance(outcome.error, OSError) for outcome in outcomes] == 40 * [False] + [True]
    left = scheduler.flow.values
    assert {node.name for node, value in left.items() if not isinstance(value, Exception)} == {"spell"}
    state = [scheduler.parked, scheduler.futures, scheduler.flow.begun, scheduler.flow.todo]
    assert not any([*state, scheduler._admission._open, scheduler._admission._members])


def test_shared_nodes_are_one_and_know_all_they_feed() -> None:
    many = [build({"source": Source(), "halver": Halver(), "spell": Spell(prefix)}) for prefix in "abc"]
    merged = Scheduler(many, Memory("cpu")).graph
    nodes: dict[str, Node] = many[0].graph["nodes"]
    assert len(list(merged)) == 5
    assert [child.stage.prefix for child in merged.successors(nodes["halver"])] == ["a", "b", "c"]
    assert [merged.height[nodes[name]] for name in ("source", "halver", "spell")] == [2, 1, 0]
    assert merged.predecessors(nodes["spell"]) == [nodes["halver"]]
