"""What a job is worth to a sweeper that searches: the value of the metric that ``objective`` names."""

from __future__ import annotations

from statistics import fmean
from typing import Any

from claygraph.errors import RequestError, nearest
from claygraph.jobs import Job


def returned(job: Job, code: int) -> Any:
    """What Hydra's sweepers are told of a job that ran: the metric's mean over its pictures, or why there is none.

    Without an objective it is the exit code.

    Raises:
        RequestError: none of the job's metrics has that name.
    """
    name = job.config.get("objective")
    if not name:
        return code
    failed = next((result.error for result in job.results if result.error is not None), None)
    if failed is not None:
        return failed
    scores = [dict(_named(result.scores)) for result in job.results]
    if any(name not in found for found in scores):
        names = {known for found in scores for known in found}
        raise RequestError(
            f"objective={name!r} is none of the metrics that ran{nearest(name, names)} Add one: metric=NAME."
        )
    return fmean(found[name] for found in scores) if scores else code


def _named(scores: Any) -> Any:
    """The values by the names of the scores and of the stages that made them."""
    for stage, score in scores.items():
        yield stage, score.value
    for score in scores.values():
        yield score.name, score.value
