"""The mask stage: from picture files, at the photo's geometry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image as Pillow
from scipy.ndimage import gaussian_filter, grey_dilation, grey_erosion

from claygraph.errors import PictureError, SettingError
from claygraph.stages.mask import PictureMask
from claygraph.stages.photo import Photo
from claygraph.values import Image
from tests.pictures import save

PHOTO = Image(np.zeros((32, 48, 3), np.uint8))
CROSS = np.array([[0, 1, 0], [1, 1, 1], [0, 1, 0]])


def grey(path: Path) -> Path:
    """A picture with a grey level for each pixel."""
    levels = np.random.default_rng(0).integers(0, 256, (32, 48), dtype=np.uint8)
    return save(path / "mask.png", np.repeat(levels[:, :, None], 3, 2))


def levels(path: Path) -> Any:
    return np.asarray(Pillow.open(path).convert("L"), np.float32) / 255


def test_white_is_1_and_black_0(tmp_path: Path) -> None:
    mask = PictureMask(str(grey(tmp_path))).run(PHOTO)
    assert mask.share.dtype == np.float32
    np.testing.assert_allclose(mask.share, levels(grey(tmp_path)), atol=1e-6)
    inverted = PictureMask(str(grey(tmp_path)), invert=True).run(PHOTO)
    np.testing.assert_allclose(inverted.share, 1 - mask.share, atol=1e-6)


@pytest.mark.parametrize(("channel", "level"), [("red", 10), ("green", 20), ("blue", 30)])
def test_a_channel_can_be_the_mask(channel: str, level: int, tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", np.full((32, 48, 3), (10, 20, 30), np.uint8))
    assert PictureMask(str(path), channel).run(PHOTO).share == pytest.approx(np.full((32, 48), level / 255))


def test_what_is_transparent_is_made_anew(tmp_path: Path) -> None:
    pixels = np.full((32, 48, 4), 200, np.uint8)
    pixels[:, :24, 3], pixels[:, 24:, 3] = 0, 255
    path = save(tmp_path / "a.png", pixels)
    mask = PictureMask(str(path), "alpha").run(PHOTO).share
    assert mask[:, :23].min() == 1
    assert mask[:, 25:].max() == 0
    assert PictureMask(str(path), "alpha", invert=True).run(PHOTO).share[:, :23].max() == 0


def test_an_opaque_picture_has_no_alpha_to_be_the_mask(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"'mask.png' has no transparency .* mask=picture mask.path=FILE"):
        PictureMask(str(grey(tmp_path)), "alpha").run(PHOTO)


@pytest.mark.parametrize(("size", "fit"), [((300, 200), "bucket"), ((120, 400), "bucket"), ((50, 37), "none")])
def test_a_mask_is_cut_as_the_photo_is(size: tuple[int, int], fit: str, tmp_path: Path) -> None:
    """A photo that is its own mask: every pixel stays where it is; resampling may soften an edge."""
    wide, high = size
    pixels = np.zeros((high, wide, 3), np.uint8)
    pixels[high // 3 : high // 2, wide // 4 : wide // 2] = 255
    path = save(tmp_path / "a.png", pixels)
    photo = Photo(str(path), size=64, fit=fit).run()
    mask = PictureMask(str(path), fit="none" if fit == "none" else "cover").run(photo)
    assert mask.share.shape == photo.size
    difference = np.abs(mask.share - photo.pixels[:, :, 0] / 255)
    assert difference.mean() < 0.01
    assert np.mean((mask.share > 0.5) != (photo.pixels[:, :, 0] > 127)) < 0.005


@pytest.mark.parametrize(("pixels", "change"), [(3, grey_dilation), (-2, grey_erosion)])
def test_growing_is_that_of_scipy_in_a_diamond(pixels: int, change: Any, tmp_path: Path) -> None:
    expected = levels(grey(tmp_path))
    for _ in range(abs(pixels)):
        expected = change(expected, footprint=CROSS)
    found = PictureMask(str(grey(tmp_path)), grow=pixels).run(PHOTO).share
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_blurring_is_a_gaussian(tmp_path: Path) -> None:
    expected = gaussian_filter(levels(grey(tmp_path)), 2.0, mode="mirror", truncate=4)
    found = PictureMask(str(grey(tmp_path)), blur=2.0).run(PHOTO).share
    np.testing.assert_allclose(found, expected, atol=2e-3)


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"channel": "alfa"}, "did you mean 'alpha'"),
        ({"fit": "bucket"}, "known names: cover, none"),
        ({"grow": 2000}, "from -1024 to 1024"),
        ({"blur": -1}, "from 0 to 256"),
        ({"invert": "no"}, "give true or false"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        PictureMask("x.png", **settings)


def test_a_missing_mask_is_told_by_its_setting(tmp_path: Path) -> None:
    grey(tmp_path)
    with pytest.raises(PictureError, match=r"did you mean 'mask\.png'"):
        PictureMask(str(tmp_path / "msk.png")).files()
    with pytest.raises(PictureError, match=r"is a folder; mask\.path takes one picture"):
        PictureMask(str(tmp_path)).files()
