"""A run that is killed goes on where it was; a changed setting or file runs again only what follows it."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import pytest

from claygraph.cli import main
from claygraph.graph import Node
from claygraph.kept import Kept
from claygraph.store import Store
from tests.test_cli import paint

FAST = ("photo.size=64", "sampler.steps=2", "device=cpu", "image=photo.png")
SWEEP = ("-m", *FAST, "out=out", "batch=2", "sampler.denoise=0.5,0.7", "sampler.cfg=1,2,3")
BATCH, THREADS = 2, 2
forks = pytest.mark.skipif(sys.platform == "win32", reason="needs fork")


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    paint(tmp_path / "photo.png")
    return tmp_path


def start(folder: Path, log: Path, arguments: Sequence[str]) -> BaseProcess:
    """A process of its own in ``folder`` that appends the key of each node it has computed to ``log``.

    It is forked, so that it need not import torch again.
    """
    import claygraph.diffusion.checkpoint  # noqa: F401 - for all forks
    import claygraph.scheduler  # noqa: F401 - for all forks

    process = multiprocessing.get_context("fork").Process(target=_run, args=(folder, log, arguments))
    process.start()
    return process


def _run(folder: Path, log: Path, arguments: Sequence[str]) -> None:
    os.chdir(folder)
    keep: Callable[[Kept, Node, Any], None] = Kept.save

    def save(self: Kept, node: Node, value: Any) -> None:
        with log.open("a") as file:
            file.write(f"{node.key}\n")
        keep(self, node, value)

    Kept.save = save  # type: ignore[method-assign]
    sys.stdout = sys.stderr = Path(os.devnull).open("w")
    os._exit(main([*arguments, "store=store"]))


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def kill_after(process: BaseProcess, log: Path, nodes: int, seconds: float) -> bool:
    """Kill a process when it has computed so many nodes more, and some time later; whether it still ran then."""
    before = len(lines(log))
    while process.is_alive() and len(lines(log)) < before + nodes:
        time.sleep(0.002)
    time.sleep(seconds)
    alive = process.is_alive()
    os.kill(process.pid or 0, signal.SIGKILL)
    process.join()
    return alive and process.exitcode == -signal.SIGKILL


def pictures(folder: Path) -> dict[str, bytes]:
    """Every file below the folder of results, but for the records of runs."""
    files = [file for file in (folder / "out").rglob("*") if file.is_file() and file.suffix != ".json"]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def keys(folder: Path) -> set[str]:
    return {entry.key for entry in Store(folder / "store", 10**9).entries()}


@forks
def test_a_killed_sweep_goes_on_where_it_was(folder: Path) -> None:
    check_kills(folder, kills=4, seed=3)


@forks
@pytest.mark.long
def test_a_sweep_killed_ten_times_goes_on_where_it_was(folder: Path) -> None:
    check_kills(folder, kills=10, seed=5)


def check_kills(folder: Path, kills: int, seed: int) -> None:
    """No result lost, none computed twice but for what was not finished, the same files as without a kill."""
    whole, torn = folder / "whole", folder / "torn"
    for each in (whole, torn):
        each.mkdir()
        shutil.copy(folder / "photo.png", each)
    begun = start(whole, whole / "log", SWEEP)
    begun.join()
    assert begun.exitcode == 0
    distinct = len(lines(whole / "log"))
    dice, log, lost = random.Random(seed), torn / "log", set[str]()
    for left in range(kills, 0, -1):
        most = max(1, (distinct - len(keys(torn))) // left)
        assert kill_after(start(torn, log, SWEEP), log, dice.randint(0, most), dice.uniform(0, 0.1))
        gone = set(lines(log)) - keys(torn)
        assert len(gone) <= BATCH + THREADS, "only what was under way may be lost"
        lost |= gone
    end = start(torn, log, SWEEP)
    end.join()
    assert end.exitcode == 0
    assert pictures(torn) == pictures(whole)
    assert len(pictures(whole)) == 6
    assert {key for key, count in Counter(lines(log)).items() if count > 1} <= lost
    assert set(lines(log)) == set(lines(whole / "log")) == keys(torn)
    assert not list(Store(torn / "store", 10**9).damaged())
