"""Which graphs may be under way: one after another, so that values of many do not pile up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence

from claygraph.graph import Graph, Node


class Admission:
    """Lets graphs in, in order, so that no more than ``window`` are under way."""

    def __init__(self, graphs: Sequence[Graph], window: int) -> None:
        self.window = window
        self.waiting = list(reversed(graphs))
        self.open: dict[int, set[Node]] = {}
        self.members: dict[Node, list[int]] = defaultdict(list)
        self.done: set[Node] = set()

    def admits(self, node: Node) -> bool:
        """Whether a graph that the node belongs to has been let in."""
        return node in self.members

    def admit(self, node: Node) -> None:
        """Let a node in by itself."""
        self.members[node]

    def more(self) -> list[Node]:
        """Nodes of the graphs that may begin now, in order."""
        let_in: dict[Node, None] = {}
        while self.waiting and len(self.open) < self.window:
            graph = self.waiting.pop()
            number, left = len(self.waiting), set(graph) - self.done
            for node in graph:
                self.members[node].append(number)
                let_in[node] = None
            if left:
                self.open[number] = left
        return list(let_in)

    def finished(self, node: Node) -> list[Node]:
        """Note the end of a node; nodes that may begin because a graph has ended with it."""
        self.done.add(node)
        ended = False
        for number in self.members[node]:
            left = self.open.get(number)
            if left is not None:
                left.discard(node)
                if not left:
                    del self.open[number]
                    ended = True
        return self.more() if ended else []
