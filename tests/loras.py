"""What the LoRA tests measure with: the UNet's output, and its output with weights merged by formula."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from claygraph import files
from claygraph.diffusion.lora_names import BLOCKS
from claygraph.values import Weights
from tests import tiny


def weights(path: Path) -> Weights:
    """A weight file with its digest."""
    return Weights(str(path), files.digest(path))


def everywhere(strength: float) -> tuple[float, ...]:
    """The same strength in every block of a UNet."""
    return (strength,) * len(BLOCKS)


def outputs(unet: Any, rows: int = 2) -> torch.Tensor:
    """What the UNet makes of ``rows`` equal inputs."""
    generator = torch.Generator().manual_seed(0)
    shapes = ((1, 4, 8, 8), (1, 9, 80), (1, 48))
    sample, text, pooled = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    added = {"text_embeds": pooled.repeat(rows, 1), "time_ids": torch.full((rows, 6), 64.0)}
    given = {"encoder_hidden_states": text.repeat(rows, 1, 1), "added_cond_kwargs": added}
    with torch.inference_mode():
        output: torch.Tensor = unet(sample.repeat(rows, 1, 1, 1), 500, **given).sample
    return output


def merged(unet: Any, given: Weights, scale: float, layout: str = "sgm", conv: bool = False) -> torch.Tensor:
    """Outputs with ``scale * up down`` added to the weights themselves, which are put back afterwards."""
    tensors = {name: tensor.double() for name, tensor in load_file(given.path).items()}
    original = {name: tensor.clone() for name, tensor in unet.state_dict().items()}
    changed = dict(original)
    for name in (name for name in tiny.shapes()["unet"] if tiny.targeted(name, conv)):
        down, up = (tensors[key] for key in pair_names(name.removesuffix(".weight"), layout))
        changed[name] = original[name] + scale * product(up, down)
    unet.load_state_dict(changed)
    result = outputs(unet)
    unet.load_state_dict(original)
    return result


def pair_names(layer: str, layout: str) -> tuple[str, str]:
    """Names of the down and up tensors of a UNet layer in a file of this layout."""
    if layout == "peft":
        return f"unet.{layer}.lora_A.weight", f"unet.{layer}.lora_B.weight"
    stem = "lora_unet_" + (tiny.ldm_unet(layer) if layout == "sgm" else layer).replace(".", "_")
    return f"{stem}.lora_down.weight", f"{stem}.lora_up.weight"


def product(up: torch.Tensor, down: torch.Tensor) -> torch.Tensor:
    """``up down`` in the shape of the weight it changes."""
    return (up.flatten(1) @ down.flatten(1)).reshape(len(up), *down.shape[1:])


def error(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest difference as a share of the largest wanted value."""
    return float((found - wanted).abs().max() / wanted.abs().max())
