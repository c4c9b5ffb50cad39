"""One composed configuration, and what was asked for to get it."""

from __future__ import annotations

import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from claygraph.variants import Config


@dataclass(frozen=True, eq=False)
class Job:
    """A configuration to carry out: ``overrides`` after ``flags`` make this one alone, also where it is one of many.

    ``index`` is its place in a sweep, None where it is no part of one.
    """

    config: Config
    overrides: tuple[str, ...] = ()
    flags: tuple[str, ...] = ()
    index: int | None = None

    @property
    def command(self) -> str:
        """A command line for this job alone."""
        return shlex.join(["python", "-m", "claygraph", *self.flags, *self.overrides])
