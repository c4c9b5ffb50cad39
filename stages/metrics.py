"""Metrics: what a sweep is judged by. Any stage that makes a ``Score`` is one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from inspect import isawaitable
from pathlib import Path

from claygraph.diffusion.style import CLASSES, MODEL, JudgeStyle, classes
from claygraph.errors import SettingError, WeightsError, check_choice, check_range, check_whole
from claygraph.files import locate, weights
from claygraph.stage import Stage, makes
from claygraph.values import Image, Pictures, Score, Tags


@dataclass(frozen=True)
class Ssim(Stage):
    """Structural similarity to the source (greys, Gaussian window of 11 pixels): -1 to 1, higher is more alike."""

    def run(self, decode: Image, photo: Image) -> Score:
        from claygraph.diffusion.measures import fitted, ssim

        return Score("ssim", ssim(decode.pixels, fitted(photo.pixels, decode.pixels)))


@dataclass(frozen=True)
class EdgeF1(Stage):
    """How well the result's Canny edges meet the source's: 0 to 1, higher is more faithful.

    ``low`` and ``high`` are Canny's gradients (0 to 2040); an edge is met up to ``tolerance`` pixels away.
    """

    low: float = 100
    high: float = 200
    tolerance: int = 1

    def __post_init__(self) -> None:
        check_range("metric_edge_f1.low", self.low, 0, 2040)
        check_range("metric_edge_f1.high", self.high, self.low, 2040)
        check_whole("metric_edge_f1.tolerance", self.tolerance, 0, 50)

    def run(self, decode: Image, photo: Image) -> Score:
        from claygraph.diffusion.detectors import canny
        from claygraph.diffusion.measures import fitted, line_f1

        pictures = decode.pixels, fitted(photo.pixels, decode.pixels)
        found, wanted = (canny(each, self.low, self.high, 0.0)[None] for each in pictures)
        return Score("edge_f1", line_f1(found, wanted, self.tolerance))


@dataclass(frozen=True)
class ColourDistance(Stage):
    """Mean CIE 1976 colour difference of 8x8 cells to the style picture: 0 to about 250, lower is closer.

    The photo stands in where no ``style_image`` is wired; of several the nearest counts.
    """

    def run(self, decode: Image, photo: Image, style_image: Image | Pictures | None = None) -> Score:
        from claygraph.diffusion.measures import colour_distance

        style = style_image or photo
        pictures = style.images if isinstance(style, Pictures) else (style,)
        return Score("colour", min(colour_distance(decode.pixels, each.pixels) for each in pictures))


@dataclass(frozen=True)
class TagRecall(Stage):
    """The share of the source's tags that ``judge``, a tagger of its own, finds in the result too: 0 to 1, higher keeps
    more of what is shown; 1 where the source has no tags.

    The judge is not the graph's tagger, so that a sweep over taggers is judged by one of them.
    """

    judge: Stage

    def __post_init__(self) -> None:
        if not isinstance(self.judge, Stage) or makes(type(self.judge)) is not Tags:
            raise SettingError("metric_tag_recall.judge is no tagger; choose one: tagger@metric_tag_recall.judge=moat.")

    def files(self) -> Sequence[str]:
        return self.judge.files()

    async def run(self, decode: Image, photo: Image) -> Score:
        wanted, found = await self._tags(photo), await self._tags(decode)
        return Score("tag_recall", len(wanted & found) / len(wanted) if wanted else 1.0)

    async def _tags(self, picture: Image) -> set[str]:
        read = self.judge.run(picture)
        tags: Tags = await read if isawaitable(read) else read
        return {tag for tag, _ in tags.tags}


@dataclass(frozen=True)
class Sharpness(Stage):
    """Variance of the Laplacian of the greys, in grey levels squared: from 0 (flat) up, higher is sharper."""

    def run(self, decode: Image) -> Score:
        from claygraph.diffusion.measures import sharpness

        return Score("sharpness", sharpness(decode.pixels))


@dataclass(frozen=True)
class ClayScore(Stage):
    """Probability of the class ``style`` by a style classifier: 0 to 1, higher is more like clay.

    ``path`` is a folder with model.onnx (RGB 0 to 255 ``[N, 128, 128, 3]`` to probabilities) and classes.json.
    """

    path: str
    style: str = "claymation"

    def __post_init__(self) -> None:
        if (locate(self.path) / CLASSES).is_file():
            check_choice("metric_clay.style", self.style, classes(locate(self.path)))

    def files(self) -> Sequence[str]:
        found = Path(weights("metric_clay.path", self.path).path)
        missing = [name for name in (MODEL, CLASSES) if not (found / name).is_file()]
        if missing:
            raise WeightsError(f"metric_clay.path={self.path!r} holds no {missing[0]}; fetch the classifier again.")
        return [str(found / MODEL), str(found / CLASSES)]

    async def run(self, decode: Image) -> Score:
        classifier = weights("metric_clay.path", self.path)
        found = await JudgeStyle(classifier, decode)
        return Score("clay", float(found[classes(classifier.path).index(self.style)]))
