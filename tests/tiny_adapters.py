"""Small random IP-Adapters, image encoders and ControlNets in the layouts real files have."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.tiny import SMALL, Dims, Shapes, Tensors, configs, draw, layer_shapes, shapes_of
from tests.tiny_layouts import ldm_unet

ENCODER_WIDTH = 32
EMBEDDING = 20
RESAMPLER_WIDTH = 128


@dataclass(frozen=True)
class Vision:
    """Sizes of a CLIP vision encoder for 224 pixels in patches of 14; ``embedding`` is the width of what it makes."""

    width: int = ENCODER_WIDTH
    layers: int = 3
    heads: int = 2
    embedding: int = EMBEDDING


VISION = Vision()


def ip_adapter(
    path: Path,
    dims: Dims = SMALL,
    plus: bool = False,
    full: bool = False,
    tokens: int = 4,
    seed: int = 20,
    embedding: int = EMBEDDING,
) -> Path:
    """Write an IP-Adapter; ``plus`` reads the encoder's penultimate states by a resampler, ``full`` by two layers."""
    shapes = _resampler(dims, tokens) if plus else _full(dims) if full else _projection(dims, tokens, embedding)
    for number, (width, context) in enumerate(cross_attention_shapes(dims)):
        for name in ("to_k_ip", "to_v_ip"):
            shapes[f"ip_adapter.{2 * number + 1}.{name}.weight"] = (width, context)
    save_file(draw(shapes, seed), path)
    return path


def cross_attention_shapes(dims: Dims = SMALL) -> list[tuple[int, ...]]:
    """Shape of the key weight of every cross-attention of the UNet, in the file's order: down, up, mid."""
    unet = shapes_of("unet", configs(dims)["unet"])
    keys = {name: shape for name, shape in unet.items() if name.endswith("attn2.to_k.weight")}
    return [shape for block in ("down", "up", "mid") for name, shape in keys.items() if name.startswith(block)]


def _projection(dims: Dims, tokens: int, embedding: int) -> Shapes:
    norm = {f"image_proj.norm.{kind}": (dims.context,) for kind in ("weight", "bias")}
    wide = tokens * dims.context
    return {**norm, "image_proj.proj.weight": (wide, embedding), "image_proj.proj.bias": (wide,)}


def _full(dims: Dims) -> Shapes:
    layers: Shapes = {"0": (ENCODER_WIDTH, ENCODER_WIDTH), "2": (dims.context, ENCODER_WIDTH), "3": (dims.context,)}
    weights: Shapes = {f"image_proj.proj.{name}.weight": shape for name, shape in layers.items()}
    return weights | {f"image_proj.proj.{name}.bias": shape[:1] for name, shape in layers.items()}


def _resampler(dims: Dims, tokens: int) -> Shapes:
    width = RESAMPLER_WIDTH
    shapes: Shapes = {"latents": (1, tokens, width)}
    for name, sizes in (("proj_in", (width, ENCODER_WIDTH)), ("proj_out", (dims.context, width))):
        shapes |= {f"{name}.weight": sizes, f"{name}.bias": sizes[:1]}
    shapes |= {f"norm_out.{kind}": (dims.context,) for kind in ("weight", "bias")}
    for layer in range(2):
        shapes |= {f"layers.{layer}.{name}": shape for name, shape in _perceiver_layer(width).items()}
    return {f"image_proj.{name}": shape for name, shape in shapes.items()}


def _perceiver_layer(width: int) -> Shapes:
    norms: Shapes = {
        f"{name}.{kind}": (width,) for name in ("0.norm1", "0.norm2", "1.0") for kind in ("weight", "bias")
    }
    attention: Shapes = {"0.to_q.weight": (width, width), "0.to_kv.weight": (2 * width, width)}
    feed: Shapes = {
        "0.to_out.weight": (width, width),
        "1.1.weight": (4 * width, width),
        "1.3.weight": (width, 4 * width),
    }
    return norms | attention | feed


def image_encoder(path: Path, seed: int = 30, sizes: Vision = VISION) -> Path:
    """Write a CLIP vision encoder folder: 224 pixels, patches of 14."""
    width, vision = sizes.width, "vision_model.embeddings."
    shapes: Shapes = {
        vision + "class_embedding": (width,),
        vision + "patch_embedding.weight": (width, 3, 14, 14),
        vision + "position_embedding.weight": (257, width),
        "visual_projection.weight": (sizes.embedding, width),
    }
    shapes |= {
        f"vision_model.{n}.{k}": (width,) for n in ("pre_layrnorm", "post_layernorm") for k in ("weight", "bias")
    }
    for layer in range(sizes.layers):
        shapes |= {f"vision_model.encoder.layers.{layer}.{name}": shape for name, shape in layer_shapes(width).items()}
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(_encoder_config(sizes)))
    save_file(draw(shapes, seed), path / "model.safetensors", {"format": "pt"})
    return path


def _encoder_config(sizes: Vision) -> dict[str, Any]:
    return {
        "architectures": ["CLIPVisionModelWithProjection"],
        "model_type": "clip_vision_model",
        "hidden_act": "gelu",
        "hidden_size": sizes.width,
        "intermediate_size": 4 * sizes.width,
        "num_attention_heads": sizes.heads,
        "num_hidden_layers": sizes.layers,
        "image_size": 224,
        "patch_size": 14,
        "projection_dim": sizes.embedding,
    }


def controlnet_config(dims: Dims = SMALL) -> dict[str, Any]:
    """The config of a ControlNet for the UNet of these dimensions."""
    unet = configs(dims)["unet"]
    dropped = ("_class_name", "out_channels", "up_block_types")
    config = {name: value for name, value in unet.items() if name not in dropped}
    return config | {"_class_name": "ControlNetModel", "conditioning_embedding_out_channels": [16, 32, 96, 256]}


def controlnet(path: Path, dims: Dims = SMALL, seed: int = 40, **changed: Any) -> Path:
    """Write a diffusers ControlNet folder whose outputs are not zero; keywords change its config."""
    config = controlnet_config(dims) | changed
    path.mkdir(parents=True)
    (path / "config.json").write_text(json.dumps(config))
    tensors = draw(shapes_of("controlnet", config), seed)
    save_file(tensors, path / "diffusion_pytorch_model.safetensors", {"format": "pt"})
    return path


def ldm_controlnet(name: str) -> str:
    """The name a ControlNet's tensor has in the original layout."""
    part, _, rest = name.partition(".")
    if part == "controlnet_cond_embedding":
        kind, _, rest = rest.partition(".")
        number, _, rest = rest.partition(".") if kind == "blocks" else ({"conv_in": -1, "conv_out": 6}[kind], "", rest)
        return f"input_hint_block.{2 * int(number) + 2}.{rest}"
    number, _, rest = rest.partition(".")
    if part == "controlnet_down_blocks":
        return f"zero_convs.{number}.0.{rest}"
    return f"middle_block_out.0.{number}" if part == "controlnet_mid_block" else ldm_unet(name)


def control_lora(path: Path, dims: Dims = SMALL, rank: int = 4, seed: int = 60) -> Path:
    """Write a Control-LoRA: low-rank updates of matrices and kernels, full tensors otherwise, no size embedding."""
    tensors = {"lora_controlnet": torch.tensor([])}
    for name, (parts, _) in control_lora_parts(dims, rank, seed).items():
        stem = ldm_controlnet(f"{name}.weight").removesuffix(".weight")
        tensors |= {f"{stem}.{kind}": tensor.contiguous() for kind, tensor in parts.items()}
    save_file(tensors, path)
    return path


def control_lora_parts(dims: Dims = SMALL, rank: int = 4, seed: int = 60) -> dict[str, tuple[Tensors, bool]]:
    """What a Control-LoRA holds for each layer, by diffusers' name, and whether that is a low-rank update."""
    shapes = shapes_of("controlnet", controlnet_config(dims))
    full, parts = draw(shapes, seed), dict[str, tuple[Tensors, bool]]()
    for number, (name, tensor) in enumerate(full.items()):
        layer, _, kind = name.rpartition(".")
        low = kind == "weight" and tensor.ndim > 1 and not name.startswith("controlnet")
        found = {kind: tensor}
        if low:
            wide = {"up": (len(tensor), rank), "down": (rank, *tensor.shape[1:])}
            found = {side: 0.5 * each for side, each in draw(wide, seed + number).items()}
        known, update = parts.get(layer, ({}, False))
        parts[layer] = (known | found, update or low)
    return {layer: part for layer, part in parts.items() if not layer.startswith("add_embedding")}
