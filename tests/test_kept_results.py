"""What earlier runs left is not run again, and neither is what only that would need."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest

from claygraph.graph import Graph, Node, build
from claygraph.kept import Kept, to_run
from claygraph.memory import Memory
from claygraph.scheduler import Event, Scheduler
from claygraph.stage import Stage
from claygraph.store import Store
from claygraph.values import Saved, Weights
from tests.toys import Failing, Halve, Halver, Number, Source, Spell, Word


@pytest.fixture(autouse=True)
def batches() -> list[int]:
    Halve.batches.clear()
    return Halve.batches


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", 10**9)


def job(value: float = 8.0, prefix: str = "=", source: Stage | None = None) -> Graph:
    return build({"source": source or Source(value), "halver": Halver(2), "spell": Spell(prefix)})


def run(store: Store, *graphs: Graph) -> tuple[list[str], dict[str, list[str]]]:
    """What each graph ended with, and the states of the nodes of each name."""
    scheduler = Scheduler(graphs, Memory("cpu"), kept=Kept(store, graphs), window=2)
    words = [str(each.error or each.values["spell"].text) for each in scheduler.run()]
    states: dict[str, list[str]] = {}
    for node, record in scheduler.records.items():
        states.setdefault(node.name, []).append(record.state)
    return words, states


def node(graph: Graph, name: str) -> Node:
    found: Node = graph.graph["nodes"][name]
    return found


def damage(store: Store, graph: Graph, *names: str) -> None:
    for name in names:
        key = node(graph, name).key
        (store.folder / key[:2] / f"{key}.clay").write_bytes(b"damaged")


def forget(store: Store, graph: Graph, *names: str) -> None:
    for name in names:
        key = node(graph, name).key
        (store.folder / key[:2] / f"{key}.clay").unlink()


RUN, CACHED = ["run"], ["cached"]


def test_what_is_kept_is_not_run_again(store: Store, batches: list[int]) -> None:
    assert run(store, job()) == (["=2"], {"source": RUN, "halver": RUN, "spell": RUN})
    assert run(store, job()) == (["=2"], {"source": CACHED, "halver": CACHED, "spell": CACHED})
    assert batches == [1, 1]


def test_without_a_store_everything_is(batches: list[int]) -> None:
    for _ in range(2):
        Scheduler([job()], Memory("cpu")).run()
    assert batches == [1, 1, 1, 1]


def test_only_what_is_missing_runs_and_only_what_it_takes_is_loaded(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(store, job())
    forget(store, job(), "spell")
    loaded, load = list[str](), Store.load

    def noting(self: Store, key: str) -> object:
        loaded.append(key)
        return load(self, key)

    monkeypatch.setattr(Store, "load", noting)
    assert run(store, job()) == (["=2"], {"source": CACHED, "halver": CACHED, "spell": RUN})
    assert loaded == [node(job(), name).key for name in ("spell", "halver")]


@pytest.mark.parametrize(
    ("damaged", "ran"),
    [
        (["spell"], {"spell"}),
        (["halver"], set()),
        (["spell", "halver"], {"spell", "halver"}),
        (["spell", "source"], {"spell"}),
        (["spell", "halver", "source"], {"spell", "halver", "source"}),
    ],
)
def test_what_is_damaged_is_made_anew_when_it_is_needed(store: Store, damaged: list[str], ran: set[str]) -> None:
    run(store, job())
    damage(store, job(), *damaged)
    words, states = run(store, job())
    assert words == ["=2"]
    assert {name for name, each in states.items() if each == RUN} == ran
    assert run(store, job())[1] == {"source": CACHED, "halver": CACHED, "spell": CACHED}


def test_what_many_graphs_lack_is_made_once(store: Store, batches: list[int]) -> None:
    graphs = [job(prefix=str(number)) for number in range(20)]
    run(store, *graphs)
    batches.clear()
    damage(store, job(), "halver", "source")
    forget(store, job(prefix="3"), "spell")
    forget(store, job(prefix="17"), "spell")
    words, states = run(store, *graphs)
    assert words == [f"{number}2" for number in range(20)]
    assert (states["source"], states["halver"]) == (RUN, RUN)
    assert sorted(states["spell"]) == ["cached"] * 18 + ["run"] * 2
    assert batches == [1, 1]


def test_a_failure_is_not_kept(store: Store) -> None:
    for _ in range(2):
        words, states = run(store, job(source=Failing()), job(6))
        assert words[0] == "no such number"
        assert states["source"][-1] in ("run", "cached")
    assert not store.has(node(job(source=Failing()), "source").key)
    assert states["halver"].count("skipped") == 1


def test_a_finished_result_is_kept_before_the_next_batch(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """However slow the disk is, so that a kill at any moment loses no more than the batch under way."""
    graphs, done, save = [job(float(value)) for value in range(1, 9)], list[Node](), Store.save

    def slow(self: Store, key: str, value: object, stage: str = "") -> bool:
        time.sleep(0.02)
        return save(self, key, value, stage)

    monkeypatch.setattr(Store, "save", slow)

    def tell(event: Event) -> None:
        if event.what == "step" and event.step == 1:
            assert all(store.has(each.key) for each in done if each.name == "halver")
        if event.what == "finished":
            done.append(event.node)

    Scheduler(graphs, Memory("cpu", batch=3), kept=Kept(store, graphs), tell=tell, window=8).run()
    assert len(done) == 24


@dataclass(frozen=True)
class Listed(Stage):
    """Makes what cannot be stored."""

    def run(self, halver: Number) -> list[float]:
        return [halver.value]


def test_what_cannot_be_stored_runs_each_time(store: Store, batches: list[int]) -> None:
    graphs = [build({"source": Source(), "halver": Halver(), "listed": Listed()})]
    for _ in range(2):
        scheduler = Scheduler(graphs, Memory("cpu"), kept=Kept(store, graphs))
        assert scheduler.run()[0].values == {"listed": [4.0]}
    assert batches == [1]


@dataclass(frozen=True)
class Describe(Stage):
    path: str

    def files(self) -> Sequence[str]:
        return [self.path]

    def run(self) -> tuple[Weights, Word]:
        return Weights(self.path, "not the one of files"), Word("")


def test_weights_are_looked_for_where_this_run_has_them(store: Store, tmp_path: Path) -> None:
    (tmp_path / "a").write_text("weights")
    (tmp_path / "a").rename(tmp_path / "b")
    [described] = build({"describe": Describe(str(tmp_path / "b"))})
    [digest] = described.files.values()
    kept = Kept(store, [build({"describe": Describe(str(tmp_path / "b"))})])
    for value in (Weights("a", digest), (Weights("a", digest), None)):
        store.save(described.key, value)
        found = kept.load(described)
        assert (found if isinstance(found, Weights) else found[0]).path == str(tmp_path / "b")
    store.save(described.key, Weights("a", "of another run"))
    with pytest.raises(KeyError):
        kept.load(described)
    kept.close()


def test_a_saved_picture_counts_while_it_is_there_unchanged(store: Store, tmp_path: Path) -> None:
    from hashlib import sha256

    [only] = build({"source": Source()})
    kept, picture = Kept(store, [build({"source": Source()})]), tmp_path / "picture.png"
    picture.write_bytes(b"picture")
    store.save(only.key, Saved(str(picture), sha256(b"picture").hexdigest()))
    assert kept.load(only).path == str(picture)
    picture.write_bytes(b"another")
    with pytest.raises(KeyError):
        kept.load(only)
    picture.unlink()
    with pytest.raises(KeyError):
        kept.load(only)
    kept.close()


def test_to_run_goes_back_from_what_is_missing() -> None:
    graph = job()
    for had, wanted in [({"spell"}, set()), ({"halver"}, {"spell"}), (set(), {"spell", "halver", "source"})]:
        todo = to_run([graph], lambda each, had=had: each.name in had)  # type: ignore[misc]
        assert {each.name for each in todo} == wanted
