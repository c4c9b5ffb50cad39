"""Run planned pictures as one graph, and write down what was done."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

from claygraph import record as records
from claygraph.errors import ClaygraphError, RequestError
from claygraph.files import folder_digests, write_new
from claygraph.graph import Node
from claygraph.jobs import Job
from claygraph.kept import Kept
from claygraph.plan import Planned, plan_all, versions
from claygraph.store import Store, open_store
from claygraph.values import Saved, Score

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
    scores: Mapping[str, Score] = field(default_factory=dict)


def execute(jobs: Sequence[Job], memory: Memory | None = None) -> list[Result]:
    """Make every picture of every job, in one scheduler; pictures that fail leave the others alone.

    A ``memory`` of an earlier call keeps its weights loaded, and stands for the config's device, dtype and batch.

    Raises:
        RequestError: before anything runs, where a config is wrong.
    """
    begun = datetime.now(UTC).isoformat(timespec="seconds")
    planned = plan_all(jobs)
    if jobs[0].index is not None:
        records.write_planned(folder_of(jobs), planned, begun)
    store = open_store(jobs[0].config.get("store"), jobs[0].config.get("store_size", "10GB"))
    memory = _set_up(memory, jobs[0].config)  # after all that can be wrong with a request: torch takes its time
    start = perf_counter()
    outcomes, done = _run(planned, store, memory, int(jobs[0].config.threads))
    seconds = round(perf_counter() - start, 3)
    results = _results(planned, outcomes)
    told = {"started": begun, "seconds": seconds} | describe_run(results, done, memory)
    write_new(folder_of(jobs), "run", ".json", json.dumps(told, indent=1).encode())
    if jobs[0].index is not None:
        ended = [records.Ended(r.paths, r.scores, r.stage, say(r) if r.error else "") for r in results]
        records.write_ended(folder_of(jobs), planned, ended, begun, counts(done))
    return results


def _set_up(memory: Memory | None, config: Any) -> Memory:
    from claygraph.memory import Memory

    memory = memory or Memory(str(config.device), str(config.dtype), config.batch, config.get("memory", "auto"))
    memory.compile = bool(config.get("compile", False))
    return memory


def _run(
    planned: Sequence[Planned], store: Store | None, memory: Memory, threads: int
) -> tuple[Sequence[Outcome], Mapping[Node, Record]]:
    """What became of every graph, in order, and of every node."""
    from claygraph.progress import progress
    from claygraph.scheduler import Scheduler

    graphs = [each.graph for each in planned if each.graph is not None]
    with progress(graphs) as tell:
        scheduler = Scheduler(graphs, memory, threads=threads, tell=tell, kept=Kept(store, graphs))
        return scheduler.run(), scheduler.records


def _results(planned: Sequence[Planned], outcomes: Sequence[Outcome]) -> list[Result]:
    """The result of every picture, also of those that have no graph, and each in its job's list."""
    left = iter(outcomes)
    results = [_result(each, next(left) if each.graph is not None else None) for each in planned]
    for each, result in zip(planned, results, strict=True):
        each.job.results.append(result)
    return results


def folder_of(jobs: Sequence[Job]) -> Path:
    """Where run.json goes: the folder of the pictures, or the one above where each job of a sweep has its own."""
    folder = Path(str(jobs[0].config.out))
    return folder if jobs[0].index is None else folder.parent


def _result(planned: Planned, outcome: Outcome | None) -> Result:
    if outcome is None:
        return Result(planned.image, error=planned.error)
    paths = tuple(value.path for value in outcome.values.values() if isinstance(value, Saved))
    scores = {name: value for name, value in outcome.values.items() if isinstance(value, Score)}
    return Result(planned.image, paths, outcome.error, outcome.stage, scores)


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
        metrics = {name: score.value for name, (_, score) in records.named(result.scores).items()}
        return {"image": result.image, "saved": list(result.paths)} | ({"metrics": metrics} if metrics else {})
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
