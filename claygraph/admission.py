"""Which graphs may be under way: one after another, so that values of many do not pile up."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence, Set
from typing import Any

from claygraph.graph import Graph, Node
from claygraph.weighing import bytes_in


class Values(dict[Node, Any]):
    """The values that are still needed, by node, with the bytes of their arrays: ``held`` of all of them."""

    held = 0

    def __setitem__(self, node: Node, value: Any) -> None:
        self.held += bytes_in(value) - bytes_in(self.get(node))
        super().__setitem__(node, value)

    def __delitem__(self, node: Node) -> None:
        self.held -= bytes_in(self[node])
        super().__delitem__(node)


class Admission:
    """Lets graphs in, in order: at most ``window`` at once, and no more than whose values hold ``most`` bytes.

    How much the values of one graph hold is known once some have ended: the most so far, over those under way then. One
    is always let in. ``todo`` are the nodes that are to run and have not ended.
    """

    def __init__(self, graphs: Sequence[Graph], window: int, todo: Set[Node], values: Values, most: int) -> None:
        self.window, self.todo, self.values, self.most = window, todo, values, most
        self._waiting = iter(graphs)
        self._next: Graph | None = next(self._waiting, None)
        self._count, self._each = 0, 0.0
        self._open: dict[int, set[Node]] = {}
        self._members: dict[Node, list[int]] = defaultdict(list)

    def admits(self, node: Node) -> bool:
        """Whether a graph in which the node is to run has been let in."""
        return node in self._members

    def more(self) -> list[Node]:
        """Nodes of the graphs that may begin now, in order."""
        let_in: dict[Node, None] = {}
        while self._next is not None and self._room():
            left = [node for node in self._next if node in self.todo]
            for node in left:
                self._members[node].append(self._count)
            if left:
                self._open[self._count] = set(left)
            let_in |= dict.fromkeys(left)
            self._next, self._count = next(self._waiting, None), self._count + 1
        return list(let_in)

    def _room(self) -> bool:
        count = len(self._open)
        return not count or (count < self.window and (count + 1) * self._each <= self.most)

    def finished(self, node: Node) -> list[Node]:
        """Note the end of a node; nodes that may begin because a graph has ended with it."""
        self._each = max(self._each, self.values.held / max(1, len(self._open)))
        ended = False
        for number in self._members.pop(node, ()):
            left = self._open[number]
            left.discard(node)
            if not left:
                del self._open[number]
                ended = True
        return self.more() if ended else []
