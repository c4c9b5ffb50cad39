from dataclasses import dataclass
from typing import Any

import pytest

from claygraph.graph import Graph, build
from claygraph.memory import Memory
from claygraph.scheduler import Event, Outcome, Parked, Scheduler, company
from claygraph.stage import Call, Stage
from tests.toys import Failing, Halve, Halver, Source, Spell, Word


@pytest.fixture(autouse=True)
def batches() -> list[int]:
    Halve.batches.clear()
    return Halve.batches


def job(value: float = 8.0, times: int = 1, prefix: str = "=", source: Stage | None = None) -> Graph:
    return build({"source": source or Source(value), "halver": Halver(times), "spell": Spell(prefix)})


def run(*graphs: Graph, batch: int = 8, **settings: Any) -> list[Outcome]:
    return Scheduler(graphs, Memory("cpu", batch=batch), **settings).run()


def words(outcomes: list[Outcome]) -> list[str]:
    return [outcome.values["spell"].text for outcome in outcomes]


def test_calls_of_different_graphs_at_different_steps_share_batches(batches: list[int]) -> None:
    assert words(run(job(8, 3), job(16, 2), job(4, 1))) == ["=1", "=4", "=2"]
    assert batches == [3, 2, 1]


def test_calls_with_other_keys_do_not(batches: list[int]) -> None:
    assert words(run(job(8), job(-8))) == ["=4", "=-4"]
    assert batches == [1, 1]


def test_equal_work_runs_once(batches: list[int]) -> None:
    assert words(run(job(8, prefix="a"), job(8, prefix="b"))) == ["a4", "b4"]
    assert batches == [1]


def test_a_batch_is_no_larger_than_memory_says(batches: list[int]) -> None:
    run(*[job(float(value)) for value in range(1, 8)], batch=3)
    assert batches == [3, 3, 1]


def test_a_failing_call_is_alone_with_its_failure(batches: list[int]) -> None:
    outcomes = run(job(13), job(8), job(4))
    assert str(outcomes[0].error) == "13 cannot be halved"
    assert outcomes[0].stage == "halver"
    assert words(outcomes[1:]) == ["=4", "=2"]
    assert batches == [3, 1, 1, 1]


def test_a_failing_host_stage_ends_its_own_graph() -> None:
    failed, fine = run(job(source=Failing()), job(6))
    assert isinstance(failed.error, OSError)
    assert failed.stage == "source"
    assert fine.values == {"spell": Word("=3")}


def test_the_window_bounds_what_is_under_way() -> None:
    open_now, most = set[str](), 0

    def tell(event: Event) -> None:
        nonlocal most
        if event.node.name == "source" and event.what == "started":
            open_now.add(event.node.key)
        if event.node.name == "spell" and event.what == "finished":
            open_now.pop()
        most = max(most, len(open_now))

    outcomes = run(*[job(float(value)) for value in range(21, 41)], window=3, tell=tell)
    assert len(words(outcomes)) == 20
    assert most == 3


def test_batches_do_not_depend_on_the_clock(batches: list[int]) -> None:
    graphs = [job(float(value), 1 + value % 3) for value in range(1, 11)]
    compositions = []
    for _ in range(5):
        batches.clear()
        run(*graphs, threads=3)
        compositions.append(list(batches))
    assert all(composition == compositions[0] for composition in compositions)


def test_values_are_freed_after_their_last_use() -> None:
    graph = job(8)
    scheduler = Scheduler([graph], Memory("cpu"))
    scheduler.run()
    left = {node.name: value for node, value in scheduler.flow.values.items()}
    assert left == {"spell": Word("=4")}


def test_steps_and_batch_sizes_are_reported() -> None:
    seen = []
    graphs = [job(8, 2), job(4, 2)]
    scheduler = Scheduler(graphs, Memory("cpu"), tell=lambda event: seen.append((event.what, event.step, event.steps)))
    scheduler.run()
    assert seen.count(("step", 1, 2)) == seen.count(("step", 2, 2)) == 2
    assert dict(scheduler.records[graphs[0].graph["nodes"]["halver"]].batches["halve"]) == {2: 2}


def test_no_graphs_no_outcomes() -> None:
    assert run() == []


def test_an_interrupt_closes_what_was_under_way() -> None:
    def tell(event: Event) -> None:
        if event.what == "step":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(job(8, 3), tell=tell)


@dataclass(frozen=True, eq=False)
class Coloured(Call[str]):
    """A call that is cheaper beside its own colour."""

    colour: str

    @property
    def affinity(self) -> str:
        return self.colour


@pytest.mark.parametrize(
    ("waiting", "last", "chosen"),
    [
        ("rbr", "b", "rbr"),  # all fit
        ("rbrbrb", "b", "bbb"),  # what goes on comes first
        ("rbrbrb", "", "rrr"),
        ("rbbbbg", "r", "bbbb"),  # too few of the last to be worth a batch
        ("rrrrrr", "r", "rrrr"),
        ("rgbycm", "r", "rgby"),  # no company: as they come
    ],
)
def test_where_not_all_fit_calls_of_one_affinity_share_a_batch(waiting: str, last: str, chosen: str) -> None:
    parked = [Parked(None, None, Coloured(colour)) for colour in waiting]  # type: ignore[arg-type]
    assert "".join(str(each.call.affinity) for each in company(parked, 4, last)) == chosen
