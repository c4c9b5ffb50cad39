"""WD14-format taggers: a folder with ``model.onnx`` and ``selected_tags.csv``."""

from __future__ import annotations

import csv
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from claygraph.errors import WeightsError

if TYPE_CHECKING:
    from claygraph.diffusion.calls import ReadTags
    from claygraph.memory import Memory
    from claygraph.values import Bytes, Floats, Weights

MODEL = "model.onnx"
LABELS = "selected_tags.csv"
GENERAL, CHARACTER, RATING = 0, 4, 9
CPU = "CPUExecutionProvider"
log = logging.getLogger(__name__)


class Label(NamedTuple):
    """One row of the CSV: the tag as the model's training set spells it, and its category."""

    tag: str
    category: int


def labels(path: str | Path) -> list[Label]:
    """The labels of a tagger folder, one for each output of its model, in order.

    Raises:
        WeightsError: the CSV is missing, or has no columns ``name`` and ``category``.
    """
    file = Path(path) / LABELS
    try:
        with file.open(newline="", encoding="utf-8") as lines:
            return [Label(row["name"], int(row["category"])) for row in csv.DictReader(lines)]
    except OSError as error:
        raise WeightsError(f"{str(file)!r} cannot be read: {error.strerror}; it belongs beside {MODEL}.") from error
    except (KeyError, TypeError, ValueError, csv.Error) as error:
        raise WeightsError(
            f"{str(file)!r} is not a list of tags: it needs the columns name and category (0, 4 or 9), in UTF-8; "
            "fetch it again."
        ) from error


def read(calls: Sequence[ReadTags], memory: Memory) -> list[Floats]:
    """One float32 probability per label for each call, from one session and, if the model can, in one pass.

    A model exported for a fixed number of pictures is given so many at a time, one that says it takes any number but
    fails on this many takes them one by one.

    Raises:
        WeightsError: the model cannot be loaded or run, or is not of the WD14 shape.
    """
    path = Path(calls[0].tagger.path) / MODEL
    session = resident(calls[0].tagger, path, memory)
    fixed, side = _input_shape(session, path)
    pixels = np.stack([prepare(call.image.pixels, side) for call in calls])
    rows = fixed or len(pixels)
    filled = np.concatenate([pixels, np.zeros((-len(pixels) % rows, *pixels.shape[1:]), np.float32)])
    found = [_any_size(session, filled[start : start + rows], path, fixed) for start in range(0, len(filled), rows)]
    return list(np.concatenate(found)[: len(calls)])


def _any_size(session: Any, pixels: Floats, path: Path, fixed: int | None) -> Floats:
    """The model's outputs for these pictures, asked for one by one where it cannot take them together."""
    try:
        return _run(session, pixels, path)
    except WeightsError as error:
        if fixed or len(pixels) == 1:
            raise
        log.info("%s Its pictures go one by one.", error)
        return np.concatenate([_run(session, one[None], path) for one in pixels])


def prepare(pixels: Bytes, side: int) -> Floats:
    """A picture as the model wants it: BGR float32 0..255 ``[side, side, 3]``, scaled to fit, centred on white."""
    from PIL import Image as Pillow

    height, width = pixels.shape[:2]
    ratio = side / max(width, height)
    wide, high = max(1, int(width * ratio)), max(1, int(height * ratio))
    small = Pillow.fromarray(pixels).resize((wide, high), Pillow.Resampling.LANCZOS)
    square = np.full((side, side, 3), 255, np.float32)
    left, top = (side - wide) // 2, (side - high) // 2
    square[top : top + high, left : left + wide] = np.asarray(small)[:, :, ::-1]
    return square


def _run(session: Any, pixels: Floats, path: Path) -> Floats:
    try:
        (found,) = session.run([session.get_outputs()[0].name], {session.get_inputs()[0].name: pixels})
    except Exception as error:  # onnxruntime's own exceptions have no common base
        if "Failed to allocate memory" in str(error):
            from torch import OutOfMemoryError

            raise OutOfMemoryError(str(error)) from error
        raise WeightsError(
            f"{str(path)!r} fails on a batch of {len(pixels)}; export it with a free batch size or get another "
            f"({str(error).splitlines()[0][:300]})."
        ) from error
    return np.asarray(found, np.float32)


def _input_shape(session: Any, path: Path) -> tuple[int | None, int]:
    """How many pictures the model always takes (None for any number), and their side in pixels."""
    shape = session.get_inputs()[0].shape
    if len(shape) != 4 or shape[3] != 3 or not isinstance(shape[1], int) or shape[1] != shape[2]:
        raise WeightsError(f"{str(path)!r} takes {shape}, but a WD14 tagger takes [batch, side, side, 3]; get another.")
    return (shape[0] if isinstance(shape[0], int) else None), shape[1]


def resident(weights: Weights, path: Path, memory: Memory) -> Any:
    """The session of the ONNX model at ``path``, opened once; it counts by the size of its file."""
    size = path.stat().st_size if path.is_file() else 0
    return memory.get(("onnx", weights), lambda: _session(path, memory), size)


def _session(path: Path, memory: Memory) -> Any:
    """The model in onnxruntime, on the GPU if torch uses one and onnxruntime can; what it falls back to is logged."""
    import onnxruntime as ort

    if memory.device.type == "cuda" and "CUDAExecutionProvider" in ort.get_available_providers():
        cuda = ("CUDAExecutionProvider", {"device_id": memory.device.index or 0, "use_tf32": 0})
        try:
            session = _open(path, [cuda, CPU])
        except WeightsError as error:
            log.warning("the tagger runs on the CPU: %s", str(error.__cause__).partition("\n")[0])
            return _open(path, [CPU])
        if session.get_providers()[0] == CPU:
            log.warning("the tagger runs on the CPU: onnxruntime could not set up the GPU.")
        return session
    if memory.device.type == "cuda":
        log.warning("the tagger runs on the CPU: this onnxruntime has no CUDA; install onnxruntime-gpu.")
    return _open(path, [CPU])


def _open(path: Path, providers: Sequence[Any]) -> Any:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 4  # an error is raised, and need not be printed as well
    try:  # onnxruntime's own way to fall back prints to stdout, which is for the paths of pictures
        return ort.InferenceSession(str(path), options, providers=providers, enable_fallback=0)
    except Exception as error:  # onnxruntime's own exceptions have no common base
        raise WeightsError(f"{str(path)!r} is not a model that onnxruntime can load; fetch it again.") from error
