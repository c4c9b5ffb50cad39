"""The names LoRA files give the layers of a UNet and its text encoders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable

BLOCKS = ("BASE", *(f"IN{n:02}" for n in range(9)), "MID", *(f"OUT{n:02}" for n in range(9)))
"""SDXL's blocks as block weights name them, in the order of the UNet; BASE is what lies outside of every block."""


def spellings(part: str, names: Iterable[str]) -> dict[str, str]:
    """Every spelling a LoRA file may use for the layers ``names`` of a component, with the layer's name."""
    spell = _unet if part == "unet" else _text_encoder if part == "text_encoder" else _text_encoder_2
    return {spelling: name for name in names for spelling in spell(name)}


def _unet(name: str) -> tuple[str, ...]:
    ldm = ldm_name(name)
    flat, flat_ldm = name.replace(".", "_"), ldm.replace(".", "_")
    kohya = (f"lora_unet_{flat}", f"lora_unet_{flat_ldm}", f"lycoris_{flat}")
    return *kohya, name, f"unet.{name}", f"base_model.model.{name}", f"diffusion_model.{ldm}"


def _text_encoder(name: str) -> tuple[str, ...]:
    full = _with_text_model(name)
    flat = full.replace(".", "_")
    return f"lora_te1_{flat}", f"lora_te_{flat}", f"text_encoder.{full}", f"text_encoders.clip_l.transformer.{full}"


def _text_encoder_2(name: str) -> tuple[str, ...]:
    full = _with_text_model(name)
    flat = full.replace(".", "_")
    return f"lora_te2_{flat}", f"text_encoder_2.{full}", f"text_encoders.clip_g.transformer.{full}"


def _with_text_model(name: str) -> str:
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def ldm_name(name: str) -> str:
    """The name a UNet layer has in a single-file checkpoint: blocks are numbered through, three to a level."""
    for pattern, block in _BLOCKS:
        if found := re.match(pattern, name):
            level, index = ([0, 0] + [int(number) for number in found.groups()])[-2:]
            rest = name[found.end() :]
            return block(3 * level + index) + _RESNET.get(rest, rest)
    return _TOP.get(name, name)


def diffusers_name(ldm: str) -> str:
    """The other way round: the diffusers name of a layer of a single-file checkpoint's UNet."""
    found = re.match(r"(input|middle|output)_block(?:s\.(\d+))?\.(\d+)(\..*)", ldm)
    if not found or ldm in _TOP_BACK:
        return _TOP_BACK.get(ldm, ldm)
    side, number, index, rest = found[1], int(found[2] or 0), int(found[3]), found[4]
    if side == "middle":
        return f"mid_block.{_KINDS[index % 2]}.{index // 2}{_RESNET_BACK.get(rest, rest)}"
    if rest in (".op", ".conv"):
        return f"{'down' if side == 'input' else 'up'}_blocks.{(number - 1) // 3}.{_SAMPLERS[side]}.0.conv"
    level, place = divmod(number - (side == "input"), 3)
    sides = {"input": "down", "output": "up"}
    return f"{sides[side]}_blocks.{level}.{_KINDS[index]}.{place}{_RESNET_BACK.get(rest, rest)}"


def block_of(name: str) -> int:
    """The place in ``BLOCKS`` of a UNet layer, by its diffusers name; 0 for what is in no block."""
    side, number = [*ldm_name(name).split("."), ""][:2]
    if side == "middle_block":
        return BLOCKS.index("MID")
    first = {"input_blocks": "IN00", "output_blocks": "OUT00"}.get(side)
    return BLOCKS.index(first) + min(int(number), 8) if first else 0


_KINDS = ("resnets", "attentions")
_SAMPLERS = {"input": "downsamplers", "output": "upsamplers"}
_BLOCKS: list[tuple[str, Callable[[int], str]]] = [
    (r"down_blocks\.(\d)\.resnets\.(\d)", lambda block: f"input_blocks.{block + 1}.0"),
    (r"down_blocks\.(\d)\.attentions\.(\d)", lambda block: f"input_blocks.{block + 1}.1"),
    (r"down_blocks\.(\d)\.downsamplers\.(0)\.conv", lambda block: f"input_blocks.{block + 3}.0.op"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda block: f"output_blocks.{block}.0"),
    (r"up_blocks\.(\d)\.attentions\.(\d)", lambda block: f"output_blocks.{block}.1"),
    (r"up_blocks\.(\d)\.upsamplers\.(0)\.conv", lambda block: f"output_blocks.{block + 2}.2.conv"),
    (r"mid_block\.resnets\.(\d)", lambda block: f"middle_block.{2 * block}"),
    (r"mid_block\.attentions\.(\d)", lambda block: f"middle_block.{2 * block + 1}"),
]
_RESNET = {
    ".norm1": ".in_layers.0",
    ".conv1": ".in_layers.2",
    ".time_emb_proj": ".emb_layers.1",
    ".norm2": ".out_layers.0",
    ".conv2": ".out_layers.3",
    ".conv_shortcut": ".skip_connection",
}
_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
_RESNET_BACK = {ldm: name for name, ldm in _RESNET.items()}
_TOP_BACK = {ldm: name for name, ldm in _TOP.items()}
