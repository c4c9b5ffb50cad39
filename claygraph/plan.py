"""From a composed config to checked graphs, one for each picture. Nothing heavy is imported here."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from glob import glob, has_magic
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from claygraph.errors import ClaygraphError, GraphError, PictureError, RequestError
from claygraph.files import locate
from claygraph.graph import Graph, Known, build
from claygraph.jobs import Job
from claygraph.making import make_stage
from claygraph.stage import Stage
from claygraph.values import Recipe
from claygraph.variants import Config, Section, Variant, variant_of

KEEPING = ("store", "store_size", "objective")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff", ".gif")
PACKAGES = ("claygraph", "torch", "diffusers", "transformers", "onnxruntime", "opencv-python-headless", "numpy")


@dataclass(frozen=True)
class Planned:
    """One picture of a job: its path as given, and its graph or why there is none."""

    job: Job
    image: str
    graph: Graph | None = None
    error: ClaygraphError | None = None


def plan_all(jobs: Sequence[Job]) -> list[Planned]:
    """One checked graph for each picture that each job names; equal work is one node object in all of them.

    Raises:
        RequestError: where no picture could come of the request: bad wiring, a bad setting, missing weights.
    """
    planner = Planner()
    planned = [each for job in jobs for each in planner.plan(job)]
    if planned and not any(each.graph for each in planned):
        raise RequestError("\n".join(str(each.error) for each in planned))
    return planned


def graph_of(config: Config) -> Graph:
    """The graph of a config for a single picture: every top-level mapping with a ``_target_`` is a stage."""
    return Planner().graph(variant_of(config))


class Planner:
    """Makes graphs, and each stage, node and list of pictures only once for all of them."""

    def __init__(self) -> None:
        self._stages: dict[Section, Stage | RequestError] = {}
        self._pictures: dict[str, list[str]] = {}
        self._versions = tuple(versions().items())
        self._known = Known()

    def plan(self, job: Job) -> list[Planned]:
        """The pictures of a job."""
        variant = variant_of(job.config)
        images, name = self._find(variant.get("image")), variant.get("name")
        names = [str(name)] * len(images) if name else [Path(image).stem for image in images]
        return [self._one(job, variant, *pair) for pair in zip(images, _distinct(names), strict=True)]

    def _find(self, image: Any) -> list[str]:
        key = repr(image)
        if key not in self._pictures:
            self._pictures[key] = find_pictures(image)
        return self._pictures[key]

    def _one(self, job: Job, variant: Variant, image: str, name: str) -> Planned:
        try:
            return Planned(job, image, self.graph(variant.having(image=image, name=name)))
        except PictureError as error:
            return Planned(job, image, error=error)

    def graph(self, variant: Variant) -> Graph:
        """The graph of a config for a single picture."""
        nodes = {name: each for name, each in variant.sections().items() if isinstance(each.value, dict)}
        made = {name: self._stage(each) for name, each in nodes.items() if "_target_" in each.value}
        if faults := [each for each in made.values() if isinstance(each, RequestError)]:
            raise GraphError([*dict.fromkeys(map(str, faults))]) if len(faults) > 1 else faults[0]
        stages = {name: each for name, each in made.items() if isinstance(each, Stage)}
        wires = {name: nodes[name].value.get("inputs") or {} for name in stages}
        same_as = {name: str(each.value["same_as"]) for name, each in nodes.items() if "same_as" in each.value}
        recipe = Recipe(variant.json(but=KEEPING), self._versions)  # where results are kept is nothing of the picture's
        context = _context(*(str(variant.get(name)) for name in ("device", "dtype", "compile")))
        return build(stages, {"recipe": recipe}, wires, same_as, context, self._known)

    def _stage(self, section: Section) -> Stage | RequestError:
        if section not in self._stages:
            try:
                self._stages[section] = _with_its_files(make_stage(section.name, section.value))
            except RequestError as error:
                self._stages[section] = error
        return self._stages[section]


def _with_its_files(stage: Stage) -> Stage:
    """The stage, once its weights are known to be there, so that all that are missing are told in one go."""
    with suppress(PictureError):  # which is that picture's alone
        stage.files()
    return stage


def _distinct(names: Sequence[str]) -> list[str]:
    """The names with a number after those that came before, so that which is which does not depend on timing."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return distinct


@cache
def _context(device: str, dtype: str, compiled: str) -> str:
    """What decides every result besides stages and files: versions of packages, what is computed on and with."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if device == "auto":  # which is not known without torch, but no GPU comes or goes without one of these
        device = f"auto {Path('/dev/nvidiactl').exists() and visible not in ('', '-1')}"
    return f"{versions()} {device.partition(':')[0]} {dtype} {compiled}"


@cache
def versions() -> dict[str, str]:
    """Versions of the packages that decide what a picture looks like."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def find_pictures(image: Any) -> list[str]:
    """The pictures that ``image`` names: a file, a folder, a glob, or a list of them, in order and each once."""
    wanted = list(image) if isinstance(image, list | tuple) else [image]
    found = [path for pattern in wanted for path in _expand(str(pattern))]
    return list(dict.fromkeys(found))


def _expand(pattern: str) -> list[str]:
    path = locate(pattern)
    if path.is_dir():
        names = sorted(str(file) for file in path.iterdir() if file.suffix.lower() in SUFFIXES)
        if not names:
            raise RequestError(f"image={pattern!r} is a folder without pictures; it may hold {', '.join(SUFFIXES)}.")
        return names
    if has_magic(pattern) and not path.exists():
        names = sorted(glob(str(path), recursive=True))  # noqa: PTH207 - the pattern may be absolute
        if not names:
            raise RequestError(f"image={pattern!r} matches no file.")
        return [name for name in names if Path(name).is_file()]
    return [pattern]
