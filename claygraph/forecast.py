"""What a run would do, from a plain model: what is kept already, which batches form, memory and time.

Estimates: memory is the size of the weight files that are read and ``ACTIVATIONS`` for each row and latent pixel; time
is what a node of the same stage took, on average, in the newest run.json that is given.
"""

from __future__ import annotations

import json
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claygraph.graph import Node
from claygraph.plan import Planned
from claygraph.stage import makes, ports
from claygraph.values import Model

ACTIVATIONS = 320 * 4 * 40  # bytes a latent pixel: SDXL's first channels, float32, tensors alive at once in a block
LATENT = 8  # pixels a latent pixel


@dataclass
class Row:
    """The nodes of one stage: how many, in how many pictures all together, and which are kept already."""

    name: str
    kind: str
    nodes: list[Node] = field(default_factory=list)
    uses: int = 0
    cached: int = 0

    @property
    def files(self) -> dict[str, str]:
        """The files they read."""
        return {path: sha for node in self.nodes for path, sha in node.files.items()}


@dataclass(frozen=True)
class Batch:
    """Denoise calls that may share passes: by checkpoint and picture size. ``passes`` counts passes by their rows."""

    checkpoint: str
    size: tuple[int, int] | None
    requests: int
    passes: Mapping[int, int]


@dataclass(frozen=True)
class Forecast:
    """A run in numbers. ``seconds`` is None where no run was seen yet, ``unseen`` are stages that it did not have."""

    rows: Sequence[Row]
    batches: Sequence[Batch]
    weights: int
    activations: int
    seconds: float | None = None
    unseen: Sequence[str] = ()


def forecast(
    planned: Sequence[Planned], todo: Callable[[Sequence[Any]], set[Node]], batch: int, run: Mapping[str, Any] | None
) -> Forecast:
    """What running these graphs comes to; ``todo`` says which nodes must run, ``run`` is an earlier run.json."""
    graphs = [each.graph for each in planned if each.graph is not None]
    run_now = todo(graphs)
    uses = Counter(node for graph in graphs for node in graph)
    batches = list(_batches([node for node in uses if node in run_now], batch))
    files = {sha: path for node in run_now for path, sha in node.files.items()}
    weights = sum(_bytes(Path(path)) for path in files.values())
    most = max((rows * _pixels(each.size) for each in batches for rows in each.passes), default=0)
    return Forecast(_rows(uses, run_now), batches, weights, most * ACTIVATIONS, *_time(run_now, run))


def _rows(uses: Mapping[Node, int], todo: set[Node]) -> list[Row]:
    rows: dict[tuple[str, str], Row] = {}
    for node, count in uses.items():
        kind = type(node.stage).__name__
        row = rows.setdefault((node.name, kind), Row(node.name, kind))
        row.nodes.append(node)
        row.uses += count
        row.cached += node not in todo
    return list(rows.values())


def upstream(node: Node) -> dict[str, Node]:
    """The nodes a node builds on, by name."""
    found: dict[str, Node] = {}
    waiting = [node]
    while waiting:
        for parent in waiting.pop().inputs.values():
            if isinstance(parent, Node) and parent.name not in found:
                found[parent.name] = parent
                waiting.append(parent)
    return found


def _batches(nodes: Sequence[Node], batch: int) -> Iterator[Batch]:
    steps: dict[tuple[str, tuple[int, int] | None], list[int]] = defaultdict(list)
    for node in nodes:
        if count := node.stage.denoising_steps():
            before = upstream(node).values()
            steps[_checkpoint(before), _size(before)].append(count)
    for (checkpoint, size), counts in steps.items():
        yield Batch(checkpoint, size, len(counts), _passes(counts, batch))


def _checkpoint(nodes: Iterable[Node]) -> str:
    """The file that the model begins with."""
    bases = [node for node in nodes if makes(type(node.stage)) is Model and not ports(type(node.stage))]
    return next((Path(path).name for node in bases for path in node.files), "?")


def _size(nodes: Iterable[Node]) -> tuple[int, int] | None:
    return next((size for node in nodes if (size := node.stage.picture_size())), None)


def _passes(steps: Sequence[int], most: int) -> dict[int, int]:
    """How many passes have how many rows, where all begin together and at most ``most`` share one."""
    passes: Counter[int] = Counter()
    for step in range(max(steps)):
        whole, rest = divmod(sum(count > step for count in steps), most)
        passes[most] += whole
        passes[rest] += rest > 0
    return {rows: count for rows, count in sorted(passes.items(), reverse=True) if count}


def _pixels(size: tuple[int, int] | None) -> int:
    return (size[0] // LATENT) * (size[1] // LATENT) if size else 0


def _bytes(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _time(todo: set[Node], run: Mapping[str, Any] | None) -> tuple[float | None, list[str]]:
    """Seconds that the nodes take if each takes what one of its stage took on average, and stages not seen."""
    seen: dict[str, list[float]] = defaultdict(list)
    for each in (run or {}).get("nodes", ()):
        if each.get("state", "run") == "run":
            seen[str(each["stage"])].append(float(each["seconds"]))
    kinds = Counter(f"{type(node.stage).__module__}.{type(node.stage).__qualname__}" for node in todo)
    known = {kind: count for kind, count in kinds.items() if kind in seen}
    seconds = sum(count * sum(seen[kind]) / len(seen[kind]) for kind, count in known.items())
    return (seconds if known else None), [kind.rpartition(".")[2] for kind in kinds if kind not in seen]


def last_run(folder: Path) -> tuple[Path, dict[str, Any]] | None:
    """The newest run.json in a folder or next to it, with where it lies; None where there is none that can be read."""
    places = [place for depth in ("*.json", "*/*.json", "*/*/*.json") for place in folder.glob(depth)]
    runs = [place for place in places if place.name.startswith("run")]
    for place in sorted(runs, key=lambda file: file.stat().st_mtime, reverse=True):
        try:
            found = json.loads(place.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            continue
        if isinstance(found, dict) and isinstance(found.get("nodes"), list):
            return place, found
    return None
