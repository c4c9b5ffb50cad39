"""Small random models written in the layouts real files have: what the loaders are tested on.

``SMALL`` has heads 16 wide, which only a config tells; ``PLAIN`` has SDXL's 64, which the tensor shapes tell.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from tests.tiny_layouts import Tensors, ldm_unet, ldm_vae, single_file

Shapes = dict[str, tuple[int, ...]]
__all__ = ["Tensors", "ldm_unet", "ldm_vae", "single_file"]
SHIPPED = Path(__file__).parent.parent / "claygraph" / "diffusion" / "sdxl"


@dataclass(frozen=True)
class Dims:
    """Widths and depths of one model family; text encoders as (width, layers)."""

    channels: tuple[int, ...] = (32, 64, 32)
    depth: tuple[int, ...] = (1, 1, 2)
    head: int = 16
    text: tuple[int, int] = (32, 4)
    text_2: tuple[int, int] = (48, 5)
    time: int = 16
    vae: tuple[int, ...] = (32, 64, 32, 32)
    latent: int = 4

    @property
    def context(self) -> int:
        """Width of the text conditioning."""
        return self.text[0] + self.text_2[0]


SMALL = Dims()
PLAIN = Dims(channels=(64, 128, 64), head=64, text=(64, 3), text_2=(128, 4))


def configs(dims: Dims = SMALL) -> dict[str, dict[str, Any]]:
    """The component configs a diffusers folder holds, by folder name."""
    return {
        "unet": _unet_config(dims),
        "vae": {
            "_class_name": "AutoencoderKL",
            "block_out_channels": list(dims.vae),
            "down_block_types": ["DownEncoderBlock2D"] * len(dims.vae),
            "up_block_types": ["UpDecoderBlock2D"] * len(dims.vae),
            "layers_per_block": 2,
            "latent_channels": dims.latent,
            "scaling_factor": 0.13025,
        },
        "text_encoder": _text_config("CLIPTextModel", "quick_gelu", dims.text, dims.head),
        "text_encoder_2": _text_config("CLIPTextModelWithProjection", "gelu", dims.text_2, dims.head),
        "scheduler": {
            "_class_name": "EulerDiscreteScheduler",
            "beta_start": 0.00085,
            "beta_end": 0.012,
            "beta_schedule": "scaled_linear",
            "prediction_type": "epsilon",
        },
    }


def _unet_config(dims: Dims) -> dict[str, Any]:
    return {
        "_class_name": "UNet2DConditionModel",
        "in_channels": dims.latent,
        "out_channels": dims.latent,
        "block_out_channels": list(dims.channels),
        "layers_per_block": 2,
        "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
        "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
        "transformer_layers_per_block": list(dims.depth),
        "attention_head_dim": [width // dims.head for width in dims.channels],
        "cross_attention_dim": dims.context,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": dims.time,
        "projection_class_embeddings_input_dim": dims.text_2[0] + 6 * dims.time,
    }


def _text_config(name: str, activation: str, size: tuple[int, int], head: int) -> dict[str, Any]:
    width, layers = size
    return {
        "architectures": [name],
        "model_type": "clip_text_model",
        "hidden_act": activation,
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": width // head,
        "projection_dim": width,
        "max_position_embeddings": 77,
        "vocab_size": 49408,
        "eos_token_id": 2,
    }


def draw(shapes: Mapping[str, tuple[int, ...]], seed: int) -> Tensors:
    """Random float16 tensors of a size that keeps activations near 1: the same for the same names and seed."""
    generator = torch.Generator().manual_seed(seed)
    return {name: _draw(name, shape, generator) for name, shape in sorted(shapes.items())}


def _draw(name: str, shape: tuple[int, ...], generator: torch.Generator) -> torch.Tensor:
    noise = torch.randn(shape, generator=generator)
    if name.endswith("bias"):
        return (0.1 * noise).half()
    if len(shape) == 1:
        return (1 + 0.1 * noise).half()
    return (noise / noise[0].numel() ** 0.5 if "embedding.weight" not in name else noise).half()


def components(dims: Dims = SMALL, seed: int = 0) -> dict[str, Tensors]:
    """Weights of every component under the names a diffusers folder has."""
    return {name: draw(part, seed + number) for number, (name, part) in enumerate(shapes(dims).items())}


@cache
def shapes(dims: Dims = SMALL) -> dict[str, Shapes]:
    """Names and shapes of the weights of every component."""
    return {
        "unet": shapes_of("unet", configs(dims)["unet"]),
        "vae": shapes_of("vae", configs(dims)["vae"]),
        "text_encoder": _text_shapes(*dims.text),
        "text_encoder_2": {**_text_shapes(*dims.text_2), "text_projection.weight": (dims.text_2[0],) * 2},
    }


def shapes_of(kind: str, config: dict[str, Any]) -> Shapes:
    """Names and shapes of the tensors of a diffusers model with this config; ``kind`` as in the table below."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.controlnets.controlnet import ControlNetModel
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    kinds = {"unet": UNet2DConditionModel, "vae": AutoencoderKL, "controlnet": ControlNetModel}
    with torch.device("meta"):
        model = kinds[kind].from_config(config)
    return {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}


def _text_shapes(width: int, layers: int) -> Shapes:
    top = {"embeddings.token_embedding.weight": (49408, width), "embeddings.position_embedding.weight": (77, width)}
    shapes: Shapes = {**top, "final_layer_norm.weight": (width,), "final_layer_norm.bias": (width,)}
    for layer in range(layers):
        shapes.update({f"encoder.layers.{layer}.{name}": shape for name, shape in layer_shapes(width).items()})
    return {f"text_model.{name}": shape for name, shape in shapes.items()}


def layer_shapes(width: int) -> Shapes:
    """Names and shapes of the tensors of one CLIP layer."""
    linear = {f"self_attn.{name}_proj": (width, width) for name in ("q", "k", "v", "out")}
    linear |= {"mlp.fc1": (4 * width, width), "mlp.fc2": (width, 4 * width)}
    shapes: Shapes = {f"{name}.weight": shape for name, shape in linear.items()}
    shapes |= {f"{name}.bias": shape[:1] for name, shape in linear.items()}
    return shapes | {f"layer_norm{n}.{kind}": (width,) for n in (1, 2) for kind in ("weight", "bias")}


def checkpoint(path: Path, dims: Dims = SMALL, seed: int = 0, metadata: bool = True, without: str = "") -> Path:
    """Write an SDXL single-file checkpoint; with ``metadata`` its header holds the configs of its components."""
    parts = {name: part for name, part in components(dims, seed).items() if name != without}
    header = {"diffusers_config": json.dumps(configs(dims))} if metadata else {}
    save_file(contiguous(single_file(parts)), path, header | {"format": "pt"})
    return path


def folder(path: Path, dims: Dims = SMALL, seed: int = 0) -> Path:
    """Write the same weights as a diffusers folder."""
    parts = components(dims, seed)
    for name, config in configs(dims).items():
        (path / name).mkdir(parents=True)
        file = "scheduler_config.json" if name == "scheduler" else "config.json"
        (path / name / file).write_text(json.dumps(config))
        if name in parts:
            kind = "model" if name.startswith("text") else "diffusion_pytorch_model"
            save_file(parts[name], path / name / f"{kind}.safetensors", {"format": "pt"})
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(SHIPPED / name, path / name)
    (path / "model_index.json").write_text(json.dumps({"_class_name": "StableDiffusionXLPipeline"}))
    return path


def contiguous(tensors: Tensors) -> Tensors:
    """Tensors that can be written: no views into others."""
    return {name: tensor.clone().contiguous() for name, tensor in tensors.items()}


def lora(
    path: Path,
    dims: Dims = SMALL,
    layout: str = "sgm",
    rank: int = 4,
    alpha: float | None = 2.0,
    conv: bool = False,
    parts: tuple[str, ...] = ("unet", "text_encoder", "text_encoder_2"),
    seed: int = 7,
) -> Path:
    """Write a LoRA: ``layout`` is ``sgm`` or ``diffusers`` (kohya's files, by how they name the UNet) or ``peft``."""
    pairs: Tensors = {}
    for number, part in enumerate(parts):
        wanted = {name: shape for name, shape in shapes(dims)[part].items() if targeted(name, conv)}
        for name, (down, up) in _low_rank(wanted, rank, seed + number).items():
            pairs |= _lora_entry(part, name, layout, down, up, alpha)
    save_file(contiguous(pairs), path, _lora_header(layout, parts, rank, alpha))
    return path


def targeted(name: str, conv: bool) -> bool:
    """Whether a LoRA covers this weight: attention and feed-forward, with ``conv`` the residual blocks too."""
    kinds = ("attentions.", "self_attn.", "mlp.") + (("resnets.", "samplers.") if conv else ())
    return name.endswith(".weight") and "norm" not in name and any(kind in name for kind in kinds)


def _low_rank(shapes: Shapes, rank: int, seed: int) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    downs = draw({name: (rank, *shape[1:]) for name, shape in shapes.items()}, seed)
    ups = draw({name: (shape[0], rank, *(1 for _ in shape[2:])) for name, shape in shapes.items()}, seed + 100)
    return {name.removesuffix(".weight"): (downs[name], ups[name]) for name in shapes}


def _lora_entry(part: str, name: str, layout: str, *values: Any) -> Tensors:
    down, up, alpha = values
    if layout == "peft":
        return {f"{part}.{name}.lora_A.weight": down, f"{part}.{name}.lora_B.weight": up}
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[part]
    stem = prefix + (ldm_unet(name) if part == "unet" and layout == "sgm" else name).replace(".", "_")
    scale = {} if alpha is None else {f"{stem}.alpha": torch.tensor(alpha).half()}
    return {f"{stem}.lora_down.weight": down, f"{stem}.lora_up.weight": up, **scale}


def _lora_header(layout: str, parts: tuple[str, ...], rank: int, alpha: float | None) -> dict[str, str]:
    if layout != "peft" or alpha is None:
        return {"format": "pt"}
    settings = {f"{part}.{key}": value for part in parts for key, value in (("r", rank), ("lora_alpha", alpha))}
    return {"format": "pt", "lora_adapter_metadata": json.dumps(settings)}
