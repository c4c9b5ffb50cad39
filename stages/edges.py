"""Edge detectors: the hint a ControlNet holds the picture to."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from claygraph.errors import check_range, check_whole
from claygraph.stage import Stage
from claygraph.values import Image

if TYPE_CHECKING:
    from claygraph.values import Bytes


PADDING = 64


@dataclass(frozen=True)
class Edges(Stage):
    """White edges on black, the size of the photo.

    Edges are found at ``scale`` times the photo's size or, where ``resolution`` is not 0, at that shortest side, as
    preprocessor nodes do it: with the borders repeated up to a multiple of 64 and cut off again. The hint keeps the
    size it was found at. A ControlNet reads 8 hint pixels per latent pixel: as many as the photo has with an SDXL
    checkpoint, twice as many with the bundled one.
    """

    version: ClassVar[int] = 2

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

        from claygraph.diffusion.detectors import padded, resized

        shortest = self.resolution or round(min(photo.size) * self.scale)
        rgb = photo.pixels if shortest == min(photo.size) else resized(photo.pixels, shortest)
        height, width = rgb.shape[:2]
        found = self.detect(padded(rgb, PADDING) if self.resolution else rgb)[:height, :width]
        return Image(np.repeat(found[:, :, None], 3, axis=2))


@dataclass(frozen=True)
class Canny(Edges):
    """OpenCV's Canny: thin binary edges. ``low`` and ``high`` are gradients (0 to 2040), ``blur`` a sigma in pixels.

    With ``resolution`` 512 it is the preprocessor node CannyEdgePreprocessor.
    """

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
class CannyFloat(Edges):
    """Canny as ComfyUI's core node Canny (kornia's) has it: on blurred grey, ``low`` and ``high`` from 0.01 to 0.99."""

    low: float = 0.4
    high: float = 0.8

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("edges.low", self.low, 0.01, 0.99)
        check_range("edges.high", self.high, self.low, 0.99)

    def detect(self, rgb: Bytes) -> Bytes:
        from claygraph.diffusion.detectors import canny_float

        return canny_float(rgb, self.low, self.high)


@dataclass(frozen=True)
class Scharr(Edges):
    """Gradient magnitude: soft, broad edges. Steps below ``low`` are black, from ``high`` on white (1 = full)."""

    kernel: ClassVar[str] = "scharr"

    low: float = 0.1
    high: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("edges.low", self.low, 0, 2)
        check_range("edges.high", self.high, self.low, 2)

    def detect(self, rgb: Bytes) -> Bytes:
        from claygraph.diffusion.detectors import gradient

        return gradient(rgb, self.kernel, self.low, self.high)


@dataclass(frozen=True)
class Sobel(Scharr):
    """Gradient magnitude by Sobel's kernel, which favours the axes a little; ``low`` and ``high`` as for Scharr's."""

    kernel: ClassVar[str] = "sobel"


@dataclass(frozen=True)
class Laplacian(Edges):
    """Second derivative: fine double lines, and texture. Steps below ``low`` are black, from ``high`` on white."""

    low: float = 0.02
    high: float = 0.2

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("edges.low", self.low, 0, 4)
        check_range("edges.high", self.high, self.low, 4)

    def detect(self, rgb: Bytes) -> Bytes:
        from claygraph.diffusion.detectors import laplacian

        return laplacian(rgb, self.low, self.high)


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


@dataclass(frozen=True)
class SoftEdges(Edges):
    """Soft outlines, as HED-like networks draw them, without a network: the mean gradient over ``octaves`` scales.

    The finest is ``sigma`` pixels, each next one twice as wide. Steps below ``low`` are black, from ``high`` on white.
    """

    sigma: float = 1.0
    octaves: int = 3
    low: float = 0.05
    high: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("edges.sigma", self.sigma, 0.3, 50)
        check_whole("edges.octaves", self.octaves, 1, 6)
        check_range("edges.low", self.low, 0, 2)
        check_range("edges.high", self.high, self.low, 2)

    def detect(self, rgb: Bytes) -> Bytes:
        from claygraph.diffusion.detectors import soft_edges

        return soft_edges(rgb, self.sigma, self.octaves, self.low, self.high)


@dataclass(frozen=True)
class Lineart(Edges):
    """Ink lines about ``sigma`` pixels wide on the dark side of edges, texture calmed first (XDoG).

    Differences below ``threshold`` (0 to 1) leave no ink; ``sharpness`` is how fast lines get white above it.
    """

    sigma: float = 1.0
    threshold: float = 0.01
    sharpness: float = 40.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_range("edges.sigma", self.sigma, 0.3, 20)
        check_range("edges.threshold", self.threshold, 0, 1)
        check_range("edges.sharpness", self.sharpness, 1, 1000)

    def detect(self, rgb: Bytes) -> Bytes:
        from claygraph.diffusion.detectors import lineart

        return lineart(rgb, self.sigma, self.threshold, self.sharpness)
