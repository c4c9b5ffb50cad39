from __future__ import annotations

from math import pi, sqrt
from typing import Any

import cv2
import numpy as np
import pytest
from numpy.typing import NDArray

from claygraph.errors import SettingError
from claygraph.stages.edges import Canny, DifferenceOfGaussians, Edges, LaplacianOfGaussian, Scharr
from claygraph.values import Image
from tests.pictures import noise, square

ALL = (Canny, Scharr, LaplacianOfGaussian, DifferenceOfGaussians)


def row(edges: Edges, image: Image | None = None) -> list[int]:
    """Middle row of the hint of the square, columns 4 to 27."""
    levels: list[int] = edges.run(image or square()).pixels[16, 4:28, 0].tolist()
    return levels


def step(level: int) -> Image:
    """64 x 64 pixels, black on the left and ``level`` on the right."""
    return Image(np.repeat(np.repeat(np.array([0, level], np.uint8), 32)[None, :, None], 64, 0).repeat(3, 2))


def whites(hint: NDArray[Any]) -> int:
    return int((hint[:, :, 0] == 255).sum())


@pytest.mark.parametrize("kind", ALL)
def test_a_hint_is_grey_rgb_of_the_photos_size_and_name(kind: type[Edges]) -> None:
    hint = kind().run(Image(noise(37, 53), "cat"))
    assert (hint.pixels.shape, hint.pixels.dtype, hint.name) == ((37, 53, 3), np.uint8, "cat")
    assert np.array_equal(hint.pixels, np.repeat(hint.pixels[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("kind", ALL)
def test_edges_are_white_at_the_square_and_black_elsewhere(kind: type[Edges]) -> None:
    hint = kind().run(square()).pixels[:, :, 0]
    assert hint[16, 5:10].max() == 255
    assert hint[12:20, 12:20].max() == hint[:4].max() == 0


@pytest.mark.parametrize("kind", ALL)
def test_a_flat_picture_has_no_edges(kind: type[Edges]) -> None:
    assert kind().run(Image(np.full((20, 20, 3), 130, np.uint8))).pixels.max() == 0


@pytest.mark.parametrize("kind", ALL)
@pytest.mark.parametrize("size", [(1, 1), (1, 300), (300, 1), (2, 2)])
def test_the_smallest_pictures_work(kind: type[Edges], size: tuple[int, int]) -> None:
    assert kind().run(Image(noise(*size))).size == size


def test_canny_draws_the_square_once_one_pixel_wide() -> None:
    hint = Canny().run(square()).pixels
    assert whites(hint) == 60  # 14 to 16 pixels a side, the corners cut
    assert row(Canny()) == [0] * 3 + [255] + [0] * 15 + [255] + [0] * 4


def test_canny_takes_the_strongest_channel() -> None:
    pixels = step(60).pixels * np.array([0, 0, 1], np.uint8)  # gradient 4 * 60 = 240 in blue, but 4 * 7 in grey
    assert whites(Canny().run(Image(pixels)).pixels) == 64
    assert cv2.Canny(cv2.cvtColor(pixels, cv2.COLOR_RGB2GRAY), 100, 200).max() == 0


def test_canny_thresholds_are_gradients() -> None:
    assert [whites(Canny(100, high).run(step(40)).pixels) for high in (159, 161)] == [64, 0]  # 4 * 40 = 160


def test_canny_blur_removes_speckle() -> None:
    pixels = np.zeros((40, 40, 3), np.uint8)
    pixels[20, 20] = 255
    assert [whites(Canny(blur=blur).run(Image(pixels)).pixels) > 0 for blur in (0, 2)] == [True, False]


def test_scharr_measures_the_step() -> None:
    image = step(102)  # 0.4 of the range
    assert Scharr(low=0, high=1).run(image).pixels[4, 29:35, 0].tolist() == [0, 0, 102, 102, 0, 0]
    assert Scharr(low=0.3, high=0.7).run(image).pixels[4, 32, 0] == 64  # a quarter of the way from low to high
    assert Scharr(low=0.5, high=0.5).run(image).pixels.max() == 0


def test_zero_crossings_run_round_the_square_on_its_dark_side() -> None:
    assert row(LaplacianOfGaussian(sigma=1)) == [0] * 3 + [255] + [0] * 16 + [255] + [0] * 3


@pytest.mark.parametrize("sigma", [1, 2, 4])
def test_the_threshold_of_zero_crossings_is_the_height_of_the_step(sigma: float) -> None:
    found = [whites(LaplacianOfGaussian(sigma, height).run(step(51)).pixels) for height in (0.15, 0.21)]
    assert found == [64, 0]  # 51 is 0.2 of the range


def test_the_pencil_draws_the_dark_side_only() -> None:
    levels = row(DifferenceOfGaussians(low=0, high=0.2))
    assert min(levels[:4]) > 0
    assert levels[4:20] == [0] * 16
    dark = row(DifferenceOfGaussians(low=0, high=0.2), Image(255 - square().pixels))
    assert dark[:4] == [0] * 4
    assert dark[4:6] == levels[3:1:-1]


def test_pencil_strokes_have_the_strength_of_the_formula() -> None:
    white = [(1 - 1 / (sigma * sqrt(2 * pi))) / 2 for sigma in (1, 1.6)]  # beside a step: half of all but the middle
    level = DifferenceOfGaussians(sigma=1, low=0, high=0.2).run(step(255)).pixels[32, 31, 0]
    assert level == round(255 * (white[1] - white[0]) / 0.2) == 95


def test_the_detectors_differ() -> None:
    hints = [kind().run(square()).pixels for kind in ALL]
    assert len({hint.tobytes() for hint in hints}) == len(ALL)


@pytest.mark.parametrize(("resolution", "method"), [(16, cv2.INTER_AREA), (48, cv2.INTER_CUBIC)])
def test_resolution_is_the_shortest_side_of_the_hint(resolution: int, method: int) -> None:
    pixels = noise(32, 50)
    hint = Canny(resolution=resolution).run(Image(pixels)).pixels
    size = (round(50 * resolution / 32), resolution)
    assert np.array_equal(hint[:, :, 0], cv2.Canny(cv2.resize(pixels, size, interpolation=method), 100, 200))


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (Canny, {"low": 300, "high": 200}, "edges.high=200 .* from 300 to 2040"),
        (Canny, {"blur": -1}, "edges.blur=-1 .* from 0 to 50"),
        (Canny, {"resolution": 512.5}, "whole number"),
        (Scharr, {"low": "x"}, "edges.low='x'"),
        (LaplacianOfGaussian, {"sigma": 0}, "edges.sigma=0"),
        (DifferenceOfGaussians, {"high": float("nan")}, "edges.high=nan"),
    ],
)
def test_bad_settings_are_refused(kind: type[Edges], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        kind(**settings)
