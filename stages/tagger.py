"""Reads tags off the photo for the prompt to begin with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from claygraph.diffusion.calls import ReadTags
from claygraph.errors import WeightsError, check_range, check_whole
from claygraph.files import locate, weights
from claygraph.stage import Stage
from claygraph.values import Image, Tags

if TYPE_CHECKING:
    from claygraph.diffusion.wd14 import Label
    from claygraph.values import Floats


@dataclass(frozen=True)
class Tagger(Stage):
    """A WD14-format tagger (MOAT, ViT, ...): ``path`` is a folder with model.onnx and selected_tags.csv.

    A tag is kept above ``threshold`` (a character's above ``character_threshold``); characters come first, both in the
    order of the CSV. ``exclude_tags`` is a comma list. ``replace_underscore`` writes "long hair" for long_hair and
    leaves kaomoji such as ^_^ alone. ``max_tags`` other than 0 keeps only so many, the most probable.
    """

    path: str
    threshold: float = 0.35
    character_threshold: float = 0.85
    exclude_tags: str = ""
    replace_underscore: bool = True
    max_tags: int = 0

    def __post_init__(self) -> None:
        check_range("tagger.threshold", self.threshold, 0, 1)
        check_range("tagger.character_threshold", self.character_threshold, 0, 1)
        check_whole("tagger.max_tags", self.max_tags, 0, 100_000)

    def files(self) -> Sequence[str]:
        from claygraph.diffusion.wd14 import LABELS, MODEL

        folder = locate(self.path)
        if folder.is_file():
            raise WeightsError(f"tagger.path={self.path!r} is a file; give the folder with {MODEL} and {LABELS}.")
        found = Path(weights("tagger.path", self.path).path)
        missing = [name for name in (MODEL, LABELS) if not (found / name).is_file()]
        if missing:
            raise WeightsError(f"tagger.path={self.path!r} holds no {missing[0]}; fetch the tagger again.")
        return [str(found / MODEL), str(found / LABELS)]

    async def run(self, photo: Image) -> Tags:
        from claygraph.diffusion.wd14 import labels

        tagger = weights("tagger.path", self.path)
        rows = labels(tagger.path)
        found = await ReadTags(tagger, photo)
        if len(rows) != len(found):
            raise WeightsError(
                f"tagger.path={self.path!r}: the model has {len(found)} outputs, but the CSV lists {len(rows)} tags; "
                "fetch both files from the same place."
            )
        return Tags(tuple(self._kept(rows, found)))

    def _kept(self, rows: Sequence[Label], found: Floats) -> list[tuple[str, float]]:
        from claygraph.diffusion.wd14 import CHARACTER, GENERAL

        limits = ((CHARACTER, self.character_threshold), (GENERAL, self.threshold))
        tags = [
            (self._spelled(row.tag), float(probability))
            for category, limit in limits
            for row, probability in zip(rows, found, strict=True)
            if row.category == category and probability > limit
        ]
        unwanted = {self._spelled(word.strip()).lower() for word in self.exclude_tags.split(",")}
        tags = [tag for tag in tags if tag[0].lower() not in unwanted]
        best = sorted(tags, key=lambda tag: -tag[1])[: int(self.max_tags) or None]
        return [tag for tag in tags if tag in best]

    def _spelled(self, tag: str) -> str:
        """Spaces for underscores, except in a kaomoji, which has no two letters or digits in a row."""
        words = re.search(r"[^\W_]{2}", tag)
        return tag.replace("_", " ") if self.replace_underscore and words else tag
