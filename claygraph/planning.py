"""The sub-command ``plan``: what would run, without running it. Loads no weights."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from claygraph.forecast import Batch, Forecast, Row, forecast, last_run, upstream
from claygraph.graph import Node
from claygraph.jobs import Job
from claygraph.kept import Kept, to_run
from claygraph.limits import most_rows
from claygraph.plan import Planned, plan_all
from claygraph.store import open_store
from claygraph.variants import variant_of

MOST_NOTES = 20
MOST_FILES = 3


def plan(jobs: Sequence[Job]) -> int:
    """What would run: nodes by stage, batches, memory and time, files that are read, settings without effect."""
    planned = plan_all(jobs)
    first = variant_of(jobs[0].config)
    kept = Kept(open_store(first.get("store"), first.get("store_size", "10GB")), [e.graph for e in planned if e.graph])
    past = last_run(_outputs(first))
    found = forecast(
        planned,
        lambda graphs: to_run(graphs, kept.has),
        most_rows(first.get("batch", "auto"), str(first.get("device"))),
        past and past[1],
    )
    _show(["stage", "class", "nodes", "of", "run", "cached", "reads"], [_row(row) for row in found.rows])
    _show(["denoiser", "picture", "requests", "passes (rows each)"], [_batch(each) for each in found.batches])
    for line in (*_costs(found, past and past[0]), *_notes(found.rows), _total(found, len(planned))):
        print(line)
    return tell_failures(planned)


def _outputs(config: Any) -> Path:
    """Where earlier runs of this machine lie: beside this one's folder, below the first that there is."""
    return next((folder for folder in Path(str(config.get("out"))).parents if folder.is_dir()), Path())


def _show(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """A table on a terminal; elsewhere lines of columns."""
    if not rows:
        return
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(*head)
        for row in rows:
            table.add_row(*map(Text, row))
        Console().print(table)
        return
    widths = [max(len(row[place]) for row in (head, *rows)) for place in range(len(head))]
    for row in (head, *rows):
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


def _row(row: Row) -> list[str]:
    count = len(row.nodes)
    reads = [f"{Path(path).name} {sha[:12]}" for path, sha in row.files.items()]
    more = f" and {len(reads) - MOST_FILES} more" if len(reads) > MOST_FILES else ""
    numbers = [str(number) for number in (count, row.uses, count - row.cached, row.cached)]
    return [row.name, row.kind, *numbers, ", ".join(reads[:MOST_FILES]) + more]


def _batch(batch: Batch) -> list[str]:
    size = f"{batch.size[1]} x {batch.size[0]}" if batch.size else "?"
    passes = ", ".join(f"{count} of {rows}" for rows, count in batch.passes.items())
    return [batch.checkpoint, size, str(batch.requests), passes]


def _costs(found: Forecast, past: Path | None) -> Iterator[str]:
    yield (
        f"memory: about {_megabytes(found.weights + found.activations)}, an estimate: "
        f"{_megabytes(found.weights)} of files that are read, {_megabytes(found.activations)} for the largest batch"
    )
    if past is None or found.seconds is None:
        yield "time: not known before a first run"
        return
    unseen = f"; without {', '.join(found.unseen)}, which it did not have" if found.unseen else ""
    yield f"time: about {found.seconds:.1f} s, an estimate from what these stages took in {past}{unseen}"


def _megabytes(count: int) -> str:
    return f"{count / 1e9:.1f} GB" if count >= 1e9 else f"{count / 1e6:.0f} MB"


def _notes(rows: Sequence[Row]) -> Iterator[str]:
    """What the stages have to say of themselves and each other, each sentence once."""
    notes = list(dict.fromkeys(note for row in rows for node in row.nodes for note in notes_of(node)))
    yield from (f"note: {note}" for note in notes[:MOST_NOTES])
    if len(notes) > MOST_NOTES:
        yield f"note: and {len(notes) - MOST_NOTES} more like these."


def notes_of(node: Node) -> Sequence[str]:
    """What a stage has to say before a run, given those it builds on."""
    return node.stage.notes({name: each.stage for name, each in upstream(node).items()})


def _total(found: Forecast, pictures: int) -> str:
    nodes, uses = sum(len(row.nodes) for row in found.rows), sum(row.uses for row in found.rows)
    cached = sum(row.cached for row in found.rows)
    return (
        f"pictures: {pictures}; nodes: {nodes}, of {uses} before equal ones became one; "
        f"{nodes - cached} to run, {cached} need not"
    )


def tell_failures(planned: Sequence[Planned]) -> int:
    """Say why pictures cannot be made; the exit code."""
    failed = [each for each in planned if each.error is not None]
    for each in failed:
        print(f"claygraph: {each.image!r}: {each.error}", file=sys.stderr)
    return 1 if failed else 0
