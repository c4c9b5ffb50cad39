from __future__ import annotations

import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Pillow
from PIL.PngImagePlugin import PngInfo

from claygraph.errors import PictureError
from claygraph.recipes import read_recipe
from claygraph.stages.photo import Photo
from claygraph.stages.save import Save, file_name
from claygraph.values import Image, Recipe
from tests.pictures import RGB, chunk, hostile, noise, png

CONFIG = '{"sampler": {"steps": 6}, "prompt": {"text": "argile à modeler 粘土"}}'
RECIPE = Recipe(CONFIG, (("torch", "2.6"),), (("a.png", "0" * 64),))


def names(folder: Path) -> list[str]:
    return sorted(file.name for file in folder.iterdir())


def text_of(path: str | Path) -> dict[str, str]:
    with Pillow.open(path) as image:
        image.load()
        return {str(key): str(value) for key, value in image.info.items()}


def test_pixels_come_back_as_they_were(tmp_path: Path) -> None:
    pixels = noise(32, 48)
    saved = Save(str(tmp_path), "cat").run(Image(pixels))
    assert saved.path == str(tmp_path / "cat.png")
    assert np.array_equal(Photo(saved.path, fit="none").run().pixels, pixels)


def test_the_recipe_travels_in_the_picture(tmp_path: Path) -> None:
    saved = Save(str(tmp_path)).run(Image(noise(4, 4)), RECIPE)
    assert read_recipe(saved.path) == RECIPE
    assert json.loads(text_of(saved.path)["claygraph.versions"]) == {"torch": "2.6"}


def test_nothing_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / "cat-2.png").write_bytes(b"mine")
    paths = [Save(str(tmp_path), "cat").run(Image(noise(4, 4, seed))).path for seed in range(3)]
    assert [Path(path).name for path in paths] == ["cat.png", "cat-3.png", "cat-4.png"]
    assert (tmp_path / "cat-2.png").read_bytes() == b"mine"
    assert names(tmp_path) == ["cat-2.png", "cat-3.png", "cat-4.png", "cat.png"]


def test_many_threads_each_get_a_name(tmp_path: Path) -> None:
    images = [Image(np.full((4, 4, 3), level, np.uint8)) for level in range(40)]
    with ThreadPoolExecutor(8) as pool:
        paths = [saved.path for saved in pool.map(Save(str(tmp_path), "cat").run, images)]
    assert [np.asarray(Pillow.open(path))[0, 0, 0] for path in paths] == list(range(40))
    assert set(names(tmp_path)) == {"cat.png"} | {f"cat-{number}.png" for number in range(2, 41)}


def test_without_hard_links_nothing_is_overwritten_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(os, "link", refuse)
    images = [Image(np.full((4, 4, 3), level, np.uint8)) for level in range(20)]
    with ThreadPoolExecutor(8) as pool:
        paths = [saved.path for saved in pool.map(Save(str(tmp_path), "cat").run, images)]
    assert [np.asarray(Pillow.open(path))[0, 0, 0] for path in paths] == list(range(20))
    assert len(names(tmp_path)) == 20


def test_a_link_in_the_way_is_not_followed(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "cat.png").symlink_to(tmp_path / "elsewhere.png")
    assert Path(Save(str(tmp_path / "out"), "cat").run(Image(noise(4, 4))).path).name == "cat-2.png"
    assert not (tmp_path / "elsewhere.png").exists()


def test_a_new_file_has_the_usual_permissions(tmp_path: Path) -> None:
    (tmp_path / "plain").touch()
    saved = Path(Save(str(tmp_path), "cat").run(Image(noise(4, 4))).path)
    assert saved.stat().st_mode == (tmp_path / "plain").stat().st_mode


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("cat", "cat"),
        ("cat.png", "cat"),
        ("my cat (1)", "my cat (1)"),
        ("粘土", "粘土"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("/etc/passwd", "_etc_passwd"),
        ("C:\\Windows\\x", "C__Windows_x"),
        (".hidden", "hidden"),
        ("..", "picture"),
        ("", "picture"),
        ("-rf", "rf"),
        ("a\nb\x1b[0m\0", "a_b_[0m_"),
        ("\u202egnp", "_gnp"),
        ("\udc80", "_"),
        ("con", "_con"),
        ("LPT1.txt", "_LPT1.txt"),
        ("console", "console"),
        ("end. ", "end"),
    ],
)
def test_names_stay_in_the_folder(name: str, file: str) -> None:
    assert file_name(name) == file


def test_long_names_are_cut_between_characters(tmp_path: Path) -> None:
    assert file_name("粘" * 1000) == "粘" * 50
    assert Path(Save(str(tmp_path), "x" * 9999).run(Image(noise(4, 4))).path).name == "x" * 150 + ".png"


def test_a_hostile_name_writes_nothing_outside(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    saved = Save(str(folder), "../../escaped").run(Image(noise(4, 4)))
    assert Path(saved.path).parent == folder
    assert names(tmp_path) == ["a"]
    assert names(tmp_path / "a") == ["b"]


def test_a_folder_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for folder in (tmp_path / "file", tmp_path / "file" / "below", "a\0b", "/proc/claygraph"):
        with pytest.raises(PictureError, match=r"^save.folder=.* cannot take 'cat.png': .*; make room there or give"):
            Save(str(folder), "cat").run(Image(noise(4, 4)))


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_one_sentence_and_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opens = Path.open

    def full(path: Path, mode: str = "r") -> object:
        opens(path, mode).close()
        return open("/dev/full", "wb")  # noqa: PTH123 - Path.open is what is replaced

    monkeypatch.setattr(Path, "open", full)
    with pytest.raises(PictureError, match="No space left on device"):
        Save(str(tmp_path), "cat").run(Image(noise(64, 64)))
    assert names(tmp_path) == []


def carrying(path: Path, text: str) -> Path:
    info = PngInfo()
    info.add_text("claygraph", text, zip=len(text) > 10_000)
    Pillow.new("RGB", (1, 1)).save(path, pnginfo=info)
    return path


@pytest.mark.parametrize("text", ["", "no json", "[1]", '"text"', "{" * 100_000, "[" * 100_000, '{"a": 1} {}'])
def test_metadata_that_is_no_recipe_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(PictureError, match="carries no claygraph recipe"):
        read_recipe(carrying(tmp_path / "a.png", text))


def test_a_recipe_of_megabytes_is_refused(tmp_path: Path) -> None:
    text = chunk(b"tEXt", b'claygraph\0{"a": "' + b"x" * 1_000_000 + b'"}')
    with pytest.raises(PictureError, match="carries no claygraph recipe"):
        read_recipe(png(tmp_path / "a.png", (1, 1), 8, RGB, b"", text))


def test_metadata_that_unpacks_to_megabytes_is_refused(tmp_path: Path) -> None:
    path = carrying(tmp_path / "a.png", json.dumps({"a": "x" * 20_000_000}))
    assert path.stat().st_size < 100_000
    with pytest.raises(PictureError):
        read_recipe(path)


def test_a_recipe_is_read_without_reading_the_pixels(tmp_path: Path) -> None:
    text = chunk(b"tEXt", b"claygraph\0{}")
    assert read_recipe(png(tmp_path / "a.png", (20_000, 20_000), 8, RGB, b"", text)) == Recipe("{}")


def test_files_without_a_recipe_are_refused(tmp_path: Path) -> None:
    for path in (*hostile(tmp_path).values(), tmp_path, tmp_path / "none.png", "a\0b"):
        with pytest.raises(PictureError):
            read_recipe(path)
