"""Pictures as CLIP's vision encoder is shown them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from PIL import Image as Pillow
from torch import Tensor
from torch.nn.functional import interpolate

if TYPE_CHECKING:
    from claygraph.values import Bytes, Floats

MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(pixels: Bytes, size: int) -> Tensor:
    """uint8 ``[H, W, 3]`` as CLIP sees it: float32 ``[3, size, size]``, the middle of the picture, normalised."""
    picture = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    height, width = picture.shape[2:]
    scale = size / min(height, width)
    shape = round(scale * height), round(scale * width)
    if shape != (height, width):
        picture = interpolate(picture, shape, mode="bicubic", antialias=True)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    square = picture[0, :, top : top + size, left : left + size].mul(255).clamp(0, 255).round() / 255
    return (square - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def prepare(pixels: Bytes, crop: str, sharpening: float, size: int) -> Bytes:
    """A picture as PrepImageForClipVision of IPAdapter_plus makes it: a square, scaled by Lanczos, sharpened.

    ``crop`` is one of ``adapter_files.CROPS``: the end of the longer side that stays, "pad" for black bars instead, or
    "none" for the picture as it is. ``sharpening`` is 0 to 1.
    """
    if crop == "none":
        return pixels
    square = Pillow.fromarray(_square(pixels, crop)).resize((size, size), Pillow.Resampling.LANCZOS)
    scaled: Bytes = np.asarray(square)
    return _sharpened(scaled, sharpening) if sharpening else scaled


def _square(pixels: Bytes, crop: str) -> Bytes:
    height, width = pixels.shape[:2]
    side = min(height, width)
    if crop == "pad":
        down, across = max(0, width - height) // 2, max(0, height - width) // 2
        return np.pad(pixels, ((down, down), (across, across), (0, 0)))
    top = {"top": 0, "bottom": height - side}.get(crop, (height - side) // 2)
    left = {"left": 0, "right": width - side}.get(crop, (width - side) // 2)
    return pixels[top : top + side, left : left + side]


def _sharpened(pixels: Bytes, amount: float) -> Bytes:
    """Contrast-adaptive sharpening (AMD FidelityFX CAS, 2019), the peak from -1/8 at amount 0 to -1/5 at 1.

    What the four neighbours are weighed with falls with the contrast of the 3 x 3 pixels around; outside is black.
    """
    around = np.pad(pixels.astype(np.float32) / 255, ((1, 1), (1, 1), (0, 0)))
    height, width = pixels.shape[:2]
    near = [[around[row : row + height, column : column + width] for column in range(3)] for row in range(3)]
    cross = [near[0][1], near[1][0], near[1][1], near[1][2], near[2][1]]
    corners = [near[0][0], near[0][2], near[2][0], near[2][2]]
    low = np.minimum.reduce(cross) + np.minimum.reduce(corners)
    high = np.maximum.reduce(cross) + np.maximum.reduce(corners)
    weight = -_headroom(low, high) * (1 / 8 + amount * (1 / 5 - 1 / 8))
    neighbours = near[0][1] + near[1][0] + near[1][2] + near[2][1]
    sharp = (neighbours * weight + near[1][1]) / (1 + 4 * weight)
    made: Bytes = (sharp.clip(0, 1) * 255).round().astype(np.uint8)
    return made


def _headroom(low: Floats, high: Floats) -> Floats:
    """How far a sharper edge may go before it leaves 0..1, from sums of two minima and two maxima; 0 in the black."""
    room = np.minimum(low, 2 - high)
    ratio: Floats = np.sqrt(np.divide(room, high, out=np.zeros_like(room), where=high > 0))
    return ratio
