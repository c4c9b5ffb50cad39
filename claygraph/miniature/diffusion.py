"""Noise, targets and batches that all diffusion trainings share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from safetensors.torch import load_file

from claygraph.miniature.networks import alphas_cumprod
from claygraph.miniature.training import device

CROPS: dict[tuple[int, int], tuple[int, float, float]] = {
    (32, 32): (8, 0.60, 0.25),
    (24, 40): (8, 0.13, 0.10),
    (40, 24): (8, 0.13, 0.10),
    (40, 48): (4, 0.08, 0.15),
    (64, 64): (2, 0.03, 0.20),
    (56, 72): (2, 0.02, 0.10),
    (72, 56): (2, 0.01, 0.10),
}
"""Latent crop (height, width): batch size, share of steps at first, share in the last fifth."""
BLIND = 937
"""Rows of noise alone have timesteps from here to 999."""


@dataclass(frozen=True)
class Noised:
    """Noise level and noise of a batch: `signal`, `sigma` [B,1,1,1] with signal^2 + sigma^2 = 1."""

    timesteps: torch.Tensor
    signal: torch.Tensor
    sigma: torch.Tensor
    noise: torch.Tensor

    def add(self, clean: torch.Tensor) -> torch.Tensor:
        """Noised latents."""
        return self.signal * clean + self.sigma * self.noise

    def clean_of(self, noised: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """The clean latents that a v-prediction means."""
        return self.signal * noised - self.sigma * velocity

    def noise_of(self, noised: torch.Tensor, velocity: torch.Tensor) -> torch.Tensor:
        """The noise that a v-prediction means."""
        return self.sigma * noised + self.signal * velocity

    def velocity_loss(self, velocity: torch.Tensor, clean: torch.Tensor) -> torch.Tensor:
        """Plain v-prediction error: the noisiest steps count as much as the others."""
        return (velocity - (self.signal * self.noise - self.sigma * clean)).square().mean()

    def clean_loss(
        self, noised: torch.Tensor, velocity: torch.Tensor, clean: torch.Tensor, weight: torch.Tensor | float = 1.0
    ) -> torch.Tensor:
        """Error of the clean latents, the last steps up to ten times the first: for inputs not made from `clean`.

        `weight` [B,1,h,w] says how much each place counts.
        """
        error = (weight * (self.clean_of(noised, velocity) - clean).square()).mean((1, 2, 3))
        return (error / self.sigma.flatten().square().clamp(min=0.1)).mean()


class Noise:
    """Draws noise levels, spread evenly over a batch."""

    def __init__(self) -> None:
        power = alphas_cumprod().to(device())
        self.signal, self.sigma = power.sqrt(), (1 - power).sqrt()

    def like(self, clean: torch.Tensor, low: float = 0.0, high: float = 1.0, blind: float = 0.0) -> Noised:
        """Noise for latents `clean`, timesteps between these fractions of the schedule; a little constant offset.

        A share `blind` of rows are noise alone, as sampling from noise begins: with these betas even the last timestep
        shows the means of large areas, so without such rows prompts need not say them.
        """
        count = len(clean)
        place = (torch.arange(count) + torch.rand(count)) / count
        timesteps = ((low + (high - low) * place) * 1000).long().clamp(0, 999).to(clean.device)
        noise = torch.randn_like(clean) + 0.05 * torch.randn(*clean.shape[:2], 1, 1, device=clean.device)
        blinded = (torch.rand(count) < blind).to(clean.device)
        timesteps[blinded] = timesteps[blinded] // 16 + BLIND
        level = self.at(timesteps, noise)
        level.signal[blinded], level.sigma[blinded] = 0.0, 1.0
        return level

    def at(self, timesteps: torch.Tensor, noise: torch.Tensor) -> Noised:
        """This noise [B,4,h,w] at the strengths of these timesteps [B]."""
        signal, sigma = self.signal[timesteps], self.sigma[timesteps]
        return Noised(timesteps, signal.view(-1, 1, 1, 1), sigma.view(-1, 1, 1, 1), noise)


def crop_size(random: np.random.Generator, progress: float) -> tuple[int, int, int]:
    """A latent (height, width) and its batch size; larger ones come more often in the last fifth of a training."""
    shares = np.array([late if progress > 0.8 else early for _, early, late in CROPS.values()])
    height, width = list(CROPS)[int(random.choice(len(CROPS), p=shares / shares.sum()))]
    return height, width, CROPS[height, width][0]


class LatentSet:
    """Stored latents of one picture shape with their tags, hints, pixels and, for pairs, the targets' latents."""

    def __init__(self, work: Path, file: Path) -> None:
        tensors, stored = load_file(file), np.load(work / file.parent.name / f"{file.stem}.npz")
        self.picture, self.clay = tensors["picture"], tensors.get("clay")
        self.hint: npt.NDArray[np.uint8] = stored["hint"]
        self.pixels: npt.NDArray[np.uint8] = stored["picture"]
        self.tags = [str(t).split("\n") for t in stored["tags"]]

    def fits(self, height: int, width: int) -> bool:
        """Whether a crop of this latent size can be taken."""
        return self.picture.shape[2] >= height and self.picture.shape[3] >= width


@dataclass(frozen=True)
class Batch:
    """Crops at equal places: latents [B,4,h,w], hints [B,3,8h,8w] and pixels [B,3,4h,4w] in 0..1, and their prompts.

    `clay` is the target where there is one, else empty.
    """

    picture: torch.Tensor
    clay: torch.Tensor
    hint: torch.Tensor
    pixels: torch.Tensor
    prompts: list[str]


class Latents:
    """The latent sets of these kinds: `pictures`, `pairs` (photo and clay), `twins` (flat and 3D)."""

    def __init__(self, work: Path, seed: int, *kinds: str) -> None:
        self.random = np.random.default_rng(seed)
        files = [file for kind in kinds for file in sorted((work / "latents" / kind).glob("*.safetensors"))]
        self.sets = [LatentSet(work, file) for file in files]

    def draw(self, progress: float, dropped: float = 0.1) -> Batch:
        """A batch of one crop size; `dropped` is the share of empty prompts."""
        fitting: list[LatentSet] = []
        while not fitting:
            height, width, count = crop_size(self.random, progress)
            fitting = [s for s in self.sets if s.fits(height, width)]
        sizes = np.array([len(s.picture) for s in fitting], float)
        chosen = fitting[int(self.random.choice(len(fitting), p=sizes / sizes.sum()))]
        chosen_rows = self.random.integers(len(chosen.picture), size=count)
        rows = [self._crop(chosen, int(i), height, width) for i in chosen_rows]
        place = device()
        pictures, clays, hints, pixels = (torch.stack(part).float().to(place) for part in zip(*rows, strict=True))
        prompts = ["" if self.random.random() < dropped else self._prompt(chosen.tags[i]) for i in chosen_rows]
        return Batch(pictures, clays, hints, pixels / 255, prompts)

    def _crop(self, chosen: LatentSet, index: int, height: int, width: int) -> tuple[torch.Tensor, ...]:
        top = int(self.random.integers(chosen.picture.shape[2] - height + 1))
        left = int(self.random.integers(chosen.picture.shape[3] - width + 1))
        window = (slice(None), slice(top, top + height), slice(left, left + width))
        clay = torch.zeros(0) if chosen.clay is None else chosen.clay[index][window]
        bits = chosen.hint[index, 8 * top : 8 * (top + height), left : left + width]
        hint = torch.from_numpy(np.unpackbits(bits, axis=1)).expand(3, -1, -1)
        pixels = chosen.pixels[index, 4 * top : 4 * (top + height), 4 * left : 4 * (left + width)]
        return chosen.picture[index][window], clay, hint, torch.from_numpy(pixels).permute(2, 0, 1)

    def _prompt(self, tags: list[str]) -> str:
        """The style first, then a random part of the other tags in random order."""
        rest = [t for t in tags[1:] if self.random.random() < 0.7]
        self.random.shuffle(rest)
        return ", ".join([tags[0], *rest])
