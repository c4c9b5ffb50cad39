"""Which style a picture has, by an ONNX classifier: a folder with ``model.onnx`` and ``classes.json``.

The model takes ``input``, RGB float32 ``[N, 128, 128, 3]``, 0 to 255, and gives a probability for each class.
"""

from __future__ import annotations

import json
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from claygraph.errors import WeightsError
from claygraph.stage import Call
from claygraph.values import Image, Weights

if TYPE_CHECKING:
    from claygraph.memory import Memory
    from claygraph.values import Bytes, Floats

MODEL = "model.onnx"
CLASSES = "classes.json"


@dataclass(frozen=True, eq=False)
class JudgeStyle(Call["Floats"]):
    """A picture through a style classifier: one probability per class, a mean over the picture's tiles of 128 px."""

    classifier: Weights
    image: Image
    name: ClassVar[str] = "judge_style"

    @property
    def batch_key(self) -> Hashable:
        return self.classifier

    @classmethod
    def run_batch(cls, calls: Sequence[JudgeStyle], memory: Memory) -> list[Floats]:
        from claygraph.diffusion.wd14 import resident

        classifier = calls[0].classifier
        session = resident(classifier, Path(classifier.path) / MODEL, memory)
        return [probabilities(session, call.image.pixels) for call in calls]


def classes(folder: str | Path) -> list[str]:
    """The names of a classifier's classes, in order; raises ``WeightsError`` where they cannot be read."""
    try:
        found = json.loads((Path(folder) / CLASSES).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{str(folder)!r} holds no readable {CLASSES}; it belongs beside {MODEL}.") from error
    return [str(name) for name in found]


def probabilities(session: Any, rgb: Bytes) -> Floats:
    """Float32 probabilities ``[classes]`` of one picture. Tiles go together, pictures apart, so that a picture's value
    does not depend on what else is judged."""
    import numpy as np

    from claygraph.diffusion.measures import tiles

    return np.asarray(session.run(None, {"input": tiles(rgb)})[0].mean(0), np.float32)
