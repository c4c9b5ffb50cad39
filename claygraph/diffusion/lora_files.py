"""LoRA files: kohya's, diffusers' and peft's spellings of the same low-rank pairs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from claygraph.diffusion import describe
from claygraph.diffusion.checkpoint import read
from claygraph.errors import WeightsError

DOWN = (".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", "_lora.down.weight", ".lora.down.weight")
UP = (".lora_up.weight", ".lora_B.weight", ".lora_B.default.weight", "_lora.up.weight", ".lora.up.weight")
SUFFIXES = {
    **dict.fromkeys((*DOWN, ".lora_linear_layer.down.weight"), "down"),
    **dict.fromkeys((*UP, ".lora_linear_layer.up.weight"), "up"),
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
}
OTHER_KINDS = {
    ".hada_": "LoHa",
    ".lokr_": "LoKr",
    ".dora_scale": "DoRA",
    ".lora_magnitude_vector": "DoRA",
    ".oft_": "OFT",
    ".diff": "whole weight differences",
}
PREFIXES = {
    "unet": ("lora_unet_", "unet.", "diffusion_model.", "base_model.model."),
    "text_encoder": ("lora_te1_", "lora_te_", "text_encoder."),
    "text_encoder_2": ("lora_te2_", "text_encoder_2."),
}


@dataclass
class Pair:
    """``up`` times ``down`` is added to a weight; ``scale`` is alpha / rank."""

    down: torch.Tensor
    up: torch.Tensor
    scale: float


def layers(path: Path) -> dict[str, dict[str, dict[str, str]]]:
    """Tensor names by component, layer and role (``down``, ``up``, ``mid``, ``alpha``); reads only the header.

    What belongs to no component is under ``""``. Raises ``WeightsError`` for kinds that are not low-rank pairs.
    """
    names = describe.shapes(path)
    for mark, kind in OTHER_KINDS.items():
        if any(mark in name for name in names):
            raise WeightsError(f"lora {path.name!r} holds {kind}, which cannot be applied yet; give a LoRA or LoCon.")
    found: dict[str, dict[str, dict[str, str]]] = {part: {} for part in (*PREFIXES, "")}
    for name in names:
        layer, role = _split(name)
        found[_part(layer) if role else ""].setdefault(layer, {})[role] = name
    return found


def _split(name: str) -> tuple[str, str]:
    """The layer a tensor belongs to and its role there; a name of no known form is its own layer, of no role."""
    for suffix, role in SUFFIXES.items():
        if name.endswith(suffix):
            layer = name.removesuffix(suffix).replace(".processor.", ".")
            return layer + (".0" if suffix.startswith("_lora") and layer.endswith("to_out") else ""), role
    return name, ""


def _part(layer: str) -> str:
    return next((part for part, prefixes in PREFIXES.items() if layer.startswith(prefixes)), "")


def load(path: Path, part: str, device: torch.device) -> dict[str, Pair]:
    """The pairs of one component, by the name the file gives the layer, in the file's dtype."""
    roles = {layer: names for layer, names in layers(path)[part].items() if {"down", "up"} <= names.keys()}
    tensors = read(path, device, None, PREFIXES[part])
    alphas = _peft_alphas(path, part)
    pairs = {}
    for layer, names in roles.items():
        found = {role: tensors[name] for role, name in names.items()}
        pairs[layer] = Pair(_with_mid(found), found["up"], _scale(found, alphas, layer.removeprefix(f"{part}.")))
    return pairs


def _with_mid(found: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """``down``, with the core of a CP-decomposed convolution multiplied in."""
    down = found["down"]
    return torch.einsum("orhw,ri->oihw", found["mid"], down.flatten(1)) if "mid" in found else down


def _scale(found: Mapping[str, torch.Tensor], alphas: Mapping[str, float], layer: str) -> float:
    """alpha / rank; 1 where alpha is missing or 0 (kohya's rule)."""
    alpha = float(found["alpha"]) if "alpha" in found else alphas.get(layer, alphas.get("", 0.0))
    return alpha / len(found["down"]) or 1.0


def _peft_alphas(path: Path, part: str) -> dict[str, float]:
    """Alphas in a peft file's metadata: by layer where one differs, and the usual one under ``""``."""
    settings: dict[str, Any] = json.loads(describe.metadata(path).get("lora_adapter_metadata", "{}"))
    usual = settings.get(f"{part}.lora_alpha")
    special = settings.get(f"{part}.alpha_pattern") or {}
    alphas = {str(layer).strip("^$"): float(alpha) for layer, alpha in special.items()}
    return alphas if usual is None else {"": float(usual), **alphas}
