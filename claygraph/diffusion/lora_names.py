"""The names LoRA files give the layers of a UNet and its text encoders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable


def spellings(part: str, names: Iterable[str]) -> dict[str, str]:
    """Every spelling a LoRA file may use for the layers ``names`` of a component, with the layer's name."""
    spell = _unet if part == "unet" else _text_encoder if part == "text_encoder" else _text_encoder_2
    return {spelling: name for name in names for spelling in spell(name)}


def _unet(name: str) -> tuple[str, ...]:
    ldm = ldm_name(name)
    kohya = (f"lora_unet_{spelling.replace('.', '_')}" for spelling in (name, ldm))
    return *kohya, f"unet.{name}", f"base_model.model.{name}", f"diffusion_model.{ldm}"


def _text_encoder(name: str) -> tuple[str, ...]:
    full = _with_text_model(name)
    kohya = full.replace(".", "_")
    return f"lora_te1_{kohya}", f"lora_te_{kohya}", f"text_encoder.{full}"


def _text_encoder_2(name: str) -> tuple[str, ...]:
    full = _with_text_model(name)
    return f"lora_te2_{full.replace('.', '_')}", f"text_encoder_2.{full}"


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
    ".conv1": ".in_layers.2",
    ".time_emb_proj": ".emb_layers.1",
    ".conv2": ".out_layers.3",
    ".conv_shortcut": ".skip_connection",
}
_TOP = {
    "conv_in": "input_blocks.0.0",
    "conv_out": "out.2",
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
}
