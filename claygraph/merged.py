"""Many graphs as one, in which equal nodes are one node."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from claygraph.graph import Graph, Node


class Merged:
    """Who feeds whom over all graphs, and how far every node is from its end.

    A few hundred bytes a node: one for each of 10,000 pictures is little beside the graphs themselves.
    """

    def __init__(self, graphs: Sequence[Graph]) -> None:
        self._children: dict[Node, list[Node]] = {}
        for graph in graphs:
            for node in graph:  # in a graph, and so here, a node comes after those that feed it
                self._add(node)
        self.height = self._heights()

    def _add(self, node: Node) -> None:
        if node not in self._children:
            self._children[node] = []
            for parent in self.predecessors(node):
                self._children[parent].append(node)

    def _heights(self) -> dict[Node, int]:
        """Steps from each node to the farthest node it feeds."""
        height: dict[Node, int] = {}
        for node in reversed(self._children):
            height[node] = 1 + max((height[child] for child in self._children[node]), default=-1)
        return height

    def __iter__(self) -> Iterator[Node]:
        return iter(self._children)

    def predecessors(self, node: Node) -> list[Node]:
        """The nodes that feed a node, each once."""
        return list(dict.fromkeys(value for value in node.inputs.values() if isinstance(value, Node)))

    def successors(self, node: Node) -> list[Node]:
        """The nodes that a node feeds, each once."""
        return self._children[node]
