"""Which nodes need not run because their results are kept, and the keeping of new ones.

Every result that can be packed is kept, even a mere description, so that after a changed setting only what follows it
runs. A ``Saved`` counts only while its file is there with the same content. Where weights lie is no part of a result:
the paths are those of the run that asks.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import fields, is_dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

from claygraph.files import digest
from claygraph.graph import Graph, Node
from claygraph.packing import VALUES, kinds_in
from claygraph.stage import Stage
from claygraph.store import Store
from claygraph.values import Saved, Weights

WRITERS = 4


class Kept:
    """The results of ``graphs`` in a store; without one nothing is kept.

    Results are written by threads: ``settle`` waits until what was given before is safe from a kill, ``close`` until it
    is safe from a power failure as well.
    """

    def __init__(self, store: Store | None = None, graphs: Sequence[Graph] = ()) -> None:
        nodes = {node for graph in graphs for node in graph}
        self.store, self.paths = store, {sha: path for node in nodes for path, sha in node.files.items()}
        self._pool = ThreadPoolExecutor(WRITERS, thread_name_prefix="claygraph-store")
        self._saving: list[Future[None]] = []
        if store is not None:
            store.kinds = VALUES | value_kinds({type(node.stage) for node in nodes})

    def has(self, node: Node) -> bool:
        """Whether a node's result is there, as far as can be told without reading it."""
        return self.store is not None and self.store.has(node.key)

    def load(self, node: Node) -> Any:
        """A node's result; raises ``KeyError`` where there is none that can be used."""
        if self.store is None:
            raise KeyError(node.key)
        value = self.store.load(node.key)
        if isinstance(value, Saved) and not _intact(value):
            raise KeyError(node.key)
        return _found_at(value, self.paths)

    def save(self, node: Node, value: Any) -> None:
        """Begin to keep a node's result; no more than ``WRITERS`` are under way, for a kill may take those."""
        if self.store is not None:
            self._saving.append(self._pool.submit(self._write, self.store, node, value))
            while len(self._saving) > WRITERS:
                self._saving.pop(0).result()

    def settle(self) -> None:
        """Wait until what was given to ``save`` is there for every process, also if this one is killed."""
        while self._saving:
            self._saving.pop().result()

    def close(self) -> None:
        """Wait until everything is on disk."""
        self.settle()
        self._pool.shutdown(wait=True)

    def _write(self, store: Store, node: Node, value: Any) -> None:
        kind = type(node.stage)
        if store.save(node.key, value, f"{kind.__module__}.{kind.__qualname__}"):
            self._pool.submit(store.sync, node.key)


def to_run(graphs: Iterable[Graph], have: Callable[[Node], bool]) -> set[Node]:
    """The nodes that must run: ends whose value is not had, what these need and is not had, and so on back."""
    had, todo = cache(have), set[Node]()
    for graph in graphs:
        wanted = ends(graph)
        while wanted:
            node = wanted.pop()
            if node not in todo and not had(node):
                todo.add(node)
                wanted.extend(graph.predecessors(node))
    return todo


def ends(graph: Graph) -> list[Node]:
    """The nodes that feed no other."""
    return [node for node in graph if not graph.out_degree(node)]


def value_kinds(stages: Iterable[type[Stage]]) -> dict[str, type]:
    """Value types of plug-ins: every frozen dataclass in the module of a stage that is used, stages aside."""
    modules = {sys.modules[base.__module__] for stage in stages for base in stage.__mro__ if issubclass(base, Stage)}
    return {name: kind for name, kind in kinds_in(modules).items() if not issubclass(kind, Stage)}


def _intact(saved: Saved) -> bool:
    try:
        return digest(Path(saved.path)) == saved.digest
    except OSError:
        return False


def _found_at(value: Any, paths: dict[str, str]) -> Any:
    """A value with every ``Weights`` in it at the path that this run knows; raises ``KeyError`` for unknown ones."""
    if isinstance(value, Weights):
        return Weights(paths[value.digest], value.digest)
    if isinstance(value, tuple):
        return tuple(_found_at(each, paths) for each in value)
    if not is_dataclass(value) or isinstance(value, type):
        return value
    old = {item.name: getattr(value, item.name) for item in fields(value) if item.init}
    new = {name: _found_at(each, paths) for name, each in old.items()}
    return value if all(new[name] is old[name] for name in old) else replace(value, **new)
