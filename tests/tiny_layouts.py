"""The names tensors have in an SDXL single-file checkpoint (LDM, OpenCLIP), made from those of diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import torch

Tensors = dict[str, torch.Tensor]


def ldm_unet(name: str) -> str:
    """The name one UNet tensor or module has in a single-file checkpoint."""
    for pattern, new in _UNET_BLOCKS:
        if found := re.match(pattern, name):
            rest = name[found.end() :]
            return new(*(int(group) for group in found.groups())) + _rename(rest, _RESNET)
    return _rename(name, _UNET_TOP)


_UNET_BLOCKS: list[tuple[str, Callable[..., str]]] = [
    (r"down_blocks\.(\d)\.resnets\.(\d)", lambda i, j: f"input_blocks.{3 * i + j + 1}.0"),
    (r"down_blocks\.(\d)\.attentions\.(\d)", lambda i, j: f"input_blocks.{3 * i + j + 1}.1"),
    (r"down_blocks\.(\d)\.downsamplers\.0\.conv", lambda i: f"input_blocks.{3 * i + 3}.0.op"),
    (r"mid_block\.resnets\.(\d)", lambda j: f"middle_block.{2 * j}"),
    (r"mid_block\.attentions\.0", lambda: "middle_block.1"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda i, j: f"output_blocks.{3 * i + j}.0"),
    (r"up_blocks\.(\d)\.attentions\.(\d)", lambda i, j: f"output_blocks.{3 * i + j}.1"),
    (r"up_blocks\.(\d)\.upsamplers\.0\.conv", lambda i: f"output_blocks.{3 * i + 2}.2.conv"),
]
_RESNET = {
    ".norm1.": ".in_layers.0.", ".conv1": ".in_layers.2", ".time_emb_proj": ".emb_layers.1",
    ".norm2.": ".out_layers.0.", ".conv2": ".out_layers.3", ".conv_shortcut": ".skip_connection",
}  # fmt: skip
_UNET_TOP = {
    "conv_in": "input_blocks.0.0", "conv_norm_out": "out.0", "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0", "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0", "add_embedding.linear_2": "label_emb.0.2",
}  # fmt: skip
_VAE = {
    "mid_block.attentions.0": "mid.attn_1", "mid_block.resnets.0": "mid.block_1", "mid_block.resnets.1": "mid.block_2",
    "down_blocks": "down", "resnets": "block", "downsamplers.0": "downsample", "upsamplers.0": "upsample",
    "conv_norm_out": "norm_out", "conv_shortcut": "nin_shortcut", "group_norm": "norm",
    "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out",
}  # fmt: skip
_OPEN_CLIP = {
    "text_model.encoder.layers": "transformer.resblocks", "layer_norm1": "ln_1", "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj", "self_attn.out_proj": "attn.out_proj",
    "text_model.embeddings.token_embedding": "token_embedding", "text_model.final_layer_norm": "ln_final",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
}  # fmt: skip

_UNUSED = {
    "conditioner.embedders.0.transformer.": ("text_model.embeddings.position_ids", torch.arange(77)[None]),
    "conditioner.embedders.1.model.": ("logit_scale", torch.tensor(4.6)),
}


def _rename(name: str, table: Mapping[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new) if not name.startswith("transformer_blocks", 1) else name
    return name


def ldm_vae(tensors: Tensors) -> Tensors:
    """A VAE under the names of a single-file checkpoint, attention as 1x1 convolutions."""
    result = {}
    for name, tensor in tensors.items():
        name = re.sub(r"up_blocks\.(\d)", lambda found: f"up.{3 - int(found[1])}", name)
        name = _rename(name, _VAE)
        square = ".attn_1." in name and tensor.ndim == 2
        result[name] = tensor[:, :, None, None] if square else tensor
    return result


def open_clip(tensors: Tensors) -> Tensors:
    """A text encoder under OpenCLIP's names: q, k, v in one matrix, the projection transposed and bare."""
    result = {}
    for name, tensor in tensors.items():
        if ".q_proj." in name:
            stacked = [tensors[name.replace("q_proj", f"{part}_proj")] for part in "qkv"]
            joined = name.replace("self_attn.q_proj.", "attn.in_proj_")
            result[_rename(joined, _OPEN_CLIP)] = torch.cat(stacked)
        elif name == "text_projection.weight":
            result["text_projection"] = tensor.T.contiguous()
        elif ".k_proj." not in name and ".v_proj." not in name:
            result[_rename(name, _OPEN_CLIP)] = tensor
    return result


def single_file(parts: Mapping[str, Tensors]) -> Tensors:
    """Component weights under the names of an SDXL single-file checkpoint."""
    layouts = {
        "model.diffusion_model.": {ldm_unet(name): tensor for name, tensor in parts.get("unet", {}).items()},
        "first_stage_model.": ldm_vae(parts.get("vae", {})),
        "conditioner.embedders.0.transformer.": parts.get("text_encoder", {}),
        "conditioner.embedders.1.model.": open_clip(parts.get("text_encoder_2", {})),
    }
    for prefix, (name, unused) in _UNUSED.items():
        layouts[prefix] = {**layouts[prefix], name: unused} if layouts[prefix] else {}
    return {prefix + name: tensor for prefix, layout in layouts.items() for name, tensor in layout.items()}
