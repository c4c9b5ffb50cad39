from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from claygraph.stages.tagger import Tagger
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from claygraph.diffusion.calls import ReadTags
from claygraph.diffusion.wd14 import Label, labels, prepare, read
from claygraph.errors import SettingError, WeightsError
from claygraph.files import weights
from claygraph.memory import Memory
from claygraph.values import Image, Tags
from tests.pictures import noise

CSV = """tag_id,name,category,count
1,general,9,0
2,red_theme,0,900
3,^_^,0,800
4,"star_(symbol), big",0,700
5,green_eyes,0,600
6,hatsune_miku,4,50
7,odd_one,3,40
"""
# Rows: what each label makes of mean blue, green, red (0..255).
WEIGHTS = np.array([[9, 9, 9], [0, 0, 1], [0, 1, 0], [1, 0, 0], [0, 2, -1], [0, 0.5, 0.5], [9, 9, 9]], np.float32) / 255
SIDE = 8


def tagger(folder: Path, batch: int | str = "N", text: str = CSV, shape: Sequence[Any] = (SIDE, SIDE, 3)) -> Path:
    """A WD14-format folder whose probabilities are fixed mixtures of the picture's mean blue, green and red."""
    nodes = [
        helper.make_node("ReduceMean", ["input_1", "axes"], ["mean"], keepdims=0),
        helper.make_node("MatMul", ["mean", "weights"], ["sum"]),
        helper.make_node("Clip", ["sum", "zero", "one"], ["predictions"]),
    ]
    constants = {"axes": np.array([1, 2]), "weights": WEIGHTS.T, "zero": np.float32(0), "one": np.float32(1)}
    graph = helper.make_graph(
        nodes,
        "tagger",
        [helper.make_tensor_value_info("input_1", TensorProto.FLOAT, [batch, *shape])],
        [helper.make_tensor_value_info("predictions", TensorProto.FLOAT, [batch, len(WEIGHTS)])],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    folder.mkdir(exist_ok=True)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(model, folder / "model.onnx")
    (folder / "selected_tags.csv").write_text(text, encoding="utf-8")
    return folder


def flat(red: int, green: int, blue: int, height: int = 20, width: int = 20) -> Image:
    return Image(np.full((height, width, 3), (red, green, blue), np.uint8))


def calls(folder: Path, *images: Image) -> list[ReadTags]:
    return [ReadTags(weights("tagger.path", str(folder)), image) for image in images]


def tags(folder: Path, image: Image, **settings: Any) -> Tags:
    """What the stage makes of a picture, its one call answered as the scheduler would."""
    run = Tagger(str(folder), **settings).run(image)
    call = run.send(None)
    try:
        run.send(call.run_batch([call], Memory("cpu"))[0])
    except StopIteration as done:
        return done.value  # type: ignore[no-any-return]
    raise AssertionError("the tagger asked for more than one call")


def words(*args: Any, **settings: Any) -> list[str]:
    return [tag for tag, _ in tags(*args, **settings).tags]


def test_a_wide_picture_is_centred_on_white_as_bgr() -> None:
    square = prepare(np.array([[[10, 20, 30], [10, 20, 30]]], np.uint8), 4)  # 2 x 1 becomes 4 x 2
    assert (square.shape, square.dtype) == ((4, 4, 3), np.float32)
    assert np.array_equal(square[[0, 3]], np.full((2, 4, 3), 255))
    assert np.array_equal(square[[1, 2]], np.broadcast_to([30, 20, 10], (2, 4, 3)))


def test_a_tall_picture_is_scaled_with_lanczos() -> None:
    square = prepare(np.array([[[0] * 3], [[0] * 3], [[255] * 3], [[255] * 3]], np.uint8), 2)
    # 1 x 4 becomes max(1, int(0.5)) x 2, in column (2 - 1) // 2 = 0. Lanczos-3 at -.25 .25 .75 1.25: .8901 .8901 .2702
    # -.1329, so white weighs .1373 / 1.9174 = .0716 in the upper pixel: 18.3; in the lower 236.7
    assert np.array_equal(square[:, 0, 0], [18, 237])
    assert np.array_equal(square[:, 1, 0], [255, 255])


def test_sizes_are_truncated_not_rounded() -> None:
    square = prepare(np.zeros((100, 67, 3), np.uint8), 10)  # 67 * 0.1 = 6.7 becomes 6, at (10 - 6) // 2 = 2
    assert np.flatnonzero(square[5, :, 0] == 0).tolist() == [2, 3, 4, 5, 6, 7]


def test_a_line_of_pixels_keeps_one() -> None:
    assert np.flatnonzero(prepare(np.zeros((1, 5000, 3), np.uint8), 8)[:, 0, 0] == 0).tolist() == [3]


def test_probabilities_are_those_of_the_model(tmp_path: Path) -> None:
    (found,) = read(calls(tagger(tmp_path), flat(51, 102, 204)), Memory("cpu"))
    np.testing.assert_allclose(found, [1, 0.2, 0.4, 0.8, 0.6, 0.3, 1], rtol=1e-6)


@pytest.mark.parametrize("batch", ["N", 1])
def test_a_batch_gives_what_single_runs_give(tmp_path: Path, batch: int | str) -> None:
    images = [Image(noise(height, 20, height)) for height in (5, 20, 33)]
    asked, memory = calls(tagger(tmp_path, batch), *images), Memory("cpu")
    together: NDArray[np.float32] = np.stack(read(asked, memory))
    alone = np.stack([read([call], memory)[0] for call in asked])
    assert together.shape == (3, 7)
    np.testing.assert_allclose(together, alone, atol=1e-7)
    assert len({row.tobytes() for row in together}) == 3


def test_the_session_is_made_once_for_each_tagger(tmp_path: Path) -> None:
    made: list[Any] = []

    class Counting(Memory):
        def get(self, key: Any, load: Any) -> Any:
            return super().get(key, lambda: made.append(key) or load())

    memory, (call,) = Counting("cpu"), calls(tagger(tmp_path), flat(1, 2, 3))
    for _ in range(3):
        read([call], memory)
    assert made == [("wd14", call.tagger)]


def test_tags_are_characters_then_general_in_the_order_of_the_csv(tmp_path: Path) -> None:
    seen = tags(tagger(tmp_path), flat(204, 255, 102))  # red .8, green 1, blue .4, eyes 1.2 clipped, miku .9
    assert [tag for tag, _ in seen.tags] == ["hatsune miku", "red theme", "^_^", "star (symbol), big", "green eyes"]
    np.testing.assert_allclose([p for _, p in seen.tags], [0.9, 0.8, 1, 0.4, 1], rtol=1e-6)


def test_a_probability_at_the_threshold_is_left_out(tmp_path: Path) -> None:
    folder = tagger(tmp_path)
    assert words(folder, flat(0, 0, 255), threshold=1.0) == []
    assert words(folder, flat(0, 0, 255), threshold=0.999) == ["star (symbol), big"]


def test_characters_have_a_threshold_of_their_own(tmp_path: Path) -> None:
    folder, image = tagger(tmp_path), flat(153, 153, 0)  # all three at 0.6
    assert words(folder, image, threshold=0.5) == ["red theme", "^_^", "green eyes"]
    assert words(folder, image, threshold=0.7, character_threshold=0.5) == ["hatsune miku"]


def test_underscores_can_stay(tmp_path: Path) -> None:
    seen = words(tagger(tmp_path), flat(255, 255, 0), replace_underscore=False)
    assert seen == ["hatsune_miku", "red_theme", "^_^", "green_eyes"]


@pytest.mark.parametrize("face", ["o_o", ">_<", "0_0", "(o)_(o)", "<|>_<|>", "||_||", "+_-", "6_9", ">_o"])
def test_kaomoji_keep_their_underscore(face: str) -> None:
    assert Tagger("x")._spelled(face) == face


def test_other_tags_do_not() -> None:
    assert [Tagger("x")._spelled(tag) for tag in ("c.c._(code_geass)", "x_hair", "2_girls")] == [
        "c.c. (code geass)",
        "x hair",
        "2 girls",
    ]


@pytest.mark.parametrize("unwanted", ["Red Theme , ^_^", "red_theme,^_^,", ",red theme,,^_^"])
def test_excluded_tags_are_compared_as_they_are_written(tmp_path: Path, unwanted: str) -> None:
    assert words(tagger(tmp_path), flat(255, 255, 0), exclude_tags=unwanted) == ["hatsune miku", "green eyes"]


def test_max_tags_keeps_the_most_probable_in_order(tmp_path: Path) -> None:
    folder, image = tagger(tmp_path), flat(204, 255, 102)
    assert words(folder, image, max_tags=2) == ["^_^", "green eyes"]
    assert words(folder, image, max_tags=3) == ["hatsune miku", "^_^", "green eyes"]
    assert len(words(folder, image, max_tags=0)) == 5


def test_labels_are_read_with_their_categories(tmp_path: Path) -> None:
    rows = labels(tagger(tmp_path))
    assert rows[0] == Label("general", 9)
    assert rows[3] == Label("star_(symbol), big", 0)
    assert [row.category for row in rows] == [9, 0, 0, 0, 0, 4, 3]


@pytest.mark.parametrize(
    "text", ["a,b\n1,2\n", "name,category\nx\n", "name,category\nx,red\n", "name,category\n\ud800,0\n"]
)
def test_a_malformed_csv_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "selected_tags.csv").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(WeightsError, match=r"is not a list of tags.*name and category"):
        labels(tmp_path)


def test_a_missing_csv_is_told(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"selected_tags.csv' cannot be read: No such file"):
        labels(tmp_path)


def test_a_csv_of_another_model_is_refused(tmp_path: Path) -> None:
    folder = tagger(tmp_path, text=CSV + "8,extra,0,1\n")
    with pytest.raises(WeightsError, match="7 outputs, but the CSV lists 8 tags"):
        tags(folder, flat(1, 2, 3))


def test_the_files_of_the_stage(tmp_path: Path) -> None:
    folder = tagger(tmp_path)
    assert Tagger(str(folder)).files() == [str(folder / "model.onnx"), str(folder / "selected_tags.csv")]


def test_missing_files_are_told_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"tagger.path=.*does not exist"):
        Tagger(str(tmp_path / "none")).files()
    with pytest.raises(WeightsError, match=r"holds no model\.onnx"):
        Tagger(str(tmp_path)).files()
    folder = tagger(tmp_path / "vit")
    with pytest.raises(WeightsError, match="is a file; give the folder"):
        Tagger(str(folder / "model.onnx")).files()
    (folder / "selected_tags.csv").unlink()
    with pytest.raises(WeightsError, match=r"holds no selected_tags\.csv"):
        Tagger(str(folder)).files()


def test_a_broken_model_is_one_sentence(tmp_path: Path) -> None:
    folder = tagger(tmp_path)
    (folder / "model.onnx").write_bytes(b"\x08\x09 not a model")
    with pytest.raises(WeightsError, match="not a model that onnxruntime can load"):
        read(calls(folder, flat(1, 2, 3)), Memory("cpu"))


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = tagger(tmp_path, shape=(SIDE, 6, 3))
    with pytest.raises(WeightsError, match=r"takes \['N', 8, 6, 3\], but a WD14 tagger takes \[batch, side, side, 3\]"):
        read(calls(folder, flat(1, 2, 3)), Memory("cpu"))


@pytest.mark.parametrize(
    "settings", [{"threshold": 1.5}, {"character_threshold": "a"}, {"max_tags": -1}, {"max_tags": 0.5}]
)
def test_bad_settings_are_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(SettingError, match=f"tagger.{next(iter(settings))}="):
        Tagger("x", **settings)
