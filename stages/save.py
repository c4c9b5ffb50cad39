"""Saves a picture as PNG together with the recipe that made it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from claygraph.errors import PictureError
from claygraph.files import write_new
from claygraph.stage import Stage
from claygraph.values import Image, Recipe, Saved

if TYPE_CHECKING:
    from PIL.PngImagePlugin import PngInfo

CONFIG = "claygraph"
VERSIONS = "claygraph.versions"
MAX_NAME = 150
MAX_RECIPE = 1_000_000
RESERVED = {"CON", "PRN", "AUX", "NUL", "CONIN$", "CONOUT$"}
RESERVED |= {f"{port}{number}" for port in ("COM", "LPT") for number in "0123456789¹²³"}


@dataclass(frozen=True)
class Save(Stage):
    """Writes ``folder``/``name``.png, or NAME-2.png, NAME-3.png and so on: no file is overwritten or left half written.

    A file that is there already with the very same content is left alone and counts as written. The recipe travels in
    two PNG text chunks: ``claygraph`` (the resolved configuration, JSON) and ``claygraph.versions``.

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


def read_recipe(path: str | Path) -> str:
    """The resolved configuration, as JSON text, that a saved picture carries.

    Only its size and syntax are checked: whoever wrote the file decides what it says, so nothing in it may be run.

    Raises:
        PictureError: the file is no readable PNG, or carries no recipe.
    """
    from PIL.PngImagePlugin import PngImageFile

    try:
        with Path(path).open("rb") as file:
            text = PngImageFile(file).info.get(CONFIG)
    except OSError as error:
        raise PictureError(f"{str(path)!r} cannot be read as a PNG: {error.strerror or 'it is damaged'}.") from error
    except Exception as error:  # a hostile file can make the decoder raise anything
        raise PictureError(f"{str(path)!r} is no PNG, or is damaged; give a picture that claygraph saved.") from error
    if not isinstance(text, str) or len(text) > MAX_RECIPE or not _is_object(text):
        raise PictureError(f"{str(path)!r} carries no claygraph recipe; give a picture that claygraph saved.")
    return str(text)


def _is_object(text: str) -> bool:
    try:
        return isinstance(json.loads(text), dict)
    except (ValueError, RecursionError):
        return False


def _png(image: Image, recipe: Recipe | None) -> bytes:
    from PIL import Image as Pillow

    content = BytesIO()
    Pillow.fromarray(image.pixels).save(content, "PNG", pnginfo=_metadata(recipe))
    return content.getvalue()


def _metadata(recipe: Recipe | None) -> PngInfo:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if recipe is not None:
        info.add_text(CONFIG, recipe.config)
        info.add_text(VERSIONS, json.dumps(dict(recipe.versions)))
    return info
