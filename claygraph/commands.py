"""The sub-command ``run``, which is what happens without one."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from itertools import chain

from claygraph.jobs import Job


def run(jobs: Sequence[Job]) -> int:
    """Make the pictures; each one's path is a line of stdout."""
    from claygraph.execute import execute, exit_code, folder_of, say
    from claygraph.reporting import make_report

    results = execute(jobs)
    if jobs[0].index is not None:
        make_report(folder_of(jobs))
    for result in results:
        if result.error is not None:
            print(f"claygraph: {say(result)}", file=sys.stderr)
    for path in chain.from_iterable(result.paths for result in results):
        print(path)
    return exit_code(results)
