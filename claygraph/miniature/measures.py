"""What the evaluation measures on pictures: RGB uint8 [N,H,W,3] unless said."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from claygraph.diffusion.measures import cells, line_f1
from claygraph.diffusion.style import MODEL, classes, probabilities
from claygraph.miniature.clayify import edges

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


def psnr(one: Pixels, other: Pixels) -> float:
    """Peak signal-to-noise ratio in dB, a mean over pictures."""
    error = ((one.astype(float) - other.astype(float)) ** 2).mean((1, 2, 3))
    return float((10 * np.log10(255**2 / np.maximum(error, 1e-9))).mean())


def edge_f1(result: Pixels, source: Pixels) -> float:
    """How well the results' Canny lines meet the sources' (the hints), within 2 hint pixels."""
    mine, wanted = (np.stack([edges(p) for p in pictures]) for pictures in (result, source))
    return line_f1(mine, wanted, tolerance=2)


def colour_error(one: Pixels, other: Pixels) -> float:
    """Mean difference (0 to 255) of the colours of 8x8 cells; pictures may differ in size."""
    return float(np.mean([np.abs(cells(a) - cells(b)).mean() for a, b in zip(one, other, strict=True)]))


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

        self.session = onnxruntime.InferenceSession(str(folder / MODEL))
        self.classes = classes(folder)

    def __call__(self, pictures: Pixels) -> Floats:
        """Probabilities of each picture; short sides below 128 px are enlarged."""
        return np.stack([probabilities(self.session, p) for p in pictures])

    def of(self, name: str, pictures: Pixels) -> float:
        """Mean probability of one class."""
        return float(self(pictures)[:, self.classes.index(name)].mean())


def average_precision(wanted: Floats, found: Floats) -> float:
    """Mean precision at each true example, ranked by score."""
    ranked = wanted[np.argsort(-found)]
    precision = np.cumsum(ranked) / np.arange(1, len(ranked) + 1)
    return float((precision * ranked).sum() / max(1.0, ranked.sum()))
