"""Make a small reference set in the format ``tests.parity`` reads: ``python -m tests.make_parity FOLDER``.

Every number comes from elsewhere than claygraph: diffusers, transformers, k-diffusion, torchsde, OpenCV and formulas
(``tests/independent.py``), on small weights drawn from a seed. ``tests/data/parity`` holds the numbers; the weights,
which are larger, are drawn anew wherever they are needed (``write_weights``).
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from tests import independent as by
from tests import tiny
from tests.make_parity_words import SCHEDULES, captions, schedule
from tests.taggers import tagger
from tests.tiny_adapters import controlnet, image_encoder, ip_adapter

POSITIVE = "claymation style, a photo of a (cat:1.2)"
SEGMENTS = [("claymation style, a photo of a ", 1.0), ("cat", 1.2)]
NEGATIVE = "blurry"
SIDE = 64
Loras = Sequence[tuple[str, float, float]]


@dataclass
class Book:
    """One section: its cases and arrays."""

    name: str
    weights: Path
    cases: list[dict[str, Any]] = field(default_factory=list)
    arrays: dict[str, Any] = field(default_factory=dict)

    def keep(self, name: str, array: Any) -> str:
        """Put an array into the section's file; its name."""
        self.arrays[name] = np.asarray(array.numpy() if isinstance(array, Tensor) else array)
        return name

    def add(self, case: str, say: str, outputs: dict[str, Any] | None = None, **record: Any) -> None:
        """Put a case into the section, its outputs kept under its name."""
        named = {name: self.keep(f"{case}/{name}", array) for name, array in (outputs or {}).items()}
        self.cases.append({"id": case, "say": say, "inputs": {}, "outputs": named, **record})

    def prompts(self, text: by.Halves) -> None:
        """Keep the prompts all cases of the section are sampled with."""
        for short, (hidden, pooled) in (("pos", text.positive), ("neg", text.negative)):
            self.keep(f"inputs/{short}_cond", hidden)
            self.keep(f"inputs/{short}_pooled", pooled)

    def sampled(self, case: str, say: str, run: by.Run, settings: dict[str, Any], noise: Any, **inputs: Any) -> None:
        """Put a sampling run into the section."""
        given = {"initial_noise": self.keep(f"{case}/noise", noise), **inputs}
        outputs = {"latent": run.latent, "eval_sigmas": np.array(run.sigmas)}
        extra = {key: given.pop(key) for key in ("step_noise", "more") if key in given}
        outputs |= extra.pop("more", {})
        self.add(case, say, outputs, inputs=given, settings={"node": "KSampler"} | settings, **extra)


def write_weights(folder: Path) -> Path:
    """Draw every weight file of the set; the same for the same torch."""
    for name in ("base", "lora", "ip_adapter", "controlnet", "tagger"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    tiny.checkpoint(folder / "base/tiny.safetensors")
    tiny.lora(folder / "lora/kohya.safetensors")
    tiny.lora(folder / "lora/peft.safetensors", layout="peft", alpha=8.0, seed=8)
    ip_adapter(folder / "ip_adapter/ip-adapter_tiny.safetensors")
    image_encoder(folder / "ip_adapter/image_encoder")
    controlnet(folder / "controlnet/canny")
    tagger(folder / "tagger/tiny", text=captions.CSV)
    return folder


def picture(kind: int, side: int = SIDE) -> np.ndarray[Any, Any]:
    """A picture of shapes and ramps, grained where it is small: group norms make much of rounding in flat colour."""
    rows, columns = np.mgrid[:side, :side] * (256 // side)
    disc = (rows - 100 - 20 * kind) ** 2 + (columns - 120) ** 2 < 70**2
    pixels = np.stack([rows // 2 + 60, np.full_like(rows, 90 + 50 * kind), 200 - columns // 2], -1)
    pixels[disc] = (220 - 90 * kind, 40, 60 + 80 * kind)
    grain = np.random.default_rng(kind).integers(-9, 10, pixels.shape) * (side == SIDE)
    return (pixels + grain).clip(0, 255).astype(np.uint8)


def edge_picture(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """OpenCV's Canny at 100 and 200."""
    return np.repeat(cv2.Canny(pixels, 100, 200)[:, :, None], 3, axis=2)


def drawn(seed: int, *shape: int) -> Tensor:
    """Unit-variance noise of a seed."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def encoded(pixels: np.ndarray[Any, Any]) -> Tensor:
    """Latents of a picture: the mean of the posterior, unscaled."""
    batch = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    latent: Tensor = by.vae().encode(batch).latent_dist.mean
    return latent


def halves(loras: Sequence[tuple[Path, float]] = ()) -> by.Halves:
    """The set's two prompts."""
    return by.Halves(by.words(SEGMENTS, loras), by.words([(NEGATIVE, 1.0)], loras))


def setting(sampler: str, scheduler: str = "karras", **more: Any) -> dict[str, Any]:
    """A sampler's settings."""
    return {"seed": 0, "steps": 3, "cfg": 4.0, "sampler": sampler, "scheduler": scheduler, "denoise": 0.6} | more


def run(settings: dict[str, Any], text: by.Halves, latent: Tensor, noise: Tensor, **more: Any) -> by.Run:
    """A run of k-diffusion with a sampler's settings."""
    sigmas = schedule(settings["scheduler"], settings["steps"], settings["denoise"], settings["sampler"] == "dpm_2")
    return by.sample(settings["sampler"], text, latent, sigmas, noise, settings["cfg"], **more)


def schedules(book: Book) -> None:
    """Every schedule."""
    for name in SCHEDULES:
        for steps, denoise, group in ((6, 1.0, "plain"), (6, 0.6, "plain"), (20, 1.0, "plain"), (6, 0.6, "dpm_2")):
            asked = {"scheduler": name, "steps": steps, "denoise": denoise, "sampler_group": group}
            sigmas = np.array(schedule(name, steps, denoise, group != "plain"))
            book.add(f"{group}/{name}/s{steps}/d{denoise}", "closed form", {"sigmas": sigmas}, inputs=asked)
    asked = {"scheduler": "kl_optimal", "steps": 1, "denoise": 1.0}
    book.add("plain/kl_optimal/s1", "0 / 0", {"sigmas": np.array([np.nan, 0.0])}, inputs=asked)


def noise(book: Book) -> None:
    """Noise of a seed."""
    for seed in (0, 2**63):
        book.add(f"init/{seed}", "torch.randn", {"noise": drawn(seed, 2, 4, 8, 8)}, inputs={"seed": seed})
    draws = torch.stack(list(step_draws(5, 3)))
    book.add("ancestral/5", "torch.randn, one draw a call", {"draws": draws}, inputs={"seed": 5})
    pairs = [[14.6, 5.25], [5.25, 1.5], [1.5, 0.25]]
    tree = by.k_sampling().BrownianTreeNoiseSampler(torch.zeros(1, 4, 8, 8), 0.03, 14.6, seed=3)
    brownian = torch.stack([tree(torch.tensor(a), torch.tensor(b)) for a, b in pairs])
    asked = {"seed": 3, "sigma_min": 0.03, "sigma_max": 14.6, "pairs": pairs}
    book.add("brownian/3", "k-diffusion's tree", {"noise": brownian}, inputs=asked)


def step_draws(seed: int, count: int, rows: int = 1) -> Iterator[Tensor]:
    """Step noise of a seed, a draw for all rows at once."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        yield torch.randn((rows, 4, 8, 8), generator=generator)


def ksampler(book: Book, shift: int = 0) -> None:
    """Samplers from a photo's latents; ``shift`` is added to the seed for step noise."""
    text, latent = halves(), encoded(picture(0))
    book.prompts(text)
    source = book.keep("inputs/latent", latent)
    newer = ["euler_ancestral", "dpm_2_ancestral", "dpmpp_2s_ancestral"]
    names = newer if shift else ["euler", "heun", "dpm_2", "dpmpp_2m", "euler_ancestral"]
    for name in names:
        settings, start, draws = setting(name), drawn(0, 1, 4, 8, 8), list(step_draws(shift, 2))
        ancestral = "ancestral" in name
        if name == "dpm_2_ancestral":
            settings["sampler"] = name
        made = _run(settings, text, latent, start, draws if ancestral else [])
        extra = {"step_noise": _drawn_noise(book, settings, draws, shift)} if ancestral else {}
        book.sampled(f"{name}/karras", "k-diffusion", made, settings, start, latent_in=source, **extra)
    if not shift:
        _variations(book, text, latent, source)


def _run(settings: dict[str, Any], text: by.Halves, latent: Tensor, start: Tensor, draws: Sequence[Tensor]) -> by.Run:
    drop = settings["sampler"].startswith("dpm_2") and "dpmpp" not in settings["sampler"]
    sigmas = schedule(settings["scheduler"], settings["steps"], settings["denoise"], drop)
    return by.sample(settings["sampler"], text, latent, sigmas, start, settings["cfg"], draws=draws)


def _drawn_noise(book: Book, settings: dict[str, Any], draws: Sequence[Tensor], shift: int) -> dict[str, Any]:
    """The record of step noise."""
    drop = settings["sampler"] == "dpm_2_ancestral"
    sigmas = schedule(settings["scheduler"], settings["steps"], settings["denoise"], drop)
    names = [book.keep(f"step_noise/{shift}/{number}", draw) for number, draw in enumerate(draws)]
    sequence = [
        {"sigma_from": a, "sigma_to": b, "array": name} for a, b, name in zip(sigmas, sigmas[1:], names, strict=False)
    ]
    maker = {"kind": "randn", "seed": settings["seed"] + shift, "shape": [1, 4, 8, 8]}
    return {"made_by": [maker], "draws": len(draws), "sequence": sequence}


def _variations(book: Book, text: by.Halves, latent: Tensor, source: str) -> None:
    """Other guidance, other noise levels, a batch of two."""
    others: dict[str, dict[str, Any]] = {"cfg1": {"cfg": 1.0}, "denoise1": {"denoise": 1.0}}
    others["simple"] = {"scheduler": "simple", "seed": 7}
    for name, more in others.items():
        settings = setting("dpmpp_2m", **more)
        start = drawn(settings["seed"], 1, 4, 8, 8)
        made = _run(settings, text, latent, start, [])
        book.sampled(f"dpmpp_2m/{name}", "k-diffusion", made, settings, start, latent_in=source)
    both, start = torch.cat([latent, encoded(picture(1))]), drawn(0, 2, 4, 8, 8)
    runs = [_run(setting("euler"), text, both[n : n + 1], start[n : n + 1], []) for n in (0, 1)]
    made = by.Run(torch.cat([each.latent for each in runs]), runs[0].sigmas)
    pair = book.keep("inputs/latents", both)
    book.sampled("euler/batch2", "k-diffusion, one by one", made, setting("euler"), start, latent_in=pair)


SECTIONS = {"schedules": schedules, "noise": noise, "ksampler": ksampler}


def write_numbers(folder: Path, weights: Path) -> None:
    """Compute every section with weights that lie in a folder, and write index and arrays."""
    from tests.make_parity_models import SECTIONS as MODELS

    folder.mkdir(parents=True, exist_ok=True)
    sections: dict[str, Any] = {}
    makers = {**SECTIONS, "ksampler_newer_cpu_seed": lambda book: ksampler(book, 1), **MODELS}
    for name, maker in makers.items():
        book = Book(name, weights)
        with torch.no_grad():
            maker(book)
        if book.arrays:
            np.savez_compressed(folder / f"{name}.npz", **book.arrays)
        sections[name] = {"cases": book.cases}
    about = {"title": "diffusers, transformers, k-diffusion and formulas on tiny weights", "torch": torch.__version__}
    text = json.dumps({"about": about, "sections": sections}, indent=1)
    (folder / "index.json").write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    given = Path(sys.argv[1])
    write_numbers(given, write_weights(given / "weights"))
