"""``claygraph replay PICTURE``: make a picture again from the recipe inside it, and say whether it is the same.

The recipe is whatever somebody wrote into a file, so it is checked before it is used. Only installed stages are made:
those of claygraph and those that the configs of an installed package name (entry point group ``claygraph.conf``); what
the file names is looked up among them and never imported. Nothing in it is interpolated, what it says of where to
save is not used, and the paths in it are only read.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import mkdtemp
from typing import TYPE_CHECKING, Any

from claygraph.errors import RequestError, nearest
from claygraph.graph import Graph, Node
from claygraph.pictures import find, read_rgb
from claygraph.plan import graph_of, versions
from claygraph.recipes import read_recipe
from claygraph.stage import Stage, makes
from claygraph.values import Recipe, Saved

if TYPE_CHECKING:
    from claygraph.scheduler import Outcome

SAVE = "claygraph.stages.save.Save"
TARGET = "_target_"
DEEPEST = 20
ROUNDING = 0.001
"""The share of pixels that may be one level off with what a picture was batched with."""


def replay(arguments: Sequence[str]) -> int:
    """Make a picture again: 0 where it is the same within rounding, 1 where it is not or cannot be made.

    Raises:
        RequestError, PictureError: the arguments, the picture or its recipe are not what can be replayed.
    """
    path, out = _arguments(arguments)
    recipe = read_recipe(path)
    graph = graph_for(recipe, Path(out or mkdtemp(prefix="claygraph-")))
    for difference in differences(recipe, graph):
        print(f"claygraph: {difference}", file=sys.stderr)
    outcome = _run(graph, json.loads(recipe.config))
    if outcome.error is not None:
        print(f"claygraph: stage {outcome.stage!r} failed: {outcome.error}", file=sys.stderr)
        return 1
    made = next(value.path for value in outcome.values.values() if isinstance(value, Saved))
    verdict, same = compare(path, Path(made))
    print(f"claygraph: {verdict}", file=sys.stderr)
    print(made)
    return 0 if same else 1


def _arguments(arguments: Sequence[str]) -> tuple[Path, str]:
    """The picture, and the folder of ``out=``."""
    outs = [argument.removeprefix("out=") for argument in arguments if argument.startswith("out=")]
    paths = [argument for argument in arguments if not argument.startswith("out=")]
    if len(paths) != 1 or len(outs) > 1 or paths[0].startswith("-"):
        raise RequestError("replay takes one picture that claygraph saved, and a folder: replay PICTURE [out=DIR].")
    return Path(paths[0]), outs[0] if outs else ""


def graph_for(recipe: Recipe, out: Path) -> Graph:
    """The graph that a recipe describes, as far as it leads to the picture, saving into ``out``.

    Raises:
        RequestError: the recipe asks for what is not installed or not allowed, or is not wired well.
        PictureError, WeightsError: a file that it names cannot be read.
    """
    from omegaconf import OmegaConf

    config = checked(json.loads(recipe.config), installed())
    for name, node in config.items():
        if isinstance(node, dict) and node.get(TARGET) == SAVE:
            config[name] = {**node, "folder": str(out)}
    return _leading_to_the_picture(graph_of(OmegaConf.create(config)))


def installed() -> dict[str, type[Stage]]:
    """The stages that may be made, by target; ``X.of`` beside ``X`` where there is one."""
    from claygraph.catalogue import catalogue

    kinds = {entry.target: entry.kind for entry in catalogue() if entry.kind is not None}
    return kinds | {f"{target}.of": kind for target, kind in kinds.items() if hasattr(kind, "of")}


def checked(config: Mapping[str, Any], known: Mapping[str, type[Stage]]) -> dict[str, Any]:
    """The config itself, after every part of it was looked at.

    Raises:
        RequestError: an unknown target at any depth, an interpolation, another instruction to Hydra, wires that are no
            names, a stage other than ``Save`` that saves, or nesting beyond reason.
    """
    for path, value in _parts(config):
        key = path[-1]
        if key == TARGET:
            _check_target(path, value, known)
        elif key.startswith("_"):
            raise _refused(path, f"the key {key!r}, which is no setting")
        elif isinstance(value, str) and "${" in value:
            raise _refused(path, "an interpolation (${...})")
        elif key == "inputs" and not _is_wires(value):
            raise _refused(path, "wires that are not names of stages")
    return dict(config)


def _parts(config: Mapping[str, Any]) -> Iterator[tuple[tuple[str, ...], Any]]:
    """Every value at every depth, with the path to it."""
    waiting: list[tuple[tuple[str, ...], Any]] = [((str(key),), value) for key, value in config.items()]
    while waiting:
        path, value = waiting.pop()
        if len(path) > DEEPEST:
            raise _refused(path[:3], "settings nested too deeply")
        yield path, value
        inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        waiting += [((*path, str(key)), each) for key, each in inner]


def _check_target(path: Sequence[str], target: Any, known: Mapping[str, type[Stage]]) -> None:
    if not isinstance(target, str) or target not in known:
        close = nearest(str(target)[:200], known) if isinstance(target, str) else "."
        raise _refused(path, f"{str(target)[:200]!r}, which is no installed stage", close)
    kind: Any = known[target]
    if makes(kind) is Saved and target != SAVE:
        raise _refused(path, f"{target!r}, which saves in a way of its own")


def _is_wires(value: Any) -> bool:
    return value is None or (isinstance(value, dict) and all(isinstance(each, str) for each in value.values()))


def _refused(path: Sequence[str], what: str, then: str = ".") -> RequestError:
    where = ".".join(path)[:200]
    return RequestError(f"the recipe in the picture is refused: {where!r} holds {what}{then}")


def _leading_to_the_picture(graph: Graph) -> Graph:
    """The part of a graph that saves need: metrics and the like are left out."""
    import networkx as nx

    nodes: list[Node] = list(graph)
    saves = [node for node in nodes if makes(type(node.stage)) is Saved]
    if len(saves) != 1:
        raise RequestError(f"the recipe in the picture saves {len(saves)} pictures; only one can be replayed.")
    needed = {*saves, *nx.ancestors(graph, saves[0])}
    part: Graph = graph.subgraph(needed).copy()
    part.graph["nodes"] = {name: node for name, node in graph.graph["nodes"].items() if node in needed}
    return part


def differences(recipe: Recipe, graph: Graph) -> list[str]:
    """What is not as it was when the picture was made: files by their content, wherever they lie, and versions."""
    now = versions()
    then = dict(recipe.versions)
    found = [
        f"{package} was {then.get(package, 'not there')} then, and is {now.get(package, 'not there')} now."
        for package in sorted({*then, *now})
        if then and then.get(package) != now.get(package)
    ]
    return [*_changed_files(recipe, graph), *found]


def _changed_files(recipe: Recipe, graph: Graph) -> list[str]:
    here = {path: digest for node in graph for path, digest in node.files.items()}
    by_name = {Path(path).name: digest for path, digest in here.items()}
    sentences = []
    for path, digest in recipe.files:
        if digest not in here.values():
            now = by_name.get(Path(path).name)
            instead = f"here it is {now[:12]}" if now else "no file here has that content"
            sentences.append(f"{path!r} had the sha256 {digest[:12]} when the picture was made; {instead}.")
    return sentences


def _run(graph: Graph, config: Mapping[str, Any]) -> Outcome:
    from claygraph.memory import Memory
    from claygraph.progress import progress
    from claygraph.scheduler import Scheduler

    memory = Memory(str(config.get("device", "auto")), str(config.get("dtype", "auto")))
    with progress([graph]) as tell:
        return Scheduler([graph], memory, tell=tell).run()[0]


def compare(one: Path, other: Path) -> tuple[str, bool]:
    """What two pictures have in common, in a sentence, and whether they are the same within ``ROUNDING``.

    Raises:
        PictureError: one of them cannot be read.
    """
    import numpy as np

    pixels = [np.asarray(read_rgb(find(str(path), "the picture")), np.int16) for path in (one, other)]
    if pixels[0].shape != pixels[1].shape:
        (height, width), (high, wide) = (each.shape[:2] for each in pixels)
        return f"differs: {width} x {height} pixels then, {wide} x {high} now.", False
    apart = np.abs(pixels[0] - pixels[1]).max(axis=2)
    share, most = float((apart > 0).mean()), int(apart.max())
    if not most:
        return "pixel-equal", True
    found = f"in {100 * share:.3g} % of the pixels, by up to {most} of 255."
    if most <= 1 and share <= ROUNDING:
        return f"equal within rounding: it was made in other company, and differs {found}", True
    return f"differs {found}", False
