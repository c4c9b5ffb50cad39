"""What the evaluation measures on pictures: RGB uint8 [N,H,W,3] unless said."""

from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from claygraph.miniature.clayify import edges

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def psnr(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, a mean over pictures."""
    error = ((one.astype(float) - other.astype(float)) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-9))).mean())


def edge_f1(result: Pixels, source: Pixels) -> float:
    """How well the results' Canny lines meet the sources' (the hints), within 2 hint pixels."""
    kernel = np.ones((5, 5), np.uint8)
    mine, wanted = (np.stack([(edges(p) > 0).astype(np.uint8) for p in pictures]) for pictures in (result, source))
    wide_mine, wide_wanted = (_widened(stack, kernel) for stack in (mine, wanted))
    precision = (mine & wide_wanted).sum() / max(1, mine.sum())
    recall = (wanted & wide_mine).sum() / max(1, wanted.sum())
    return float(2 * precision * recall / max(1e-6, precision + recall))


def _widened(lines: Pixels, kernel: Pixels) -> Pixels:
    return np.stack([np.asarray(cv2.dilate(each, kernel), np.uint8) for each in lines])


def colour_error(one: Pixels, other: Pixels) -> float:
    """Mean difference (0 to 255) of the colours of 8x8 cells; pictures may differ in size."""
    return float(np.mean([np.abs(_cells(a) - _cells(b)).mean() for a, b in zip(one, other, strict=True)]))


def _cells(picture: Pixels) -> Floats:
    return np.asarray(cv2.resize(picture, (8, 8), interpolation=cv2.INTER_AREA), np.float32)


def layout_agreement(one: Pixels, other: Pixels) -> float:
    """Correlation of blurred edge maps, a mean over pairs of pictures of one size."""
    return float(np.mean([_correlation(_edge_map(a), _edge_map(b)) for a, b in zip(one, other, strict=True)]))


def _edge_map(picture: Pixels) -> Floats:
    grey = cv2.GaussianBlur(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY).astype(np.float32), (0, 0), 1.5)
    slopes = np.hypot(cv2.Sobel(grey, cv2.CV_32F, 1, 0), cv2.Sobel(grey, cv2.CV_32F, 0, 1))
    return np.asarray(cv2.GaussianBlur(slopes, (0, 0), max(picture.shape[:2]) / 24), np.float32)


def _correlation(one: Floats, other: Floats) -> float:
    a, b = one - one.mean(), other - other.mean()
    return float((a * b).sum() / max(1e-9, float(np.sqrt((a**2).sum() * (b**2).sum()))))


def blurred(pictures: Pixels) -> Pixels:
    """The pictures out of focus."""
    return np.stack([np.asarray(cv2.GaussianBlur(p, (0, 0), 1.5), np.uint8) for p in pictures])


class StyleScore:
    """The bundled style classifier: probabilities [N,classes] of pictures, a mean over their tiles of 128 px."""

    def __init__(self, folder: Path) -> None:
        import onnxruntime

        self.session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
        self.classes: list[str] = json.loads((folder / "classes.json").read_text())

    def __call__(self, pictures: Pixels) -> Floats:
        """Probabilities of each picture; short sides below 128 px are enlarged."""
        return np.stack([self.session.run(None, {"input": _tiles(p)})[0].mean(0) for p in pictures])

    def of(self, name: str, pictures: Pixels) -> float:
        """Mean probability of one class."""
        return float(self(pictures)[:, self.classes.index(name)].mean())


def _tiles(picture: Pixels, side: int = 128) -> Floats:
    scale = max(1.0, side / min(picture.shape[:2]))
    if scale > 1:
        picture = np.asarray(cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_CUBIC), np.uint8)
    tops, lefts = (range(0, extent - side + 1, side) for extent in picture.shape[:2])
    return np.stack([picture[t : t + side, s : s + side] for t in tops for s in lefts]).astype(np.float32)


def average_precision(wanted: Floats, found: Floats) -> float:
    """Mean precision at each true example, ranked by score."""
    ranked = wanted[np.argsort(-found)]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / max(1.0, ranked.sum()))
