"""Saves a picture as PNG together with the recipe that made it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from claygraph.errors import PictureError
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
    """Writes ``folder``/NAME.png, or NAME-2.png, NAME-3.png and so on: no file is overwritten or left half written.

    The recipe travels in two PNG text chunks: ``claygraph`` (the resolved configuration, JSON) and
    ``claygraph.versions``.

    Raises:
        PictureError: the folder cannot be made or the file cannot be written.
    """

    folder: str = "outputs"

    def run(self, decode: Image, recipe: Recipe | None = None) -> Saved:
        name = file_name(decode.name)
        try:
            folder = Path(self.folder).expanduser()
            folder.mkdir(parents=True, exist_ok=True)
            return Saved(str(_place(folder, name, decode, recipe)))
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


def _place(folder: Path, name: str, image: Image, recipe: Recipe | None) -> Path:
    """Write the file under a name nobody looks for, then give it the first free one."""
    part = folder / f".{uuid4().hex}.part"
    try:
        _write(part, image, recipe)
        for number in count(1):
            path = folder / (f"{name}-{number}.png" if number > 1 else f"{name}.png")
            if _claim(part, path):
                break
    finally:
        part.unlink(missing_ok=True)
    return path


def _write(path: Path, image: Image, recipe: Recipe | None) -> None:
    from PIL import Image as Pillow

    with path.open("xb") as file:
        Pillow.fromarray(image.pixels).save(file, "PNG", pnginfo=_metadata(recipe))
        file.flush()
        os.fsync(file.fileno())


def _metadata(recipe: Recipe | None) -> PngInfo:
    from PIL.PngImagePlugin import PngInfo

    info = PngInfo()
    if recipe is not None:
        info.add_text(CONFIG, recipe.config)
        info.add_text(VERSIONS, json.dumps(dict(recipe.versions)))
    return info


def _claim(part: Path, path: Path) -> bool:
    """Give a finished file its name unless that is taken; atomic, also between processes."""
    try:
        path.hardlink_to(part)
    except FileExistsError:
        return False
    except OSError:  # a file system without hard links: reserve the name, then move onto it
        try:
            path.open("xb").close()
        except FileExistsError:
            return False
        part.replace(path)
    return True
