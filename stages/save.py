"""Saves a picture as PNG together with the recipe that made it."""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from claygraph.errors import PictureError
from claygraph.files import write_new
from claygraph.recipes import chunks
from claygraph.stage import Stage
from claygraph.values import Image, Recipe, Saved

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

MAX_NAME = 150
RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
RESERVED |= {f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"}


@dataclass(frozen=True)
class Save(Stage):
    """Writes ``folder``/``name``.png, or NAME-2.png, NAME-3.png and so on: no file is overwritten or left half written.

    A file that is there already with the very same content is left alone and counts as written. The recipe travels in
    PNG text chunks, each JSON: ``claygraph`` (the resolved configuration), ``claygraph.versions`` and
    ``claygraph.files`` (sha256 of every weight and input file behind the picture).

    Raises:
        PictureError: the folder cannot be made or the file cannot be written.
    """

    folder: str = "outputs"
    name: str = "picture"

    def run(self, decode: Image, recipe: Recipe | None = None) -> Saved:
        name = file_name(self.name)
        try:
            content = _png(decode, recipe)
            path = write_new(Path(self.folder).expanduser(), name, ".png", content)
            return Saved(str(path), sha256(content).hexdigest())
        except (OSError, ValueError, RuntimeError) as error:
            why = getattr(error, "strerror", None) or error
            raise PictureError(
                f"save.folder={self.folder!r} cannot take '{name}.png': {why}; make room there or give another folder."
            ) from error


def file_name(name: str) -> str:
    """``name`` as a file name, without suffix, that stays in its folder and is legal on every system."""
    text = "".join(c if c.isprintable() and c not in '/\\:*?"<>|' else "_" for c in name).removesuffix(".png")
    text = text.lstrip(" .-").encode()[:MAX_NAME].decode(errors="ignore").rstrip(" .")
    return f"_{text}" if text.split(".")[0].rstrip().upper() in RESERVED else text or "picture"


def _png(image: Image, recipe: Recipe | None) -> bytes:
    from PIL import Image as Pillow

    content = BytesIO()
    Pillow.fromarray(image.pixels).save(content, "PNG", pnginfo=_metadata(recipe))
    return content.getvalue()


def _metadata(recipe: Recipe | None) -> PngInfo:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    for name, text in (chunks(recipe) if recipe is not None else {}).items():
        info.add_text(name, text)
    return info
