from __future__ import annotations

import struct
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from claygraph.errors import PictureError
from claygraph.pictures import read_rgb
from claygraph.stages.photo import Photo
from tests.pictures import GREY, GREY_ALPHA, PALETTE, RGB, RGBA, chunk, hostile, noise, png, save

HOSTILE = ["empty", "text", "one byte", "signature", "header", "half", "half jpeg", "bad checksum", "no pixels"]
HOSTILE += ["tiff", "gif", "bmp", "webp", "svg", "postscript"]


def read(path: Path) -> list[Any]:
    rows: list[Any] = np.asarray(read_rgb(path)).tolist()
    return rows


def test_png_pixels_are_read_as_they_are(tmp_path: Path) -> None:
    pixels = noise(5, 7)
    assert np.array_equal(np.asarray(read_rgb(save(tmp_path / "a.png", pixels))), pixels)


@pytest.mark.parametrize("suffix", ["png", "bmp", "tif", "webp"])
def test_lossless_formats_agree(tmp_path: Path, suffix: str) -> None:
    pixels = noise(9, 4)
    options: dict[str, Any] = {"lossless": True} if suffix == "webp" else {}
    path = save(tmp_path / f"a.{suffix}", pixels, **options)
    assert np.array_equal(np.asarray(read_rgb(path)), pixels)


def test_the_format_is_told_by_content_not_by_name(tmp_path: Path) -> None:
    path = save(tmp_path / "a.png", [[[1, 2, 3]]]).rename(tmp_path / "a.jpg")
    assert read(path) == [[[1, 2, 3]]]


def test_alpha_is_composited_on_white(tmp_path: Path) -> None:
    pixels = [[[255, 0, 0, 255], [0, 0, 0, 128], [10, 20, 30, 0], [100, 200, 0, 51]]]
    # 128: 255 * 127 / 255 = 127; 51 is one fifth: 0.2 * 100 + 0.8 * 255 = 224, 0.2 * 200 + 204 = 244
    assert read(save(tmp_path / "a.png", pixels)) == [[[255, 0, 0], [127, 127, 127], [255, 255, 255], [224, 244, 204]]]


def test_grey_with_alpha_is_composited_on_white(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", (2, 1), 8, GREY_ALPHA, bytes([0, 0, 51, 90, 255]))
    assert read(path) == [[[204] * 3, [90] * 3]]


def test_palette_with_partial_transparency(tmp_path: Path) -> None:
    colours, alpha = chunk(b"PLTE", bytes([255, 0, 0, 0, 0, 255])), chunk(b"tRNS", bytes([51]))
    path = png(tmp_path / "a.png", (2, 1), 8, PALETTE, bytes([0, 0, 1]), colours, alpha)
    assert read(path) == [[[255, 204, 204], [0, 0, 255]]]


def test_a_transparent_colour_becomes_white(tmp_path: Path) -> None:
    clear = chunk(b"tRNS", struct.pack(">HHH", 1, 2, 3))
    assert read(png(tmp_path / "a.png", (2, 1), 8, RGB, bytes([0, 1, 2, 3, 1, 2, 4]), clear)) == [
        [[255, 255, 255], [1, 2, 4]]
    ]


def test_sixteen_bit_grey_is_scaled_exactly(tmp_path: Path) -> None:
    levels = [0, 128, 129, 257, 32767, 32768, 65278, 65535]
    path = png(tmp_path / "a.png", (8, 1), 16, GREY, b"\0" + struct.pack(">8H", *levels))
    # round(level / 257): 128 / 257 is just below one half, 129 / 257 just above
    assert [pixel[0] for pixel in read(path)[0]] == [0, 0, 1, 1, 127, 128, 254, 255]


def test_sixteen_bit_tiff_of_either_byte_order(tmp_path: Path) -> None:
    for mode, order in (("I;16", "<u2"), ("I;16B", ">u2")):
        Image.frombytes(mode, (2, 1), np.array([257, 65535], order).tobytes()).save(tmp_path / f"{order[1:]}.tif")
        assert read(tmp_path / f"{order[1:]}.tif") == [[[1] * 3, [255] * 3]]


def test_a_transparent_sixteen_bit_level_becomes_white(tmp_path: Path) -> None:
    rows, clear = b"\0" + struct.pack(">HH", 257, 514), chunk(b"tRNS", struct.pack(">H", 257))
    assert read(png(tmp_path / "a.png", (2, 1), 16, GREY, rows, clear)) == [[[255] * 3, [2] * 3]]


def test_sixteen_bit_colour_with_alpha(tmp_path: Path) -> None:
    path = png(tmp_path / "a.png", (1, 1), 16, RGBA, b"\0" + struct.pack(">4H", 65535, 0, 0, 51 * 257))
    assert read(path) == [[[255, 204, 204]]]


@pytest.mark.parametrize(
    ("values", "levels"),
    [([0.0, 0.5, 1.0], [0, 128, 255]), ([0.0, 51.0, 255.0], [0, 51, 255]), ([0.0, 257.0, 65535.0], [0, 1, 255])],
)
def test_float_tiff_is_scaled_by_the_range_it_fills(tmp_path: Path, values: list[float], levels: list[int]) -> None:
    path = save(tmp_path / "a.tif", np.array([values], np.float32))
    assert [pixel[0] for pixel in read(path)[0]] == levels


def test_float_tiff_with_nothing_countable_is_black(tmp_path: Path) -> None:
    path = save(tmp_path / "a.tif", np.array([[np.nan, np.inf, -np.inf, -3.0]], np.float32))
    assert read(path) == [[[0, 0, 0]] * 4]


def test_one_bit_and_grey(tmp_path: Path) -> None:
    assert read(png(tmp_path / "a.png", (4, 1), 1, GREY, bytes([0, 0b01010000]))) == [[[0] * 3, [255] * 3] * 2]
    assert read(save(tmp_path / "b.png", [[7, 9]])) == [[[7] * 3, [9] * 3]]


def test_cmyk_jpeg_is_not_inverted(tmp_path: Path) -> None:
    cmyk = np.zeros((16, 16, 4), np.uint8)
    cmyk[:, :, 0] = 255  # full cyan
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.jpg", quality=95)
    assert np.abs(np.asarray(read_rgb(tmp_path / "a.jpg"), int) - [0, 255, 255]).max() <= 3


def test_lab_colours_are_refused(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4)).save(tmp_path / "a.tif")
    with pytest.raises(PictureError, match=r"'a.tif' has Lab colours.*save it as RGB"):
        read_rgb(tmp_path / "a.tif")


def test_the_first_frame_of_an_animation(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert read(tmp_path / "a.gif") == [[[255, 0, 0]] * 4] * 4


UPRIGHT = np.array([[[10] * 3, [20] * 3, [30] * 3], [[40] * 3, [50] * 3, [60] * 3]], np.uint8)
STORED = {  # what a camera stores for each EXIF orientation so that UPRIGHT is seen
    1: UPRIGHT,
    2: UPRIGHT[:, ::-1],
    3: UPRIGHT[::-1, ::-1],
    4: UPRIGHT[::-1],
    5: UPRIGHT.transpose(1, 0, 2),
    6: np.rot90(UPRIGHT, 1),
    7: np.rot90(UPRIGHT, 2).transpose(1, 0, 2),
    8: np.rot90(UPRIGHT, -1),
}


@pytest.mark.parametrize("suffix", ["png", "tif"])
@pytest.mark.parametrize("orientation", STORED)
def test_exif_turns_the_picture_upright(tmp_path: Path, orientation: int, suffix: str) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = save(tmp_path / f"a.{suffix}", np.ascontiguousarray(STORED[orientation]), exif=exif)
    assert np.array_equal(np.asarray(read_rgb(path)), UPRIGHT)


@pytest.mark.parametrize("exif", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", b"\xff" * 50])
def test_damaged_exif_is_ignored(tmp_path: Path, exif: bytes) -> None:
    assert read(save(tmp_path / "a.png", [[[1, 2, 3]]], exif=exif)) == [[[1, 2, 3]]]


@pytest.mark.parametrize("kind", HOSTILE)
def test_what_is_no_picture_is_one_sentence(tmp_path: Path, kind: str) -> None:
    path = hostile(tmp_path)[kind]
    with pytest.raises(PictureError) as caught:
        Photo(str(path)).run()
    said = str(caught.value)
    assert repr(path.name) in said
    assert ("fetch or save it again" in said) or ("converted to PNG" in said)
    assert "\n" not in said
    assert said.count(". ") == 0


def test_every_hostile_file_is_tried(tmp_path: Path) -> None:
    assert set(HOSTILE) == set(hostile(tmp_path))


def test_size_is_refused_from_the_header(tmp_path: Path) -> None:
    path = png(tmp_path / "bomb.png", (20_000, 10_001), 8, RGB, b"")
    with pytest.raises(PictureError, match="20000 x 10001 pixels; at most 200 megapixels"):
        read_rgb(path)


def test_two_hundred_megapixels_pass_the_header_without_a_warning(tmp_path: Path) -> None:
    path = png(tmp_path / "big.png", (20_000, 10_000), 8, RGB, b"")  # no pixels in it: told only when they are read
    with warnings.catch_warnings(action="error"), pytest.raises(PictureError, match="cut short"):
        read_rgb(path)


def test_a_missing_file_names_the_nearest(tmp_path: Path) -> None:
    save(tmp_path / "holiday.png", [[[1, 2, 3]]])
    with pytest.raises(PictureError, match=r"'holidai.png' cannot be opened.*did you mean 'holiday.png'"):
        Photo(str(tmp_path / "holidai.png")).files()


def test_a_folder_is_told_from_a_picture(tmp_path: Path) -> None:
    with pytest.raises(PictureError, match="is a folder"):
        Photo(str(tmp_path)).run()


def test_a_device_is_not_read() -> None:
    with pytest.raises(PictureError, match="device or a pipe"):
        Photo("/dev/zero").run()


@pytest.mark.parametrize("name", ["a\x1b[2Jb.png", "a\nb.png", "\u202egnp.a", "\udc80.png", "a\0b.png", "x" * 5000])
def test_hostile_names_are_shown_escaped_and_short(tmp_path: Path, name: str) -> None:
    with pytest.raises(PictureError) as caught:
        Photo(str(tmp_path / name)).run()
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 300 + len(str(tmp_path))
