"""What all benchmarks share: two sides measured alternately, medians, a table, JSON.

A ratio is theirs / ours: above 1 claygraph is faster (or smaller, or whatever the row counts).
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from subprocess import PIPE, Popen
from time import perf_counter, process_time
from typing import Any

Side = Callable[[], float]
CLOCKS = {"wall": perf_counter, "cpu": process_time}


@dataclass(frozen=True)
class Row:
    """One comparison: medians of both sides (seconds unless ``unit`` says otherwise), and what else was seen.

    ``ratio`` is theirs / ours, None where there is only one side.
    """

    name: str
    ours: float
    theirs: float | None = None
    unit: str = "s"
    notes: Mapping[str, Any] = field(default_factory=dict)

    @property
    def ratio(self) -> float | None:
        return None if self.theirs is None else self.theirs / self.ours


@dataclass(frozen=True)
class Ended:
    """A process that has ended well: wall-clock seconds, those its threads ran, peak memory in bytes, what it said."""

    seconds: float
    cpu: float
    peak: int
    output: str


def parser(about: str | None) -> argparse.ArgumentParser:
    """The options that every benchmark takes."""
    made = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = made.add_argument
    add("--json", type=Path, metavar="FILE", help="also write the rows there")
    add("--runs", type=int, default=5, help="medians are of so many (5)")
    add("--clock", choices=list(CLOCKS), default="wall", help="cpu: seconds of all threads")
    add("--threads", type=int, help="torch's threads on the CPU, for both sides")
    add("--device", default="cpu", help="cpu (the default) or cuda")
    return made


def timed(work: Callable[[], Any], clock: str = "wall") -> Side:
    """A side that does ``work`` and says how many seconds it took."""
    now = CLOCKS[clock]

    def seconds() -> float:
        begun = now()
        work()
        return now() - begun

    return seconds


def alternately(name: str, ours: Side, theirs: Side, runs: int, **notes: Any) -> Row:
    """Both sides by turns, so that a busy moment of the machine hits both; the median of each."""
    pairs = [(ours(), theirs()) if turn % 2 else (theirs(), ours())[::-1] for turn in range(runs)]
    mine, other = (list(column) for column in zip(*pairs, strict=True))
    notes |= {"ours_all": [round(each, 4) for each in mine], "theirs_all": [round(each, 4) for each in other]}
    return Row(name, statistics.median(mine), statistics.median(other), notes=notes)


def alone(name: str, side: Side, runs: int, **notes: Any) -> Row:
    """A row with only our side."""
    return Row(name, statistics.median(side() for _ in range(runs)), notes=notes)


def fresh(arguments: Sequence[str], expected: int = 0, environment: Mapping[str, str] | None = None) -> Ended:
    """Run this Python with these arguments in a new process.

    Raises:
        RuntimeError: its exit code was not the ``expected`` one; the message ends with what it wrote to stderr.
    """
    with tempfile.TemporaryFile() as errors:
        begun = perf_counter()
        child = Popen(
            [sys.executable, *arguments], stdout=PIPE, stderr=errors, env=os.environ | dict(environment or {})
        )
        output = child.stdout.read().decode() if child.stdout else ""
        _, status, usage = os.wait4(child.pid, 0)
        seconds, child.returncode = perf_counter() - begun, os.waitstatus_to_exitcode(status)
        if child.stdout:
            child.stdout.close()
        if child.returncode != expected:
            errors.seek(0)
            raise RuntimeError(f"{' '.join(arguments)} ended with {child.returncode}: {errors.read().decode()[-2000:]}")
    peak = usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return Ended(seconds, usage.ru_utime + usage.ru_stime, peak, output)


def machine(device: str = "cpu") -> dict[str, Any]:
    """What the numbers were measured on."""
    found = {
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "python": platform.python_version(),
        "torch": version("torch"),
        "diffusers": version("diffusers"),
    }
    return found | ({"gpu": _gpu(device)} if device.startswith("cuda") else {})


def _cpu() -> str:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _gpu(device: str) -> str:
    import torch

    return torch.cuda.get_device_name(device)


def report(rows: Sequence[Row], headline: float | None, options: argparse.Namespace) -> None:
    """Print the table; write it where ``--json`` says. ``headline`` is the ratio that stands for the benchmark."""
    place = machine(options.device)
    command = " ".join(["python", "-m", _module(), *sys.argv[1:]])
    print(", ".join(f"{key} {value}" for key, value in place.items()) + f"; medians of {options.runs}\n{command}\n")
    print(table(rows))
    if headline is not None:
        print(f"\n{headline:.2f} x")
    if options.json:
        date = datetime.now(UTC).isoformat(timespec="seconds")
        found = {"ratio": headline, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
        text = json.dumps(found | {"machine": place, "command": command, "date": date}, indent=1)
        options.json.write_text(text + "\n", encoding="utf-8")


def _module() -> str:
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return spec.name if spec else Path(sys.argv[0]).stem


def table(rows: Sequence[Row]) -> str:
    """The rows as text, columns aligned."""
    cells = [("", "ours", "theirs", "ratio", ""), *map(_cells, rows)]
    wide = [max(len(row[column]) for row in cells) for column in range(5)]
    lines = ([row[0].ljust(wide[0]), *(row[k].rjust(wide[k]) for k in (1, 2, 3)), row[4]] for row in cells)
    return "\n".join("  ".join(line).rstrip() for line in lines)


def _cells(row: Row) -> tuple[str, str, str, str, str]:
    ratio = "" if row.ratio is None else f"{row.ratio:.2f} x"
    said = ", ".join(f"{key} {_short(value)}" for key, value in row.notes.items() if not key.endswith("_all"))
    theirs = "" if row.theirs is None else f"{row.theirs:.3f} {row.unit}"
    return row.name, f"{row.ours:.3f} {row.unit}", theirs, ratio, said


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
