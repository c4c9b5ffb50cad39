from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import torch
from numpy.typing import NDArray
from onnx import helper
from torch import OutOfMemoryError

from claygraph.diffusion.wd14 import Label, labels, prepare, read
from claygraph.errors import WeightsError
from claygraph.memory import Memory
from claygraph.values import Image
from tests.pictures import noise
from tests.taggers import calls, flat, tagger


def test_a_wide_picture_is_centred_on_white_as_bgr() -> None:
    square = prepare(np.array([[[10, 20, 30], [10, 20, 30]]], np.uint8), 4)  # 2 x 1 becomes 4 x 2
    assert square.shape == (4, 4, 3)
    assert square.dtype == np.float32
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


@pytest.mark.parametrize("batch", ["N", 1, 2])
def test_a_batch_gives_what_single_runs_give(tmp_path: Path, batch: int | str) -> None:
    images = [Image(noise(height, 20, height)) for height in (5, 20, 33)]
    asked, memory = calls(tagger(tmp_path, batch), *images), Memory("cpu")
    together: NDArray[np.float32] = np.stack(read(asked, memory))
    alone = np.stack([read([call], memory)[0] for call in asked])
    assert together.shape == (3, 7)
    np.testing.assert_allclose(together, alone, atol=1e-7)
    assert len({row.tobytes() for row in together}) == 3


def test_the_session_is_made_once_for_each_tagger(tmp_path: Path) -> None:
    memory, (call,) = Memory("cpu"), calls(tagger(tmp_path), flat(51, 102, 204))
    before = read([call], memory)[0]
    (tmp_path / "model.onnx").unlink()
    assert np.array_equal(read([call], memory)[0], before)
    with pytest.raises(WeightsError):
        read([call], Memory("cpu"))


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


def single(node: str) -> list[onnx.NodeProto]:
    """A step that works for one picture alone, though the model says it takes any number."""
    return [helper.make_node("Reshape", ["once", "three"], ["mean"], name=node)]


def test_a_model_that_fails_on_a_batch_takes_pictures_one_by_one(tmp_path: Path) -> None:
    folder = tagger(tmp_path, middle=single("one"))
    colours = [(51, 102, 204), (204, 0, 51), (0, 255, 0)]
    found = read(calls(folder, *(flat(*colour) for colour in colours)), Memory("cpu"))
    for (red, green, blue), row in zip(colours, found, strict=True):
        np.testing.assert_allclose(row[1:4], np.array([red, green, blue]) / 255, rtol=1e-6)


@pytest.mark.parametrize("name", ["input_1:0", "input", "x"])
@pytest.mark.parametrize("side", [8, 12])
def test_the_name_and_size_of_the_input_are_the_models_own(tmp_path: Path, name: str, side: int) -> None:
    folder = tagger(tmp_path, shape=(side, side, 3))
    model = onnx.load(folder / "model.onnx")
    model.graph.input[0].name = model.graph.node[0].input[0] = name
    onnx.save(model, folder / "model.onnx")
    (found,) = read(calls(folder, flat(51, 102, 204)), Memory("cpu"))
    np.testing.assert_allclose(found[1:4], [0.2, 0.4, 0.8], rtol=1e-6)


def test_a_gpu_that_onnxruntime_cannot_use_is_told_and_the_cpu_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory = Memory("cpu")
    memory.device = torch.device("cuda")
    asked = calls(tagger(tmp_path), flat(51, 102, 204))
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CPUExecutionProvider"])
    (found,) = read(asked, memory)
    np.testing.assert_allclose(found[1:4], [0.2, 0.4, 0.8], rtol=1e-6)
    assert "the tagger runs on the CPU: this onnxruntime has no CUDA; install onnxruntime-gpu" in caplog.text
    assert capsys.readouterr().out == ""


def test_a_gpu_that_fails_to_start_is_told_and_the_cpu_used(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory = Memory("cpu")
    memory.device = torch.device("cuda")
    monkeypatch.setattr(ort, "get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    (found,) = read(calls(tagger(tmp_path), flat(51, 102, 204)), memory)
    np.testing.assert_allclose(found[1:4], [0.2, 0.4, 0.8], rtol=1e-6)
    assert "the tagger runs on the CPU" in caplog.text
    assert capsys.readouterr().out == ""


def test_a_broken_model_is_one_sentence(tmp_path: Path) -> None:
    folder = tagger(tmp_path)
    (folder / "model.onnx").write_bytes(b"\x08\x09 not a model")
    with pytest.raises(WeightsError, match="not a model that onnxruntime can load"):
        read(calls(folder, flat(1, 2, 3)), Memory("cpu"))


def test_a_model_that_fails_on_a_picture_is_one_sentence(tmp_path: Path) -> None:
    folder = tagger(tmp_path, middle=[helper.make_node("Reshape", ["once", "two"], ["mean"])])  # exported for two
    with pytest.raises(
        WeightsError, match=r"fails on a batch of 1; export it with a free batch size.* Reshape"
    ) as caught:
        read(calls(folder, flat(1, 2, 3)), Memory("cpu"))
    assert "\n" not in str(caught.value)


def test_running_out_of_memory_is_told_as_such(tmp_path: Path) -> None:
    middle = [
        helper.make_node("Tile", ["once", "many"], ["tall"]),
        helper.make_node("Transpose", ["tall"], ["wide"], perm=[1, 0]),
        helper.make_node("MatMul", ["tall", "wide"], ["huge"]),  # 2^48 bytes
        helper.make_node("MatMul", ["huge", "tall"], ["mean"]),
    ]
    with pytest.raises(OutOfMemoryError):
        read(calls(tagger(tmp_path, middle=middle), flat(1, 2, 3)), Memory("cpu"))


def test_a_model_of_another_shape_is_refused(tmp_path: Path) -> None:
    folder = tagger(tmp_path, shape=(8, 6, 3))
    with pytest.raises(WeightsError, match=r"takes \['N', 8, 6, 3\], but a WD14 tagger takes \[batch, side, side, 3\]"):
        read(calls(folder, flat(1, 2, 3)), Memory("cpu"))
