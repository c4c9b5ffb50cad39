"""Step `pairs`: pictures of several shapes, their edge hints and, for pairs, their clay versions, made once and kept.

One file a shape: `KIND/HxW.npz` with `picture` [N,H,W,3] uint8, `hint` [N,2H,2W/8] (bits), `tags` (text) and, for
`pairs` and `twins`, the picture's target as `clay`.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt

from claygraph.miniature.clayify import clayify, edges
from claygraph.miniature.pictures import Picture, Pool

Shapes = Mapping[tuple[int, int], int]
PICTURES: Shapes = {(256, 256): 900, (224, 288): 350, (288, 224): 350, (128, 128): 1200, (160, 160): 500}
"""Picture shapes in pixels and how many pictures the base is trained on in each, beside those of the pairs."""
PAIRS: Shapes = {(256, 256): 1000, (224, 288): 400, (288, 224): 400, (128, 128): 400}
TWINS: Shapes = {(128, 128): 800, (192, 192): 300}
HELD_OUT: Shapes = {(256, 256): 102, (128, 128): 102}
PICTURE_SHARES, PAIR_SHARES = (0.5, 0.12, 0.28, 0.10), (0.62, 0.16, 0.18, 0.04)
"""Shares of photo, scene (an emoji on a photo), 3D and flat emoji."""


def pictures(work: Path, shapes: Shapes = PICTURES) -> None:
    """Pictures without targets."""
    for number, (file, height, width, count) in enumerate(_missing(work / "pictures", shapes)):
        pool = Pool(work, 50 + number)
        _store(file, pool, [pool.any(height, width, PICTURE_SHARES) for _ in range(count)])


def pairs(work: Path, shapes: Shapes = PAIRS) -> None:
    """Pictures with their clay versions."""
    for number, (file, height, width, count) in enumerate(_missing(work / "pairs", shapes)):
        pool = Pool(work, 7 + number)
        _store_clay(file, pool, [pool.any(height, width, PAIR_SHARES) for _ in range(count)])


def held_out(work: Path, shapes: Shapes = HELD_OUT) -> None:
    """Photographs from sources kept out of all training, equally many of each, with their clay versions."""
    for number, (file, height, width, count) in enumerate(_missing(work / "held_out", shapes)):
        pool = Pool(work, 99 + number, held_out=True)
        _store_clay(file, pool, [pool.photo(height, width, turn % len(pool.photos)) for turn in range(count)])


def twins(work: Path, shapes: Shapes = TWINS) -> None:
    """Flat drawings with their 3D toys as targets."""
    for number, (file, height, width, count) in enumerate(_missing(work / "twins", shapes)):
        pool = Pool(work, 17 + number)
        drawn = [pool.twins(height, width) for _ in range(count)]
        _store(file, pool, [flat for flat, _ in drawn], [solid.pixels for _, solid in drawn])


def _missing(folder: Path, shapes: Shapes) -> list[tuple[Path, int, int, int]]:
    """File, height, width and count of the shapes that have no file yet."""
    folder.mkdir(parents=True, exist_ok=True)
    named = [(folder / f"{height}x{width}.npz", height, width, count) for (height, width), count in shapes.items()]
    return [entry for entry in named if not entry[0].exists()]


def _store_clay(file: Path, pool: Pool, drawn: list[Picture]) -> None:
    _store(file, pool, drawn, [clayify(p.pixels, int(pool.random.integers(1 << 30))) for p in drawn])


def _store(file: Path, pool: Pool, drawn: list[Picture], targets: list[npt.NDArray[np.uint8]] | None = None) -> None:
    arrays = {
        "picture": np.stack([p.pixels for p in drawn]),
        "hint": np.stack([np.packbits(edges(p.pixels, *_detector(pool)) > 0, axis=1) for p in drawn]),
        "tags": np.array(["\n".join(p.tags) for p in drawn]),
    }
    if targets is not None:
        arrays["clay"] = np.stack(targets)
    partial = file.with_suffix(".part.npz")
    np.savez(partial, allow_pickle=False, **arrays)
    partial.rename(file)
    print(f"{file.parent.name}: {file.name}", flush=True)


def _detector(pool: Pool) -> tuple[float, float, float]:
    """Canny's thresholds and blur: mostly the default graph's, sometimes up to the usual 100, 200 and none."""
    if pool.random.random() < 0.6:
        return 40, 100, 2
    low = float(pool.random.uniform(25, 100))
    return low, low * float(pool.random.uniform(2, 2.5)), float(pool.random.uniform(0, 2.5))
