"""The store: what was saved is loaded, what is damaged is told and counts as absent, many processes share it."""

from __future__ import annotations

import logging
import multiprocessing
import os
import random
import time
from pathlib import Path

import numpy as np
import pytest

from claygraph.cli import main
from claygraph.errors import SettingError
from claygraph.locks import locked
from claygraph.sizes import in_bytes, shown
from claygraph.store import Entry, Store, open_store
from claygraph.values import Image, Latent, Tags

LATENT = Latent(np.arange(600, dtype=np.float32).reshape(4, 10, 15))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store", 10**9)


def entry(store: Store, key: str) -> Path:
    return store.folder / key[:2] / f"{key}.clay"


def test_what_was_saved_is_loaded_by_whoever_asks(store: Store) -> None:
    assert not store.has("abcd")
    assert store.save("abcd", LATENT, "a.Stage")
    assert store.has("abcd")
    assert np.array_equal(Store(store.folder, 1).load("abcd").samples, LATENT.samples)
    assert [(each.key, each.stage()) for each in store.entries()] == [("abcd", "a.Stage")]
    assert not list((store.folder / "parts").iterdir())


def test_what_is_not_there_is_a_key_error(store: Store) -> None:
    with pytest.raises(KeyError):
        store.load("abcd")


@pytest.mark.parametrize("key", ["", "..", "../../etc/passwd", "ab/cd", "ABCD", "a\0bc", "size"[:2], "a" * 200])
def test_a_key_is_no_path(store: Store, key: str) -> None:
    for ask in (store.has, store.load, lambda key: store.save(key, LATENT)):
        with pytest.raises(KeyError):
            ask(key)


def test_what_cannot_be_stored_is_not_and_nothing_fails(store: Store) -> None:
    assert not store.save("abcd", [1])
    assert not store.has("abcd")


@pytest.mark.parametrize("place", [0, 7, 8, 39, 40, 47, 60, -1, "cut", "empty", "longer", "text"])
def test_damage_is_told_once_and_counts_as_absent(
    store: Store, place: int | str, caplog: pytest.LogCaptureFixture
) -> None:
    store.save("abcd", LATENT)
    content = bytearray(entry(store, "abcd").read_bytes())
    if isinstance(place, int):
        content[place] ^= 1
    damaged = {"cut": content[:-1], "empty": bytearray(), "longer": content + b"0", "text": bytearray(b"no entry")}
    entry(store, "abcd").write_bytes(damaged.get(str(place), content))
    assert [each.key for each, _ in store.damaged()] == ["abcd"]
    with caplog.at_level(logging.WARNING), pytest.raises(KeyError):
        store.load("abcd")
    assert len(caplog.messages) == 1
    assert "abcd is damaged" in caplog.messages[0]
    assert not store.has("abcd")
    assert store.save("abcd", LATENT)
    assert store.load("abcd").samples.sum() == LATENT.samples.sum()


def test_what_was_unused_for_longest_makes_room(tmp_path: Path) -> None:
    store = Store(tmp_path, 10**9)
    store.save("aa00", LATENT)
    size = entry(store, "aa00").stat().st_size
    small = Store(tmp_path, 10 * size)
    for number in range(10):
        small.save(f"aa0{number}", LATENT)
        os.utime(entry(store, f"aa0{number}"), (number, number))
    assert len(list(store.entries())) == 10
    small.load("aa00")  # the oldest, but just used
    small.save("bb00", LATENT)
    left = {each.key for each in store.entries()}
    assert left == {"aa00", "bb00", *(f"aa0{number}" for number in range(3, 10))}


def test_room_is_made_seldom(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, scans = Store(tmp_path, 50 * 2700), 0
    whole = Store._remove

    def counting(self: Store, limit: int) -> object:
        nonlocal scans
        scans += 1
        return whole(self, limit)

    monkeypatch.setattr(Store, "_remove", counting)
    for number in range(200):
        store.save(f"{number % 10}0{number:04}", LATENT)
    assert sum(each.size for each in store.entries()) <= store.limit
    assert 0 < scans < 40


def test_unfinished_files_that_nobody_will_finish_are_removed(store: Store) -> None:
    store.save("abcd", LATENT)
    for name, age in (("old.clay-part", 10_000), ("new.clay-part", 10), ("of others", 10_000)):
        (store.folder / "parts" / name).touch()
        os.utime(store.folder / "parts" / name, (time.time() - age,) * 2)
    store.shrink(10**9)
    assert sorted(file.name for file in (store.folder / "parts").iterdir()) == ["new.clay-part", "of others"]
    assert store.has("abcd")


def test_files_of_others_are_left_alone(store: Store) -> None:
    """Should somebody name a folder that holds other things."""
    store.save("abcd", LATENT)
    others = [store.folder / name for name in ("ab/abba", "ab/other.clay", "go/go.mod", "notes", "a/ab.clay")]
    for other in others:
        other.parent.mkdir(exist_ok=True)
        other.write_text("mine")
    assert [each.key for each in store.entries()] == ["abcd"]
    assert store.shrink(0)[0] == 1
    assert all(other.is_file() for other in others)


@pytest.mark.skipif(os.name == "nt", reason="needs a path that nobody can write to")
def test_a_store_that_cannot_be_written_is_told_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    store = Store(tmp_path / "file" / "store", 10**9)
    assert not store.save("abcd", LATENT)
    assert not store.save("abce", LATENT)
    assert not store.has("abcd")
    assert [message.count("cannot take results") for message in caplog.messages] == [1]


def test_nobody_waits_while_another_process_makes_room(store: Store) -> None:
    store.save("abcd", LATENT)
    before = int((store.folder / "size").read_text())
    with locked(store.folder / "lock") as held:
        assert held
        assert store.save("abce", LATENT)
        with locked(store.folder / "lock", wait=False) as again:
            assert not again
    assert int((store.folder / "size").read_text()) == before
    store.save("abcf", LATENT)
    assert int((store.folder / "size").read_text()) == 3 * before


def write(folder: Path, seed: int) -> None:
    store, dice = Store(folder, 60_000), random.Random(seed)
    for _ in range(150):
        number = dice.randint(10, 60)
        key = f"{number}{number:04}"
        try:
            assert store.load(key).samples[0, 0, 0] == number
        except KeyError:
            store.save(key, Latent(np.full((1, 16, 16), number, np.float32)))


def test_processes_share_a_store(tmp_path: Path) -> None:
    """Three of them read, write and make room at once: nobody ever reads a wrong value or damage."""
    processes = [multiprocessing.Process(target=write, args=(tmp_path, seed)) for seed in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    store = Store(tmp_path, 60_000)
    assert list(store.entries())
    assert not list(store.damaged())
    assert sum(each.size for each in store.entries()) <= 60_000 * 1.1


@pytest.mark.parametrize(
    ("text", "size"), [("10GB", 10**10), ("1.5 MiB", 1572864), (512, 512), ("3k", 3000), ("0", 0), ("2TB", 2 * 10**12)]
)
def test_sizes_are_read_as_people_write_them(text: object, size: int) -> None:
    assert in_bytes("store_size", text) == size


def test_other_sizes_are_refused() -> None:
    with pytest.raises(SettingError, match=r"store_size='much' is no amount of bytes; give one such as 10GB"):
        open_store("auto", "much")
    assert [shown(size) for size in (0, 999, 1500, 10**10)] == ["0 B", "999 B", "1.5 kB", "10.0 GB"]


def test_the_store_is_in_the_users_cache_unless_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    opened = open_store("auto", "1GB")
    assert opened is not None
    assert opened.folder == tmp_path / "claygraph" / "store"
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    opened = open_store("auto", "1GB")
    assert opened is not None
    assert opened.folder == Path.home() / ".cache" / "claygraph" / "store"
    assert open_store(None, "1GB") is None


def told(capsys: pytest.CaptureFixture[str], store: Store, *arguments: str) -> tuple[int, list[str], str]:
    capsys.readouterr()
    code = main(["store", *arguments, f"store={store.folder}"])
    said = capsys.readouterr()
    return code, said.out.splitlines(), said.err


def test_the_store_is_listed_checked_and_emptied(store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    assert told(capsys, store)[:2] == (0, [f"results: 0, 0 B of 10.0 GB, in {store.folder}"])
    store.save("aaaa", LATENT, "stages.One")
    store.save("bbbb", Tags((("clay", 0.5),)), "stages.Two")
    os.utime(entry(store, "aaaa"), (time.time() - 7300,) * 2)
    code, lines, _ = told(capsys, store, "ls")
    assert code == 0
    first, second = (line.split() for line in lines[:2])
    assert [*first[:3], *first[4:]] == ["bbbb", f"{entry(store, 'bbbb').stat().st_size}", "B", "s", "stages.Two"]
    assert second == ["aaaa", "2.7", "kB", "2", "h", "stages.One"]
    assert told(capsys, store, "verify")[:2] == (0, ["results: 2; damaged: 0"])
    entry(store, "aaaa").write_bytes(b"rubbish")
    code, lines, said = told(capsys, store, "verify")
    assert (code, lines) == (1, ["results: 2; damaged: 1"])
    assert said.count("\n") == 1
    assert "aaaa is damaged (it does not begin as an entry does)" in said
    assert told(capsys, store, "gc")[1][0].startswith("removed: 0, 0 B; left: 2")
    assert told(capsys, store, "gc", "store_size=1")[1][0].endswith("left: 0, 0 B")
    store.save("aaaa", LATENT)
    assert told(capsys, store, "gc", "all")[1][0].endswith("left: 0, 0 B")


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["store", "lss"], "store 'lss' is not known; did you mean 'ls'?"),
        (["store", "ls", "all"], "store 'ls all' is not known"),
        (["store", "store=null"], "store=null keeps nothing; name a folder with store=FOLDER."),
        (["store", "store_size=much"], "store_size='much' is no amount of bytes"),
    ],
)
def test_a_wrong_request_is_one_sentence(arguments: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    told = capsys.readouterr().err
    assert said in told
    assert told.count("\n") == 1


def test_an_entry_that_is_gone_has_no_stage(tmp_path: Path) -> None:
    assert Entry(tmp_path / "gone", 0, 0).stage() == ""


def test_nothing_that_was_loaded_can_be_changed(store: Store) -> None:
    store.save("abcd", Image(np.zeros((2, 2, 3), np.uint8)))
    with pytest.raises(ValueError, match="read-only"):
        store.load("abcd").pixels[:] = 1
