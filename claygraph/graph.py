"""Wire stages into a checked DAG whose nodes are identified by the work they do."""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from graphlib import CycleError, TopologicalSorter
from hashlib import sha256
from types import NoneType, UnionType
from typing import TYPE_CHECKING, Any, TypeAlias, Union, get_args, get_origin

from claygraph.errors import GraphError, nearest
from claygraph.keys import Own, own
from claygraph.stage import Port, Stage, makes, ports
from claygraph.values import Recipe

if TYPE_CHECKING:
    import networkx as nx

Graph: TypeAlias = "nx.DiGraph[Any]"
Wires: TypeAlias = Mapping[str, Mapping[str, str]]


@dataclass(frozen=True)
class Node:
    """A stage bound to its inputs. Equal work is an equal node, in whichever graph it appears.

    ``inputs`` maps ports to other nodes or to given values, ``files`` the paths the stage reads to their sha256.
    """

    key: str
    name: str = field(compare=False)
    stage: Stage = field(compare=False, repr=False)
    inputs: Mapping[str, Any] = field(compare=False, repr=False)
    files: Mapping[str, str] = field(compare=False, repr=False)


class Known:
    """Wirings that were checked before, and nodes that were made: graphs built with it share what they can."""

    def __init__(self) -> None:
        self.orders: dict[Hashable, list[str]] = {}
        self._nodes: dict[Hashable, Node] = {}
        self._by_key: dict[tuple[str, str], Node] = {}
        self._owns: dict[Hashable, Own] = {}
        self._kept: list[Any] = []  # what the keys of _nodes name by id

    def node(self, name: str, stage: Stage, inputs: Mapping[str, Any], context: str) -> Node:
        """The node of a stage with these inputs: one object for the same work under the same name."""
        key = name, context, id(stage), *((port, id(value)) for port, value in inputs.items())
        if key not in self._nodes:
            made = _node(name, stage, inputs, self._own(stage, context))
            self._nodes[key] = self._by_key.setdefault((name, made.key), made)
            self._kept.append((stage, inputs))
        return self._nodes[key]

    def _own(self, stage: Stage, context: str) -> Own:
        key = context, id(stage)
        if key not in self._owns:
            self._owns[key] = own(stage, context)
        return self._owns[key]


def build(
    stages: Mapping[str, Stage],
    given: Mapping[str, Any] | None = None,
    wires: Wires | None = None,
    same_as: Mapping[str, str] | None = None,
    context: str = "",
    known: Known | None = None,
) -> Graph:
    """A graph of content-keyed nodes; ``graph.graph["nodes"]`` holds them by name.

    Each port is wired to the stage of its name, or to the one ``wires[stage][port]`` names; ``given`` are values
    ready beforehand. ``same_as`` makes a name stand for another stage. A port with a default may stay open. ``context``
    is what else decides every result, such as the versions of packages; it is part of every key. Graphs
    built with one ``known`` have one ``Node`` object for equal work.

    Raises:
        GraphError: with every unknown or missing stage, wrong type, misnamed port and cycle, all at once.
        WeightsError, PictureError: a file that a stage reads cannot be read.
    """
    plan, known = _Plan(stages, given or {}, wires or {}, same_as or {}, context), known or Known()
    shape = plan.shape()
    if shape not in known.orders:
        known.orders[shape] = plan.checked()
    return plan.bind(known.orders[shape], known)


@dataclass(frozen=True)
class _Plan:
    stages: Mapping[str, Stage]
    given: Mapping[str, Any]
    wires: Wires
    same_as: Mapping[str, str]
    context: str

    def shape(self) -> Hashable:
        """All that the checks look at."""
        wires = tuple((name, *wanted.items()) for name, wanted in self.wires.items() if wanted)
        kinds = tuple((name, type(value)) for part in (self.stages, self.given) for name, value in part.items())
        return len(self.stages), kinds, wires, tuple(self.same_as.items())

    def checked(self) -> list[str]:
        """Names of the stages in an order to make them in; raises ``GraphError``."""
        faults = [*self.faults()]
        order = self.order(faults)
        if faults:
            raise GraphError(faults)
        return order

    def source(self, name: str, port: str) -> str:
        """The name of the stage or given value that feeds a port, aliases followed."""
        source, seen = self.wires.get(name, {}).get(port, port), set[str]()
        while source in self.same_as and source not in seen:
            seen.add(source)
            source = self.same_as[source]
        return source

    def known(self) -> list[str]:
        return [*self.stages, *self.same_as, *self.given]

    def edges(self) -> Iterator[tuple[str, str, Port, str]]:
        """Stage, port name, port and source of every port, wired or open."""
        for name, stage in self.stages.items():
            for port, what in ports(type(stage)).items():
                yield name, port, what, self.source(name, port)

    def faults(self) -> Iterator[str]:
        """One sentence for everything that is wrong with the wiring, cycles aside."""
        for name, wanted in self.wires.items():
            yield from self._misnamed_ports(name, wanted)
        for name, port, what, source in self.edges():
            if source in self.stages:
                yield from _type_fault(name, port, what.kind, makes(type(self.stages[source])), f"stage '{source}'")
            elif source in self.given:
                yield from _type_fault(name, port, what.kind, type(self.given[source]), f"'{source}'")
            elif what.required or port in self.wires.get(name, {}):
                yield self._missing(name, port, source)

    def _misnamed_ports(self, name: str, wanted: Mapping[str, str]) -> Iterator[str]:
        for port in wanted:
            if name in self.stages and port not in (known := ports(type(self.stages[name]))):
                yield f"stage '{name}' has no input '{port}'{nearest(port, known)}"

    def _missing(self, name: str, port: str, source: str) -> str:
        wanted = f"'{source}'" if source == port else f"'{source}' (inputs.{port})"
        return f"stage '{name}' needs {wanted}, but no stage has that name{nearest(source, self.known())}"

    def order(self, faults: list[str]) -> list[str]:
        """Names of the stages, each after those that feed it; a cycle is added to ``faults``."""
        feeds: dict[str, set[str]] = {name: set() for name in self.stages}
        for name, _, _, source in self.edges():
            if source in self.stages:
                feeds[name].add(source)
        try:
            return list(TopologicalSorter(feeds).static_order())
        except CycleError as error:
            loop = " -> ".join(reversed(error.args[1]))
            faults.append(f"stages form a cycle: {loop}; wire one of them to another stage with inputs.")
            return []

    def bind(self, order: list[str], known: Known) -> Graph:
        import networkx as nx  # after the checks: a wiring error need not wait for it

        nodes: dict[str, Node] = {}
        graph: Graph = nx.DiGraph(nodes=nodes)
        for name in order:
            inputs = {}
            for port in ports(type(self.stages[name])):
                source = self.source(name, port)
                if source in nodes or source in self.given:
                    inputs[port] = nodes[source] if source in nodes else self.given[source]
            node = nodes[name] = known.node(name, self.stages[name], _with_files(inputs), self.context)
            graph.add_node(node)
            graph.add_edges_from((parent, node) for parent in inputs.values() if isinstance(parent, Node))
        return graph


def _with_files(inputs: dict[str, Any]) -> dict[str, Any]:
    """The inputs of a node, a recipe among them completed with the digests of the files behind the others."""
    recipes = {port: value for port, value in inputs.items() if isinstance(value, Recipe)}
    if recipes:
        files = tuple(sorted(_files_behind(inputs.values()).items()))
        inputs |= {port: replace(recipe, files=files) for port, recipe in recipes.items()}
    return inputs


def _files_behind(values: Iterable[Any]) -> dict[str, str]:
    """Paths and digests of all files that these nodes and those before them read."""
    waiting = [value for value in values if isinstance(value, Node)]
    seen: dict[Node, None] = {}
    while waiting:
        node = waiting.pop()
        if node not in seen:
            seen[node] = None
            waiting += [value for value in node.inputs.values() if isinstance(value, Node)]
    return {path: found for node in seen for path, found in node.files.items()}


def _node(name: str, stage: Stage, inputs: Mapping[str, Any], itself: Own) -> Node:
    """A stage with its key: what it is by itself, and its inputs."""
    fed = sorted((port, value.key if isinstance(value, Node) else repr(value)) for port, value in inputs.items())
    return Node(sha256(f"{itself.work} {fed!r}".encode()).hexdigest()[:20], name, stage, inputs, itself.files)


def _type_fault(name: str, port: str, wanted: Any, made: Any, maker: str) -> Iterator[str]:
    if not _fits(made, wanted):
        yield (
            f"stage '{name}' takes {_title(wanted)} on its input '{port}', but {maker} makes {_title(made)}; "
            f"wire another with {name}.inputs.{port}=STAGE."
        )


def _fits(made: Any, wanted: Any) -> bool:
    if wanted is Any or made is Any or made == wanted:
        return True
    if get_origin(wanted) in (Union, UnionType):
        return any(_fits(made, choice) for choice in get_args(wanted))
    return isinstance(made, type) and isinstance(wanted, type) and issubclass(made, wanted)


def _title(kind: Any) -> str:
    choices = [choice for choice in get_args(kind) if choice is not NoneType]
    return " or ".join(map(_title, choices)) if choices else getattr(kind, "__name__", str(kind))
