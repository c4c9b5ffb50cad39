"""Edge detectors on uint8 RGB ``[H, W, 3]``; each returns uint8 ``[H, W]``, white edges on black."""

from __future__ import annotations

from math import pi, sqrt
from typing import TYPE_CHECKING, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from claygraph.values import Bytes, Floats


def resized(rgb: Bytes, shortest: int) -> Bytes:
    """The picture with its shortest side so many pixels long: INTER_AREA to shrink it, INTER_CUBIC to enlarge it."""
    height, width = rgb.shape[:2]
    scale = shortest / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cast("Bytes", cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA))


def canny(rgb: Bytes, low: float, high: float, blur: float) -> Bytes:
    """OpenCV's Canny on the strongest of the three channels, after a Gaussian of sigma ``blur`` if that is not 0."""
    smooth = cv2.GaussianBlur(rgb, (0, 0), blur) if blur else rgb
    return cast("Bytes", cv2.Canny(smooth, low, high))


def scharr(rgb: Bytes, low: float, high: float) -> Bytes:
    """Gradient of the strongest channel by Scharr's 3x3 kernel / 16: a step from 0 to 255 has gradient 1."""
    levels = rgb.astype(np.float32) / 255
    across, down = (cv2.Scharr(levels, cv2.CV_32F, dx, 1 - dx, scale=1 / 16) for dx in (1, 0))
    return _ramp(np.hypot(across, down).max(axis=2), low, high)


def laplacian_of_gaussian(rgb: Bytes, sigma: float, threshold: float) -> Bytes:
    """Zero crossings of the Laplacian of a Gaussian (Marr and Hildreth, 1980): thin closed contours.

    Scaled by sigma^3 sqrt(2 pi), the response falls by a step's own height per pixel where it crosses zero, so
    ``threshold`` is about the lowest step (of 0 to 1) that counts.
    """
    response = cv2.Laplacian(_blurred(_grey(rgb), sigma), cv2.CV_32F) * (sigma**3 * sqrt(2 * pi))
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    least = cv2.erode(response, cross)
    crossing = (response >= 0) & (least < 0) & (response - least > threshold)
    return crossing.astype(np.uint8) * np.uint8(255)


def difference_of_gaussians(rgb: Bytes, sigma: float, low: float, high: float) -> Bytes:
    """How much darker a point is than its surroundings, as a pencil would draw it: G(1.6 sigma) - G(sigma).

    1.6 is Marr and Hildreth's ratio; taking one sign only is Winnemoeller's (XDoG, 2012).
    """
    grey = _grey(rgb)
    return _ramp(_blurred(grey, 1.6 * sigma) - _blurred(grey, sigma), low, high)


def _grey(rgb: Bytes) -> Floats:
    return cast("Floats", cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255)


def _blurred(values: Floats, sigma: float) -> Floats:
    return cast("Floats", cv2.GaussianBlur(values, (0, 0), sigma))


def _ramp(values: Floats, low: float, high: float) -> Bytes:
    """0 up to ``low``, 255 from ``high`` on, straight between."""
    share: Floats = (values - low) / max(high - low, 1e-6)
    return (share.clip(0, 1) * 255 + 0.5).astype(np.uint8)
