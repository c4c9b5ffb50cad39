"""A picture is made again from what it carries, and a recipe from a stranger can do no harm."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from claygraph.cli import main
from claygraph.errors import RequestError
from claygraph.recipes import FILES, VERSIONS, read_recipe
from claygraph.replay import checked, compare, differences, graph_for, installed
from claygraph.values import Recipe
from tests.test_cli import paint, run

Change = Callable[[dict[str, Any]], Any]


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A picture that claygraph made."""
    folder = tmp_path_factory.mktemp("made")
    paint(folder / "photo.png")
    arguments = [f"image={folder / 'photo.png'}", f"out={folder / 'out'}", "photo.size=64", "sampler.steps=2"]
    assert main([*arguments, "metric=[ssim]", "device=cpu"]) == 0
    return folder / "out" / "photo.png"


def rewritten(picture: Path, path: Path, change: Change, pixels: bool = False, **chunks: str) -> Path:
    """The picture with its recipe changed, as anybody can do it."""
    image: Any = Image.open(picture)
    config = json.loads(image.text["claygraph"])
    config = change(config) or config
    texts = dict(image.text) | {"claygraph": json.dumps(config)} | chunks
    info = PngInfo()
    for name, text in texts.items():
        info.add_text(name, text)
    array = np.array(image)
    if pixels:
        array[0, 0] ^= 64
    Image.fromarray(array).save(path, pnginfo=info)
    return path


def test_a_picture_carries_the_digests_of_its_files(picture: Path) -> None:
    recipe = read_recipe(picture)
    names = {Path(path).name: digest for path, digest in recipe.files}
    assert {"photo.png", "clay_mini.safetensors", "clay.safetensors", "selected_tags.csv"} <= set(names)
    assert all(len(digest) == 64 for digest in names.values())
    assert "classes.json" not in names  # what only a metric reads has no part in the picture


def test_it_is_made_again_with_equal_pixels(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, lines, said = run(capsys, "replay", str(picture), f"out={tmp_path / 'again'}")
    assert code == 0, said
    assert lines == [str(tmp_path / "again" / "photo.png")]
    assert "pixel-equal" in said
    assert np.array_equal(np.asarray(Image.open(lines[0])), np.asarray(Image.open(picture)))
    assert sorted(path.name for path in picture.parent.iterdir()) == ["photo.png", "run.json"]


def test_a_changed_pixel_and_changed_files_are_named(
    picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = dict(read_recipe(picture).files)
    weight = next(path for path in files if path.endswith("clay.safetensors"))
    photo = next(path for path in files if path.endswith("photo.png"))
    chunks = {VERSIONS: '{"torch": "0.1"}', FILES: json.dumps(files | {weight: "1" * 64, photo: "2" * 64})}
    path = rewritten(picture, tmp_path / "other.png", dict, pixels=True, **chunks)
    code, _, said = run(capsys, "replay", str(path))
    assert code == 1
    assert "clay.safetensors' had the sha256 111111111111 when the picture was made; here it is" in said
    assert "photo.png' had the sha256 222222222222" in said
    assert "torch was 0.1 then, and is " in said
    assert "differs in 0.0" in said
    assert said.index("111111111111") < said.index("finished")  # told before anything runs


def test_an_input_that_is_gone_is_named(picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def elsewhere(config: dict[str, Any]) -> None:
        config["photo"]["path"] = str(tmp_path / "gone.png")

    code, _, said = run(capsys, "replay", str(rewritten(picture, tmp_path / "a.png", elsewhere)))
    assert code == 2
    assert "'gone.png' cannot be opened" in said


def put(path: str, value: Any) -> Change:
    """Set a value in a config, below what is there."""

    def change(config: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for parent in parents:
            config = config.setdefault(parent, {})
        config[last] = value

    return change


REFUSED: dict[str, Change] = {
    "'os.system', which is no installed stage": put("x", {"_target_": "os.system", "command": "touch harmed"}),
    "'builtins.eval', which is no": put("x/_target_", "builtins.eval"),
    "'harmful.Stage', which is no": put("photo/_target_", "harmful.Stage"),
    "'subprocess.Popen', which is no": put(
        "sampler/steps", {"_target_": "subprocess.Popen", "args": ["touch", "harmed"]}
    ),
    "'pathlib.Path', which is no": put("prompt/text", [{"deep": {"_target_": "pathlib.Path"}}]),
    "'claygraph.stages.save.sha256'": put("x/_target_", "claygraph.stages.save.sha256"),
    "'claygraph.stages.photo.Photo.__init_subclass__'": put(
        "x/_target_", "claygraph.stages.photo.Photo.__init_subclass__"
    ),
    "'claygraph.stages.photo.Phto', which is no installed stage; did you mean": put(
        "photo/_target_", "claygraph.stages.photo.Phto"
    ),
    "x._target_' holds \"['os.system']\", which is no": put("x/_target_", ["os.system"]),
    "an interpolation": put("prompt/text", "${oc.env:HOME}"),
    "name' holds an interpolation": put("name", "${now:%Y}"),
    "'_args_', which is no setting": put("photo/_args_", ["a"]),
    "'_partial_', which is no setting": put("photo/_partial_", True),
    "wires that are not names": put("encode/inputs", [1]),
    "nested too deeply": put("x/" + "/".join("a" * 40), 1),
    "saves 2 pictures": put("second", {"_target_": "claygraph.stages.save.Save"}),
    "saves 0 pictures": lambda config: config.pop("save") and None,
}


@pytest.mark.parametrize("sentence", REFUSED)
def test_a_hostile_recipe_is_refused_and_runs_nothing(
    sentence: str, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "harmful.py").write_text("from pathlib import Path\nPath('harmed').touch()\nclass Stage: pass\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    path = rewritten(picture, tmp_path / "hostile.png", REFUSED[sentence])
    code, lines, said = run(capsys, "replay", str(path))
    assert (code, lines) == (2, [])
    assert sentence in said
    assert "in the picture" in said
    assert said.count("\n") == 1
    assert not (tmp_path / "harmed").exists()
    assert "harmful" not in sys.modules


def test_a_keyed_interpolation_is_refused() -> None:
    with pytest.raises(RequestError, match="an interpolation"):
        checked({"a": {"b": [["${x}"]]}}, installed())


def test_the_folder_in_the_picture_is_not_used(picture: Path, tmp_path: Path) -> None:
    def elsewhere(config: dict[str, Any]) -> None:
        config["save"]["folder"] = str(tmp_path / "theirs")
        config["save"]["name"] = "../../escaped"
        config["out"] = str(tmp_path / "theirs")

    path = rewritten(picture, tmp_path / "a.png", elsewhere)
    graph = graph_for(read_recipe(path), tmp_path / "mine")
    save = graph.graph["nodes"]["save"].stage
    assert save.folder == str(tmp_path / "mine")
    assert main(["replay", str(path), f"out={tmp_path / 'mine'}"]) == 0
    assert not (tmp_path / "theirs").exists()
    assert len(list((tmp_path / "mine").iterdir())) == 1
    assert not list(tmp_path.glob("escaped*")) + list(tmp_path.parent.glob("escaped*"))


def test_stages_of_an_installed_package_are_accepted_and_no_others(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A package registers its configs by an entry point; what these name may be made, its other classes may not."""
    package = tmp_path / "their_clay"
    (package / "conf" / "upscale").mkdir(parents=True)
    for folder in (package, package / "conf"):
        (folder / "__init__.py").touch()
    (package / "stages.py").write_text(
        "from dataclasses import dataclass\nfrom claygraph.stage import Stage\nfrom claygraph.values import Image\n"
        "@dataclass(frozen=True)\nclass Twice(Stage):\n"
        "    def run(self, photo: Image) -> Image:\n        return photo\n"
        "class Other(Twice): pass\n"
    )
    (package / "conf" / "upscale" / "twice.yaml").write_text("_target_: their_clay.stages.Twice\n")
    info = tmp_path / "their_clay-1.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: their-clay\nVersion: 1\n")
    (info / "entry_points.txt").write_text("[claygraph.conf]\ntheir_clay = their_clay.conf\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    known = installed()
    assert "their_clay.stages.Twice" in known
    assert "their_clay.stages.Other" not in known


def test_same_content_elsewhere_is_no_difference(picture: Path, tmp_path: Path) -> None:
    recipe = read_recipe(picture)
    graph = graph_for(recipe, tmp_path)
    assert differences(recipe, graph) == []
    moved = tuple((f"/elsewhere/{Path(path).name}", digest) for path, digest in recipe.files)
    assert differences(Recipe(recipe.config, recipe.versions, moved), graph) == []


@pytest.mark.parametrize("arguments", [[], ["a.png", "b.png"], ["--help-me"], ["a.png", "out=a", "out=b"]])
def test_wrong_arguments_are_told(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = run(capsys, "replay", *arguments)
    assert code == 2
    assert "replay PICTURE [out=DIR]" in said


def test_a_picture_without_a_recipe_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, said = run(capsys, "replay", str(paint(tmp_path / "a.png")))
    assert code == 2
    assert "carries no claygraph recipe" in said


@pytest.mark.parametrize(
    ("pixels", "levels", "said", "same"),
    [
        (0, 0, "pixel-equal", True),
        (10, 1, "equal within rounding", True),
        (11, 1, "differs in 0.11 %", False),
        (1, 2, "differs in 0.01 %", False),
    ],
)
def test_a_replay_may_be_one_level_off_in_a_thousandth_of_the_pixels(
    pixels: int, levels: int, said: str, same: bool, tmp_path: Path
) -> None:
    then = np.full((100, 100, 3), 100, np.uint8)
    now = then.copy()
    now[0, :pixels] += levels
    for name, picture in (("then", then), ("now", now)):
        Image.fromarray(picture).save(tmp_path / f"{name}.png")
    verdict, equal = compare(tmp_path / "then.png", tmp_path / "now.png")
    assert verdict.startswith(said)
    assert equal is same
