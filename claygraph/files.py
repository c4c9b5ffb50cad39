"""Files a stage reads: where they lie, what they contain, and which are refused."""

from __future__ import annotations

import hashlib
import json
import os
from itertools import count
from pathlib import Path
from uuid import uuid4

from claygraph.digests import digest_of_file
from claygraph.errors import WeightsError, nearest
from claygraph.values import Weights

BUNDLED = Path(__file__).parent / "miniature" / "weights"
PICKLES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")


def locate(path: str) -> Path:
    """The path a setting names; ``miniature:NAME`` is a file or folder of the bundled miniature."""
    bundled = path.removeprefix("miniature:")
    return BUNDLED / bundled if bundled != path else Path(os.path.expanduser(path))  # noqa: PTH111 - "~nobody" stays


def digest(path: str | Path) -> str:
    """sha256 of a file's content, or of the names and digests of a folder's files."""
    path = Path(path)
    if not path.is_dir():
        return digest_of_file(path)
    total = hashlib.sha256()
    for name, found in sorted(folder_digests(path).items()):
        total.update(f"{name} {found}\n".encode())
    return total.hexdigest()


def folder_digests(path: Path) -> dict[str, str]:
    """sha256 of every file below a folder, by relative name."""
    files = [file for file in path.rglob("*") if file.is_file()]
    return {file.relative_to(path).as_posix(): digest(file) for file in files}


def weights(setting: str, path: str) -> Weights:
    """The weight file or folder a setting names; raises ``WeightsError`` where it is missing or a pickle."""
    found = locate(path)
    if not found.exists():
        raise WeightsError(f"{setting}={path!r} does not exist{_beside(found)}")
    for file in sorted(found.rglob("*.safetensors")) if found.is_dir() else [found]:
        check_safetensors(setting, file)
    return Weights(str(found), digest(found))


def _beside(path: Path) -> str:
    folder = path.parent
    while not folder.is_dir() and folder != folder.parent:
        folder = folder.parent
    if folder != path.parent:
        return f"; the folder {str(folder)!r} is the last that does."
    return nearest(path.name, [entry.name for entry in folder.iterdir()])


def check_safetensors(setting: str, path: Path) -> None:
    """Raise ``WeightsError`` unless the file begins as a safetensors file does; nothing of it is executed."""
    if path.suffix.lower() in PICKLES or _starts_like_pickle(path):
        raise WeightsError(
            f"{setting}={path.name!r} is a pickle, which can run code when it is opened and is refused; "
            "give the .safetensors version of these weights."
        )
    header(setting, path)


def _starts_like_pickle(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(4)
    zipped = start == b"PK\x03\x04"  # what torch.save writes
    return zipped or (start[:1] == b"\x80" and start[1:2] in {b"\x02", b"\x03", b"\x04", b"\x05"})


def header(setting: str, path: Path) -> dict[str, dict[str, object]]:
    """The JSON header of a safetensors file: tensor names with dtype and shape, and ``__metadata__``."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if 2 <= length <= min(100_000_000, os.fstat(file.fileno()).st_size - 8):
            try:
                return dict(json.loads(file.read(length)))
            except ValueError:
                pass
    raise WeightsError(f"{setting}={path.name!r} is not a safetensors file, or is cut short; fetch it again.")


def write_new(folder: Path, name: str, suffix: str, content: bytes) -> Path:
    """Write a file that was not there before: ``name.ext``, or ``name-2.ext`` and so on where that is taken.

    Where a name is taken by a file with this very content, that is the file: a run that was killed after writing it
    finds it when it is run again. The content is complete on disk before the name appears, and no existing file is ever
    replaced. Safe between threads and processes. Raises ``OSError`` where the folder cannot be made or the file cannot
    be written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    tag = hashlib.sha256(name.encode(errors="replace") + b"\0" + content).hexdigest()[:16]
    part = folder / f".{tag}.{uuid4().hex}.part"
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        paths = (folder / (f"{name}-{number}{suffix}" if number > 1 else f"{name}{suffix}") for number in count(1))
        return next(path for path in paths if _holds(path, content) or _claim(part, path) or _holds(path, content))
    finally:
        for left in folder.glob(f".{tag}.*.part"):  # ours, and what a run killed at this point has left
            left.unlink(missing_ok=True)


def _holds(path: Path, content: bytes) -> bool:
    """Whether a plain file has exactly this content."""
    try:
        same = not path.is_symlink() and path.stat().st_size == len(content)
        return same and path.read_bytes() == content
    except OSError:
        return False


def _claim(part: Path, path: Path) -> bool:
    """Give a finished file its name unless that is taken; atomic, also between processes."""
    try:
        path.hardlink_to(part)
    except FileNotFoundError:  # whoever wrote the same has finished, and removed ours with its own
        return False
    except OSError:  # the name is taken, or the file system has no hard links: reserve the name, then move onto it
        try:
            path.open("xb").close()
        except FileExistsError:
            return False
        part.replace(path)
    return True


def write_over(path: Path, content: bytes) -> None:
    """Write a file whole, in the place of one that was there: whoever reads it meets the old content or the new.

    Raises ``OSError`` where the folder cannot be made or the file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)
