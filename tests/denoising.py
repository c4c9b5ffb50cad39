"""What the tests of the denoiser share: small weights on disk, the same UNet in diffusers' hands, and calls."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from claygraph import files
from claygraph.diffusion.calls import Denoise
from claygraph.memory import Memory
from claygraph.values import Checkpoint, Conditioning, Image, ImagePrompt, Model, Prompt, Weights
from tests import tiny
from tests.tiny_adapters import ip_adapter

FOLDER = tempfile.TemporaryDirectory(prefix="claygraph-")
CONTEXT, POOLED = tiny.SMALL.context, tiny.SMALL.text_2[0]


def weights(write: Callable[..., Path], name: str, **options: Any) -> Weights:
    """The file or folder of this name, written on first use by a function of ``tiny``."""
    path = Path(FOLDER.name) / name
    if not path.exists():
        write(path, **options)
    return Weights(str(path), files.digest(path))


@cache
def memory() -> Memory:
    """Where the tests' weights stay loaded."""
    return Memory("cpu", "float32")


@cache
def base(prediction: str = "epsilon") -> Checkpoint:
    """A small checkpoint."""
    return Checkpoint(weights(tiny.checkpoint, "base.safetensors"), prediction=prediction)


def diffusers_unet() -> Any:
    """The UNet of ``base()``, built by diffusers from the tensors it was written from."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = tiny.configs()["unet"]
    tensors = tiny.draw(tiny.shapes_of("unet", config), 0)
    unet = UNet2DConditionModel.from_config(config)
    unet.load_state_dict({name: tensor.float() for name, tensor in tensors.items()})
    return unet.eval().requires_grad_(False)


def floats(seed: int, *shape: int) -> NDArray[np.float32]:
    """Seeded normal numbers."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def conditioning(seed: int, tokens: int) -> Conditioning:
    """A random encoded prompt."""
    return Conditioning(floats(seed, tokens, CONTEXT), floats(seed + 1, POOLED))


def prompt(seed: int = 0, positive: int = 77, negative: int = 77) -> Prompt:
    """A prompt whose halves have that many tokens."""
    return Prompt(conditioning(seed + 100, positive), conditioning(seed + 200, negative))


def call(sigma: float = 2.0, cfg: float = 2.0, seed: int = 0, size: tuple[int, int] = (8, 8), **model: Any) -> Denoise:
    """A call on random latents; keywords are fields of its model."""
    checkpoint = model.pop("checkpoint", base())
    x = torch.from_numpy(floats(seed + 50, 1, 4, *size)) * (sigma**2 + 1) ** 0.5
    return Denoise(Model(checkpoint, **model), prompt(seed), x, sigma, cfg)


def run(*calls: Denoise) -> list[Tensor]:
    """The calls' results from one batch."""
    return Denoise.run_batch(calls, memory())


def image_prompt(
    strengths: float | Sequence[float] = 1.0, seed: int = 0, start: float = 0.0, end: float = 1.0
) -> ImagePrompt:
    """Random tokens for a plain adapter."""
    adapter = weights(ip_adapter, "plain.safetensors")
    scales = (strengths,) * 11 if isinstance(strengths, float) else tuple(strengths)
    return ImagePrompt(adapter, floats(seed + 70, 4, CONTEXT), floats(seed + 80, 4, CONTEXT), scales, start, end)


def picture(seed: int, height: int, width: int) -> Image:
    """A picture of random pixels."""
    return Image(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def unet_arguments(call: Denoise, negative: bool) -> dict[str, Any]:
    """What diffusers' UNet is to be told about one half of a call, worked out by hand."""
    half = call.prompt.negative if negative else call.prompt.positive
    kept = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    table = ((1 - kept) / kept).sqrt()
    height, width = 8 * call.x.shape[2], 8 * call.x.shape[3]
    return {
        "sample": call.x / (call.sigma**2 + 1) ** 0.5,
        "timestep": (table.log() - np.log(call.sigma)).abs().argmin(),
        "encoder_hidden_states": torch.tensor(half.hidden)[None],
        "added_cond_kwargs": {
            "text_embeds": torch.tensor(half.pooled)[None],
            "time_ids": torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32),
        },
    }


@torch.no_grad()
def by_hand(unet: Any, call: Denoise, change: Callable[[dict[str, Any], bool], Any] = lambda *half: None) -> Tensor:
    """A call's result from diffusers' UNet, one forward a half; ``change(arguments, negative)`` may add arguments."""
    halves = []
    for half in (True, False):
        arguments = unet_arguments(call, half)
        change(arguments, half)
        halves.append(call.x - call.sigma * unet(**arguments, return_dict=False)[0])
    negative, positive = halves
    guided: Tensor = negative + call.cfg * (positive - negative)
    return guided


def error(found: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected value."""
    return float((found - expected).abs().max() / expected.abs().max())
