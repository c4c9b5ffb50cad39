"""Digests that outlive a process: right whatever lies in the cache folder."""

import hashlib
import json
import os
from pathlib import Path
from time import time_ns

import pytest

from claygraph import digests
from claygraph.digests import digest_of_file, stamp

OLD = 10**18


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(digests, "LARGE", 4)
    return tmp_path / "cache" / "claygraph" / "digests.json"


def written(path: Path, content: bytes, when: int = OLD) -> Path:
    path.write_bytes(content)
    os.utime(path, ns=(when, when))
    return path


def digest_in_a_new_process(path: Path) -> str:
    digests._digest.cache_clear()
    return digest_of_file(path)


def sha(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def test_a_large_file_is_read_once(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = written(tmp_path / "large", b"weights")
    assert digest_in_a_new_process(file) == sha(b"weights")
    monkeypatch.setattr(digests, "_computed", lambda path: "read again")
    assert digest_in_a_new_process(file) == sha(b"weights")


@pytest.mark.parametrize("change", ["content", "time", "inode"])
def test_a_changed_file_is_read_again(tmp_path: Path, store: Path, change: str) -> None:
    file = written(tmp_path / "large", b"weights")
    digest_in_a_new_process(file)
    if change == "inode":
        written(tmp_path / "other", b"WEIGHTS").replace(file)
    else:
        written(file, b"WEIGHTS" + b"!" * (change == "content"), OLD + (change == "time"))
    assert digest_in_a_new_process(file) == sha(file.read_bytes())


def test_a_small_or_fresh_file_is_not_remembered(tmp_path: Path, store: Path) -> None:
    assert digest_in_a_new_process(written(tmp_path / "small", b"1")) == sha(b"1")
    assert digest_in_a_new_process(written(tmp_path / "fresh", b"12345", time_ns())) == sha(b"12345")
    assert not store.exists()


@pytest.mark.parametrize("content", [b"", b"{cut", b"[]", b"\xff\xfe", b'{"PATH": [1, 2]}', b'{"PATH": "text"}'])
def test_a_damaged_cache_is_ignored_and_replaced(tmp_path: Path, store: Path, content: bytes) -> None:
    file = written(tmp_path / "large", b"weights")
    store.parent.mkdir(parents=True)
    store.write_bytes(content.replace(b"PATH", str(file).encode()))
    assert digest_in_a_new_process(file) == sha(b"weights")
    assert json.loads(store.read_bytes()) == {str(file): [*stamp(file), sha(b"weights")]}


def test_a_cache_folder_that_cannot_be_written_changes_nothing(tmp_path: Path, store: Path) -> None:
    (tmp_path / "cache").write_text("a file where the folder should be")
    assert digest_in_a_new_process(written(tmp_path / "large", b"weights")) == sha(b"weights")


def test_only_the_latest_are_kept(tmp_path: Path, store: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(digests, "MOST", 2)
    for name in ("a", "b", "c"):
        digest_in_a_new_process(written(tmp_path / name, b"weights"))
    assert [Path(key).name for key in json.loads(store.read_bytes())] == ["b", "c"]
    assert [file.name for file in store.parent.iterdir()] == ["digests.json"]
