"""CLIP vision encoders: a folder with its config, or a single file whose sizes its tensors tell."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from claygraph import files
from claygraph.diffusion import checkpoint
from claygraph.errors import WeightsError

if TYPE_CHECKING:
    from claygraph.memory import Memory
    from claygraph.values import Weights

HEADS = 16
POSITIONS = "vision_model.embeddings.position_ids"
QUICK_WIDTH = 1024


def load_encoder(encoder: Weights, memory: Memory) -> Any:
    """The encoder of a folder (config.json, model.safetensors) or of one .safetensors file with the same names."""
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    path = files.locate(encoder.path)
    tensors = checkpoint.read(_file(path), memory.device, memory.dtype)
    config = json.loads((path / "config.json").read_text()) if path.is_dir() else measured(path.name, tensors)
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
    embeddings = model.vision_model.embeddings
    embeddings.position_ids = tensors.pop(POSITIONS, torch.arange(embeddings.num_positions)[None]).to(memory.device)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"image_encoder={path.name!r} does not hold a CLIP vision encoder with a projection of the expected sizes; "
            f"give CLIP ViT-H or ViT-bigG. ({str(error).splitlines()[-1].strip()[:120]})"
        ) from error
    return model.eval().requires_grad_(False)


def _file(path: Path) -> Path:
    if not path.is_dir():
        return path
    config, weights = path / "config.json", path / "model.safetensors"
    if not (config.is_file() and weights.is_file()):
        raise WeightsError(f"image_encoder={path.name!r} is not a folder with config.json and model.safetensors.")
    return weights


def measured(file: str, tensors: Mapping[str, Tensor]) -> dict[str, Any]:
    """The config that the tensors of a single file imply; ViT-L, -H and -bigG all have 16 heads (open_clip)."""
    try:
        _, _, patch, _ = tensors["vision_model.embeddings.patch_embedding.weight"].shape
        positions, width = tensors["vision_model.embeddings.position_embedding.weight"].shape
        made = tensors["visual_projection.weight"].shape[0]
        inner = tensors["vision_model.encoder.layers.0.mlp.fc1.weight"].shape[0]
    except KeyError as error:
        raise WeightsError(
            f"image_encoder={file!r} does not hold a CLIP vision encoder with a projection: it has no {error.args[0]}; "
            "give CLIP ViT-H or ViT-bigG."
        ) from None
    layers = {name.split(".")[3] for name in tensors if name.startswith("vision_model.encoder.layers.")}
    return {
        "hidden_size": width,
        "intermediate_size": inner,
        "num_hidden_layers": len(layers),
        "num_attention_heads": HEADS,
        "projection_dim": made,
        "patch_size": patch,
        "image_size": patch * round((positions - 1) ** 0.5),
        "hidden_act": "quick_gelu" if width == QUICK_WIDTH else "gelu",
    }
