"""Run planned pictures as one graph, and write down what was done."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from claygraph.errors import ClaygraphError, RequestError
from claygraph.files import folder_digests, write_new
from claygraph.graph import Node
from claygraph.jobs import Job
from claygraph.kept import Kept
from claygraph.plan import Planned, plan_all, versions
from claygraph.store import open_store
from claygraph.values import Saved

if TYPE_CHECKING:
    from claygraph.memory import Memory
    from claygraph.scheduler import Outcome, Record


@dataclass(frozen=True)
class Result:
    """One picture of the request: where it is, or why there is none."""

    image: str
    paths: tuple[str, ...] = ()
    error: Exception | None = None
    stage: str = ""


def execute(jobs: Sequence[Job], memory: Memory | None = None) -> list[Result]:
    """Make every picture of every job, in one scheduler; pictures that fail leave the others alone.

    A ``memory`` of an earlier call keeps its weights loaded, and stands for the config's device, dtype and batch.

    Raises:
        RequestError: before anything runs, where a config is wrong.
    """
    begun = datetime.now(UTC)
    planned = plan_all(jobs)
    first = jobs[0].config
    store = open_store(first.get("store"), first.get("store_size", "10GB"))
    from claygraph import memory as memories  # after planning: a wrong request need not wait for torch
    from claygraph.progress import progress
    from claygraph.scheduler import Scheduler

    memory = memory or memories.Memory(str(first.device), str(first.dtype), int(first.batch))
    graphs = [each.graph for each in planned if each.graph is not None]
    with progress(graphs) as tell:
        start = perf_counter()
        scheduler = Scheduler(graphs, memory, threads=int(first.threads), tell=tell, kept=Kept(store, graphs))
        outcomes = iter(scheduler.run())
        seconds = perf_counter() - start
    results = [_result(each, next(outcomes) if each.graph is not None else None) for each in planned]
    record = {"started": begun.isoformat(timespec="seconds"), "seconds": round(seconds, 3)}
    record |= describe_run(results, scheduler.records, memory)
    write_new(_folder(jobs), "run", ".json", json.dumps(record, indent=1).encode())
    return results


def _folder(jobs: Sequence[Job]) -> Path:
    """Where run.json goes: the folder of the pictures, or the one above where each job has its own."""
    folders = [Path(str(job.config.out)) for job in jobs]
    return folders[0] if len(folders) == 1 else folders[0].parent


def _result(planned: Planned, outcome: Outcome | None) -> Result:
    if outcome is None:
        return Result(planned.image, error=planned.error)
    paths = tuple(value.path for value in outcome.values.values() if isinstance(value, Saved))
    return Result(planned.image, paths, outcome.error, outcome.stage)


def describe_run(results: Sequence[Result], records: Mapping[Node, Record], memory: Memory) -> dict[str, Any]:
    """The content of run.json: pictures, nodes with what they cost, weight files with their sha256, versions."""
    files = {path: found for node in records for path, found in node.files.items()}
    return {
        "command": sys.argv,
        "device": str(memory.device),
        "dtype": str(memory.dtype).removeprefix("torch."),
        "versions": versions(),
        "pictures": [_picture(result) for result in results],
        "counts": counts(records),
        "nodes": [_node(node, record) for node, record in records.items()],
        "files": {name: found for path, sha in files.items() for name, found in _each(path, sha)},
    }


def counts(records: Mapping[Node, Record]) -> dict[str, int]:
    """How many nodes there were, and how many were run, cached or skipped."""
    states = Counter(record.state for record in records.values())
    return {"distinct": len(records)} | {state: states[state] for state in ("run", "cached", "skipped")}


def _picture(result: Result) -> dict[str, Any]:
    if result.error is None:
        return {"image": result.image, "saved": list(result.paths)}
    return {"image": result.image, "stage": result.stage, "error": str(result.error)}


def _node(node: Node, record: Record) -> dict[str, Any]:
    sizes = [size for counts in record.batches.values() for size in counts]
    return {
        "name": node.name,
        "stage": f"{type(node.stage).__module__}.{type(node.stage).__qualname__}",
        "key": node.key,
        "state": record.state,
        "seconds": round(record.seconds, 4),
        "batch_size": max(sizes, default=1),
        "batches": {call: dict(sorted(counts.items())) for call, counts in record.batches.items()},
        **{what: dict(sorted(counts.items())) for what, counts in record.notes.items()},
    }


def _each(path: str, sha: str) -> list[tuple[str, str]]:
    """A file with its sha256, or every file of a folder."""
    if not Path(path).is_dir():
        return [(path, sha)]
    return [(str(Path(path) / name), found) for name, found in sorted(folder_digests(Path(path)).items())]


def exit_code(results: Sequence[Result]) -> int:
    """0 all done, 1 some pictures failed, 2 none could be made because the request was wrong."""
    failed = [result.error for result in results if result.error is not None]
    if len(failed) == len(results) and all(isinstance(error, RequestError) for error in failed):
        return 2
    return 1 if failed else 0


def say(result: Result) -> str:
    """Why a picture failed, in one sentence."""
    error = result.error
    if isinstance(error, ClaygraphError):
        return str(error) if Path(result.image).name in str(error) else f"{result.image!r}: {error}"
    return f"{result.image!r}: stage '{result.stage}' failed with {type(error).__name__}: {error}"
