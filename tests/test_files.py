import multiprocessing
import os
import pickle
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from claygraph import files
from claygraph.errors import WeightsError
from claygraph.files import digest, header, locate, weights, write_new


def test_a_bundled_path_lies_in_the_package() -> None:
    assert locate("miniature:lora/clay.safetensors").parts[-4:] == ("miniature", "weights", "lora", "clay.safetensors")


def test_a_digest_is_the_sha256_of_the_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"")
    assert digest(tmp_path / "a").startswith("e3b0c44298fc1c149afbf4c8996fb924")


def test_a_folders_digest_changes_with_names_and_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1")
    one = digest(tmp_path)
    (tmp_path / "a").rename(tmp_path / "b")
    two = digest(tmp_path)
    (tmp_path / "b").write_bytes(b"22")
    assert len({one, two, digest(tmp_path)}) == 3


def test_safetensors_are_accepted(tmp_path: Path) -> None:
    save_file({"w": np.zeros((2, 3), np.float32)}, tmp_path / "ok.safetensors", {"format": "pt"})
    assert weights("x.path", str(tmp_path / "ok.safetensors")).path.endswith("ok.safetensors")
    assert header("x.path", tmp_path / "ok.safetensors")["w"]["shape"] == [2, 3]


@pytest.mark.parametrize("name", ["model.ckpt", "model.safetensors"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_a_pickle_is_refused_whatever_its_name(tmp_path: Path, name: str, protocol: int) -> None:
    (tmp_path / name).write_bytes(pickle.dumps({"a": 1}, protocol=protocol))
    with pytest.raises(WeightsError, match=r"is a pickle, which can run code .* give the \.safetensors version"):
        weights("checkpoint.path", str(tmp_path / name))


def test_a_zipped_pickle_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"PK\x03\x04" + b"\0" * 40)
    with pytest.raises(WeightsError, match="is a pickle"):
        weights("checkpoint.path", str(tmp_path / "model.safetensors"))


@pytest.mark.parametrize("content", [b"", b"short", b"\xff" * 64, (9).to_bytes(8, "little") + b"{not json"])
def test_what_is_not_safetensors_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "x.safetensors").write_bytes(content)
    with pytest.raises(WeightsError, match="is not a safetensors file, or is cut short"):
        weights("checkpoint.path", str(tmp_path / "x.safetensors"))


def test_a_missing_file_names_its_nearest_neighbour(tmp_path: Path) -> None:
    (tmp_path / "juggernaut.safetensors").touch()
    with pytest.raises(WeightsError, match=r"does not exist; did you mean 'juggernaut\.safetensors'\?"):
        weights("checkpoint.path", str(tmp_path / "jugernaut.safetensors"))


def test_a_missing_folder_is_told_from_where_it_is_missing(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"does not exist; the folder .* is the last that does"):
        weights("checkpoint.path", str(tmp_path / "no" / "such" / "file.safetensors"))


def test_the_same_content_is_the_same_file(tmp_path: Path) -> None:
    paths = [write_new(tmp_path, "cat", ".png", content) for content in (b"one", b"two", b"one", b"two")]
    assert [path.name for path in paths] == ["cat.png", "cat-2.png", "cat.png", "cat-2.png"]
    assert sorted(file.name for file in tmp_path.iterdir()) == ["cat-2.png", "cat.png"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_write_that_was_killed_leaves_nothing_once_it_is_done_again(when: str, tmp_path: Path) -> None:
    """Killed before the file had its name, or just after."""

    def kill(part: Path, path: Path) -> bool:
        if when == "after":
            path.hardlink_to(part)
        os._exit(9)

    process = multiprocessing.get_context("fork").Process(target=_killed, args=(tmp_path, kill))
    process.start()
    process.join()
    assert process.exitcode == 9
    assert len(list(tmp_path.iterdir())) == (2 if when == "after" else 1)
    assert write_new(tmp_path, "cat", ".png", b"content").name == "cat.png"
    assert [(file.name, file.read_bytes()) for file in tmp_path.iterdir()] == [("cat.png", b"content")]


def _killed(folder: Path, kill: Callable[[Path, Path], bool]) -> None:
    files._claim = kill  # type: ignore[assignment]
    write_new(folder, "cat", ".png", b"content")


def test_many_writers_of_the_same_make_one_file(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(lambda _: write_new(tmp_path, "cat", ".png", b"content"), range(40)))
    assert {path.name for path in paths} == {"cat.png"}
    assert [file.name for file in tmp_path.iterdir()] == ["cat.png"]
