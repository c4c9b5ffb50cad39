"""Policy: what runs next, and with whom.

Every node's coroutine of every graph is driven from here. A plain stage runs in a thread; an async one runs until it
awaits a device call, is parked under the call's batch key, and goes on when a batch holding its call has run. What is
farthest from the end goes first, so that what is nearer meets company; before a batch runs, host work that could bring
it company is awaited, so which calls share a batch depends on the request and not on the clock.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Coroutine, Hashable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, field
from inspect import iscoroutinefunction
from time import perf_counter
from typing import TYPE_CHECKING, Any, NamedTuple

from claygraph.admission import Admission
from claygraph.batches import batch_key, run_calls
from claygraph.graph import Graph, Node
from claygraph.kept import Kept, ends, part, to_run
from claygraph.stage import Call

if TYPE_CHECKING:
    from claygraph.memory import Memory

Task = Coroutine[Any, Any, Any]


class Event(NamedTuple):
    """What a user may want to see: a node ``started``, ``finished``, ``failed``, or made a ``step``.

    It was ``skipped`` because of a failure before it, or ``cached``: it need not run, for what is kept will do.
    """

    what: str
    node: Node
    step: int = 0
    steps: int = 0


class Parked(NamedTuple):
    """A coroutine that waits for its device call."""

    node: Node
    task: Task
    call: Call[Any]


@dataclass
class Record:
    """What a node cost: seconds of its own work and of its share in batches, the batch sizes by call, and its notes.

    ``state`` is ``run``, ``cached`` (its result, or that of all that follow it, was kept), or ``skipped`` for a failure.
    """

    state: str = "run"
    seconds: float = 0.0
    batches: dict[str, Counter[int]] = field(default_factory=lambda: defaultdict(Counter))
    notes: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict(Counter))

    def note(self, notes: Mapping[str, str]) -> None:
        """Count how one of its calls was computed."""
        for what, how in notes.items():
            self.notes[what][how] += 1


@dataclass(frozen=True)
class Outcome:
    """How one graph ended: the values of its last stages by name, or the error and the stage it came from."""

    values: dict[str, Any]
    error: Exception | None = None
    stage: str = ""


def _ignore(event: Event) -> None:
    """Shown to nobody."""


class Scheduler:
    """Runs many graphs as one: equal nodes once, device calls that fit together in one batch.

    ``window`` bounds how many graphs are under way at once, ``threads`` the host work beside the device. What ``kept``
    has is not run, nor is what only that would need.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        memory: Memory,
        *,
        threads: int = 2,
        window: int = 32,
        tell: Callable[[Event], None] = _ignore,
        kept: Kept | None = None,
    ) -> None:
        import networkx as nx

        self.graphs, self.memory, self.tell = graphs, memory, tell
        self.graph: Graph = nx.compose_all(graphs) if graphs else nx.DiGraph()
        self.height = _heights(self.graph)
        self.kept = kept or Kept()
        self.begun: set[Node] = set()
        self.values: dict[Node, Any] = {}
        self.ends = {node for graph in graphs for node in ends(graph)}
        self.todo = to_run(graphs, self._has)  # and not done yet
        self.missing = {node: sum(parent in self.todo for parent in self.graph.predecessors(node)) for node in self.graph}
        self.uses = {node: sum(child in self.todo for child in self.graph.successors(node)) for node in self.graph}
        self.records: dict[Node, Record] = defaultdict(Record)
        self.parked: dict[Hashable, list[Parked]] = defaultdict(list)
        self.futures: dict[Future[tuple[Any, float]], Node] = {}
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="claygraph")
        self._admission = Admission([part(graph, self.todo) for graph in graphs], window)

    def run(self) -> list[Outcome]:
        """How each graph ended, in order. A failure ends the graphs that need its value; the others go on."""
        try:
            self._tell_cached()
            self._start_all(self._admission.more())
            while self.parked or self.futures:
                self._collect()
                if self.parked:
                    self.kept.settle()
                    self._run_batch(max(self.parked, key=self._urgency))
        finally:
            self._close()
        return [self._outcome(graph) for graph in self.graphs]

    def _urgency(self, key: Hashable) -> tuple[int, int]:
        return max(self.height[parked.node] for parked in self.parked[key]), len(self.parked[key])

    def _start_all(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            if self._ready(node):
                self.begun.add(node)
                self._start(node)

    def _ready(self, node: Node) -> bool:
        """Whether a node can begin now; what it takes from earlier runs is loaded for it."""
        if self.missing[node] or node in self.begun:
            return False
        for parent in self.graph.predecessors(node):
            self._need(parent)
        return not self.missing[node] and node not in self.begun  # where one of them ran at once, it may have begun

    def _need(self, node: Node) -> None:
        """Have a value: there already, to come, loaded, or where that fails made after all."""
        if node not in self.values and node not in self.todo and not self._load(node):
            self._revive(node)

    def _has(self, node: Node) -> bool:
        """Whether a node need not run; the values at the ends of graphs are loaded, for they are asked for."""
        return self._load(node) if node in self.ends else self.kept.has(node)

    def _load(self, node: Node) -> bool:
        try:
            self.values[node] = self.kept.load(node)
        except KeyError:
            return False
        return True

    def _revive(self, node: Node) -> None:
        """Run a node whose result was to come from an earlier run, and of what it needs what is not there."""
        self.todo.add(node)
        self.begun.discard(node)
        self._admission.admit(node)
        parents = list(self.graph.predecessors(node))
        self.missing[node] = sum(parent in self.todo for parent in parents)
        for child in self.graph.successors(node):
            self.missing[child] += child in self.todo
        for parent in parents:
            self.uses[parent] += 1
            self._need(parent)
        self._start_all([node])

    def _tell_cached(self) -> None:
        for node in self.graph:
            if node not in self.todo:
                self.records[node].state = "cached"
                self.tell(Event("cached", node))

    def _start(self, node: Node) -> None:
        inputs = {port: self.values[v] if isinstance(v, Node) else v for port, v in node.inputs.items()}
        failed = next((v for v in inputs.values() if isinstance(v, Exception)), None)
        if failed is not None:
            self._finish(node, failed, "skipped")
            return
        self.records[node].state = "run"
        self.tell(Event("started", node))
        if iscoroutinefunction(node.stage.run):
            self._step(node, node.stage.run(**inputs), None)
        else:
            self.futures[self.pool.submit(_timed, node.stage.run, inputs)] = node

    def _step(self, node: Node, task: Task, value: Any) -> None:
        begun = perf_counter()
        try:
            call = task.throw(value) if isinstance(value, Exception) else task.send(value)
        except StopIteration as done:
            self._finish(node, done.value)
        except Exception as error:  # a stage's failure is its value
            self._finish(node, error)
        else:
            self.parked[batch_key(call)].append(Parked(node, task, call))
        self.records[node].seconds += perf_counter() - begun

    def _run_batch(self, key: Hashable) -> None:
        waiting = self.parked.pop(key)
        rows = self.memory.rows(key, waiting[0].call)
        batch, rest = waiting[:rows], waiting[rows:]
        if rest:
            self.parked[key] = rest
        for parked, done in zip(batch, run_calls([p.call for p in batch], self.memory), strict=True):
            record = self.records[parked.node]
            record.seconds += done.seconds
            record.batches[parked.call.name][done.size] += 1
            record.note(parked.call.notes)
            if parked.call.progress:
                self.tell(Event("step", parked.node, *parked.call.progress))
            self._step(parked.node, parked.task, done.value)

    def _collect(self) -> None:
        """Take in host work; wait for what may still bring company to a batch, or for anything if none is parked."""
        while self.futures:
            feeding = [future for future, node in self.futures.items() if self.graph.out_degree(node)]
            if self.parked and not feeding:
                return
            done, _ = wait(feeding or self.futures, return_when=FIRST_COMPLETED)
            for future in [future for future in self.futures if future in done]:
                self._take(future)

    def _take(self, future: Future[tuple[Any, float]]) -> None:
        node = self.futures.pop(future)
        value, seconds = future.result()
        self.records[node].seconds += seconds
        self._finish(node, value)

    def _finish(self, node: Node, value: Any, how: str = "finished") -> None:
        self.values[node] = value
        self.todo.discard(node)
        if not isinstance(value, Exception):
            self.kept.save(node, value)
        if how == "skipped":
            self.records[node].state = how
        self.tell(Event("failed" if how == "finished" and isinstance(value, Exception) else how, node))
        children = [child for child in self.graph.successors(node) if child in self.todo]
        for child in children:
            self.missing[child] -= 1
        self._release(node)
        self._start_all([child for child in children if self._admission.admits(child)])
        self._start_all(self._admission.finished(node))

    def _release(self, node: Node) -> None:
        """Drop the values whose last user has just ended; failures stay, to be reported."""
        for parent in self.graph.predecessors(node):
            self.uses[parent] -= 1
            if not self.uses[parent] and parent not in self.ends and not isinstance(self.values[parent], Exception):
                del self.values[parent]

    def _outcome(self, graph: Graph) -> Outcome:
        nodes = graph.graph["nodes"].items()
        ends = {name: self.values.get(node) for name, node in nodes if not graph.out_degree(node)}
        failures = [(name, self.values.get(node)) for name, node in nodes]
        name, error = next(((n, e) for n, e in failures if isinstance(e, Exception)), ("", None))
        return Outcome({} if error else ends, error, name)

    def _close(self) -> None:
        for waiting in self.parked.values():
            for parked in waiting:
                parked.task.close()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.kept.close()


def _heights(graph: Graph) -> dict[Node, int]:
    """Steps from each node to the farthest node it feeds."""
    import networkx as nx

    height: dict[Node, int] = {}
    for node in reversed(list(nx.topological_sort(graph))):
        height[node] = 1 + max((height[child] for child in graph.successors(node)), default=-1)
    return height


def _timed(run: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Any, float]:
    begun = perf_counter()
    try:
        value = run(**inputs)
    except Exception as error:  # a stage's failure is its value
        value = error
    return value, perf_counter() - begun
