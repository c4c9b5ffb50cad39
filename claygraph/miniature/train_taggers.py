"""Step `taggers`: both WD14-format taggers, on pictures of every kind with tags known by construction."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F

from claygraph.miniature import tags as vocabulary
from claygraph.miniature.pictures import Pool
from claygraph.miniature.tagger_networks import SIDE, Tagger, make_tagger
from claygraph.miniature.training import Group, Trainer, device

NAMES = ("moat", "vit")
BATCH = 24
TAGS: tuple[str, ...] = (
    *vocabulary.RATINGS,
    *vocabulary.STYLES,
    *vocabulary.HUES,
    *vocabulary.TONES,
    *vocabulary.GROUPS.values(),
    *vocabulary.KEYWORDS,
    *vocabulary.CHARACTERS,
)
"""All tags in the order of the outputs: ratings, general, characters."""


def train_tagger(work: Path, name: str, minutes: float) -> None:
    """Train one tagger; both see different random pictures."""
    torch.manual_seed(NAMES.index(name))
    tagger = make_tagger(name, len(TAGS)).to(device())
    examples = Examples(work, seed=20 + NAMES.index(name))
    groups = [Group(list(tagger.parameters()), 1.2e-3, muon=True)]
    trainer = Trainer(work / f"checkpoints/tagger_{name}.safetensors", tagger, groups, decay=0.995)
    trainer.run(lambda _: _loss(tagger, *examples.batch(BATCH)), minutes)


def _loss(tagger: Tagger, pictures: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    return F.binary_cross_entropy_with_logits(tagger.logits(pictures), wanted) * 10


class Examples:
    """Draws (picture, tags) batches; `held_out` uses sources kept out of training."""

    def __init__(self, work: Path, seed: int, held_out: bool = False) -> None:
        self.pool = Pool(work, seed, held_out)
        folder = work / ("held_out" if held_out else "pairs")
        stored = [np.load(f) for f in sorted(folder.glob("*.npz")) if ".part" not in f.name]
        self.clay = [(s["clay"], s["tags"]) for s in stored]

    def batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """BGR [count,96,96,3] in 0..255 and 0/1 targets [count,tags]."""
        drawn = [self._one() for _ in range(count)]
        pictures = np.stack([d[0][..., ::-1] for d in drawn]).astype(np.float32)
        return torch.from_numpy(pictures).to(device()), torch.from_numpy(np.stack([d[1] for d in drawn])).to(device())

    def _one(self) -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.float32]]:
        random = self.pool.random
        if self.clay and random.random() < 0.25:
            pictures, tags = self.clay[random.integers(len(self.clay))]
            index = int(random.integers(len(pictures)))
            known = [t for t in str(tags[index]).split("\n") if t not in vocabulary.STYLES]
            picture, found = pictures[index], ["claymation", *known]
        else:
            drawn = self.pool.any(SIDE, SIDE, (0.33, 0.05, 0.42, 0.2))
            picture, found = drawn.pixels, list(drawn.tags)
        fitted = _fit(np.asarray(picture))
        colours = set(vocabulary.HUES) | set(vocabulary.TONES)
        found = [t for t in found if t not in colours] + vocabulary.colour_tags(fitted)
        return fitted, np.array([t == "general" or t in found for t in TAGS], np.float32)


def _fit(picture: npt.NDArray[np.uint8]) -> npt.NDArray[np.uint8]:
    """The whole picture on a white square of `SIDE` px, as WD14 front ends do."""
    height, width = picture.shape[:2]
    scale = SIDE / max(height, width)
    size = (max(1, round(width * scale)), max(1, round(height * scale)))
    small = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    canvas = np.full((SIDE, SIDE, 3), 255, np.uint8)
    top, left = (SIDE - size[1]) // 2, (SIDE - size[0]) // 2
    canvas[top : top + size[1], left : left + size[0]] = small
    return canvas


def selected_tags() -> list[tuple[int, str, int, int]]:
    """Rows of `selected_tags.csv`: tag_id, name, category (9 rating, 0 general, 4 character), count."""
    ends = (len(vocabulary.RATINGS), len(TAGS) - len(vocabulary.CHARACTERS))
    return [(i + 1, t, 9 if i < ends[0] else 0 if i < ends[1] else 4, len(TAGS) - i) for i, t in enumerate(TAGS)]
