"""Numbers that say how a picture relates to another: uint8 RGB ``[H, W, 3]``, two of one size unless said."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from claygraph.values import Bytes, Floats

WINDOW, SIGMA = 11, 1.5
C1, C2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
CELLS = 8
TILE = 128


def fitted(rgb: Bytes, like: Bytes) -> Bytes:
    """The picture at the size of another: INTER_AREA to shrink it, INTER_CUBIC to enlarge it."""
    height, width = like.shape[:2]
    if rgb.shape[:2] == (height, width):
        return rgb
    how = cv2.INTER_AREA if rgb.shape[0] >= height else cv2.INTER_CUBIC
    return cast("Bytes", cv2.resize(rgb, (width, height), interpolation=how))


def ssim(one: Bytes, other: Bytes) -> float:
    """Structural similarity of the greys (Wang, Bovik, Sheikh and Simoncelli, 2004), a mean over the picture, -1 to 1.

    An 11x11 Gaussian window of sigma 1.5, K1 = 0.01, K2 = 0.03, L = 255, population moments; where the window would
    leave the picture (5 pixels at each border) is not counted, as in scikit-image. 1: equal.
    """
    x, y = (cv2.cvtColor(each, cv2.COLOR_RGB2GRAY).astype(np.float64) for each in (one, other))
    mean_x, mean_y = _windowed(x), _windowed(y)
    spread_x, spread_y = _windowed(x * x) - mean_x**2, _windowed(y * y) - mean_y**2
    together = _windowed(x * y) - mean_x * mean_y
    above = (2 * mean_x * mean_y + C1) * (2 * together + C2)
    found = above / ((mean_x**2 + mean_y**2 + C1) * (spread_x + spread_y + C2))
    border = min(WINDOW // 2, (min(found.shape) - 1) // 2)
    return float(found[border : found.shape[0] - border, border : found.shape[1] - border].mean())


def _windowed(values: NDArray[np.float64]) -> NDArray[np.float64]:
    kernel = (WINDOW, WINDOW)
    return cast("NDArray[np.float64]", cv2.GaussianBlur(values, kernel, SIGMA, borderType=cv2.BORDER_REFLECT))


def line_f1(mine: NDArray[Any], wanted: NDArray[Any], tolerance: int) -> float:
    """How well lines (not 0, ``[N, H, W]``) meet the wanted ones within ``tolerance`` pixels, diagonals counted as one.

    The harmonic mean of precision (the share of ``mine`` near a wanted one) and recall (the share of ``wanted`` near
    one of mine), over all N together; 1 where there are no lines in either.
    """
    mine, wanted = ((each > 0).astype(np.uint8) for each in (mine, wanted))
    if not mine.any() and not wanted.any():
        return 1.0
    precision = (mine & _widened(wanted, tolerance)).sum() / max(1, mine.sum())
    recall = (wanted & _widened(mine, tolerance)).sum() / max(1, wanted.sum())
    return float(2 * precision * recall / max(1e-6, precision + recall))


def _widened(lines: NDArray[np.uint8], by: int) -> NDArray[np.uint8]:
    kernel = np.ones((2 * by + 1, 2 * by + 1), np.uint8)
    return np.stack([np.asarray(cv2.dilate(each, kernel), np.uint8) for each in lines])


def cells(rgb: Bytes) -> Floats:
    """Mean colours of 8x8 equal parts of a picture, float32 ``[8, 8, 3]``, 0 to 255."""
    return np.asarray(cv2.resize(rgb, (CELLS, CELLS), interpolation=cv2.INTER_AREA), np.float32)


def colour_distance(one: Bytes, other: Bytes) -> float:
    """Mean CIE 1976 colour difference (Delta E*ab) of the 8x8 cells of two pictures of any sizes.

    0: equal; about 2.3 is just noticeable, black to white is 100.
    """
    labs = [cv2.cvtColor(cells(each) / np.float32(255), cv2.COLOR_RGB2LAB) for each in (one, other)]
    return float(np.linalg.norm(labs[0] - labs[1], axis=2).mean())


def sharpness(rgb: Bytes) -> float:
    """Variance of the Laplacian of the greys (Pech-Pacheco and others, 2000), in grey levels squared; 0: flat."""
    return float(cv2.Laplacian(cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY), cv2.CV_64F).var())


def tiles(rgb: Bytes, side: int = TILE) -> Floats:
    """Whole tiles of a picture, float32 ``[T, side, side, 3]``, 0 to 255; a picture smaller than one is enlarged."""
    scale = max(1.0, side / min(rgb.shape[:2]))
    if scale > 1:
        rgb = cast("Bytes", cv2.resize(rgb, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC))
    tops, lefts = (range(0, extent - side + 1, side) for extent in rgb.shape[:2])
    return np.stack([rgb[t : t + side, s : s + side] for t in tops for s in lefts]).astype(np.float32)
