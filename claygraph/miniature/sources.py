"""Step `sources`: pick the openly licensed pictures out of the packages and bring them to one form.

Writes `photos/NNN.png` (short side 320 px), `emoji.npz` (RGBA, 160 px: `solid`, `flat`, `paired`) and `sources.json`.
"""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from claygraph.miniature import rcc
from claygraph.miniature.licences import Licence, licence_of, read_copyright

SIDE, EMOJI_SIDE = 320, 160
_GCOMPRIS = ("categorization", "explore_world_animals", "lang")
_OPENCV = (  # noqa: SIM905
    "HappyFish.jpg aero1.jpg aero3.jpg aloeL.jpg apple.jpg baboon.jpg board.jpg box.png building.jpg butterfly.jpg "
    "butterfly.png cards.png chicky_512.png fruits.jpg graf1.png home.jpg leuvenA.jpg orange.jpg squirrel_cls.jpg "
    "stuff.jpg smarties.png basketball1.png rubberwhale1.png left.jpg plant.jpg"
).split()
_WHEEL_PHOTOS = {
    "chelsea.png": ("CC0-1.0", "Stefan van der Walt", "cat"),
    "coffee.png": ("CC0-1.0", "Rachel Michetti", "coffee cup"),
    "rocket.jpg": ("public-domain", "SpaceX", "rocket"),
    "astronaut.png": ("public-domain", "NASA", "woman astronaut"),
    "china.jpg": ("CC-BY-2.0", "danielbuechele", "temple"),
    "flower.jpg": ("CC-BY-2.0", "vultilion", "flower"),
}
HELD_OUT = ("chelsea.png", "coffee.png", "astronaut.png")
"""Kept out of all training beside every twelfth source: they are the sample photos."""


@dataclass(frozen=True)
class Source:
    """One training picture with its credit."""

    file: str
    package: str
    licence: str
    author: str
    origin: str
    caption: str


def sources(work: Path) -> None:
    """Write all pictures and `sources.json` below `work`; nothing is done when they are there."""
    if (work / "sources.json").exists():
        return
    (work / "photos").mkdir(parents=True, exist_ok=True)
    kept = list(_photos(work))
    names = _emoji(work)
    text = json.dumps({"photos": [asdict(s) for s in kept], "emoji": names}, indent=1)
    (work / "sources.json").write_text(text)
    print(f"sources: {len(kept)} photos, {len(names)} emoji")


def _photos(work: Path) -> Iterator[Source]:
    seen: set[bytes] = set()
    for source, blob in _candidates(work / "data"):
        picture = _usable(blob)
        look = b"" if picture is None else (np.asarray(picture.resize((4, 4))) // 12).tobytes()
        if picture is not None and look not in seen:
            seen.add(look)
            name = f"{len(seen):03d}.png"
            picture.save(work / "photos" / name)
            yield replace(source, file=name)


def _usable(blob: bytes) -> Image.Image | None:
    """The picture with its short side at `SIDE` px, or None if it is tiny, see-through, nearly blank or flat."""
    try:
        picture = Image.open(io.BytesIO(blob))
        if min(picture.size) < 120 or _see_through(picture):
            return None
        scale = SIDE / min(picture.size)
        rgb = picture.convert("RGB").resize((round(picture.width * scale), round(picture.height * scale)), 1)
    except OSError:
        return None
    pixels = np.asarray(rgb)
    blank = (pixels > 248).all(-1).mean() > 0.4
    return None if blank or pixels.std() < 12 or max(rgb.size) > 3 * SIDE else rgb


def _see_through(picture: Image.Image) -> bool:
    if picture.mode not in ("RGBA", "LA", "P"):
        return False
    return bool((np.asarray(picture.convert("RGBA").resize((32, 32)))[..., 3] < 250).mean() > 0.02)


def _candidates(data: Path) -> Iterator[tuple[Source, bytes]]:
    yield from _gcompris(data / "deb" / "gcompris-qt-data")
    for package in ("lomiri-wallpapers-16.04", "lomiri-wallpapers-20.04", "ukui-wallpapers"):
        yield from _wallpapers(data / "deb" / package, package)
    examples = data / "deb" / "opencv-doc" / "usr/share/doc/opencv-doc/examples/data"
    for name in _OPENCV:
        if (examples / name).exists():
            licence = Licence((), "BSD-3-Clause, Apache-2.0", "the OpenCV contributors")
            yield _source(licence, "opencv-doc", name), (examples / name).read_bytes()
    for file in sorted((data / "pip").rglob("*.*")):
        if file.name in _WHEEL_PHOTOS:
            name, author, caption = _WHEEL_PHOTOS[file.name]
            yield Source("", file.name, name, author, "scikit-image / scikit-learn", caption), file.read_bytes()


def _gcompris(root: Path) -> Iterator[tuple[Source, bytes]]:
    stanzas = read_copyright(root / "usr/share/doc/gcompris-qt-data/copyright")
    for activity in _GCOMPRIS:
        for path, blob in rcc.entries(root / f"usr/share/gcompris-qt/rcc/{activity}.rcc"):
            licence = licence_of(path.removeprefix("gcompris/"), stanzas, any_suffix=True)
            if licence and licence.open and (blob[8:12] == b"WEBP" or blob[1:4] == b"PNG" or blob[:2] == b"\xff\xd8"):
                yield _source(licence, "gcompris-qt-data", path), blob


def _wallpapers(root: Path, package: str) -> Iterator[tuple[Source, bytes]]:
    stanzas = read_copyright(root / f"usr/share/doc/{package}/copyright")
    for file in sorted(root.rglob("*.*")):
        if file.suffix in (".jpg", ".png", ".webp"):
            folder = package.rsplit("-", 1)[-1]
            licence = licence_of(f"{folder}/{file.name}", stanzas)
            if licence and licence.open:
                yield _source(licence, package, file.name), file.read_bytes()


def _source(licence: Licence, package: str, path: str) -> Source:
    """A source whose caption is the file's own name, or its folder's where the name is only numbered."""
    name = Path(path).stem.split("_by_")[0]
    if Path(path).parent.parent.name == "images" and re.search(r"\d$", name):
        name = Path(path).parent.name.rstrip("s")
    caption = " ".join(re.findall(r"[a-z]+", re.sub(r"([a-z])([A-Z])", r"\1 \2", name).lower()))
    return Source("", f"{package}: {path}", licence.name, licence.author, licence.origin, caption)


def _emoji(work: Path) -> list[dict[str, Any]]:
    npm = work / "data" / "npm"
    unicode_names = {_code(k): v for k, v in _json(npm / "unicode-emoji-json-0.9.0/package/data-by-emoji.json").items()}
    tags = {
        _plain(d["hexcode"].lower()): d.get("tags", [])
        for d in _json(npm / "emojibase-data-17.0.0/package/en/data.json")
    }
    flat = _json(npm / "iconify-json-fluent-emoji-flat-1.2.6/package/icons.json")["icons"]
    solid_pictures, flat_pictures, names = [], [], []
    for file in sorted((npm / "lobehub-fluent-emoji-3d-1.1.0/package/assets").glob("*.webp")):
        code = _plain(file.stem)
        entry = unicode_names.get(code)
        if entry is None or entry["group"] == "Flags" or re.search("1f3f[b-f]", code):
            continue
        slug = re.sub(r"[^a-z0-9]+", "-", entry["name"].lower()).strip("-")
        solid_pictures.append(_square(Image.open(file)))
        flat_pictures.append(
            _square(_render(flat[slug]["body"])) if slug in flat else np.zeros_like(solid_pictures[-1])
        )
        names.append({"name": entry["name"], "group": entry["group"], "tags": tags.get(code, [])})
    both = np.stack(flat_pictures)
    paired = both[..., 3].reshape(len(both), -1).any(1)
    np.savez(work / "emoji.npz", solid=np.stack(solid_pictures), flat=both, paired=paired)
    return names


def _json(file: Path) -> Any:
    return json.loads(file.read_text(encoding="utf-8"))


def _code(emoji: str) -> str:
    return _plain("-".join(f"{ord(c):04x}" for c in emoji))


def _plain(code: str) -> str:
    """A hyphenated code point list without the variation selector."""
    return "-".join(part for part in code.split("-") if part != "fe0f")


def _render(body: str) -> Image.Image:
    import resvg_py

    size = f'width="{EMOJI_SIDE}" height="{EMOJI_SIDE}" viewBox="0 0 32 32"'
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    return Image.open(io.BytesIO(bytes(resvg_py.svg_to_bytes(svg_string=f"<svg {spaces} {size}>{body}</svg>"))))


def _square(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """RGBA of `EMOJI_SIDE` px, the picture centred and filling its longer side."""
    scale = EMOJI_SIDE / max(picture.size)
    fitted = picture.convert("RGBA").resize((round(picture.width * scale), round(picture.height * scale)), 1)
    canvas = Image.new("RGBA", (EMOJI_SIDE, EMOJI_SIDE), (255, 255, 255, 0))
    canvas.paste(fitted, ((EMOJI_SIDE - fitted.width) // 2, (EMOJI_SIDE - fitted.height) // 2))
    return np.asarray(canvas)
