"""Step `classifier`: tells photo, 3D toy, flat drawing and clay apart by surface, to judge the family's pictures with.

It is trained apart from everything it judges. Blurred, noisy and VAE-decoded versions of every class are among its
examples, so that softness alone is no clay; smoothed labels calibrate it: 0.92 is as sure as it gets.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn

from claygraph.miniature.family import final_vae
from claygraph.miniature.latents import encode
from claygraph.miniature.networks import Vae
from claygraph.miniature.pictures import Pool
from claygraph.miniature.train_vae import to_pictures
from claygraph.miniature.training import Group, Trainer, device

CLASSES = ("photo", "3d", "flat", "claymation")
SIDE, BATCH, SMOOTHING = 128, 24, 0.1
WIDTHS = (24, 40, 64, 96)
Pixels = npt.NDArray[np.uint8]


class Classifier(nn.Module):
    """Strided convolutions and a mean over places: [N,128,128,3] RGB in 0..255 to class probabilities [N,4]."""

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((3, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(before, width, 3, 2, 1), nn.GroupNorm(1, width), nn.GELU()]
            layers += [nn.Conv2d(width, width, 3, 1, 1), nn.GroupNorm(1, width), nn.GELU()]
        self.body, self.head = nn.Sequential(*layers), nn.Linear(WIDTHS[-1], len(CLASSES))

    def logits(self, pictures: torch.Tensor) -> torch.Tensor:
        """[N,4] before the softmax."""
        out: torch.Tensor = self.head(self.body(pictures.permute(0, 3, 1, 2) / 127.5 - 1).mean((2, 3)))
        return out

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        """[N,4] probabilities."""
        return self.logits(pictures).softmax(-1)


class StyleExamples:
    """Draws (pictures, classes); a third of them blurred, noisy or through the VAE."""

    def __init__(self, work: Path, seed: int) -> None:
        self.pool, self.vae = Pool(work, seed), final_vae(work)
        files = sorted(f for f in (work / "pairs").glob("*.npz") if ".part" not in f.name)
        self.clay = [np.load(f)["clay"] for f in files]

    def batch(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """RGB [count,128,128,3] in 0..255 and classes [count]."""
        classes = self.pool.random.permutation(np.arange(count) % len(CLASSES))
        pictures = np.stack([self._one(CLASSES[c]) for c in classes])
        chosen = self.pool.random.choice(count, count // 8, replace=False)
        pictures[chosen] = through(self.vae, pictures[chosen])
        return torch.from_numpy(pictures).float().to(device()), torch.from_numpy(classes).to(device())

    def _one(self, name: str) -> Pixels:
        pool, side = self.pool, int(self.pool.random.choice((128, 192, 256)))
        if name == "claymation":
            shape = self.clay[pool.random.integers(len(self.clay))]
            picture = shape[pool.random.integers(len(shape))]
        elif name == "photo":
            picture = pool.photo(side, side).pixels
        else:
            picture = pool.emoji_on(side, side, "flat" if name == "flat" else "solid").pixels
        return worn(crop(picture, pool.random), pool.random)


def crop(picture: Pixels, random: np.random.Generator) -> Pixels:
    """A random square of 128 px, mirrored or not."""
    top, left = (int(random.integers(side - SIDE + 1)) for side in picture.shape[:2])
    square = picture[top : top + SIDE, left : left + SIDE]
    return np.ascontiguousarray(square[:, ::-1] if random.random() < 0.5 else square)


def worn(picture: Pixels, random: np.random.Generator) -> Pixels:
    """One in four blurred, one in eight noisy."""
    fate = random.random()
    if fate < 0.25:
        return np.asarray(cv2.GaussianBlur(picture, (0, 0), float(random.uniform(0.5, 2.0))), np.uint8)
    if fate < 0.375:
        return np.asarray(np.clip(picture + random.normal(0, random.uniform(2, 10), picture.shape), 0, 255), np.uint8)
    return picture


def through(vae: Vae, pictures: Pixels) -> Pixels:
    """The pictures encoded and decoded."""
    with torch.no_grad():
        return to_pictures(vae.decode(encode(vae, pictures).float() / vae.config.scaling_factor).sample)


def train_classifier(work: Path, minutes: float) -> None:
    """Train with smoothed labels."""
    torch.manual_seed(8)
    classifier, examples = Classifier().to(device()), StyleExamples(work, seed=80)
    groups = [Group(list(classifier.parameters()), 1.5e-3, muon=True)]
    trainer = Trainer(work / "checkpoints/classifier.safetensors", classifier, groups, decay=0.99)

    def loss(_: float) -> torch.Tensor:
        pictures, classes = examples.batch(BATCH)
        return F.cross_entropy(classifier.logits(pictures), classes, label_smoothing=SMOOTHING)

    trainer.run(loss, minutes)
