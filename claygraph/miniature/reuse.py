"""Take parts of an exported family back into the work folder as if their training had just ended.

So a later training of the other parts builds on them, and a longer training of a part can start where the last ended.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from claygraph.diffusion.checkpoint import load_text_encoders, load_unet, load_vae
from claygraph.diffusion.describe import describe
from claygraph.files import weights as weights_of
from claygraph.memory import Memory
from claygraph.miniature.family import Base, load_base, vocabulary
from claygraph.miniature.ip_adapter import add_ip_adapter, ip_tensors
from claygraph.miniature.lora import add_lora, lora_tensors
from claygraph.miniature.networks import VAE, make_controlnet
from claygraph.values import Checkpoint

Tensors = dict[str, torch.Tensor]
FINISHED = {"progress": json.dumps({"step": 0, "elapsed": 0.0})}


def reuse(work: Path, weights: Path, part: str) -> None:
    """Write the checkpoint of `part` from the exported files below `weights`; one that is there is kept."""
    target = work / f"checkpoints/{part}.safetensors"
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        tensors = {n: t.detach().float().contiguous() for n, t in PARTS[part](work, weights).items()}
        both = {f"{kind}.{n}": t.clone() for n, t in tensors.items() for kind in ("average", "model")}
        save_file(both, target, FINISHED)


def _checkpoint(weights: Path) -> Checkpoint:
    return describe(weights_of("checkpoint", str(weights / "checkpoint/clay_mini.safetensors")))


def _memory() -> Memory:
    return Memory("cpu", "float32")


def _vae(work: Path, weights: Path) -> Tensors:
    """The autoencoder; its latents are normalised already, so the statistics that fold them say so."""
    deviation = 1 / VAE["scaling_factor"]
    (work / "latents").mkdir(parents=True, exist_ok=True)
    (work / "latents/statistics.json").write_text(json.dumps({"mean": [0.0] * 4, "deviation": [deviation] * 4}))
    return dict(load_vae(_checkpoint(weights), _memory()).state_dict())


def _image_encoder(_work: Path, weights: Path) -> Tensors:
    tensors = load_file(weights / "ip_adapter/image_encoder/model.safetensors")
    return {f"encoder.{n}": t for n, t in tensors.items()}


def _base(work: Path, weights: Path) -> Tensors:
    """UNet, text encoders, ControlNet and IP-Adapter, as step `base` trains them together."""
    base = Base(vocabulary(work))
    base.unet.load_state_dict(load_unet(_checkpoint(weights), _memory()).state_dict())
    _fill_text(base, weights)
    controlnet = make_controlnet(base.unet)
    controlnet.load_state_dict(load_file(weights / "controlnet/canny/diffusion_pytorch_model.safetensors"))
    add_ip_adapter(base.unet)
    _copy(load_file(weights / "ip_adapter/ip-adapter_mini.safetensors"), ip_tensors(base.unet))
    parts = {"base": base, "controlnet": controlnet}
    return {f"{name}.{n}": p for name, module in parts.items() for n, p in module.named_parameters()}


def _fill_text(base: Base, weights: Path) -> None:
    """Both text encoders, their tables cut down to the words that training knows."""
    for encoder, found in zip(
        (base.text.first, base.text.second), load_text_encoders(_checkpoint(weights), _memory()), strict=True
    ):
        state = found.state_dict()
        table = next(name for name in state if name.endswith("token_embedding.weight"))
        encoder.load_state_dict(state | {table: state[table][base.text.vocabulary.ids]})


def _lora(name: str) -> Callable[[Path, Path], Tensors]:
    def read(work: Path, weights: Path) -> Tensors:
        base = load_base(work)
        add_lora(base, name)
        _copy(load_file(weights / f"lora/{name}.safetensors"), lora_tensors(base))
        return {n: p for n, p in base.named_parameters() if n.endswith((".0.down", ".0.up"))}

    return read


def _copy(found: Tensors, into: Tensors) -> None:
    """Write into the tensors of these names, which lie in a model."""
    with torch.no_grad():
        for name, tensor in into.items():
            tensor.copy_(found[name])


PARTS: dict[str, Callable[[Path, Path], Tensors]] = {
    "vae": _vae,
    "image_encoder": _image_encoder,
    "base": _base,
    "lora_clay": _lora("clay"),
    "lora_toy": _lora("toy"),
}
