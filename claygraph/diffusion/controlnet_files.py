"""Loading ControlNets: a diffusers folder, a single file of diffusers' or the original layout, a Control-LoRA."""

from __future__ import annotations

import json
from collections.abc import Hashable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from claygraph import files
from claygraph.diffusion.checkpoint import read
from claygraph.diffusion.control_lora import MARKER, borrow, empty_like_unet
from claygraph.diffusion.describe import shapes
from claygraph.errors import WeightsError

if TYPE_CHECKING:
    from claygraph.memory import Memory
    from claygraph.values import Image, Weights

FIT = ("in_channels", "block_out_channels", "layers_per_block")
MIDDLES = ("controlnet_mid_block.weight", "middle_block_out.0.weight")
FAMILIES = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}
SIZE_EMBEDDING = {"label_emb.0.0": "add_embedding.linear_1", "label_emb.0.2": "add_embedding.linear_2"}
"""SDXL's part of the original names, which diffusers' converter leaves out."""
BORROWED = "control_loras"


@dataclass(eq=False)
class Network:
    """A ControlNet whose first layers, which see nothing but the hint, stand apart.

    ``hints`` holds what they made of each picture, by latent size, for as long as the picture lives, and ``masks`` each
    mask at the sizes it was shrunk to. ``borrows`` says that the network uses layers of the UNet.
    """

    model: Any
    borrows: bool = False
    embedding: Any = field(init=False)
    bgr: bool = field(init=False)
    hints: WeakKeyDictionary[Image, dict[tuple[int, int], Tensor]] = field(default_factory=WeakKeyDictionary)
    masks: WeakKeyDictionary[Image, dict[Hashable, Tensor]] = field(default_factory=WeakKeyDictionary)

    def __post_init__(self) -> None:
        self.embedding, self.model.controlnet_cond_embedding = self.model.controlnet_cond_embedding, torch.nn.Identity()
        self.bgr = self.model.config.controlnet_conditioning_channel_order == "bgr"
        self.model.register_to_config(controlnet_conditioning_channel_order="rgb")

    @property
    def stride(self) -> int:
        """Pixels of the hint per latent pixel: each width of the embedding but the first halves the picture."""
        return int(2 ** (len(self.model.config.conditioning_embedding_out_channels) - 1))


def load(weights: Weights, unet: Any, memory: Memory) -> Network:
    """The ControlNet in these weights, checked against the UNet it is to steer.

    A Control-LoRA is kept on the UNet whose layers it borrows, any other one in ``memory``.
    """
    path = files.locate(weights.path)
    if not path.is_dir() and MARKER in shapes(path):
        borrowed: dict[str, Network] = unet.__dict__.setdefault(BORROWED, {})
        if weights.digest not in borrowed:
            borrowed[weights.digest] = Network(borrow(path, unet, memory), borrows=True)
        return borrowed[weights.digest]
    network = memory.get(("controlnet", weights.digest), lambda: Network(_read(path, unet, memory)))
    _check_fit(path, network.model.config, unet.config)
    return network


def _read(path: Path, unet: Any, memory: Memory) -> Any:
    if path.is_dir():
        network, tensors = _empty_like_folder(path, unet), read(_largest(path), memory.device, memory.dtype)
    else:
        _check_file(path, unet)
        network = empty_like_unet(unet)
        tensors = _diffusers_names(read(path, memory.device, memory.dtype), network)
    try:
        network.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        kind = "the model in its config.json" if path.is_dir() else "a ControlNet for this checkpoint"
        raise WeightsError(
            f"controlnet={path.name!r} does not hold the weights of {kind}; give an SDXL ControlNet, as a "
            f"folder with its config.json or as one file. ({str(error).splitlines()[-1].strip()[:120]})"
        ) from error
    return network.eval().requires_grad_(False)


def _largest(folder: Path) -> Path:
    """The weights in a folder: the full ones rather than a variant such as ``.fp16``, whose name is longer."""
    found = sorted(folder.glob("*.safetensors"), key=lambda file: len(file.name))
    if not found:
        raise WeightsError(f"controlnet={folder.name!r} is a folder without a .safetensors file; give one that has it.")
    return found[0]


def _empty_like_folder(folder: Path, unet: Any) -> Any:
    from diffusers.models.controlnets.controlnet import ControlNetModel

    file = folder / "config.json"
    config = json.loads(file.read_text()) if file.is_file() else {}
    if config.get("_class_name") != "ControlNetModel":
        kind = config.get("_class_name", "a folder without config.json")
        raise WeightsError(f"controlnet={folder.name!r} is {kind}; give the folder of a ControlNetModel for SDXL.")
    with torch.device("meta"):
        network = ControlNetModel.from_config(config)
    _check_fit(folder, network.config, unet.config)
    return network


def _check_fit(path: Path, own: Any, wanted: Any) -> None:
    """Raise ``WeightsError`` unless a ControlNet of one config can steer a UNet of the other."""
    if any("CrossAttn" in str(kind) for kind in (*own["down_block_types"], own["mid_block_type"])):
        _check_width(path, own["cross_attention_dim"], wanted["cross_attention_dim"])
    for key in FIT:
        if json.dumps(own[key]) != json.dumps(wanted[key]):
            raise WeightsError(
                f"controlnet={path.name!r} was made for another kind of checkpoint: its {key} is {own[key]}, this "
                f"checkpoint's {wanted[key]}; give a ControlNet for SDXL."
            )


def _check_width(path: Path, own: int, wanted: int) -> None:
    if own != wanted:
        family = FAMILIES.get(own, "another kind of checkpoint")
        raise WeightsError(
            f"controlnet={path.name!r} was made for {family}: it reads text of width {own}, this checkpoint's has "
            f"{wanted}; give a ControlNet for SDXL."
        )


def _check_file(path: Path, unet: Any) -> None:
    """Raise ``WeightsError`` unless a single file looks like a ControlNet for this UNet."""
    found = shapes(path)
    union = any("task_embedding" in name for name in found)
    if union or not any(name.endswith(MIDDLES) for name in found):
        kind = "a union ControlNet" if union else "not a ControlNet"
        raise WeightsError(f"controlnet={path.name!r} is {kind}; give a ControlNet for SDXL made for one kind of hint.")
    for name, shape in found.items():
        if name.endswith("attn2.to_k.weight"):
            _check_width(path, shape[1], unet.config["cross_attention_dim"])


def _diffusers_names(tensors: dict[str, Tensor], network: Any) -> dict[str, Tensor]:
    """A single file's tensors under diffusers' names, from these or from the original ones."""
    from diffusers.loaders.single_file_utils import convert_controlnet_checkpoint

    converted = convert_controlnet_checkpoint(tensors, network.config)
    for name, tensor in tensors.items():
        stem, _, kind = name.removeprefix("control_model.").rpartition(".")
        if stem in SIZE_EMBEDDING:
            converted[f"{SIZE_EMBEDDING[stem]}.{kind}"] = tensor
    return dict(converted)
