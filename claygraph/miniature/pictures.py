"""Training pictures: crops of photos, and emoji pasted on photos or on plain gradients, with their tags."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from claygraph.miniature.sources import HELD_OUT
from claygraph.miniature.tags import colour_tags, subject_tags

Pixels = npt.NDArray[np.uint8]
Kind = Literal["photo", "scene", "solid", "flat"]


@dataclass(frozen=True)
class Picture:
    """RGB pixels [H,W,3] and tags, style first; `emoji` is the emoji's index or -1."""

    pixels: Pixels
    tags: tuple[str, ...]
    emoji: int = -1


class Pool:
    """Draws random pictures from the prepared sources; `held_out` draws only from sources kept out of training."""

    def __init__(self, work: Path, seed: int, held_out: bool = False) -> None:
        listing = json.loads((work / "sources.json").read_text())
        self.random = np.random.default_rng(seed)
        photos = [s for i, s in enumerate(listing["photos"]) if _is_held_out(i, s["package"]) == held_out]
        self.photos = [np.asarray(Image.open(work / "photos" / s["file"]).convert("RGB")) for s in photos]
        self.photo_captions = [s["caption"] for s in photos]
        stored = np.load(work / "emoji.npz")
        self.solid, self.flat, paired = stored["solid"], stored["flat"], stored["paired"]
        self.names: list[dict[str, Any]] = listing["emoji"]
        mine = [i for i in range(len(self.solid)) if (i % 12 == 5) == held_out]
        self.emoji, self.paired = mine, [i for i in mine if paired[i]]

    def photo(self, height: int, width: int, index: int | None = None) -> Picture:
        """A random crop of a photo, a random one unless its index is given."""
        index = int(self.random.integers(len(self.photos))) if index is None else index
        pixels = self._crop(self.photos[index], height, width)
        return Picture(pixels, ("photo", self.photo_captions[index], *colour_tags(pixels)))

    def emoji_on(self, height: int, width: int, kind: Kind) -> Picture:
        """An emoji on a gradient (`solid`, `flat`) or on a photo (`scene`)."""
        index = int(self.random.choice(self.paired if kind == "flat" else self.emoji))
        back = self.photo(height, width).pixels if kind == "scene" else self.gradient(height, width)
        pixels = self._place((self.flat if kind == "flat" else self.solid)[index], back)[0]
        tags = self._emoji_tags(index, "flat" if kind == "flat" else "3d", pixels)
        return Picture(pixels, ("photo", *tags) if kind == "scene" else tags, index)

    def twins(self, height: int, width: int) -> tuple[Picture, Picture]:
        """The same emoji drawn flat and as a 3D toy, in the same place on the same ground."""
        index = int(self.random.choice(self.paired))
        layers = np.concatenate([self.flat[index], self.solid[index]], 2)
        flat, solid = self._place(layers, self.gradient(height, width))
        return (
            Picture(flat, self._emoji_tags(index, "flat", flat), index),
            Picture(solid, self._emoji_tags(index, "3d", solid), index),
        )

    def any(
        self, height: int, width: int, shares: tuple[float, float, float, float] = (0.5, 0.15, 0.25, 0.1)
    ) -> Picture:
        """A picture of a random kind; `shares` are those of photo, scene, solid and flat."""
        kind = ("photo", "scene", "solid", "flat")[int(self.random.choice(4, p=shares))]
        return self.photo(height, width) if kind == "photo" else self.emoji_on(height, width, kind)  # type: ignore[arg-type]

    def gradient(self, height: int, width: int) -> Pixels:
        """A plain ground: a linear blend of two near colours."""
        start = self.random.integers(50, 256, 3)
        end = np.clip(start + self.random.integers(-50, 50, 3), 0, 255)
        ramp = (
            np.linspace(0, 1, height)[:, None, None]
            if self.random.random() < 0.7
            else np.linspace(0, 1, width)[:, None]
        )
        return np.asarray(np.broadcast_to(start * (1 - ramp) + end * ramp, (height, width, 3)), np.uint8)

    def _emoji_tags(self, index: int, style: str, pixels: Pixels) -> tuple[str, ...]:
        entry = self.names[index]
        return (style, entry["name"], *subject_tags(**entry), *colour_tags(pixels))

    def _crop(self, photo: Pixels, height: int, width: int) -> Pixels:
        scale = min(photo.shape[0] / height, photo.shape[1] / width) * self.random.uniform(0.5, 1)
        h, w = int(height * scale), int(width * scale)
        top, left = self.random.integers(photo.shape[0] - h + 1), self.random.integers(photo.shape[1] - w + 1)
        part = photo[top : top + h, left : left + w]
        method = cv2.INTER_AREA if scale > 1 else cv2.INTER_CUBIC
        resized = cv2.resize(part, (width, height), interpolation=method)
        return np.ascontiguousarray(resized[:, ::-1] if self.random.random() < 0.5 else resized)

    def _place(self, drawing: Pixels, back: Pixels) -> list[Pixels]:
        """Paste each RGBA layer of `drawing` [S,S,4n] at one random place: a list of n pictures."""
        height, width = back.shape[:2]
        side = int(min(height, width) * self.random.uniform(0.55, 1.0))
        turned = drawing[:, ::-1] if self.random.random() < 0.5 else drawing
        top, left = self.random.integers(height - side + 1), self.random.integers(width - side + 1)
        window = (slice(top, top + side), slice(left, left + side))
        pictures = []
        for layer in range(drawing.shape[2] // 4):
            out, sticker = back.astype(np.float32), np.ascontiguousarray(turned[..., 4 * layer : 4 * layer + 4])
            rgba = cv2.resize(sticker, (side, side), interpolation=cv2.INTER_AREA).astype(np.float32)
            alpha = rgba[..., 3:] / 255
            out[window] = out[window] * (1 - alpha) + rgba[..., :3] * alpha
            pictures.append(out.astype(np.uint8))
        return pictures


def _is_held_out(index: int, package: str) -> bool:
    return index % 12 == 5 or package in HELD_OUT
