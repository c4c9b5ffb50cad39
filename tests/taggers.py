"""Writes tiny WD14-format taggers whose probabilities can be worked out by hand."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from claygraph.diffusion.calls import ReadTags
from claygraph.files import weights
from claygraph.values import Image

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


def tagger(
    folder: Path,
    batch: int | str = "N",
    text: str = CSV,
    shape: Sequence[Any] = (SIDE, SIDE, 3),
    middle: Sequence[onnx.NodeProto] = (helper.make_node("Identity", ["once"], ["mean"]),),
) -> Path:
    """A WD14-format folder whose probabilities are fixed mixtures of the picture's mean blue, green and red."""
    nodes = [
        helper.make_node("ReduceMean", ["input_1", "axes"], ["once"], keepdims=0),
        *middle,
        helper.make_node("MatMul", ["mean", "weights"], ["sum"]),
        helper.make_node("Clip", ["sum", "zero", "one"], ["predictions"]),
    ]
    constants = {"axes": np.array([1, 2]), "weights": WEIGHTS.T, "zero": np.float32(0), "one": np.float32(1)}
    constants |= {"two": np.array([2, 3]), "many": np.array([2**23, 1]), "three": np.array([1, 3])}
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
    """A picture of one colour."""
    return Image(np.full((height, width, 3), (red, green, blue), np.uint8))


def calls(folder: Path, *images: Image) -> list[ReadTags]:
    """What the stage asks of the device for each picture."""
    return [ReadTags(weights("tagger.path", str(folder)), image) for image in images]
