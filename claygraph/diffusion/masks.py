"""Masks: float32 ``[H, W]`` from 0 to 1."""

from __future__ import annotations

from typing import TYPE_CHECKING

import cv2
import numpy as np

if TYPE_CHECKING:
    from claygraph.values import Floats


def grown(share: Floats, pixels: int) -> Floats:
    """The mask grown by so many pixels in a diamond, as ComfyUI's GrowMask with tapered corners; shrunk below 0."""
    change = cv2.dilate if pixels > 0 else cv2.erode
    cross = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))
    return np.asarray(change(share, cross, iterations=abs(pixels)), np.float32) if pixels else share


def blurred(share: Floats, sigma: float) -> Floats:
    """The mask with soft edges: a Gaussian of ``sigma`` pixels, mirrored at the borders."""
    return np.asarray(cv2.GaussianBlur(share, (0, 0), sigma), np.float32) if sigma else share
