from __future__ import annotations

from math import exp, pi, sqrt, tanh
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from claygraph.errors import SettingError
from claygraph.stages.edges import (
    Canny,
    CannyFloat,
    DifferenceOfGaussians,
    Edges,
    Laplacian,
    LaplacianOfGaussian,
    Lineart,
    Scharr,
    Sobel,
    SoftEdges,
)
from claygraph.values import Image
from tests.pictures import noise, square

NARROW = (Canny, CannyFloat, Scharr, Sobel, Laplacian, LaplacianOfGaussian, DifferenceOfGaussians, Lineart)
ALL = (*NARROW, SoftEdges)


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
def test_a_hint_is_grey_rgb_of_the_photos_size(kind: type[Edges]) -> None:
    hint = kind().run(Image(noise(37, 53)))
    assert (hint.pixels.shape, hint.pixels.dtype) == ((37, 53, 3), np.uint8)
    assert np.array_equal(hint.pixels, np.repeat(hint.pixels[:, :, :1], 3, axis=2))


@pytest.mark.parametrize("kind", NARROW)
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


def kornia(rgb: NDArray[Any], low: float, high: float) -> NDArray[Any]:
    """What kornia.filters.canny computes: convolutions, then strong spreads to weak until nothing changes."""
    grey = torch.tensor(rgb.astype(np.float32) / 255) @ torch.tensor([0.299, 0.587, 0.114])
    bell = torch.exp(-(torch.arange(-2.0, 3) ** 2) / 2)
    smooth = convolved(grey, torch.outer(bell, bell) / bell.sum() ** 2, "reflect")
    sobel = torch.tensor([[-1.0, 0, 1], [-2, 0, 2], [-1, 0, 1]])
    across, down = convolved(smooth, sobel, "replicate"), convolved(smooth, sobel.T, "replicate")
    strength = (across**2 + down**2 + 1e-6).sqrt()
    ways = [(0, 1), (1, 1), (1, 0), (1, -1), (0, -1), (-1, -1), (-1, 0), (-1, 1)]
    around = torch.nn.functional.pad(strength, (1, 1, 1, 1))
    high_, wide = strength.shape
    excess = torch.stack([strength - around[1 + y : 1 + y + high_, 1 + x : 1 + x + wide] for y, x in ways])
    way = (torch.rad2deg(torch.atan2(down, across)) / 45).round().long()
    ahead, behind = (excess.gather(0, ((way + turn) % 8)[None])[0] for turn in (0, 4))
    ridge = strength * (torch.minimum(ahead, behind) > 0)
    weak, strong = ridge > low, ridge > high
    while True:
        spread = weak & (torch.nn.functional.max_pool2d(strong[None].float(), 3, 1, 1)[0] > 0) | strong
        if torch.equal(spread, strong):
            return (strong * 255).numpy()
        strong = spread


def convolved(grey: torch.Tensor, kernel: torch.Tensor, border: str) -> torch.Tensor:
    margin = len(kernel) // 2
    padded = torch.nn.functional.pad(grey[None, None], (margin,) * 4, mode=border)
    return torch.nn.functional.conv2d(padded, kernel[None, None])[0, 0]


@pytest.mark.parametrize(("low", "high"), [(0.1, 0.3), (0.2, 0.6), (0.4, 0.8)])
def test_float_canny_is_kornias(low: float, high: float) -> None:
    pixels = noise(60, 90)
    hint = CannyFloat(low, high).run(Image(pixels)).pixels[:, :, 0]
    assert np.array_equal(hint, kornia(pixels, low, high))
    assert 0 < (hint > 0).mean() < 0.5


def test_float_canny_thresholds_are_gradients_of_the_blurred_step() -> None:
    bell = [exp(-(k**2) / 2) for k in (-2, -1, 0, 1, 2)]
    steepest = 4 * (bell[2] + bell[3]) / sum(bell) * 80 / 255  # 0.81
    found = [whites(CannyFloat(0.1, high).run(step(80)).pixels) for high in (steepest - 0.01, steepest + 0.01)]
    assert found == [64 * 2, 0] or found == [64, 0]


def test_scharr_measures_the_step() -> None:
    image = step(102)  # 0.4 of the range
    assert Scharr(low=0, high=1).run(image).pixels[4, 29:35, 0].tolist() == [0, 0, 102, 102, 0, 0]
    assert Scharr(low=0.3, high=0.7).run(image).pixels[4, 32, 0] == 64  # a quarter of the way from low to high
    assert Scharr(low=0.5, high=0.5).run(image).pixels.max() == 0


def test_sobel_measures_the_step_and_weighs_corners_less() -> None:
    assert Sobel(low=0, high=1).run(step(102)).pixels[4, 29:35, 0].tolist() == [0, 0, 102, 102, 0, 0]
    corner = [int(kind(low=0, high=1).run(square()).pixels[7, 7, 0]) for kind in (Sobel, Scharr)]
    assert corner == [round(255 * sqrt(2) / 4), round(255 * sqrt(2) * 3 / 16)]


def test_the_laplacian_of_a_step_is_its_height_on_both_sides() -> None:
    assert Laplacian(low=0, high=1).run(step(102)).pixels[4, 29:35, 0].tolist() == [0, 0, 102, 102, 0, 0]


@pytest.mark.parametrize("sigma", [1, 2, 4])
def test_soft_edges_measure_the_step_at_every_scale(sigma: float) -> None:
    bell = [exp(-(k**2) / (2 * sigma**2)) for k in range(-30, 31)]
    expected = 102 * (bell[30] + bell[31]) / sum(bell) / 2 * sigma * sqrt(2 * pi)
    level = SoftEdges(sigma=sigma, octaves=1, low=0, high=1).run(step(102)).pixels[32, 31, 0]
    assert abs(level - expected) <= 1


def test_soft_edges_are_the_mean_over_scales_and_fade_texture() -> None:
    photo = Image(noise(64, 64))
    single = [SoftEdges(s, 1, 0, 1).run(photo).pixels.astype(float) for s in (1.0, 2.0)]
    both = SoftEdges(1.0, 2, 0, 1).run(photo).pixels
    unclipped = (single[0] < 255) & (single[1] < 255)
    assert np.abs(both - (single[0] + single[1]) / 2)[unclipped].max() <= 1
    assert single[1].mean() < 0.8 * single[0].mean()


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


def test_lineart_is_the_formulas_ink() -> None:
    white = [(1 - 1 / (sigma * sqrt(2 * pi))) / 2 for sigma in (1, 1.6)]
    ink = tanh(10 * (white[1] - white[0] - 0.02))
    assert abs(Lineart(1, 0.02, 10).run(step(255)).pixels[32, 31, 0] - 255 * ink) <= 1
    assert Lineart(1, 0.02, 10).run(step(255)).pixels[32, 32:].max() == 0  # the bright side stays clean


def test_lineart_calms_texture_that_the_pencil_draws() -> None:
    texture = Image((120 + noise(64, 64) // 16).astype(np.uint8))
    pencil = DifferenceOfGaussians(1.0, 0.002, 0.004).run(texture).pixels
    assert pencil.max() == 255
    assert Lineart(1.0, 0.002, 1000).run(texture).pixels.mean() < 0.5 * pencil.mean()


def test_the_detectors_differ() -> None:
    hints = [kind().run(square()).pixels for kind in ALL]
    assert len({hint.tobytes() for hint in hints}) == len(ALL)


@pytest.mark.parametrize(("resolution", "method"), [(16, cv2.INTER_AREA), (48, cv2.INTER_CUBIC)])
def test_resolution_is_the_shortest_side_of_the_hint(resolution: int, method: int) -> None:
    pixels = noise(32, 50)
    hint = Canny(resolution=resolution).run(Image(pixels)).pixels
    size = (round(50 * resolution / 32), resolution)
    small = cv2.resize(pixels, size, interpolation=method)
    wide = cv2.copyMakeBorder(small, 0, -size[1] % 64, 0, -size[0] % 64, cv2.BORDER_REPLICATE)
    assert np.array_equal(hint[:, :, 0], cv2.Canny(wide, 100, 200)[: size[1], : size[0]])
    assert not np.array_equal(hint[:, :, 0], cv2.Canny(small, 100, 200))  # the border's neighbours count


@pytest.mark.parametrize(
    ("kind", "settings", "said"),
    [
        (Canny, {"low": 300, "high": 200}, "edges.high=200 .* from 300 to 2040"),
        (Canny, {"blur": -1}, "edges.blur=-1 .* from 0 to 50"),
        (Canny, {"resolution": 512.5}, "whole number"),
        (Scharr, {"low": "x"}, "edges.low='x'"),
        (LaplacianOfGaussian, {"sigma": 0}, "edges.sigma=0"),
        (DifferenceOfGaussians, {"high": float("nan")}, "edges.high=nan"),
        (CannyFloat, {"low": 100}, "edges.low=100 .* from 0.01 to 0.99"),
        (CannyFloat, {"low": 0.9}, "edges.high=0.8 .* from 0.9 to 0.99"),
        (Sobel, {"high": 3}, "edges.high=3 .* from 0.1 to 2"),
        (Laplacian, {"low": -1}, "edges.low=-1 .* from 0 to 4"),
        (SoftEdges, {"octaves": 7}, "edges.octaves=7 .* from 1 to 6"),
        (Lineart, {"sharpness": 0}, "edges.sharpness=0 .* from 1 to 1000"),
    ],
)
def test_bad_settings_are_refused(kind: type[Edges], settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        kind(**settings)
