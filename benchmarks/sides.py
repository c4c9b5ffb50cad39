"""Both sides with the same weights, photos, device and threads, in one process.

``--model miniature`` is the bundled one. ``--model sdxl`` is of full size, its random weights made by full_size.py;
both sides' take 24 GB of a GPU.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from benchmarks import full_size, photos
from benchmarks.by_hand import ByHand
from benchmarks.models import Weights, miniature
from benchmarks.ours import Ours, fresh_folder

DTYPES = {"cpu": "float32", "cuda": "float16"}
MODELS: dict[str, Callable[[Path], Weights]] = {"miniature": miniature, "sdxl": full_size.weights}
SIZES = {"miniature": 256, "sdxl": 1024}


@dataclass
class Sides:
    """Our side and theirs, and the folder that everything is written to."""

    ours: Ours
    theirs: ByHand
    folder: Path
    size: int
    cuts: list[Path] = field(default_factory=list)

    def photos(self, count: int) -> list[Path]:
        """So many photos, cut once."""
        if len(self.cuts) < count:
            self.cuts = photos.cut(self.folder / "photos", count, self.size)
        return self.cuts[:count]


def options_of(parser: argparse.ArgumentParser, arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """The options, with those that say how large the work is."""
    parser.add_argument("--model", choices=list(MODELS), default="miniature", help="sdxl: full size, random weights")
    parser.add_argument("--size", type=int, help="side of the pictures in pixels (256; sdxl: 1024)")
    parser.add_argument("--batch", type=int, default=8, help="ours: the most calls that share a pass (8)")
    parser.add_argument("--weights", type=Path, help="where weights are made, and found if there already")
    options = parser.parse_args(arguments)
    options.size = options.size or SIZES[options.model]
    return options


def prepared(options: argparse.Namespace, folder: Path) -> Weights:
    """The weights of the model asked for, in ``folder`` where no other was."""
    return MODELS[options.model](options.weights or folder)


@contextmanager
def sides(options: argparse.Namespace) -> Iterator[Sides]:
    """Both sides, loaded; what they wrote is gone afterwards."""
    if options.threads:
        torch.set_num_threads(options.threads)
    with fresh_folder() as folder:
        weights = prepared(options, folder)
        ours = Ours(options.size, options.device, weights.overrides, options.batch)
        dtype = DTYPES[torch.device(options.device).type]
        yield Sides(ours, ByHand(weights.parts, options.device, dtype), folder, options.size)


def psnr(ours: Path, theirs: Path) -> float:
    """Peak signal-to-noise ratio between two pictures, in decibels."""
    one, other = (np.asarray(Image.open(path).convert("RGB"), np.float64) for path in (ours, theirs))
    error = float(((one - other) ** 2).mean())
    return 10 * float(np.log10(255**2 / error)) if error else float("inf")
