"""Edge detectors on uint8 RGB ``[H, W, 3]``; each returns uint8 ``[H, W]``, white edges on black."""

from __future__ import annotations

from math import pi, sqrt
from typing import TYPE_CHECKING, Any, cast

import cv2
import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from claygraph.values import Bytes, Floats

KERNELS: dict[str, tuple[Any, float]] = {"scharr": (cv2.Scharr, 1 / 16), "sobel": (cv2.Sobel, 1 / 4)}
DIRECTIONS = ((0, 1), (1, 1), (1, 0), (1, -1))
BILATERAL_RANGE = 0.1


def resized(rgb: Bytes, shortest: int) -> Bytes:
    """The picture with its shortest side so many pixels long: INTER_AREA to shrink it, INTER_CUBIC to enlarge it."""
    height, width = rgb.shape[:2]
    scale = shortest / min(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    return cast("Bytes", cv2.resize(rgb, size, interpolation=cv2.INTER_CUBIC if scale > 1 else cv2.INTER_AREA))


def padded(rgb: Bytes, multiple: int) -> Bytes:
    """The picture with its last row and column repeated until both sides are multiples."""
    below, right = (-side % multiple for side in rgb.shape[:2])
    return np.pad(rgb, ((0, below), (0, right), (0, 0)), mode="edge")


def canny(rgb: Bytes, low: float, high: float, blur: float) -> Bytes:
    """OpenCV's Canny on the strongest of the three channels, after a Gaussian of sigma ``blur`` if that is not 0."""
    smooth = cv2.GaussianBlur(rgb, (0, 0), blur) if blur else rgb
    return cast("Bytes", cv2.Canny(smooth, low, high))


def canny_float(rgb: Bytes, low: float, high: float) -> Bytes:
    """Canny (1986) as kornia.filters.canny computes it: on grey from 0 to 1, after a 5x5 Gaussian of sigma 1.

    Thresholds are Sobel gradients with kernels that sum to 4 a side: a step of 0 to 1 has 2.6 after the blur. An edge
    is what exceeds both neighbours along its gradient and ``low``, and is 8-connected to what exceeds ``high``.
    """
    grey = (rgb.astype(np.float32) / 255) @ np.array([0.299, 0.587, 0.114], np.float32)
    smooth = cv2.GaussianBlur(grey, (5, 5), 1, borderType=cv2.BORDER_REFLECT_101)
    across, down = (cv2.Sobel(smooth, cv2.CV_32F, dx, 1 - dx, borderType=cv2.BORDER_REPLICATE) for dx in (1, 0))
    strength = np.sqrt(across**2 + down**2 + 1e-6)
    ridge = strength * _exceeds_neighbours(strength, np.arctan2(down, across))
    _, pieces = cv2.connectedComponents((ridge > low).astype(np.uint8), connectivity=8)
    strong = np.unique(pieces[ridge > high])
    return (np.isin(pieces, strong[strong > 0]) * 255).astype(np.uint8)


def _exceeds_neighbours(values: Floats, angle: Floats) -> NDArray[np.bool_]:
    """Where a value is above both of its neighbours along its angle, rounded to an eighth of a turn; outside is 0."""
    sector = np.round(angle / (pi / 4)).astype(int) % 4
    around = np.pad(values, 1)
    high, wide = values.shape
    ahead, behind = (
        [around[1 + s * dy : 1 + s * dy + high, 1 + s * dx : 1 + s * dx + wide] for dy, dx in DIRECTIONS]
        for s in (1, -1)
    )
    return values > np.maximum(np.choose(sector, ahead), np.choose(sector, behind))


def gradient(rgb: Bytes, kernel: str, low: float, high: float) -> Bytes:
    """Gradient of the strongest channel by a 3x3 kernel (``scharr`` or ``sobel``): a step from 0 to 255 has 1."""
    levels = rgb.astype(np.float32) / 255
    operator, scale = KERNELS[kernel]
    across, down = (operator(levels, cv2.CV_32F, dx, 1 - dx, scale=scale) for dx in (1, 0))
    return _ramp(np.hypot(across, down).max(axis=2), low, high)


def laplacian(rgb: Bytes, low: float, high: float) -> Bytes:
    """How far a point's grey is from that of its four neighbours, summed: a step from 0 to 255 has 1 on both sides."""
    return _ramp(np.abs(cv2.Laplacian(_grey(rgb), cv2.CV_32F, ksize=1)), low, high)


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


def soft_edges(rgb: Bytes, sigma: float, octaves: int, low: float, high: float) -> Bytes:
    """Mean gradient over the scales ``sigma``, ``2 sigma``, ...: outlines stay and texture fades, as in HED.

    Each is Lindeberg's scale-normalised derivative (1998), sigma sqrt(2 pi) times the gradient of the blurred grey, so
    that a step of 0 to 1 has about 1 at every scale.
    """
    scales = [sigma * 2**octave for octave in range(octaves)]
    return _ramp(np.mean([_slope(_grey(rgb), scale) for scale in scales], axis=0), low, high)


def _slope(grey: Floats, sigma: float) -> Floats:
    blurred = _blurred(grey, sigma)
    across, down = (cv2.Sobel(blurred, cv2.CV_32F, dx, 1 - dx, scale=1 / 8) for dx in (1, 0))
    return cast("Floats", np.hypot(across, down) * (sigma * sqrt(2 * pi)))


def lineart(rgb: Bytes, sigma: float, threshold: float, sharpness: float) -> Bytes:
    """Ink lines where a point is darker than its surroundings by more than ``threshold`` (0 to 1).

    Winnemoeller's XDoG (2012): a bilateral filter calms what is no edge, then the difference of Gaussians goes through
    ``tanh(sharpness * (difference - threshold))``, 0 below the threshold.
    """
    calm = cast("Floats", cv2.bilateralFilter(_grey(rgb), 0, BILATERAL_RANGE, 2 * sigma))
    darker = _blurred(calm, 1.6 * sigma) - _blurred(calm, sigma)
    ink: Floats = np.tanh(sharpness * (darker - threshold).clip(0))
    return (ink * 255 + 0.5).astype(np.uint8)


def _grey(rgb: Bytes) -> Floats:
    return cast("Floats", cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32) / 255)


def _blurred(values: Floats, sigma: float) -> Floats:
    return cast("Floats", cv2.GaussianBlur(values, (0, 0), sigma))


def _ramp(values: Floats, low: float, high: float) -> Bytes:
    """0 up to ``low``, 255 from ``high`` on, straight between."""
    share: Floats = (values - low) / max(high - low, 1e-6)
    return (share.clip(0, 1) * 255 + 0.5).astype(np.uint8)
