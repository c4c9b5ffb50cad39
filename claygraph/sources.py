"""Which code a result came from, so that a stored one is never taken for the work of other code."""

from __future__ import annotations

import sys
from functools import cache
from hashlib import sha256
from pathlib import Path
from uuid import uuid4

from claygraph.stage import Stage

PACKAGE = Path(__file__).parent
UNKNOWN = uuid4().hex  # of this process alone


@cache
def code_of(kind: type[Stage]) -> str:
    """sha256 of the code a stage runs, as far as it can be known.

    It covers the source of the modules that the stage's class and its base classes stand in, and what stages build on:
    the modules in ``claygraph`` and ``claygraph/diffusion``. A plug-in with more modules of its own raises
    ``Stage.version`` when one of them changes. A class without a source file (typed into an interpreter) is other code
    in each process.
    """
    modules = sorted({base.__module__ for base in kind.__mro__ if issubclass(base, Stage)})
    return sha256(" ".join([*map(_module, modules), _shared()]).encode()).hexdigest()


@cache
def _module(name: str) -> str:
    file = getattr(sys.modules.get(name), "__file__", None)
    return _digest(Path(file)) if file else UNKNOWN


@cache
def _shared() -> str:
    files = sorted([*PACKAGE.glob("*.py"), *(PACKAGE / "diffusion").rglob("*.py")])
    return sha256(" ".join(map(_digest, files)).encode()).hexdigest()


def _digest(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError:
        return UNKNOWN
