"""What each sub-command does with the composed configs; every one returns the exit code."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from itertools import chain

from claygraph.graph import Graph, Node
from claygraph.jobs import Job
from claygraph.plan import Planned, plan_all
from claygraph.stage import makes


def run(jobs: Sequence[Job]) -> int:
    """Make the pictures; each one's path is a line of stdout."""
    from claygraph.execute import execute, exit_code, folder_of, say
    from claygraph.reporting import make_report

    results = execute(jobs)
    if jobs[0].index is not None:
        make_report(folder_of(jobs))
    for result in results:
        if result.error is not None:
            print(f"claygraph: {say(result)}", file=sys.stderr)
    for path in chain.from_iterable(result.paths for result in results):
        print(path)
    return exit_code(results)


def plan(jobs: Sequence[Job]) -> int:
    """What would run: nodes that are shared, files that are read, settings without effect. Loads no weights."""
    planned = plan_all(jobs)
    nodes: dict[Node, int] = {}
    for each in planned:
        for node in each.graph or ():
            nodes[node] = nodes.get(node, 0) + 1
    for node, uses in nodes.items():
        print(f"{node.key}  {node.name:12} {type(node.stage).__name__:16} {_used(uses, len(planned))}{_reads(node)}")
    for note in dict.fromkeys(note for each in planned if each.graph is not None for note in _notes(each.graph)):
        print(f"note: {note}")
    print(f"pictures: {len(planned)}; nodes: {len(nodes)}, of {sum(nodes.values())} before equal ones became one")
    return _tell_failures(planned)


def _notes(graph: Graph) -> Iterator[str]:
    """What the stages of a graph have to say of each other."""
    import networkx as nx

    for node in graph:
        yield from node.stage.notes({each.name: each.stage for each in nx.ancestors(graph, node)})


def _used(uses: int, pictures: int) -> str:
    return f"used by {uses} of {pictures}  " if pictures > 1 else ""


def _reads(node: Node) -> str:
    return "  ".join(f"reads {path} sha256:{found[:12]}" for path, found in node.files.items())


def graph(jobs: Sequence[Job]) -> int:
    """The wiring of the first picture's graph, as a Mermaid diagram."""
    planned = plan_all(jobs[:1])
    for line in mermaid(next(each.graph for each in planned if each.graph is not None)):
        print(line)
    return _tell_failures(planned)


def mermaid(graph: Graph) -> list[str]:
    """A graph in Mermaid's flowchart language: stages as boxes, values as arrows."""
    lines = ["flowchart LR"]
    for name, node in graph.graph["nodes"].items():
        lines.append(f'    {name}["{name}<br/>{type(node.stage).__name__}"]')
        for port, source in node.inputs.items():
            if isinstance(source, Node):
                value = getattr(makes(type(source.stage)), "__name__", "")
                lines.append(f"    {source.name} -->|{value}| {name}" + ("" if port == source.name else f" %% {port}"))
    return lines


def _tell_failures(planned: Sequence[Planned]) -> int:
    failed = [each for each in planned if each.error is not None]
    for each in failed:
        print(f"claygraph: {each.image!r}: {each.error}", file=sys.stderr)
    return 1 if failed else 0
