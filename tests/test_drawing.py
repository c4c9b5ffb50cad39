"""Drawings of a graph: Mermaid, DOT, and a layered SVG."""

from itertools import pairwise
from xml.etree import ElementTree

import pytest

from claygraph.cli import main
from claygraph.drawing import dot, edges, mermaid, svg
from claygraph.graph import Graph, build
from claygraph.layout import layout
from tests.toys import Halver, Number, Source, Spell, Word

SPACE = "{http://www.w3.org/2000/svg}"


@pytest.fixture
def graph() -> Graph:
    stages = {"source": Source(), "halver": Halver(), "spell": Spell()}
    return build(stages, {"note": Word("x")}, {})


def test_edges_have_what_travels_and_a_port_of_another_name() -> None:
    graph = build({"number": Source(), "halver": Halver()}, wires={"halver": {"source": "number"}})
    [edge] = edges(graph)
    assert (edge.source, edge.target, edge.label) == ("number", "halver", "Number as source")
    assert Number.__name__ in edge.label


def test_mermaid_and_dot_name_every_stage_and_wire(graph: Graph) -> None:
    assert "    source -->|Number| halver" in list(mermaid(graph))
    assert '  "halver" -> "spell" [label="Number"];' in list(dot(graph))
    assert sum("label=" in line for line in dot(graph)) == 5


def test_an_svg_has_a_box_a_stage_and_a_labelled_curve_a_wire(graph: Graph) -> None:
    root = ElementTree.fromstring("\n".join(svg(graph)))
    boxes = root.findall(f"{SPACE}g")
    assert [box.findall(f"{SPACE}text")[0].text for box in boxes] == ["source", "halver", "spell"]
    assert len(root.findall(f"{SPACE}path")) == 2
    assert [text.text for text in root.findall(f"{SPACE}text")].count("Number") == 2


FEEDS = {
    "photo": [],
    "checkpoint": [],
    "tagger": ["photo"],
    "edges": ["photo"],
    "lora": ["checkpoint"],
    "encode": ["photo", "checkpoint"],
    "ip_adapter": ["lora", "photo"],
    "prompt": ["tagger", "lora"],
    "controlnet": ["ip_adapter", "edges"],
    "sampler": ["controlnet", "prompt", "encode"],
    "decode": ["sampler", "checkpoint"],
    "save": ["decode"],
}


def test_every_node_stands_behind_those_that_feed_it_and_none_overlap() -> None:
    found = layout(FEEDS)
    for name, sources in FEEDS.items():
        assert all(found.nodes[source][0] < found.nodes[name][0] for source in sources)
    for layer in {layer for layer, _ in found.nodes.values()}:
        heights = sorted(height for other, height in found.nodes.values() if other == layer)
        assert all(two - one >= 1 - 1e-9 for one, two in pairwise(heights))


def test_lines_pass_between_boxes() -> None:
    found = layout(FEEDS)
    for (source, target), points in found.lines.items():
        assert points[0] == found.nodes[source]
        assert points[-1] == found.nodes[target]
        for layer, height in points[1:-1]:
            boxes = [other for name, (place, other) in found.nodes.items() if place == layer]
            assert all(abs(height - box) >= 0.6 - 1e-9 for box in boxes)


@pytest.mark.parametrize(
    ("arguments", "begins"), [((), "flowchart LR"), (("--format", "dot"), "digraph"), (("--format=svg",), "<svg")]
)
def test_the_format_is_a_flag(arguments: tuple[str, ...], begins: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", *arguments, "lora=none", "out=nowhere"]) == 0
    said = capsys.readouterr().out
    assert said.startswith(begins)
    assert "controlnet" in said
    assert ">lora<" not in said


def test_an_unknown_format_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["graph", "--format", "svgg"]) == 2
    assert "--format=svgg is not known; did you mean 'svg'?" in capsys.readouterr().err
