"""Reads tags off the photo for the prompt to begin with."""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from claygraph.diffusion.calls import ReadTags
from claygraph.errors import SettingError, WeightsError, check_range, check_whole
from claygraph.files import locate, weights
from claygraph.stage import Stage
from claygraph.values import Image, Tags

if TYPE_CHECKING:
    from claygraph.diffusion.wd14 import Label
    from claygraph.values import Floats


MCUT_LOWEST_CHARACTER = 0.15
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Tagger(Stage):
    """A WD14-format tagger (MOAT, ViT, ...): ``path`` is a folder with model.onnx and selected_tags.csv.

    A tag is kept above ``threshold`` (a character's above ``character_threshold``); with ``mcut`` (``character_mcut``)
    above the middle of the widest gap between the picture's probabilities instead (a character's above 0.15 at least).
    Characters come first, both in the order of the CSV; those of ``first_tags`` (comma list) that were seen go before.

    ``replace_underscore`` writes "long hair" for long_hair and leaves kaomoji such as ^_^ alone. ``replacements``,
    ``old,new;old,new``, writes tags otherwise; ``exclude_tags``, a comma list, leaves out tags as they are written by
    then. ``max_tags`` other than 0 keeps only so many, the most probable. ``trailing_comma`` ends the tags in a comma.
    """

    path: str
    threshold: float = 0.35
    character_threshold: float = 0.85
    exclude_tags: str = ""
    replace_underscore: bool = True
    max_tags: int = 0
    mcut: bool = False
    character_mcut: bool = False
    replacements: str = ""
    first_tags: str = ""
    trailing_comma: bool = False

    def __post_init__(self) -> None:
        check_range("tagger.threshold", self.threshold, 0, 1)
        check_range("tagger.character_threshold", self.character_threshold, 0, 1)
        check_whole("tagger.max_tags", self.max_tags, 0, 100_000)
        _pairs(self.replacements)

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
        return Tags(tuple(self._ordered(self._kept(rows, found))), self.trailing_comma)

    def _kept(self, rows: Sequence[Label], found: Floats) -> list[tuple[str, float]]:
        from claygraph.diffusion.wd14 import CHARACTER, GENERAL

        tags = [*self._above(rows, found, CHARACTER), *self._above(rows, found, GENERAL)]
        unwanted = {word.lower() for word in _words(self.exclude_tags)}
        self._warn_of_raw({row.tag for row in rows if row.tag.lower() in unwanted}, unwanted)
        tags = [tag for tag in tags if tag[0].lower() not in unwanted]
        best = sorted(tags, key=lambda tag: -tag[1])[: int(self.max_tags) or None]
        return [tag for tag in tags if tag in best]

    def _warn_of_raw(self, named: Iterable[str], unwanted: set[str]) -> None:
        """Excluding long_hair where it is written "long hair" does nothing, which is better said."""
        for tag in named:
            if (written := self._written(tag)).lower() not in unwanted:
                log.warning("tagger.exclude_tags: %r is written %r here, so exclude that.", tag, written)

    def _above(self, rows: Sequence[Label], found: Floats, category: int) -> list[tuple[str, float]]:
        """The tags of one category that are likely enough, as they are written."""
        import numpy as np

        from claygraph.diffusion.wd14 import CHARACTER

        ours = [(row.tag, p) for row, p in zip(rows, found, strict=True) if row.category == category]
        limit, cut = (
            (self.character_threshold, self.character_mcut) if category == CHARACTER else (self.threshold, self.mcut)
        )
        if cut:
            lowest = MCUT_LOWEST_CHARACTER if category == CHARACTER else 0.0
            limit = max(lowest, widest_gap([float(p) for _, p in ours]))
        return [(self._written(tag), float(p)) for tag, p in ours if p > np.float32(limit)]  # equal in its precision

    def _ordered(self, tags: Sequence[tuple[str, float]]) -> list[tuple[str, float]]:
        """The tags with those of ``first_tags`` before the others, in its order."""
        first = _words(self.first_tags)
        return sorted(tags, key=lambda tag: first.index(tag[0]) if tag[0] in first else len(first))

    def _written(self, tag: str) -> str:
        """Spaces for underscores, except in a kaomoji, which has no two letters or digits in a row; then replaced."""
        words = re.search(r"[^\W_]{2}", tag)
        spelled = tag.replace("_", " ") if self.replace_underscore and words else tag
        return _pairs(self.replacements).get(spelled, spelled)


def widest_gap(probabilities: Sequence[float]) -> float:
    """The middle of the widest gap between neighbours (Largeron, Moulin and Gery 2012); 0 where there is no gap."""
    falling = sorted(probabilities, reverse=True)
    gaps = [(high - low, (high + low) / 2) for high, low in pairwise(falling)]
    return max(gaps, key=lambda gap: gap[0], default=(0.0, 0.0))[1]


def _words(listed: str) -> list[str]:
    return [word.strip() for word in listed.split(",") if word.strip()]


@lru_cache(maxsize=8)
def _pairs(replacements: str) -> dict[str, str]:
    """Old and new spellings from ``old,new;old,new``."""
    pairs = [pair.split(",") for pair in replacements.split(";") if pair.strip()]
    if any(len(pair) != 2 or not pair[0].strip() for pair in pairs):
        raise SettingError(f"tagger.replacements={replacements!r} is no list of pairs; write old,new;old,new.")
    return {old.strip(): new.strip() for old, new in pairs}
