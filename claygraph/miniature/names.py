"""Parameter names of the original (LDM, sgm, OpenCLIP, kohya) formats from those of diffusers and transformers."""

from __future__ import annotations

import re
from collections.abc import Mapping

import torch

Tensors = dict[str, torch.Tensor]

_UNET_HEADS = {
    "conv_in.": "input_blocks.0.0.",
    "time_embedding.linear_1.": "time_embed.0.",
    "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.",
    "add_embedding.linear_2.": "label_emb.0.2.",
    "conv_norm_out.": "out.0.",
    "conv_out.": "out.2.",
    "mid_block.resnets.0.": "middle_block.0.",
    "mid_block.attentions.0.": "middle_block.1.",
    "mid_block.resnets.1.": "middle_block.2.",
}
_RESNET = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_VAE_PARTS = {
    "conv_norm_out": "norm_out",
    "conv_shortcut": "nin_shortcut",
    "mid_block.resnets.0": "mid.block_1",
    "mid_block.resnets.1": "mid.block_2",
    "mid_block.attentions.0": "mid.attn_1",
    "group_norm": "norm",
    "to_q": "q",
    "to_k": "k",
    "to_v": "v",
    "to_out.0": "proj_out",
    "downsamplers.0": "downsample",
    "upsamplers.0": "upsample",
    ".resnets.": ".block.",
}
_OPEN_CLIP = {
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def unet_name(name: str) -> str:
    """A diffusers UNet parameter's name in LDM form, for two layers a block and attention from level 1 on."""
    for head, new in _UNET_HEADS.items():
        if name.startswith(head):
            return _resnet(new + name[len(head) :]) if ".resnets." in head else new + name[len(head) :]
    match = re.match(r"(down|up)_blocks\.(\d)\.(resnets|attentions|downsamplers|upsamplers)\.(\d)\.(.*)", name)
    if match is None:
        raise ValueError(f"no original name is known for the UNet parameter {name}")
    side, level, part, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    if part == "downsamplers":
        return f"input_blocks.{3 * (level + 1)}.0.{rest.replace('conv', 'op', 1)}"
    if part == "upsamplers":
        return f"output_blocks.{3 * level + 2}.{2 if level < 2 else 1}.{rest}"
    block = f"input_blocks.{3 * level + index + 1}" if side == "down" else f"output_blocks.{3 * level + index}"
    return f"{block}.1.{rest}" if part == "attentions" else f"{block}.0.{_resnet(rest)}"


def _resnet(rest: str) -> str:
    parts = [_RESNET.get(part, part) for part in rest.split(".")]
    return ".".join(parts)


def vae_name(name: str, levels: int) -> str:
    """A diffusers autoencoder parameter's name in LDM form."""
    for part, new in _VAE_PARTS.items():
        name = name.replace(part, new)
    name = re.sub(r"down_blocks\.(\d)", r"down.\1", name)
    return re.sub(r"up_blocks\.(\d)", lambda m: f"up.{levels - 1 - int(m[1])}", name)


def vae_tensors(state: Mapping[str, torch.Tensor], levels: int) -> Tensors:
    """An autoencoder in LDM form, where attention weights are 1x1 convolutions."""
    named = {vae_name(n, levels): t for n, t in state.items()}
    return {n: t[:, :, None, None] if "attn_1" in n and t.ndim == 2 else t for n, t in named.items()}


def open_clip_tensors(state: Mapping[str, torch.Tensor]) -> Tensors:
    """A transformers CLIP text encoder with projection in OpenCLIP form: q, k and v in one matrix."""
    text = {n.removeprefix("text_model."): t for n, t in state.items()}
    out = {
        "token_embedding.weight": text["embeddings.token_embedding.weight"],
        "positional_embedding": text["embeddings.position_embedding.weight"],
        "ln_final.weight": text["final_layer_norm.weight"],
        "ln_final.bias": text["final_layer_norm.bias"],
        "text_projection": text["text_projection.weight"].T,
    }
    for name, tensor in text.items():
        layer = re.match(r"encoder\.layers\.(\d+)\.(.*)\.(weight|bias)$", name)
        if layer is None:
            continue
        block = f"transformer.resblocks.{layer[1]}"
        if layer[2] in _OPEN_CLIP:
            out[f"{block}.{_OPEN_CLIP[layer[2]]}.{layer[3]}"] = tensor
        elif layer[2] == "self_attn.q_proj":
            parts = [text[name.replace("q_proj", f"{which}_proj")] for which in "qkv"]
            out[f"{block}.attn.in_proj_{layer[3]}"] = torch.cat(parts)
    return out
