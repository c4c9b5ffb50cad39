"""How well the exported taggers tag pictures from held-out sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnxruntime

from claygraph.miniature import tags as vocabulary
from claygraph.miniature.measures import Floats, average_precision
from claygraph.miniature.train_taggers import NAMES, TAGS, Examples

KINDS = {
    "colour": (*vocabulary.HUES, *vocabulary.TONES),
    "style": vocabulary.STYLES,
    "group": tuple(vocabulary.GROUPS.values()),
}


def judge(work: Path, folder: Path, count: int = 600) -> dict[str, float]:
    """Mean average precision by tagger and kind of tag, and the share of pictures whose likeliest tag is the same."""
    pictures, wanted = (t.cpu().numpy() for t in Examples(work, seed=5, held_out=True).batch(count))
    found = {name: _read(folder / name / "model.onnx", pictures) for name in NAMES}
    figures = {
        f"{name} {kind}": _mean_precision(wanted, found[name], [TAGS.index(t) for t in tags])
        for name in NAMES
        for kind, tags in KINDS.items()
    }
    general = slice(len(vocabulary.RATINGS), None)
    first, second = (found[name][:, general].argmax(1) for name in NAMES)
    return figures | {"likeliest tags agree": float((first == second).mean())}


def _read(model: Path, pictures: Floats) -> Floats:
    return np.asarray(onnxruntime.InferenceSession(str(model)).run(None, {"input": pictures})[0])


def _mean_precision(wanted: Floats, found: Floats, columns: list[int]) -> float:
    known = [c for c in columns if wanted[:, c].sum() >= 3]
    return float(np.mean([average_precision(wanted[:, c], found[:, c]) for c in known]))
