"""What a stage is by itself, whatever feeds it: its part of the key of a node."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any, NamedTuple

from claygraph.files import digest, locate
from claygraph.sources import code_of
from claygraph.stage import Stage


class Own(NamedTuple):
    """What a stage is by itself, whatever feeds it: the files it reads with their digests, and its part of the key."""

    files: Mapping[str, str]
    work: str


def own(stage: Stage, context: str) -> Own:
    """Class, code, settings, and the content of the files wherever they lie."""
    files = {path: digest(path) for path in stage.files()}
    kind = type(stage)
    settings = [(item.name, getattr(stage, item.name)) for item in fields(stage) if item.compare]
    code = f"{kind.__module__}.{kind.__qualname__} {kind.version} {code_of(kind)} {context}"
    return Own(files, f"{code} {_by_content(settings, files)!r} {[*files.values()]!r}")


def _by_content(setting: Any, files: Mapping[str, str]) -> Any:
    """A setting as it counts: for the path of a file that the stage reads, the file's digest.

    For a folder above such files, their names in it with their digests.
    """
    if isinstance(setting, str) and setting and files:
        path = locate(setting)
        below = [(Path(file).relative_to(path).as_posix(), sha) for file, sha in files.items() if _in(path, file)]
        return files.get(str(path)) or below or setting
    if isinstance(setting, list | tuple):
        return [_by_content(each, files) for each in setting]
    if isinstance(setting, Mapping):
        return [(key, _by_content(value, files)) for key, value in setting.items()]
    return setting


def _in(folder: Path, file: str) -> bool:
    return Path(file).is_relative_to(folder)
