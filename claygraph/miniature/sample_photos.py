"""The three photos shipped beside the weights, cut from the same packages; no training part sees them."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

PHOTOS = {"chelsea_cat.jpg": "chelsea.png", "coffee.jpg": "coffee.png", "astronaut.jpg": "astronaut.png"}
"""Shipped name and the file it comes from in scikit-image; all three are held out by `sources.HELD_OUT`."""


def write_photos(work: Path, folder: Path, longest: int = 512) -> None:
    """Write JPEGs of at most `longest` px."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in PHOTOS.items():
        photo = Image.open(next((work / "data/pip").rglob(source))).convert("RGB")
        photo.thumbnail((longest, longest), Image.Resampling.LANCZOS)
        part = folder / f"{name}.part"
        photo.save(part, "JPEG", quality=88)
        part.replace(folder / name)
