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
from traceback import clear_frames
from typing import TYPE_CHECKING, Any, NamedTuple

from claygraph.admission import Admission
from claygraph.batches import batch_key, run_calls
from claygraph.devices import machine_memory
from claygraph.flow import Flow
from claygraph.graph import Graph, Node
from claygraph.kept import Kept
from claygraph.stage import Call

if TYPE_CHECKING:
    from claygraph.memory import Memory

Task = Coroutine[Any, Any, Any]
WINDOW = 32


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


@dataclass(slots=True)
class Record:
    """What a node cost: seconds of its own work and of its share in batches, the batch sizes by call, and its notes.

    ``state`` is ``run``, ``cached`` (its result was kept, or that of all that follow it), or ``skipped`` for a failure.
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

    ``window`` bounds how many graphs are under way at once (None: two batches full, and ``WINDOW`` at least), and so
    does ``hold``, the bytes of values that wait for others (None: a quarter of the machine's memory). ``threads`` bound
    the host work beside the device. What ``kept`` has is not run, nor is what only that would need.
    """

    def __init__(
        self,
        graphs: Sequence[Graph],
        memory: Memory,
        *,
        threads: int = 2,
        window: int | None = None,
        hold: int | None = None,
        tell: Callable[[Event], None] = _ignore,
        kept: Kept | None = None,
    ) -> None:
        self.graphs, self.memory, self.tell = graphs, memory, tell
        self.flow = Flow(graphs, kept or Kept())
        self.graph = self.flow.graph
        self.height = self.graph.height
        self.records: dict[Node, Record] = defaultdict(Record)
        self.parked: dict[Hashable, list[Parked]] = defaultdict(list)
        self._last: dict[Hashable, Hashable] = {}
        self.futures: dict[Future[tuple[Any, float]], Node] = {}
        self.pool = ThreadPoolExecutor(threads, thread_name_prefix="claygraph")
        window, hold = window or max(WINDOW, 2 * memory.batch), hold or machine_memory() // 4
        self._admission = Admission(graphs, window, self.flow.todo, self.flow.values, hold)

    def run(self) -> list[Outcome]:
        """How each graph ended, in order. A failure ends the graphs that need its value; the others go on."""
        try:
            self._tell_cached()
            self._start_all(self._admission.more())
            while self.parked or self.futures:
                self._collect()
                if self.parked:
                    self.flow.kept.settle()
                    self._run_batch(max(self.parked, key=self._urgency))
        finally:
            self._close()
        return [self._outcome(graph) for graph in self.graphs]

    def _urgency(self, key: Hashable) -> tuple[int, int]:
        return max(self.height[parked.node] for parked in self.parked[key]), len(self.parked[key])

    def _start_all(self, nodes: Sequence[Node]) -> None:
        for node in nodes:
            for ready in self.flow.begin(node):
                self._start(ready)

    def _tell_cached(self) -> None:
        for node in self.graph:
            if node not in self.flow.todo:
                self.records[node].state = "cached"
                self.tell(Event("cached", node))

    def _start(self, node: Node) -> None:
        inputs = {port: self.flow.values[v] if isinstance(v, Node) else v for port, v in node.inputs.items()}
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
            clear_frames(error.__traceback__)
            self._finish(node, error)
        else:
            self.parked[batch_key(call)].append(Parked(node, task, call))
        self.records[node].seconds += perf_counter() - begun

    def _run_batch(self, key: Hashable) -> None:
        waiting = self.parked.pop(key)
        batch = company(waiting, self.memory.rows(key, waiting[0].call), self._last.get(key))
        self._last[key] = batch[-1].call.affinity
        chosen = {id(parked.call) for parked in batch}
        if rest := [parked for parked in waiting if id(parked.call) not in chosen]:
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
            feeding = [future for future, node in self.futures.items() if self.graph.successors(node)]
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
        if how == "skipped":
            self.records[node].state = how
        self.tell(Event("failed" if how == "finished" and isinstance(value, Exception) else how, node))
        children = self.flow.end(node, value)
        self._start_all([each for each in children if each in self.flow.revived or self._admission.admits(each)])
        self._start_all(self._admission.finished(node))

    def _outcome(self, graph: Graph) -> Outcome:
        nodes = graph.graph["nodes"].items()
        ends = {name: self.flow.values.get(node) for name, node in nodes if not graph.out_degree(node)}
        failures = [(name, self.flow.values.get(node)) for name, node in nodes]
        name, error = next(((n, e) for n, e in failures if isinstance(e, Exception)), ("", None))
        return Outcome({} if error else ends, error, name)

    def _close(self) -> None:
        for waiting in self.parked.values():
            for parked in waiting:
                parked.task.close()
        self.pool.shutdown(wait=True, cancel_futures=True)
        self.flow.kept.close()


def company(waiting: list[Parked], rows: int, last: Hashable) -> list[Parked]:
    """Who goes into the next batch of ``rows``: where more wait, those of one affinity if they fill half of it.

    That of the batch before comes first, so that what was prepared for it serves on: a UNet whose weights hold LoRAs
    of certain strengths finishes all requests of these before it turns to others.
    """
    if len(waiting) <= rows:
        return waiting
    groups: dict[Hashable, list[Parked]] = {last: []}
    for parked in waiting:
        groups.setdefault(parked.call.affinity, []).append(parked)
    return next((group for group in groups.values() if 2 * len(group) >= rows), waiting)[:rows]


def _timed(run: Callable[..., Any], inputs: dict[str, Any]) -> tuple[Any, float]:
    begun = perf_counter()
    try:
        value = run(**inputs)
    except Exception as error:  # a stage's failure is its value
        clear_frames(error.__traceback__)
        value = error
    return value, perf_counter() - begun
