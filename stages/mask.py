"""A mask: which part of the photo is made anew."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from claygraph.errors import PictureError, check_choice, check_flag, check_range, check_whole
from claygraph.pictures import cut, find, read_alpha, read_rgb, shown
from claygraph.stage import Stage
from claygraph.values import Image, Mask

if TYPE_CHECKING:
    import PIL.Image

CHANNELS = ("luminance", "red", "green", "blue", "alpha")
FITS = ("cover", "none")


@dataclass(frozen=True)
class PictureMask(Stage):
    """A mask from a picture file: white is made anew, black is kept; from ``alpha``, what is transparent is made anew.

    It is scaled and cropped around its centre to the photo's size, as the photo itself is; ``fit`` "none" only crops,
    for photo.fit=none. ``invert`` exchanges the two parts, ``grow`` (-1024 to 1024) widens what is made anew by so many
    pixels of the photo, ``blur`` (0 to 256) softens the edge by a Gaussian of that sigma.

    Raises:
        PictureError: the file cannot be read, or is opaque where its transparency is to be the mask.
    """

    path: str
    channel: str = "luminance"
    fit: str = "cover"
    invert: bool = False
    grow: int = 0
    blur: float = 0.0

    def __post_init__(self) -> None:
        check_choice("mask.channel", self.channel, CHANNELS)
        check_choice("mask.fit", self.fit, FITS)
        check_flag("mask.invert", self.invert)
        check_whole("mask.grow", self.grow, -1024, 1024)
        check_range("mask.blur", self.blur, 0, 256)

    def files(self) -> Sequence[str]:
        return [str(find(self.path, "mask.path"))]

    def run(self, photo: Image) -> Mask:
        import numpy as np

        from claygraph.diffusion.masks import blurred, grown

        high, wide = photo.size
        levels = self._levels()
        scale = 1.0 if self.fit == "none" else max(wide / levels.width, high / levels.height)
        share = np.asarray(cut(levels, (wide, high), scale, smooth=True)) / 255
        marked = 1 - share if self.invert != (self.channel == "alpha") else share
        return Mask(blurred(grown(marked.astype(np.float32), self.grow), self.blur))

    def _levels(self) -> PIL.Image.Image:
        path = find(self.path, "mask.path")
        if self.channel != "alpha":
            rgb = read_rgb(path)
            return rgb.convert("L") if self.channel == "luminance" else rgb.getchannel(self.channel[0].upper())
        alpha = read_alpha(path)
        if alpha.getextrema() == (255, 255):
            raise PictureError(f"{shown(path)} has no transparency to be the mask; give mask=picture mask.path=FILE.")
        return alpha
