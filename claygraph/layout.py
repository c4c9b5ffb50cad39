"""Where the boxes and lines of a drawing of a graph go: layers from left to right, as Sugiyama et al. (1981).

Each node stands one layer after the last of those that feed it. A line that crosses layers gets a place in each, so
that it runs between the boxes and not through them. Within a layer the order is that of the neighbours' mean place,
going to and fro a few times, and the one with the fewest crossings is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, pairwise
from statistics import fmean
from typing import TypeAlias

ROUNDS = 24
Place: TypeAlias = str | tuple[str, str, int]
"""A node, or where a line from one node to another crosses a layer."""


@dataclass(frozen=True)
class Layout:
    """The layer and the height in it of every node, in units of one box, and of the points each line goes through."""

    nodes: Mapping[str, tuple[int, float]]
    lines: Mapping[tuple[str, str], Sequence[tuple[int, float]]]


def layout(feeds: Mapping[str, Sequence[str]]) -> Layout:
    """A layout of nodes in topological order, each with those that it feeds from."""
    layer: dict[str, int] = {}
    for name, sources in feeds.items():
        layer[name] = 1 + max((layer[source] for source in sources), default=-1)
    for name in reversed(list(feeds)):  # what feeds only what is far away moves near it
        children = [layer[other] for other, sources in feeds.items() if name in sources]
        layer[name] = min(children) - 1 if children and not feeds[name] else layer[name]
    paths = {(source, name): _path(source, name, layer) for name, sources in feeds.items() for source in sources}
    links = [pair for path in paths.values() for pair in pairwise(path)]
    layers = _ordered(_layers(layer, paths), links)
    height = _heights(layers, links)
    nodes = {name: (layer[name], height[name]) for name in feeds}
    start = {name: layer[name] for name in feeds}
    lines = {
        pair: [(start[pair[0]] + step, height[place]) for step, place in enumerate(path)]
        for pair, path in paths.items()
    }
    return Layout(nodes, lines)


def _path(source: str, target: str, layer: Mapping[str, int]) -> list[Place]:
    return [source, *((source, target, each) for each in range(layer[source] + 1, layer[target])), target]


def _layers(layer: Mapping[str, int], paths: Mapping[tuple[str, str], Sequence[Place]]) -> list[list[Place]]:
    layers: list[list[Place]] = [[] for _ in range(max(layer.values()) + 1)]
    for name, place in layer.items():
        layers[place].append(name)
    for crossing in (place for path in paths.values() for place in path if isinstance(place, tuple)):
        layers[crossing[2]].append(crossing)
    return layers


def _neighbours(links: Sequence[tuple[Place, Place]], forward: bool) -> dict[Place, list[Place]]:
    found: dict[Place, list[Place]] = {}
    for one, two in links:
        here, there = (two, one) if forward else (one, two)
        found.setdefault(here, []).append(there)
    return found


def _ordered(layers: list[list[Place]], links: Sequence[tuple[Place, Place]]) -> list[list[Place]]:
    best, fewest = layers, _crossings(layers, links)
    for turn in range(ROUNDS):
        near = _neighbours(links, forward=turn % 2 == 0)
        layers = _swept(layers, near, turn % 2 == 0)
        if (count := _crossings(layers, links)) < fewest:
            best, fewest = layers, count
    return best


def _swept(
    layers: Sequence[Sequence[Place]], near: Mapping[Place, Sequence[Place]], forward: bool
) -> list[list[Place]]:
    place: dict[Place, float] = {}
    made = []
    for layer in layers if forward else layers[::-1]:
        old = {each: number for number, each in enumerate(layer)}
        weight = {each: fmean(place[n] for n in near[each]) if near.get(each) else float(old[each]) for each in layer}
        made.append(sorted(layer, key=lambda each: (weight[each], old[each])))
        place |= {each: float(number) for number, each in enumerate(made[-1])}
    return made if forward else made[::-1]


def _crossings(layers: Sequence[Sequence[Place]], links: Sequence[tuple[Place, Place]]) -> int:
    place = {each: number for layer in layers for number, each in enumerate(layer)}
    depth = {each: number for number, layer in enumerate(layers) for each in layer}
    by_layer: dict[int, list[tuple[int, int]]] = {}
    for one, two in links:
        by_layer.setdefault(depth[one], []).append((place[one], place[two]))
    pairs = (pair for found in by_layer.values() for pair in combinations(found, 2))
    return sum((a[0] - b[0]) * (a[1] - b[1]) < 0 for a, b in pairs)


def _heights(layers: Sequence[Sequence[Place]], links: Sequence[tuple[Place, Place]]) -> dict[Place, float]:
    """Heights near those of the neighbours, a box apart within a layer (half of one where only lines pass)."""
    height = {each: float(number) for layer in layers for number, each in enumerate(layer)}
    both = [_neighbours(links, forward=True), _neighbours(links, forward=False)]
    for turn in range(ROUNDS):
        near = both[turn % 2]
        for layer in layers if turn % 2 == 0 else layers[::-1]:
            wanted = [fmean(height[n] for n in near[each]) if near.get(each) else height[each] for each in layer]
            height |= dict(zip(layer, _apart(layer, wanted), strict=True))
    low = min(height.values())
    return {each: value - low for each, value in height.items()}


def _apart(layer: Sequence[Place], wanted: Sequence[float]) -> Iterator[float]:
    """Heights in order that are far enough apart and, all in all, where they are wanted."""
    offsets = [0.0]
    for one, two in pairwise(layer):
        offsets.append(offsets[-1] + (1.0 if isinstance(one, str) and isinstance(two, str) else 0.6))
    blocks: list[list[float]] = []  # of neighbours that touch: wanted starts
    for target, offset in zip(wanted, offsets, strict=True):
        blocks.append([target - offset])
        while len(blocks) > 1 and fmean(blocks[-2]) >= fmean(blocks[-1]):
            blocks[-2:] = [blocks[-2] + blocks[-1]]
    starts = (fmean(block) for block in blocks for _ in block)
    return (start + offset for start, offset in zip(starts, offsets, strict=True))
