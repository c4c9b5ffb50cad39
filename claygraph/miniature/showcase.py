"""`python -m claygraph.miniature.showcase`: the README's grids, six held-out photos and two knobs.

No photo shown here was seen in any training; who took them is in CREDITS.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont, ImageOps

from claygraph.miniature.rig import Run, make, write

Pixels = npt.NDArray[np.uint8]
SIDE, MARGIN, HEAD = 320, 6, 26
SIX = ("astronaut.png", "chelsea.png", "zimniPalace.webp", "coffee.png", "dam3.webp", "statueOfLiberty.webp")
"""A face, a cat, a street, food, a landscape, an object; by the end of their names in `sources.json`."""
LORA, CONTROL = (0.0, 0.5, 1.0), (0.0, 0.5, 1.0)
KNOBS_DENOISE = 0.6


def main(arguments: Sequence[str] | None = None) -> int:
    """Write `six.jpg` and `knobs.jpg`."""
    parser = argparse.ArgumentParser("python -m claygraph.miniature.showcase", description=__doc__)
    parser.add_argument("--work", type=Path, default=Path("miniature-work"), help="folder of the recipe's step fetch")
    parser.add_argument("--out", type=Path, default=Path("docs/pictures"), help="where the grids go")
    options = parser.parse_args(arguments)
    photos = held_out(options.work)
    with tempfile.TemporaryDirectory() as folder:
        files = write(photos, Path(folder), "photo")
        six(photos, files).save(options.out / "six.jpg", quality=88)
        knobs(files[0]).save(options.out / "knobs.jpg", quality=88)
    return 0


def held_out(work: Path) -> Pixels:
    """The six photos, cut square, [6,SIDE,SIDE,3]."""
    listing = json.loads((work / "sources.json").read_text())["photos"]
    found = [next(s["file"] for s in listing if s["package"].endswith(name)) for name in SIX]
    return np.stack([_square(work / "photos" / file) for file in found])


def _square(file: Path) -> Pixels:
    return np.asarray(ImageOps.fit(Image.open(file).convert("RGB"), (SIDE, SIDE), centering=(0.5, 0.3)))


def six(photos: Pixels, files: Sequence[str]) -> Image.Image:
    """Each photo beside its clay at the default settings, three pairs in a row."""
    clay = make([Run(file, (f"photo.size={SIDE}",)) for file in files])
    pairs = [picture for pair in zip(photos, clay, strict=True) for picture in pair]
    return grid([pairs[:6], pairs[6:]])


def knobs(file: str) -> Image.Image:
    """LoRA strength by row, ControlNet strength by column."""
    base = (f"photo.size={SIDE}", f"sampler.denoise={KNOBS_DENOISE}")
    runs = [
        Run(file, (*base, f"lora.clay.model={lora}", f"lora.clay.clip={lora}", f"controlnet.strength={control}"))
        for lora in LORA
        for control in CONTROL
    ]
    made, wide = make(runs), len(CONTROL)
    titles = [f"lora.clay {lora:g}, controlnet {control:g}" for lora in LORA for control in CONTROL]
    rows = [slice(start, start + wide) for start in range(0, len(made), wide)]
    return grid([list(made[row]) for row in rows], [titles[row] for row in rows])


def grid(rows: Sequence[Sequence[Pixels]], titles: Sequence[Sequence[str]] = ()) -> Image.Image:
    """Pictures of one size in rows, each under its title where there are titles."""
    head, step = (HEAD if titles else 0), SIDE + MARGIN
    sheet = Image.new("RGB", (len(rows[0]) * step - MARGIN, len(rows) * (step + head) - MARGIN), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(18)
    for down, row in enumerate(rows):
        for across, pixels in enumerate(row):
            left, top = across * step, down * (step + head)
            sheet.paste(Image.fromarray(pixels), (left, top + head))
            if titles:
                pen.text((left + 4, top + 2), titles[down][across], "black", font)
    return sheet


if __name__ == "__main__":
    raise SystemExit(main())
