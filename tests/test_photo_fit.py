from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from claygraph.errors import PictureError, SettingError
from claygraph.stages.photo import Photo, shape_for
from tests.pictures import noise, save


def test_buckets_at_full_and_small_size() -> None:
    assert shape_for(4000, 3000, 1024, "bucket") == (1152, 896)
    assert shape_for(4000, 3000, 256, "bucket") == (288, 224)
    assert shape_for(1080, 1920, 256, "bucket") == (192, 336)
    assert shape_for(1, 5000, 1024, "bucket") == (640, 1536)
    assert shape_for(500, 500, 512, "bucket") == (512, 512)


def test_area_keeps_the_aspect() -> None:
    assert shape_for(400, 300, 256, "area") == (288, 208)  # 295.6 x 221.7
    assert shape_for(98, 2, 256, "area") == (1792, 32)  # exactly 1792 x 36.57
    assert shape_for(1, 5000, 256, "area") == (16, 4096)  # 3.6 x 18102 is out of shape: never more than size^2 pixels


def test_only_cutting_keeps_the_pixels(tmp_path: Path) -> None:
    pixels = noise(50, 37)
    image = Photo(str(save(tmp_path / "a.png", pixels)), fit="none").run()
    assert np.array_equal(image.pixels, pixels[1:49, 2:34])


def test_a_picture_of_the_right_shape_is_left_alone(tmp_path: Path) -> None:
    pixels = noise(224, 288)
    for fit in ("bucket", "none"):
        assert np.array_equal(Photo(str(save(tmp_path / "a.png", pixels)), fit=fit).run().pixels, pixels)


def test_bucket_cuts_both_ends_alike(tmp_path: Path) -> None:
    pixels = np.zeros((64, 192, 3), np.uint8)
    pixels[:, 64:128] = 255
    seen = Photo(str(save(tmp_path / "a.png", pixels)), size=64).run().pixels  # aspect 3, nearest 1536 x 640
    assert seen.shape == (48, 96, 3)
    assert np.array_equal(seen, seen[:, ::-1])
    white: NDArray[np.intp] = np.flatnonzero(seen[20, :, 0] > 127)
    assert (white[0], white[-1]) == (24, 71)  # the middle 64 of the 128 columns kept, at 96 / 128


def test_tiny_and_long_pictures_work(tmp_path: Path) -> None:
    assert np.array_equal(np.unique(Photo(str(save(tmp_path / "a.png", [[[9, 8, 7]]]))).run().pixels), [7, 8, 9])
    long = str(save(tmp_path / "b.png", noise(5000, 1)))
    assert [Photo(long, fit=fit).run().size for fit in ("bucket", "area")] == [(384, 160), (4096, 16)]


def test_a_picture_too_small_to_cut_says_so(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match=r"only 20 x 10 pixels.*use photo.fit=bucket"):
        Photo(str(save(tmp_path / "a.png", noise(10, 20))), fit="none").run()


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"fit": "buckets"}, "did you mean 'bucket'"),
        ({"size": 8}, "from 16 to 4096"),
        ({"size": 256.5}, "whole number"),
    ],
)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        Photo("a.png", **settings)
