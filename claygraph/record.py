"""What a sweep was and how it went, on disk: ``sweep.json``.

``sweep.json`` is written before the run, with every job "planned", and again after it. Where a sweeper launches its
jobs in several goes (Optuna does), those of the same command are kept together.
"""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from claygraph.errors import RequestError
from claygraph.files import write_over
from claygraph.jobs import Job
from claygraph.plan import Planned
from claygraph.results import write_results
from claygraph.values import Score
from claygraph.variants import variant_of

SWEEP = "sweep.json"
VERSION = 1
DEFAULT, ABSENT = "default", "-"
Entry = dict[str, Any]
SHAPE = {"started": str, "command": list, "axes": dict, "nodes": dict, "jobs": list}
JOB = {"index": int, "image": str, "command": str, "state": str, "stage": str, "error": str}
JOB |= {"overrides": list, "saved": list, "axes": dict, "metrics": dict, "nodes": dict}


@dataclass(frozen=True)
class Ended:
    """How one picture ended: paths saved, scores by stage, or the stage that failed and the sentence about it."""

    saved: Sequence[str] = ()
    scores: Mapping[str, Score] = field(default_factory=dict)
    stage: str = ""
    error: str = ""


def write_planned(folder: Path, planned: Sequence[Planned], started: str) -> None:
    """Write ``sweep.json`` for what is about to run."""
    entries = _entries(planned)
    sweep = {"nodes": _counts(entries, 0, 0), "jobs": entries, "metrics": {}}
    _write(folder, _merged(folder, {"version": VERSION, "started": started, "command": list(sys.argv)} | sweep))


def write_ended(
    folder: Path, planned: Sequence[Planned], ended: Sequence[Ended], started: str, counts: Mapping[str, int]
) -> None:
    """Write ``sweep.json`` and ``results.csv`` for what ran; ``counts`` says how many nodes were run and cached."""
    entries, about = _entries(planned), dict[str, str]()
    for entry, plan, end in zip(entries, planned, ended, strict=True):
        entry |= _end(folder, end)
        about |= _about(plan, end)
    sweep = {"nodes": _counts(entries, counts["run"], counts["cached"]), "jobs": entries, "metrics": about}
    whole = _merged(folder, {"version": VERSION, "started": started, "command": list(sys.argv)} | sweep)
    _write(folder, whole)
    write_results(folder, whole)


def _entries(planned: Sequence[Planned]) -> list[Entry]:
    """One entry of ``jobs`` for each picture, not yet run."""
    several = len(planned) > len({id(each.job) for each in planned})
    entries = [_entry(place, each, several) for place, each in enumerate(planned)]
    settings = [_settings(entry) for entry in entries]
    keys = {key: None for each in settings for key in each}
    for entry, found, each in zip(entries, settings, planned, strict=True):
        entry["axes"] = {key: found[key] if key in found else _configured(each.job, key) for key in keys}
    return entries


def _entry(place: int, planned: Planned, several: bool) -> Entry:
    job, graph = planned.job, planned.graph
    overrides = _alone(job.overrides, planned.image) if several else list(job.overrides)
    nodes = graph.graph["nodes"] if graph is not None else {}
    return {
        "index": place if job.index is None else job.index,
        "overrides": overrides,
        "flags": list(job.flags),
        "image": planned.image,
        "command": Job(job.config, tuple(overrides), job.flags).command,
        "axes": {},
        "out": str(job.config.out),
        "nodes": {name: node.key for name, node in nodes.items()},
        "state": "planned",
        "saved": [],
        "metrics": {},
        "stage": "",
        "error": "",
    }


def _alone(overrides: Sequence[str], image: str) -> list[str]:
    """The overrides for one picture of a job that has several: ``image`` is this one, in its place or at the front."""
    ours = f"image={quoted(image)}"
    rest = [ours if each.partition("=")[0] == "image" else each for each in overrides]
    return rest if ours in rest else [ours, *rest]


def quoted(text: str) -> str:
    """``text`` as a value of Hydra's override grammar that means just that, whatever is in it."""
    inner = re.sub(r"(\\*)\$\{", r"\1\1\\${", text)  # backslashes count only before what they escape
    inner = re.sub(r'(\\*)("|$)', lambda found: found[1] * 2 + ('\\"' if found[2] else ""), inner)
    plain = text and all(c.isascii() and (c.isalnum() or c in "/._-:") for c in text)
    return text if plain else f'"{inner}"'


def _settings(entry: Entry) -> dict[str, str]:
    """What the overrides of an entry set, as it is written; a part that is deleted has the value ``~``."""
    found = {}
    for override in entry["overrides"]:
        key, _, value = override.lstrip("+").partition("=")
        found[key.lstrip("~")] = "~" if key.startswith("~") else value
    return found


def _configured(job: Job, key: str) -> str:
    """The value of a key that a job leaves as it is: what it is set to, or for a group which choice was made."""
    config = variant_of(job.config)
    if key in config.base.groups:
        return str(config.base.groups[key])
    try:
        value = config.at(key)
    except KeyError:  # a part that is taken out, or a key of another grammar, as in group@package
        return ABSENT
    if isinstance(value, bool):
        return str(value).lower()
    return str(value) if isinstance(value, int | float | str) and value != "" else DEFAULT


def _end(folder: Path, end: Ended) -> Entry:
    """What an entry says once it has run."""
    return {
        "state": "failed" if end.error else "done",
        "saved": [_relative(path, folder) for path in end.saved],
        "metrics": {name: each.value for name, (_, each) in named(end.scores).items() if math.isfinite(each.value)},
        "stage": end.stage,
        "error": end.error,
    }


def named(scores: Mapping[str, Score]) -> dict[str, tuple[str, Score]]:
    """Stage and score by the score's own name, by its stage's where two scores have one name."""
    found: dict[str, tuple[str, Score]] = {}
    for stage, score in scores.items():
        found[stage if score.name in found else score.name] = stage, score
    return found


def _about(planned: Planned, end: Ended) -> dict[str, str]:
    """What each metric says of itself: the first paragraph of its stage's docstring."""
    from inspect import getdoc

    nodes = planned.graph.graph["nodes"] if planned.graph is not None else {}
    stages = {name: stage for name, (stage, _) in named(end.scores).items() if stage in nodes}
    docs = {name: getdoc(type(nodes[stage].stage)) or "" for name, stage in stages.items()}
    return {name: " ".join(doc.partition("\n\n")[0].split()) for name, doc in docs.items()}


def _relative(path: str, folder: Path) -> str:
    try:
        return Path(path).resolve().relative_to(folder.resolve()).as_posix()
    except ValueError:
        return path


def _counts(entries: Sequence[Entry], run: int, cached: int) -> dict[str, int]:
    """Nodes over all jobs, different ones among them, those computed now, and those taken from elsewhere."""
    keys = [key for entry in entries for key in entry["nodes"].values()]
    return {"planned": len(keys), "distinct": len(set(keys)), "run": run, "cached": cached}


def _merged(folder: Path, sweep: Entry) -> Entry:
    """The sweep with the jobs that earlier launches of the same command left in the folder, and with its axes."""
    try:
        before = read_sweep(folder)
    except RequestError:  # none yet, or one that is damaged and now replaced
        before = {}
    ours = {entry["index"] for entry in sweep["jobs"]}
    same = before.get("command") == sweep["command"]
    others = [entry for entry in before.get("jobs", ()) if entry["index"] not in ours] if same else []
    for entry in others:
        entry["axes"] = _settings(entry) | entry["axes"]
    jobs = sorted([*others, *sweep["jobs"]], key=lambda entry: int(entry["index"]))
    nodes = sweep["nodes"] | {key: value for key, value in _counts(jobs, 0, 0).items() if value}
    return sweep | {"axes": _axes(jobs), "nodes": nodes, "jobs": jobs}


def _axes(jobs: Sequence[Entry]) -> dict[str, list[str]]:
    """The settings that differ between jobs, with their values in order; each job keeps no others of its own."""
    keys = {key: None for entry in jobs for key in entry["axes"]}
    levels = {key: list(dict.fromkeys(entry["axes"].get(key, DEFAULT) for entry in jobs)) for key in keys}
    return {key: values for key, values in levels.items() if len(values) > 1}


def _write(folder: Path, sweep: Entry) -> None:
    for entry in sweep["jobs"]:
        entry["axes"] = {key: entry["axes"].get(key, DEFAULT) for key in sweep["axes"]}
    write_over(folder / SWEEP, json.dumps(sweep, indent=1).encode())


def read_sweep(folder: Path) -> Entry:
    """The content of a folder's ``sweep.json``; its shape is checked, so that what reads it need not.

    Raises:
        RequestError: there is none, or it is not one of this version's.
    """
    path = folder / SWEEP
    try:
        sweep = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RequestError(
            f"{str(path)!r} cannot be read: {error.strerror}; give the folder of a sweep (-m)."
        ) from error
    except (ValueError, RecursionError) as error:
        raise RequestError(f"{str(path)!r} is damaged; run the sweep again to write it anew.") from error
    if not isinstance(sweep, dict) or sweep.get("version") != VERSION or not _has_shape(sweep):
        raise RequestError(f"{str(path)!r} is no sweep of version {VERSION}; run the sweep again to write it anew.")
    return {"metrics": {}} | sweep


def _has_shape(sweep: Entry) -> bool:
    """Whether everything is there and of its type, for each job a value on each axis, and each metric a number."""
    jobs = sweep.get("jobs")
    return _fits(sweep, SHAPE) and all(
        _fits(job, JOB)
        and job["axes"].keys() >= sweep["axes"].keys()
        and all(isinstance(value, int | float) and math.isfinite(value) for value in job["metrics"].values())
        for job in jobs or ()
    )


def _fits(found: Any, shape: Mapping[str, type]) -> bool:
    return isinstance(found, dict) and all(isinstance(found.get(key), kind) for key, kind in shape.items())
