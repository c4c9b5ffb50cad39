"""The recipe that a picture carries: three PNG text chunks, written by the stage that saves and read back with care."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from claygraph.errors import PictureError
from claygraph.values import Recipe

CONFIG, VERSIONS, FILES = "claygraph", "claygraph.versions", "claygraph.files"
MAX_TEXT = 1_000_000


def chunks(recipe: Recipe) -> dict[str, str]:
    """The text chunks of a recipe by name: the resolved configuration, versions, and sha256 of files, each JSON."""
    return {
        CONFIG: recipe.config,
        VERSIONS: json.dumps(dict(recipe.versions)),
        FILES: json.dumps(dict(recipe.files)),
    }


def read_recipe(path: str | Path) -> Recipe:
    """What a saved picture says of how it was made; versions and files are empty where it does not say.

    Only sizes and syntax are checked: whoever wrote the file decides what it says, so nothing in it may be run.

    Raises:
        PictureError: the file is no readable PNG, or carries no recipe.
    """
    from PIL.PngImagePlugin import PngImageFile

    try:
        with Path(path).open("rb") as file:
            found = dict(PngImageFile(file).info)
    except OSError as error:
        raise PictureError(f"{str(path)!r} cannot be read as a PNG: {error.strerror or 'it is damaged'}.") from error
    except Exception as error:  # a hostile file can make the decoder raise anything
        raise PictureError(f"{str(path)!r} is no PNG, or is damaged; give a picture that claygraph saved.") from error
    if _object(found.get(CONFIG)) is None:
        raise PictureError(f"{str(path)!r} carries no claygraph recipe; give a picture that claygraph saved.")
    return Recipe(str(found[CONFIG]), *(_pairs(found.get(name)) for name in (VERSIONS, FILES)))


def _object(text: Any) -> dict[str, Any] | None:
    """The JSON object that a chunk holds, if it does."""
    if not isinstance(text, str) or len(text) > MAX_TEXT:
        return None
    try:
        found = json.loads(text)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


def _pairs(text: Any) -> tuple[tuple[str, str], ...]:
    return tuple((name, str(value)) for name, value in (_object(text) or {}).items())
