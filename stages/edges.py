"""Edge detectors: the hint a ControlNet holds the picture to."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from claygraph.errors import check_range, check_whole
from claygraph.stage import Stage
from claygraph.values import Image

if TYPE_CHECKING:
    from claygraph.values import Bytes


@dataclass(frozen=True)
class Edges(Stage):
    """White edges on black, the size of the photo.

    Edges are found at ``scale`` times the photo's size or, where ``resolution`` is not 0, at that shortest side; the
    hint keeps the size it was found at. A ControlNet reads 8 hint pixels per latent pixel: as many as the photo has
    with an SDXL checkpoint, twice as many with the bundled one.
    """

    scale: float = field(default=1.0, kw_only=True)
    resolution: int = field(default=0, kw_only=True)

    def __post_init__(self) -> None:
        check_range("edges.scale", self.scale, 0.1, 8)
        check_whole("edges.resolution", self.resolution, 0, 4096)

    @abstractmethod
    def detect(self, rgb: Bytes) -> Bytes:
        """Edges ``[H, W]``, 0 to 255, of a picture ``[H, W, 3]``."""

    def run(self, photo: Image) -> Image:
        import numpy as np

        from claygraph.diffusion.detectors import resized

        shortest = self.resolution or round(min(photo.size) * self.scale)
        rgb = photo.pixels if shortest == min(photo.size) else resized(photo.pixels, shortest)
        return Image(np.repeat(self.detect(rgb)[:, :, None], 3, axis=2), photo.name)


@dataclass(frozen=True)
class Canny(Edges):
    """OpenCV's Canny: thin binary edges. ``low`` and ``high`` are gradients (0 to 2040), ``blur`` a sigma in pixels."""

    low: float = 100
    high: float = 200
    blur: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("edges.low", self.low, 0, 2040)
        check_range("edges.high", self.high, self.low, 2040)
        check_range("edges.blur", self.blur, 0, 50)

    def detect(self, rgb: Bytes) -> Bytes:
        from claygraph.diffusion.detectors import canny

        return canny(rgb, self.low, self.high, self.blur)


@dataclass(frozen=True)
class Scharr(Edges):
    """Gradient magnitude: soft, broad edges. Steps below ``low`` are black, from ``high`` on white (1 = full)."""

    low: float = 0.1
    high: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("edges.low", self.low, 0, 2)
        check_range("edges.high", self.high, self.low, 2)

    def detect(self, rgb: Bytes) -> Bytes:
        from claygraph.diffusion.detectors import scharr

        return scharr(rgb, self.low, self.high)


@dataclass(frozen=True)
class LaplacianOfGaussian(Edges):
    """Zero crossings at scale ``sigma`` (pixels): closed contours of steps above ``threshold`` (0 to 1)."""

    sigma: float = 2.0
    threshold: float = 0.08

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("edges.sigma", self.sigma, 1, 50)
        check_range("edges.threshold", self.threshold, 0, 1)

    def detect(self, rgb: Bytes) -> Bytes:
        from claygraph.diffusion.detectors import laplacian_of_gaussian

        return laplacian_of_gaussian(rgb, self.sigma, self.threshold)


@dataclass(frozen=True)
class DifferenceOfGaussians(Edges):
    """Pencil strokes about ``sigma`` pixels wide, where the photo is darker than around it by ``low`` to ``high``."""

    sigma: float = 1.0
    low: float = 0.01
    high: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("edges.sigma", self.sigma, 0.3, 50)
        check_range("edges.low", self.low, 0, 1)
        check_range("edges.high", self.high, self.low, 1)

    def detect(self, rgb: Bytes) -> Bytes:
        from claygraph.diffusion.detectors import difference_of_gaussians

        return difference_of_gaussians(rgb, self.sigma, self.low, self.high)
