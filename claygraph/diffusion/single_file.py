"""Tensors of a single-file checkpoint under the names that the models have: those of diffusers and transformers.

The names of single files are those of the models that were first trained: CompVis' latent diffusion, and open_clip.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from claygraph.diffusion.lora_names import diffusers_name

if TYPE_CHECKING:
    from torch import Tensor

    Tensors = dict[str, Tensor]

_VAE_LAYERS = {
    ".nin_shortcut.": ".conv_shortcut.",
    ".norm_out.": ".conv_norm_out.",
    ".mid.block_1.": ".mid_block.resnets.0.",
    ".mid.block_2.": ".mid_block.resnets.1.",
    ".mid.attn_1.norm.": ".mid_block.attentions.0.group_norm.",
    ".mid.attn_1.q.": ".mid_block.attentions.0.to_q.",
    ".mid.attn_1.k.": ".mid_block.attentions.0.to_k.",
    ".mid.attn_1.v.": ".mid_block.attentions.0.to_v.",
    ".mid.attn_1.proj_out.": ".mid_block.attentions.0.to_out.0.",
}
_VAE_SAMPLERS = {"downsample": "downsamplers.0", "upsample": "upsamplers.0"}
_VAE_PARTS = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.")
_CLIP_LAYERS = {
    ".attn.": ".self_attn.",
    ".ln_1.": ".layer_norm1.",
    ".ln_2.": ".layer_norm2.",
    ".mlp.c_fc.": ".mlp.fc1.",
    ".mlp.c_proj.": ".mlp.fc2.",
}
_CLIP_TOP = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.weight": "text_model.final_layer_norm.weight",
    "ln_final.bias": "text_model.final_layer_norm.bias",
    "text_projection.weight": "text_projection.weight",
}


def unet(tensors: Tensors) -> Tensors:
    """A UNet's tensors, given under latent diffusion's names without a prefix."""
    return {_layer(name, diffusers_name): tensor for name, tensor in tensors.items()}


def _layer(name: str, renamed: Callable[[str], str]) -> str:
    layer, dot, kind = name.rpartition(".")
    return renamed(layer) + dot + kind


def vae(tensors: Tensors) -> Tensors:
    """A VAE's tensors; what belongs to no layer of it is left out, and its attention is linear where it was 1 x 1."""
    levels = 1 + max(
        (int(found[1]) for name in tensors if (found := re.match(r"decoder\.up\.(\d+)\.", name))), default=0
    )
    kept = {name: tensor for name, tensor in tensors.items() if name.startswith(_VAE_PARTS)}
    made = {_vae_name(name, levels): tensor for name, tensor in kept.items()}
    return {name: _linear(tensor) if ".attentions." in name else tensor for name, tensor in made.items()}


def _vae_name(name: str, levels: int) -> str:
    """Levels of the decoder are numbered from the latent on here, from the picture on there."""
    found = re.match(r"(encoder|decoder)\.(?:down|up)\.(\d+)\.(?:block\.(\d+)|(downsample|upsample))\.(.*)", name)
    if not found:
        return _replaced(name, _VAE_LAYERS)
    side, level, block, sampler, rest = found.groups()
    blocks = f"{side}.down_blocks.{level}" if side == "encoder" else f"{side}.up_blocks.{levels - 1 - int(level)}"
    return (
        f"{blocks}.{f'resnets.{block}' if block else _VAE_SAMPLERS[sampler]}.{_replaced(f'.{rest}', _VAE_LAYERS)[1:]}"
    )


def _linear(weight: Tensor) -> Tensor:
    return weight[:, :, 0, 0] if weight.dim() == 4 else weight


def _replaced(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def open_clip(tensors: Tensors) -> Tensors:
    """A text encoder's tensors, given under open_clip's names: stacked queries, keys and values become views."""
    made = {_CLIP_TOP[name]: tensor for name, tensor in tensors.items() if name in _CLIP_TOP}
    if "text_projection" in tensors:
        made["text_projection.weight"] = tensors["text_projection"].T
    for name, tensor in tensors.items():
        if found := re.match(r"transformer\.resblocks\.(\d+\..*)", name):
            made |= _parts(_replaced(f"text_model.encoder.layers.{found[1]}", _CLIP_LAYERS), tensor)
    return made


def _parts(name: str, tensor: Tensor) -> Tensors:
    layer, stacked, kind = name.rpartition(".in_proj_")
    if not stacked:
        return {name: tensor}
    return {f"{layer}.{part}_proj.{kind}": each for part, each in zip("qkv", tensor.chunk(3), strict=True)}
