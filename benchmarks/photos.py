"""The photos that benchmarks work on: squares cut from the bundled ones, all different, written once for both sides."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from claygraph.files import locate

BUNDLED = ("coffee", "astronaut", "chelsea_cat")


def cut(folder: Path, count: int, size: int) -> list[Path]:
    """``count`` PNG files of ``size`` x ``size`` pixels; the first is the middle of the photo that is the default."""
    folder.mkdir(parents=True, exist_ok=True)
    photos = [Image.open(locate(f"miniature:photos/{name}.jpg")).convert("RGB") for name in BUNDLED]
    made = []
    for number in range(count):
        path = folder / f"photo_{number:02}.png"
        _square(photos[number % len(photos)], number // len(photos)).resize(
            (size, size), Image.Resampling.LANCZOS
        ).save(path)
        made.append(path)
    return made


def _square(photo: Image.Image, number: int) -> Image.Image:
    """A square of the photo; each number another place and another size, 0 the middle and as large as can be."""
    side = int(min(photo.size) * (1 - 0.02 * number))
    wander = (0.5 + 0.37 * number) % 1
    left, top = round((photo.width - side) * wander), round((photo.height - side) * ((1 - wander) if number else 0.5))
    return photo.crop((left, top, left + side, top + side))
