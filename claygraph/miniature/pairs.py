"""Step `pairs`: pictures of several shapes, their clay versions and their edge hints, made once and kept.

One file a shape: `pairs/HxW.npz` with `picture`, `clay` [N,H,W,3] uint8, `hint` [N,2H,2W/8] (bits) and `tags` (text).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt

from claygraph.miniature.clayify import clayify, edges
from claygraph.miniature.pictures import Picture, Pool

SHAPES = {(256, 256): 0.5, (224, 288): 0.2, (288, 224): 0.2, (128, 128): 0.1}
"""Picture shapes in pixels and the share of pairs made in each."""
TWIN_SHAPES = {(128, 128): 0.7, (192, 192): 0.3}
"""The same for twins: a flat drawing as `picture`, its 3D toy as `clay`."""


def pairs(work: Path, count: int = 1000, seed: int = 7, held_out: bool = False) -> None:
    """Make `count` pairs; a shape whose file is there is skipped."""
    folder = work / ("pairs_held_out" if held_out else "pairs")
    folder.mkdir(parents=True, exist_ok=True)
    for number, ((height, width), share) in enumerate(SHAPES.items()):
        file = folder / f"{height}x{width}.npz"
        if not file.exists():
            pool = Pool(work, seed + number, held_out)
            _write(file, pool, round(count * share), height, width)
            print(f"pairs: {file.name}", flush=True)


def twins(work: Path, count: int = 700, seed: int = 17) -> None:
    """Make `count` pairs of a flat drawing and its 3D toy, in the same form."""
    (work / "twins").mkdir(parents=True, exist_ok=True)
    for number, ((height, width), share) in enumerate(TWIN_SHAPES.items()):
        file = work / f"twins/{height}x{width}.npz"
        if not file.exists():
            pool = Pool(work, seed + number)
            drawn = [pool.twins(height, width) for _ in range(round(count * share))]
            _store(file, pool, [flat for flat, _ in drawn], [solid.pixels for _, solid in drawn])
            print(f"twins: {file.name}", flush=True)


def _write(file: Path, pool: Pool, count: int, height: int, width: int) -> None:
    drawn = [pool.any(height, width, (0.62, 0.16, 0.18, 0.04)) for _ in range(count)]
    clays = [clayify(p.pixels, int(pool.random.integers(1 << 30))) for p in drawn]
    _store(file, pool, drawn, clays)


def _store(file: Path, pool: Pool, drawn: list[Picture], targets: list[npt.NDArray[np.uint8]]) -> None:
    partial = file.with_suffix(".part.npz")
    np.savez(
        partial,
        picture=np.stack([p.pixels for p in drawn]),
        clay=np.stack(targets),
        hint=np.stack([np.packbits(edges(p.pixels, *_thresholds(pool)) > 0, axis=1) for p in drawn]),
        tags=np.array(["\n".join(p.tags) for p in drawn]),
    )
    partial.rename(file)


def _thresholds(pool: Pool) -> tuple[float, float]:
    """Mostly Canny's 100 and 200, sometimes more or fewer lines."""
    factor = 1.0 if pool.random.random() < 0.5 else float(pool.random.uniform(0.5, 1.3))
    return 100 * factor, 200 * factor
