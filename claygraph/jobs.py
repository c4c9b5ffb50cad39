"""One composed configuration, and what was asked for to get it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from claygraph.variants import Config


@dataclass(frozen=True, eq=False)
class Job:
    """A configuration to carry out: ``overrides`` after ``flags`` make this one alone, also where it is one of many.

    ``index`` is its place in a sweep, None where it is no part of one. A run puts into ``results`` how each of its
    pictures ended.
    """

    config: Config
    overrides: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    index: int | None = None
    results: list[Any] = field(default_factory=list)

    @property
    def command(self) -> str:
        """A command line for this job alone."""
        return shlex.join(["python", "-m", "claygraph", *self.flags, *self.overrides])
