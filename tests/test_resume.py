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
from contextlib import redirect_stderr, redirect_stdout
from importlib import import_module
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from safetensors import safe_open
from safetensors.numpy import load_file, save_file

from claygraph.cli import main
from claygraph.files import BUNDLED
from claygraph.graph import Node
from claygraph.kept import Kept
from claygraph.store import Store
from tests.test_cli import paint

FAST = ("photo.size=64", "sampler.steps=2", "device=cpu", "image=photo.png")
SWEEP = ("-m", *FAST, "out=out", "batch=2", "sampler.denoise=0.5,0.7")
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
    for module in ("diffusion.checkpoint", "diffusion.denoise", "diffusion.ip_adapter", "diffusion.text", "execute"):
        import_module(f"claygraph.{module}")
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
    with Path(os.devnull).open("w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):
        code = main([*arguments, "store=store"])
    os._exit(code)


def lines(log: Path) -> list[str]:
    return log.read_text().splitlines() if log.exists() else []


def kill_after(process: BaseProcess, log: Path, nodes: int, seconds: float) -> bool:
    """Kill a process when it has computed so many nodes more, and some time later; whether it still ran then."""
    before = len(lines(log))
    while process.is_alive() and len(lines(log)) < before + nodes:
        time.sleep(0.002)
    time.sleep(seconds)
    alive = process.is_alive()
    process.kill()
    process.join()
    return alive and process.exitcode == -signal.SIGKILL


def pictures(folder: Path) -> dict[str, bytes]:
    """Every file below the folder of results, but for the records of runs (how long they took, where they ran)."""
    files = [
        file
        for file in (folder / "out").rglob("*")
        if file.is_file() and file.suffix not in (".json", ".yaml", ".html")
    ]
    return {str(file.relative_to(folder)): file.read_bytes() for file in files}


def keys(folder: Path) -> set[str]:
    return {entry.key for entry in Store(folder / "store", 10**9).entries()}


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, str]:
    """What came of each node of a run: its state by name."""
    assert main([*FAST, "store=store", "out=out", *arguments]) == 0, capsys.readouterr().err
    record = json.loads(max(Path("out").glob("run*.json"), key=lambda file: file.stat().st_mtime_ns).read_text())
    states = {node["name"]: node["state"] for node in record["nodes"]}
    assert record["counts"] == {"distinct": len(states), "skipped": 0} | {
        state: list(states.values()).count(state) for state in ("run", "cached")
    }
    return states


def ran(states: dict[str, str]) -> set[str]:
    return {name for name, state in states.items() if state == "run"}


def test_only_what_follows_a_change_runs_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("clay", "copy"):
        shutil.copy(BUNDLED / "lora" / "clay.safetensors", folder / f"{name}.safetensors")
    lora = "lora.clay.path=clay.safetensors"
    first = run(capsys, lora)
    assert ran(first) == set(first)
    assert ran(run(capsys, lora)) == set()
    assert ran(run(capsys, lora, "sampler.steps=1")) == {"sampler", "decode", "save"}
    assert ran(run(capsys, "lora.clay.path=copy.safetensors")) == {"save"}  # whose recipe names the file
    edit(folder / "clay.safetensors")
    follows = {"lora", "prompt", "ip_adapter", "controlnet", "sampler", "decode", "save"}
    assert ran(run(capsys, lora)) == follows


def edit(path: Path) -> None:
    """Another LoRA of the same name: a hundredth stronger."""
    tensors = load_file(path)
    tensors = {name: array * 1.01 if "lora_up" in name else array for name, array in tensors.items()}
    with safe_open(path, "np") as file:
        notes = file.metadata()
    save_file({name: array.astype(np.float16) for name, array in tensors.items()}, path, notes)


def test_a_copied_photo_of_another_name_is_only_saved(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys)
    (folder / "photo.png").rename(folder / "other.png")
    assert ran(run(capsys, "image=other.png")) == {"save"}
    assert (folder / "out" / "photo.png").is_file()
    assert (folder / "out" / "other.png").is_file()


def test_a_picture_that_is_gone_or_changed_is_written_again(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys)
    picture = folder / "out" / "photo.png"
    content = picture.read_bytes()
    with Pillow.open(picture) as image:
        assert not {"store", "store_size"} & set(json.loads(image.info["claygraph"]))
    picture.unlink()
    assert ran(run(capsys)) == {"save"}
    assert picture.read_bytes() == content
    picture.write_bytes(b"mine")
    assert ran(run(capsys)) == {"save"}
    assert picture.read_bytes() == b"mine"
    assert (folder / "out" / "photo-2.png").read_bytes() == content
    assert ran(run(capsys)) == set()


def test_a_damaged_result_is_made_anew(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run(capsys)
    content = (folder / "out" / "photo.png").read_bytes()
    damaged = [entry for entry in Store(folder / "store", 10**9).entries() if entry.stage().endswith("Decode")]
    damaged[0].path.write_bytes(damaged[0].path.read_bytes()[:-1])
    (folder / "out" / "photo.png").unlink()
    assert ran(run(capsys)) == {"decode", "save"}
    assert (folder / "out" / "photo.png").read_bytes() == content


@forks
def test_a_killed_sweep_goes_on_where_it_was(folder: Path) -> None:
    check_kills(folder, SWEEP, kills=2, seed=3)


@forks
@pytest.mark.long
def test_a_sweep_killed_ten_times_goes_on_where_it_was(folder: Path) -> None:
    check_kills(folder, (*SWEEP, "sampler.cfg=1,2,3,4,5", "sampler.seed=1,2"), kills=10, seed=5)


def check_kills(folder: Path, sweep: Sequence[str], kills: int, seed: int) -> None:
    """No result lost, none computed twice but for what was not finished, the same files as without a kill."""
    whole, torn = folder / "whole", folder / "torn"
    for each in (whole, torn):
        each.mkdir()
        shutil.copy(folder / "photo.png", each)
    begun = start(whole, whole / "log", sweep)
    begun.join()
    assert begun.exitcode == 0
    distinct = len(lines(whole / "log"))
    dice, log, lost = random.Random(seed), torn / "log", set[str]()
    for left in range(kills, 0, -1):
        most = (distinct - len(keys(torn))) // (left + 1)  # so that some is left to be killed in the last time
        assert kill_after(start(torn, log, sweep), log, dice.randint(0, most), dice.uniform(0, 0.1))
        gone = set(lines(log)) - keys(torn)
        assert len(gone) <= BATCH + THREADS, "only what was under way may be lost"
        lost |= gone
    end = start(torn, log, sweep)
    end.join()
    assert end.exitcode == 0
    assert pictures(torn) == pictures(whole)
    assert len(pictures(whole)) == len(pictures(torn)) > 1
    assert {key for key, count in Counter(lines(log)).items() if count > 1} <= lost
    assert set(lines(log)) == set(lines(whole / "log")) == keys(torn)
    assert not list(Store(torn / "store", 10**9).damaged())


@forks
@pytest.mark.long
def test_two_processes_share_a_store(folder: Path) -> None:
    """Two sweeps that overlap, at once: both finish, and what is stored is sound."""
    sweeps = [("sampler.cfg=1,2,3", "out=one"), ("sampler.cfg=2,3,4", "out=two")]
    both = [start(folder, folder / "log", ("-m", *FAST, *sweep)) for sweep in sweeps]
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert [len(list((folder / name).glob("[0-9]/*.png"))) for name in ("one", "two")] == [3, 3]
    assert set(lines(folder / "log")) == keys(folder)
    assert not list(Store(folder / "store", 10**9).damaged())
