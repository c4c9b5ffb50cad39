"""What a user sees while a request runs: a live bar on a terminal, plain lines elsewhere; always on stderr."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from claygraph.graph import Graph, Node
from claygraph.scheduler import Event

if TYPE_CHECKING:
    from rich.progress import Progress

PAUSE = 5.0  # seconds between two plain lines about steps


class Tell(Protocol):
    """Takes an event from the scheduler and shows it, or not."""

    def __call__(self, event: Event) -> None: ...


class Work:
    """Counts finished nodes and denoising steps against what is known to come."""

    def __init__(self, nodes: int) -> None:
        self.total, self.done = float(nodes), 0.0
        self._steps: dict[Node, int] = {}

    def take(self, event: Event) -> None:
        """Count one event."""
        if event.what in ("finished", "failed", "skipped"):
            self.done += 1
            self._steps.pop(event.node, None)
        elif event.what == "cached":
            self.total -= 1
        elif event.what == "step":
            before = self._steps.get(event.node)
            self.total += event.steps if before is None else 0
            self.done += event.step - (before or 0)
            self._steps[event.node] = event.step


@contextmanager
def progress(graphs: Sequence[Graph]) -> Iterator[Tell]:
    """A function that shows events, for as long as the context lasts."""
    work = Work(len({node for graph in graphs for node in graph}))
    if not sys.stderr.isatty():
        yield _plain(work)
        return
    with _bar() as bar:
        yield _live(work, bar)


def _bar() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    text = TextColumn("{task.description}")
    console = Console(stderr=True)
    return Progress(text, BarColumn(), TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=console)


def _live(work: Work, bar: Progress) -> Tell:
    task = bar.add_task("starting", total=work.total)

    def tell(event: Event) -> None:
        work.take(event)
        bar.update(task, total=work.total, completed=work.done, description=_say(event))

    return tell


def _plain(work: Work) -> Tell:
    begun = said = monotonic()

    def tell(event: Event) -> None:
        nonlocal said
        work.take(event)
        now = monotonic()
        if event.what in ("finished", "failed") or (event.what == "step" and now - said > PAUSE):
            said = now
            left = (now - begun) * (work.total / work.done - 1) if work.done else 0.0
            print(f"{_say(event)}, about {left:.0f} s left", file=sys.stderr, flush=True)

    return tell


def _say(event: Event) -> str:
    step = f" step {event.step} of {event.steps}" if event.steps else f" {event.what}"
    return f"{event.node.name}{step}"
