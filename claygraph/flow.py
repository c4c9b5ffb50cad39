"""Which values are there, which are still to come, and which come from earlier runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from claygraph.admission import Values
from claygraph.graph import Graph, Node
from claygraph.kept import Kept, ends, to_run
from claygraph.merged import Merged


class Flow:
    """The values of many graphs at once, each held from when it is made or loaded until its last user has ended.

    ``todo`` are the nodes that must run and have not ended. A result of an earlier run is loaded when a node that takes
    it begins; where that fails, because it is damaged or gone, the node that makes it is to do after all.
    """

    def __init__(self, graphs: Sequence[Graph], kept: Kept) -> None:
        self.graph, self.values = Merged(graphs), Values()
        self.kept, self.begun, self.revived = kept, set[Node](), set[Node]()
        self.ends = {node for graph in graphs for node in ends(graph)}
        self.todo = to_run(graphs, self._has)
        self.missing = {node: sum(each in self.todo for each in self.graph.predecessors(node)) for node in self.graph}
        self.uses = {node: sum(each in self.todo for each in self.graph.successors(node)) for node in self.graph}

    def begin(self, node: Node) -> list[Node]:
        """The nodes that begin now if this one is to: itself, what has to be made for it after all, or none."""
        if self.missing[node] or node in self.begun or node not in self.todo:
            return []
        after_all: list[Node] = []
        for parent in self.graph.predecessors(node):
            self._need(parent, after_all)
        ready = [each for each in (*after_all, node) if not self.missing[each]]
        self.begun.update(ready)
        return ready

    def end(self, node: Node, value: Any) -> list[Node]:
        """Take in a value; the nodes that wait for it."""
        self.values[node] = value
        self.todo.discard(node)
        self.begun.discard(node)
        if not isinstance(value, Exception):
            self.kept.save(node, value)
        children = [child for child in self.graph.successors(node) if child in self.todo]
        for child in children:
            self.missing[child] -= 1
        self._release(node)
        return children

    def _has(self, node: Node) -> bool:
        """Whether a node need not run; the values at the ends of graphs are loaded, for they are asked for."""
        return self._load(node) if node in self.ends else self.kept.has(node)

    def _load(self, node: Node) -> bool:
        try:
            self.values[node] = self.kept.load(node)
        except KeyError:
            return False
        return True

    def _need(self, node: Node, after_all: list[Node]) -> None:
        """Have a value: there already, to come, loaded, or where that fails made."""
        if node in self.values or node in self.todo or self._load(node):
            return
        self.todo.add(node)
        self.begun.discard(node)
        self.revived.add(node)
        after_all.append(node)
        parents = list(self.graph.predecessors(node))
        self.missing[node] = sum(parent in self.todo for parent in parents)
        for child in self.graph.successors(node):
            self.missing[child] += child in self.todo
        for parent in parents:
            self.uses[parent] += 1
            self._need(parent, after_all)

    def _release(self, node: Node) -> None:
        """Drop the values whose last user has just ended; failures stay, to be reported, and so do ends."""
        for parent in self.graph.predecessors(node):
            self.uses[parent] -= 1
            if not self.uses[parent] and parent not in self.ends and not isinstance(self.values[parent], Exception):
                del self.values[parent]
