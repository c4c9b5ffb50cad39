"""From a composed config to checked graphs, one for each picture. Nothing heavy is imported here."""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cache
from glob import glob, has_magic
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from claygraph.errors import ClaygraphError, GraphError, PictureError, RequestError, nearest
from claygraph.files import locate
from claygraph.graph import Graph, build
from claygraph.jobs import Job
from claygraph.stage import Stage
from claygraph.values import Recipe

KEEPING = ("store", "store_size")
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
    """One checked graph for each picture that each job names.

    Raises:
        RequestError: where no picture could come of the request: bad wiring, a bad setting, missing weights.
    """
    planned = [each for job in jobs for each in _plan(job)]
    if planned and not any(each.graph for each in planned):
        raise RequestError("\n".join(str(each.error) for each in planned))
    return planned


def _plan(job: Job) -> list[Planned]:
    images, name = find_pictures(job.config.get("image")), job.config.get("name")
    names = [str(name)] * len(images) if name else [Path(image).stem for image in images]
    return [_one(job, image, name) for image, name in zip(images, _distinct(names), strict=True)]


def _distinct(names: Sequence[str]) -> list[str]:
    """The names with a number after those that came before, so that which is which does not depend on timing."""
    seen: Counter[str] = Counter()
    distinct = []
    for name in names:
        seen[name] += 1
        distinct.append(name if seen[name] == 1 else f"{name}-{seen[name]}")
    return distinct


def _one(job: Job, image: str, name: str) -> Planned:
    cfg = job.config.copy()
    cfg.image, cfg.name = image, name
    try:
        return Planned(job, image, graph_of(cfg))
    except PictureError as error:
        return Planned(job, image, error=error)


def graph_of(cfg: DictConfig) -> Graph:
    """The graph of a config for a single picture: every top-level mapping with a ``_target_`` is a stage."""
    nodes = {str(name): node for name, node in cfg.items() if isinstance(node, DictConfig)}
    stages, faults = {}, []
    for name, node in nodes.items():
        if "_target_" in node:
            try:
                stages[name] = _stage(name, node)
            except RequestError as error:
                faults.append(str(error))
    if faults:
        raise GraphError(faults)
    wires = {name: dict(node.get("inputs") or {}) for name, node in nodes.items() if name in stages}
    same_as = {name: str(node.same_as) for name, node in nodes.items() if "same_as" in node}
    return build(stages, {"recipe": _recipe(cfg)}, wires, same_as, _context(cfg))


def _stage(name: str, node: DictConfig) -> Stage:
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    settings = OmegaConf.masked_copy(node, [str(key) for key in node if key != "inputs"])
    settings._set_parent(node._get_parent())  # so that ${...} still sees the whole config
    try:
        made = instantiate(settings, _convert_="all")
    except InstantiationException as error:
        raise RequestError(_why(name, node, error)) from error
    if not isinstance(made, Stage):
        raise RequestError(f"stage '{name}': _target_={node._target_!r} is not a claygraph.stage.Stage.")
    return made


def _why(name: str, node: DictConfig, error: Exception) -> str:
    """One sentence about a stage that could not be made."""
    cause = error.__cause__ or error
    if isinstance(cause, ClaygraphError):
        return f"stage '{name}': {cause}"
    if isinstance(cause, TypeError) and (known := _settings_of(str(node._target_))):
        odd = [str(key) for key in node if key not in {*known, "_target_", "inputs"}]
        if odd:
            return f"stage '{name}' has no setting '{odd[0]}'{nearest(odd[0], known)}"
    reason = str(cause).strip().partition("\n")[0] or type(cause).__name__
    if reason.startswith("Error loading"):
        return f"stage '{name}': _target_={node._target_!r} cannot be imported: {_not_importable(str(node._target_))}"
    return f"stage '{name}' ({node._target_}) cannot be made: {reason}"


def _not_importable(target: str) -> str:
    module, _, name = target.rpartition(".")
    try:
        found = import_module(module)
    except Exception as error:  # whatever a plug-in raises while it is imported is its fault to tell
        return f"{type(error).__name__}: {error}."
    return f"module {module!r} has no {name!r}{nearest(name, [key for key in vars(found) if key[:1].isupper()])}"


def _settings_of(target: str) -> list[str]:
    from hydra.utils import get_object

    try:
        kind = get_object(target)
    except Exception:  # the target itself is at fault, and that is told elsewhere
        return []
    kind = getattr(kind, "__self__", kind)
    return [item.name for item in fields(kind)] if isinstance(kind, type) and issubclass(kind, Stage) else []


def _context(cfg: DictConfig) -> str:
    """What decides every result besides stages and files: versions of packages, what is computed on and with."""
    device, visible = str(cfg.get("device")), os.environ.get("CUDA_VISIBLE_DEVICES")
    if device == "auto":  # which is not known without torch, but no GPU comes or goes without one of these
        device = f"auto {Path('/dev/nvidiactl').exists() and visible not in ('', '-1')}"
    return f"{versions()} {device.partition(':')[0]} {cfg.get('dtype')} {cfg.get('compile')}"


def _recipe(cfg: DictConfig) -> Recipe:
    resolved = OmegaConf.to_container(cfg, resolve=True)
    if isinstance(resolved, dict):  # where results are kept says nothing of the picture
        resolved = {key: value for key, value in resolved.items() if key not in KEEPING}
    return Recipe(json.dumps(resolved, sort_keys=True, default=str), tuple(versions().items()))


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
    wanted = list(image) if isinstance(image, ListConfig | list | tuple) else [image]
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
