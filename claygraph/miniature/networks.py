"""The miniature's network shapes (SDXL's block structure, small widths) and the noise schedule they share."""

from __future__ import annotations

from typing import Any, TypeAlias

import torch
from diffusers import AutoencoderKL, ControlNetModel, UNet2DConditionModel
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

Unet: TypeAlias = Any
Vae: TypeAlias = Any
ControlNet: TypeAlias = Any
ImageEncoder: TypeAlias = Any
"""The libraries' network classes; their own annotations do not carry through `strict`."""

TEXT_WIDTH = 40
TOKENS = 77
VOCABULARY = 49408
BOS, EOS = 49406, 49407

UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "block_out_channels": (48, 96, 128),
    "layers_per_block": 2,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "transformer_layers_per_block": (1, 1, 1),
    "attention_head_dim": (1, 3, 4),
    "cross_attention_dim": 2 * TEXT_WIDTH,
    "use_linear_projection": True,
    "norm_num_groups": 4,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 16,
    "projection_class_embeddings_input_dim": 6 * 16 + TEXT_WIDTH,
}
VAE: dict[str, Any] = {
    "sample_size": 256,
    "block_out_channels": (16, 32, 64),
    "layers_per_block": 1,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "latent_channels": 4,
    "norm_num_groups": 1,
    "scaling_factor": 0.25,
    "force_upcast": False,
}
SCHEDULER: dict[str, Any] = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "timestep_spacing": "leading",
    "steps_offset": 1,
    "clip_sample": False,
    "interpolation_type": "linear",
}
_unet_class: Any = UNet2DConditionModel
_vae_class: Any = AutoencoderKL
HINT_CHANNELS = (16, 24, 32, 48)
"""ControlNet hint embedding: four entries halve the hint three times, so it is 8 px a latent pixel like SDXL's."""


def alphas_cumprod() -> torch.Tensor:
    """Signal power at each of the 1000 timesteps (Stable Diffusion's scaled-linear betas)."""
    betas = torch.linspace(SCHEDULER["beta_start"] ** 0.5, SCHEDULER["beta_end"] ** 0.5, 1000) ** 2
    return torch.cumprod(1 - betas, 0)


def make_unet() -> Unet:
    """An untrained UNet."""
    return _unet_class(**UNET)


def make_vae() -> Vae:
    """An untrained f4 autoencoder."""
    return _vae_class(**VAE)


def make_controlnet(unet: Unet) -> ControlNet:
    """A ControlNet that starts from the UNet's encoder half."""
    return ControlNetModel.from_unet(unet, conditioning_embedding_out_channels=HINT_CHANNELS)


def text_config(vocabulary: int, eos: int, activation: str) -> CLIPTextConfig:
    """A CLIP text encoder's shape for `vocabulary` rows."""
    return CLIPTextConfig(
        vocab_size=vocabulary,
        hidden_size=TEXT_WIDTH,
        intermediate_size=4 * TEXT_WIDTH,
        num_hidden_layers=3,
        num_attention_heads=2,
        max_position_embeddings=TOKENS,
        projection_dim=TEXT_WIDTH,
        hidden_act=activation,
        bos_token_id=eos - 1,
        eos_token_id=eos,
        pad_token_id=0,
    )


def make_text_encoders(vocabulary: int, eos: int) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """The two untrained encoders: quick_gelu as in CLIP-L, gelu with a projection as in OpenCLIP."""
    first = CLIPTextModel(text_config(vocabulary, eos, "quick_gelu"))
    return first, CLIPTextModelWithProjection(text_config(vocabulary, eos, "gelu"))


def size_vector(latents: torch.Tensor) -> torch.Tensor:
    """SDXL's six sizes for latents [B,4,h,w]: (8h, 8w, 0, 0, 8h, 8w), [B,6]."""
    height, width = 8.0 * latents.shape[-2], 8.0 * latents.shape[-1]
    return torch.tensor([height, width, 0, 0, height, width], device=latents.device).expand(len(latents), 6)


def added(pooled: torch.Tensor, latents: torch.Tensor) -> dict[str, torch.Tensor]:
    """`added_cond_kwargs` of a UNet or ControlNet call."""
    return {"text_embeds": pooled, "time_ids": size_vector(latents)}
