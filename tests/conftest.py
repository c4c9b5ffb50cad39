"""One thread for torch in the tests: on models this small, threads wait for each other more than they work.

Each test has a store of its own: none uses what the user's holds, or what another test has left.
"""

import os
from itertools import count
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
CACHES, NUMBERS = TemporaryDirectory(prefix="claygraph-tests-"), count()
os.environ["XDG_CACHE_HOME"] = CACHES.name


@pytest.fixture(autouse=True)
def own_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(Path(CACHES.name) / str(next(NUMBERS))))
