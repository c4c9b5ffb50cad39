"""The sub-command ``graph``: the wiring as Mermaid, DOT or SVG."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from html import escape
from typing import NamedTuple

from claygraph.errors import RequestError, nearest
from claygraph.graph import Graph, Node
from claygraph.jobs import Job
from claygraph.layout import Layout, layout
from claygraph.plan import plan_all
from claygraph.planning import tell_failures
from claygraph.stage import makes

WIDE, HIGH, ACROSS, DOWN, EDGE = 138, 46, 250, 78, 24  # pixels: a box, from one to the next, and around them all
KINDS = {  # what a stage makes: how it is told, and its colour
    "Model": ("model", "#cfe3f7"),
    "Image": ("picture", "#d5ecd0"),
    "Tags": ("words", "#f9edbd"),
    "Prompt": ("words", "#f9edbd"),
    "Latent": ("latent", "#e5d8f3"),
    "Mask": ("mask", "#d3ecea"),
    "Score": ("metric", "#fbdcc8"),
    "Saved": ("file", "#e3e3e3"),
}
OTHER = ("other", "#ffffff")
FONT = "font-family='Helvetica, Arial, sans-serif'"


class Edge(NamedTuple):
    """A wire: from which stage to which, into which port, and what travels on it."""

    source: str
    target: str
    port: str
    value: str

    @property
    def label(self) -> str:
        """What travels, and the port where that is not named after the source."""
        return self.value if self.port == self.source else f"{self.value} as {self.port}"


def command(arguments: list[str]) -> Callable[[Sequence[Job]], int]:
    """The sub-command, with the format that ``--format`` asks for taken out of the arguments.

    Raises:
        RequestError: there is no such format.
    """
    name = "mermaid"
    for place, argument in enumerate(arguments):
        flag, equals, value = argument.partition("=")
        if flag == "--format":
            name = value if equals else "".join(arguments[place + 1 : place + 2])
            del arguments[place : place + (1 if equals else 2)]
            break
    if name not in FORMATS:
        raise RequestError(f"--format={name} is not known{nearest(name, FORMATS)}")
    return partial(draw, how=name)


def draw(jobs: Sequence[Job], how: str = "mermaid") -> int:
    """Print the wiring of the first picture's graph."""
    planned = plan_all(jobs[:1])
    for line in FORMATS[how](next(each.graph for each in planned if each.graph is not None)):
        print(line)
    return tell_failures(planned)


def edges(graph: Graph) -> Iterator[Edge]:
    """Every wire between stages, by their names in the graph."""
    names = {id(node): name for name, node in graph.graph["nodes"].items()}
    for name, node in graph.graph["nodes"].items():
        for port, source in node.inputs.items():
            if isinstance(source, Node):
                yield Edge(names.get(id(source), source.name), name, port, _made(source))


def _made(node: Node) -> str:
    kind = makes(type(node.stage))
    return getattr(kind, "__name__", str(kind))


def _kind(node: Node) -> tuple[str, str]:
    return KINDS.get(_made(node), OTHER)


def mermaid(graph: Graph) -> Iterator[str]:
    """A graph in Mermaid's flowchart language: stages as boxes coloured by what they make, values as arrows."""
    yield "flowchart LR"
    for name, node in graph.graph["nodes"].items():
        yield f'    {name}["{name}<br/>{type(node.stage).__name__}"]'
    for edge in edges(graph):
        yield f"    {edge.source} -->|{edge.label}| {edge.target}"
    for name, node in graph.graph["nodes"].items():
        yield f"    style {name} fill:{_kind(node)[1]},stroke:#555"


def dot(graph: Graph) -> Iterator[str]:
    """A graph in Graphviz' language."""
    yield "digraph claygraph {"
    yield '  rankdir=LR; node [shape=box, style="rounded,filled", fontname="Helvetica"]; edge [fontname="Helvetica"];'
    for name, node in graph.graph["nodes"].items():
        yield f'  "{name}" [label="{name}\\n{type(node.stage).__name__}", fillcolor="{_kind(node)[1]}"];'
    for edge in edges(graph):
        yield f'  "{edge.source}" -> "{edge.target}" [label="{edge.label}"];'
    yield "}"


def svg(graph: Graph) -> Iterator[str]:
    """A graph as a picture that stands alone."""
    nodes, wires = graph.graph["nodes"], list(edges(graph))
    placed = layout({name: list({e.source: None for e in wires if e.target == name}) for name in nodes})
    wide = max(layer for layer, _ in placed.nodes.values()) * ACROSS + WIDE + 2 * EDGE
    points = [*placed.nodes.values(), *(point for line in placed.lines.values() for point in line)]
    high = round(max(height for _, height in points) * DOWN) + HIGH + 2 * EDGE + 30
    yield f"<svg xmlns='http://www.w3.org/2000/svg' viewBox='0 0 {wide} {high}' width='{wide}' height='{high}' {FONT}>"
    yield "<defs><marker id='tip' viewBox='0 0 8 8' refX='7' refY='4' markerWidth='7' markerHeight='7' orient='auto'>"
    yield "<path d='M0,0 L8,4 L0,8 z' fill='#777'/></marker></defs>"
    yield "<rect width='100%' height='100%' fill='#fff'/>"
    for edge in wires:
        yield from _wire(edge, placed)
    for name, node in nodes.items():
        yield from _box(name, node, *placed.nodes[name])
    yield from _legend({_kind(node) for node in nodes.values()}, high)
    yield "</svg>"


def _at(layer: int, height: float) -> tuple[float, float]:
    """The left middle of a box, in pixels."""
    return EDGE + layer * ACROSS, EDGE + height * DOWN + HIGH / 2


def _wire(edge: Edge, placed: Layout) -> Iterator[str]:
    """A curve from the right of one box to the left of another; along a box's width where it passes between others."""
    points = [_at(*point) for point in placed.lines[edge.source, edge.target]]
    x, y = points[0][0] + WIDE, points[0][1]
    path = f"M{x:.0f},{y:.1f}"
    for place, (left, middle) in enumerate(points[1:], 1):
        half = (left - x) / 2
        path += f" C{x + half:.0f},{y:.1f} {left - half:.0f},{middle:.1f} {left:.0f},{middle:.1f}"
        x, y = left, middle
        if place < len(points) - 1:
            x = left + WIDE
            path += f" L{x:.0f},{y:.1f}"
    yield f"<path d='{path}' fill='none' stroke='#777' stroke-width='1.2' marker-end='url(#tip)'/>"
    before = points[-2]
    share = 0.6  # of the way along the last curve, where lines to other ports have parted from it
    yield _text(*_along(before[0] + WIDE, before[1], *points[-1], share), escape(edge.label), 10, "#444", halo=True)


def _along(x: float, y: float, left: float, middle: float, share: float) -> tuple[float, float]:
    """A point on the curve between two boxes; the height is that of its cubic Bezier."""
    ease = share * share * (3 - 2 * share)
    return x + (left - x) * share, y + (middle - y) * ease - 4


def _box(name: str, node: Node, layer: int, height: float) -> Iterator[str]:
    x, y = _at(layer, height)
    settings = escape(f"{type(node.stage).__module__}.{type(node.stage).__qualname__}")
    yield f"<g><title>{settings}</title><rect x='{x:.0f}' y='{y - HIGH / 2:.1f}' width='{WIDE}' height='{HIGH}' rx='7'"
    yield f"  fill='{_kind(node)[1]}' stroke='#555'/>"
    yield _text(x + WIDE / 2, y - 3, escape(name), 14, "#111")
    yield _text(x + WIDE / 2, y + 14, escape(type(node.stage).__name__), 10, "#555") + "</g>"


def _text(x: float, y: float, text: str, size: int, colour: str, *, halo: bool = False) -> str:
    around = " stroke='#fff' stroke-width='3' paint-order='stroke'" if halo else ""
    style = f"font-size='{size}' fill='{colour}' text-anchor='middle'{around}"
    return f"<text x='{x:.0f}' y='{y:.1f}' {style}>{text}</text>"


def _legend(kinds: set[tuple[str, str]], high: int) -> Iterator[str]:
    for place, (word, colour) in enumerate(sorted(kinds)):
        x = EDGE + place * 90
        yield f"<rect x='{x}' y='{high - 30}' width='14' height='14' rx='3' fill='{colour}' stroke='#555'/>"
        yield f"<text x='{x + 20}' y='{high - 19}' font-size='11' fill='#444'>{escape(word)}</text>"


FORMATS: dict[str, Callable[[Graph], Iterator[str]]] = {"mermaid": mermaid, "dot": dot, "svg": svg}
