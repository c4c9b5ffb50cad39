"""``claygraph status DIR``: how far a sweep or a run got, from what it wrote there."""

from __future__ import annotations

import json
import sys
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from claygraph.errors import RequestError, nearest

Entry = Mapping[str, Any]


@dataclass(frozen=True)
class Picture:
    """One picture that was asked for: what made it different, whether it is there, and why it failed if it did."""

    title: str
    there: bool = False
    error: str = ""


def status(arguments: Sequence[str]) -> int:
    """Print how far the run in a folder got; 0 where every picture is there, 1 otherwise.

    Raises:
        RequestError: there is no such folder, or nothing in it that a run writes.
    """
    if len(arguments) != 1:
        raise RequestError("status takes one folder: the one a run or a sweep was given with out=.")
    pictures = read(Path(arguments[0]))
    failed = [picture for picture in pictures if picture.error and not picture.there]
    left = [picture for picture in pictures if not picture.error and not picture.there]
    for picture in failed:
        print(f"failed: {picture.title}: {picture.error}")
    for picture in left:
        print(f"left: {picture.title}")
    done = len(pictures) - len(failed) - len(left)
    print(f"pictures: {done} of {len(pictures)} done, {len(failed)} failed, {len(left)} left")
    if left:
        print("run the same command again to make what is left", file=sys.stderr)
    return 0 if done == len(pictures) else 1


def read(folder: Path) -> list[Picture]:
    """The pictures that ``sweep.json``, or else the last ``run.json`` of a folder, tells of."""
    if not folder.is_dir():
        beside = [each.name for each in folder.parent.iterdir()] if folder.parent.is_dir() else []
        raise RequestError(f"status: the folder {str(folder)!r} does not exist{nearest(folder.name, beside)}")
    if (folder / "sweep.json").is_file():
        return list(_of_sweep(folder, _content(folder / "sweep.json", "jobs")))
    runs = sorted(folder.glob("run*.json"), key=lambda file: (len(file.name), file.name))
    if not runs:
        raise RequestError(f"status: {str(folder)!r} holds neither sweep.json nor run.json; give the folder of a run.")
    return [_of_run(folder, entry) for entry in _content(runs[-1], "pictures")]


def _content(file: Path, part: str) -> list[Entry]:
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))[part]
        if all(isinstance(entry, dict) for entry in entries):
            return list(entries)
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        pass
    raise RequestError(f"status: {str(file)!r} is damaged, or of another version; run the same command again.")


def _of_run(folder: Path, entry: Entry) -> Picture:
    saved = [Path(str(path)) for path in entry.get("saved") or ()]
    there = bool(saved) and all(path.is_file() or (folder / path.name).is_file() for path in saved)
    return Picture(str(entry.get("image")), there, str(entry.get("error") or ""))


def _of_sweep(folder: Path, jobs: Sequence[Entry]) -> Iterator[Picture]:
    """Each job's picture; one that was only planned is there if there is a file of its name, as after a kill."""
    seen: Counter[tuple[str, str]] = Counter()
    for job in jobs:
        out, name = Path(str(job.get("out"))), _name(job)
        seen[str(out), name] += 1
        number = seen[str(out), name]
        planned = _below(folder, out) / (f"{name}.png" if number == 1 else f"{name}-{number}.png")
        saved = [str(path) for path in job.get("saved") or ()] or [str(planned)]
        error = str(job.get("error") or "") if job.get("state") == "failed" else ""
        there = not error and all((folder / path).is_file() for path in saved)
        yield Picture(_title(job), there, error)


def _below(folder: Path, out: Path) -> Path:
    """A job's folder as seen from the sweep's, wherever that has been moved to since."""
    parts, name = out.parts, folder.resolve().name
    return Path(*parts[parts.index(name) + 1 :]) if name in parts else Path(out.name)


def _name(job: Entry) -> str:
    """What the picture is called: as told, or as the photo is."""
    named = [str(each) for each in job.get("overrides") or () if str(each).startswith("name=")]
    return named[-1].removeprefix("name=") if named else Path(str(job.get("image"))).stem


def _title(job: Entry) -> str:
    axes = " ".join(f"{key}={value}" for key, value in dict(job.get("axes") or {}).items())
    return f"{job.get('image')}{' with ' + axes if axes else ''}"
