"""ControlNet: what a hint picture adds to the UNet's skip connections and middle (arXiv 2302.05543)."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from claygraph import files
from claygraph.diffusion.checkpoint import read
from claygraph.errors import WeightsError

if TYPE_CHECKING:
    from claygraph.diffusion.rows import Row
    from claygraph.memory import Memory
    from claygraph.values import Bytes, Control, Weights

FIT = ("in_channels", "block_out_channels", "down_block_types", "layers_per_block", "cross_attention_dim")

SIZE_EMBEDDING = {"label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"}
"""SDXL's part of the original names, which diffusers' converter leaves out."""


def residuals(unet: Any, rows: Sequence[Row], inputs: dict[str, Any], memory: Memory) -> dict[str, Any]:
    """The UNet's extra arguments: the sum of what all controls add, or nothing where none has a strength.

    ``inputs`` are the arguments that ControlNets and the UNet share.
    """
    count = len(rows[0].model.controls)
    found = [added for place in range(count) if (added := _one(unet, rows, place, inputs, memory))]
    if not found:
        return {}
    total = [torch.stack(parts).sum(0) if len(parts) > 1 else parts[0] for parts in zip(*found, strict=True)]
    return {"down_block_additional_residuals": tuple(total[:-1]), "mid_block_additional_residual": total[-1]}


def _one(unet: Any, rows: Sequence[Row], place: int, inputs: dict[str, Any], memory: Memory) -> list[Tensor]:
    """What the control at one place of the stack adds, the middle last; nothing where no row has a strength."""
    controls = [row.model.controls[place] for row in rows]
    strengths = [control.strength * row.active(control) for row, control in zip(rows, controls, strict=True)]
    if not any(strengths):
        return []
    network = load(controls[0].weights, unet, memory)
    down, middle = network(
        **inputs,
        controlnet_cond=_hints(controls, inputs["sample"], stride(network)),
        conditioning_scale=torch.tensor(strengths).to(inputs["sample"])[:, None, None, None],
        return_dict=False,
    )
    return [*down, middle]


def stride(network: Any) -> int:
    """Pixels of the hint per latent pixel: each width of the hint's embedding but the first halves the picture."""
    return int(2 ** (len(network.config.conditioning_embedding_out_channels) - 1))


def _hints(controls: Sequence[Control], sample: Tensor, step: int) -> Tensor:
    """The rows' hints, each picture prepared once."""
    height, width = sample.shape[2] * step, sample.shape[3] * step
    pictures = {id(control.hint): control.hint.pixels for control in controls}
    fitted = {key: fit(pixels, height, width).to(sample) for key, pixels in pictures.items()}
    return torch.stack([fitted[id(control.hint)] for control in controls])


def fit(pixels: Bytes, height: int, width: int) -> Tensor:
    """uint8 ``[H, W, 3]`` as float32 ``[3, height, width]`` in 0..1: the middle of that aspect, nearest pixels."""
    picture = torch.tensor(pixels).permute(2, 0, 1)
    high, wide = picture.shape[1:]
    top = round((high - wide * height / width) / 2) if high * width > wide * height else 0
    left = round((wide - high * width / height) / 2) if high * width < wide * height else 0
    middle = picture[None, :, top : high - top, left : wide - left].float() / 255
    return interpolate(middle, (height, width), mode="nearest-exact")[0]


def load(weights: Weights, unet: Any, memory: Memory) -> Any:
    """The ControlNet of a diffusers folder or of a single file (diffusers' or the original key layout)."""
    network = memory.get(("controlnet", weights.digest), lambda: _load(weights, unet, memory))
    if _shape(network) != _shape(unet):
        raise WeightsError(
            f"controlnet={_name(weights)!r} was made for another kind of checkpoint: it reads text of width "
            f"{network.config.cross_attention_dim} in blocks {_widths(network)}, this one writes "
            f"{unet.config.cross_attention_dim} in {_widths(unet)}; give a ControlNet for SDXL."
        )
    return network


def _shape(model: Any) -> str:
    return json.dumps([model.config[key] for key in FIT])


def _name(weights: Weights) -> str:
    return files.locate(weights.path).name


def _widths(model: Any) -> str:
    return "x".join(map(str, model.config.block_out_channels))


def _load(weights: Weights, unet: Any, memory: Memory) -> Any:
    path = files.locate(weights.path)
    network = _empty_like_folder(path) if path.is_dir() else _empty_like_unet(unet)
    tensors = read(_file(path), memory.device, memory.dtype)
    if not path.is_dir():
        tensors = _diffusers_names(path.name, tensors, network)
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"controlnet={path.name!r} does not hold the weights of {_kind(path)}; give an SDXL ControlNet, as a "
            f"folder with its config.json or as one file. ({str(error).splitlines()[-1].strip()[:120]})"
        ) from error
    return network.eval().requires_grad_(False)


def _kind(path: Path) -> str:
    return "the model in its config.json" if path.is_dir() else "a ControlNet for this checkpoint"


def _file(path: Path) -> Path:
    """The weights in a folder: the full ones rather than a variant such as ``.fp16``, whose name is longer."""
    found = sorted(path.glob("*.safetensors"), key=lambda file: len(file.name)) if path.is_dir() else [path]
    if not found:
        raise WeightsError(f"controlnet={path.name!r} is a folder without a .safetensors file; give one that has it.")
    return found[0]


def _empty_like_folder(folder: Path) -> Any:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    if config.get("_class_name") != "ControlNetModel":
        kind = config.get("_class_name", "a folder without config.json")
        raise WeightsError(f"controlnet={folder.name!r} is {kind}; give the folder of a ControlNetModel for SDXL.")
    with torch.device("meta"):
        return ControlNetModel.from_config(config)


def _empty_like_unet(unet: Any) -> Any:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    with torch.device("meta"):
        return ControlNetModel.from_unet(unet, load_weights_from_unet=False)


def _diffusers_names(file: str, tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """A single file's tensors under diffusers' names, from these or from the original ones."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    if not any(name.endswith(("controlnet_mid_block.weight", "middle_block_out.0.weight")) for name in tensors):
        kind = "a Control-LoRA, which is not supported" if "lora_controlnet" in tensors else "not a ControlNet"
        raise WeightsError(f"controlnet={file!r} is {kind}; give a ControlNet for SDXL.")
    converted = convert_controlnet_checkpoint(tensors, network.config)
    for name, tensor in tensors.items():
        stem, _, kind = name.removeprefix("control_model.").rpartition(".")
        if stem in SIZE_EMBEDDING:
            converted[f"{SIZE_EMBEDDING[stem]}.{kind}"] = tensor
    return dict(converted)
