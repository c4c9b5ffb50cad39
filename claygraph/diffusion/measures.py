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
TO_XYZ = ((0.412453, 0.357580, 0.180423), (0.212671, 0.715160, 0.072169), (0.019334, 0.119193, 0.950227))
WHITE = (0.95047, 1.0, 1.08883)
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
    return float(np.linalg.norm(lab(cells(one)) - lab(cells(other)), axis=2).mean())


def lab(rgb: NDArray[Any]) -> NDArray[np.float64]:
    """CIE L*a*b* (1976, D65) of sRGB colours ``[..., 3]``, 0 to 255, by the formulas of IEC 61966-2-1 and CIE 15.

    OpenCV's conversion goes through tables, which are coarse where two colours are close.
    """
    level = np.asarray(rgb, np.float64) / 255
    linear = np.where(level > 0.04045, ((level + 0.055) / 1.055) ** 2.4, level / 12.92)
    share = linear @ np.transpose(TO_XYZ) / WHITE
    x, y, z = np.moveaxis(np.where(share > (6 / 29) ** 3, np.cbrt(share), share * (29 / 6) ** 2 / 3 + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)


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
