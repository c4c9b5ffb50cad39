"""Full-size SDXL with random weights, as the files a user has: the names, shapes and sizes of the real ones.

The numbers are of a size that keeps activations near 1, so that every part computes in float16 as a trained one does;
what comes of a photo is no picture. Where ``Dims`` and ``Vision`` are small, the same is written small.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from benchmarks.by_hand import Parts
from benchmarks.models import Weights, convert
from claygraph.diffusion.describe import SHIPPED
from claygraph.files import locate
from tests.tiny import Dims, draw, lora, shapes
from tests.tiny_adapters import Vision, controlnet, image_encoder, ip_adapter
from tests.tiny_layouts import Tensors, single_file

VIT_H = Vision(width=1280, layers=32, heads=16, embedding=1024)


def shipped() -> Dims:
    """SDXL's widths and depths, read from its configs."""
    unet, vae, text, text_2 = map(_config, ("unet", "vae", "text_encoder", "text_encoder_2"))
    return Dims(
        channels=tuple(unet["block_out_channels"]),
        depth=tuple(unet["transformer_layers_per_block"]),
        head=unet["block_out_channels"][0] // unet["attention_head_dim"][0],
        text=(text["hidden_size"], text["num_hidden_layers"]),
        text_2=(text_2["hidden_size"], text_2["num_hidden_layers"]),
        time=unet["addition_time_embed_dim"],
        vae=tuple(vae["block_out_channels"]),
        latent=vae["latent_channels"],
    )


def _config(part: str) -> dict[str, Any]:
    return dict(json.loads((SHIPPED / part / "config.json").read_text()))


FULL = shipped()


def weights(folder: Path, dims: Dims = FULL, vision: Vision = VIT_H) -> Weights:
    """All that both sides need, below ``folder``, where it is written unless it is there (19 GB, some minutes)."""
    made = Files(folder.resolve() / "sdxl")
    if not (made.pipeline / "model_index.json").is_file():  # which is written last
        shutil.rmtree(made.folder, ignore_errors=True)
        _write_adapters(made, dims, vision)
        write(made.checkpoint, dims)
        convert(str(made.checkpoint), made.pipeline)
    pipeline, low_rank, adapter, control = map(str, (made.pipeline, made.lora, made.adapter, made.controlnet))
    tagger = str(locate("miniature:tagger/moat"))
    return Weights(Parts(pipeline, low_rank, adapter, control, tagger, hint=1), made.overrides())


@dataclass(frozen=True)
class Files:
    """Where the files lie: the checkpoint as a single file, and the same as a pipeline's folder; the adapters."""

    folder: Path

    @property
    def checkpoint(self) -> Path:
        return self.folder / "checkpoint.safetensors"

    @property
    def pipeline(self) -> Path:
        return self.folder / "pipeline"

    @property
    def lora(self) -> Path:
        return self.folder / "lora.safetensors"

    @property
    def controlnet(self) -> Path:
        return self.folder / "controlnet"

    @property
    def adapter(self) -> Path:
        return self.folder / "ip_adapter" / "ip-adapter.safetensors"

    @property
    def encoder(self) -> Path:
        return self.folder / "ip_adapter" / "image_encoder"  # where diffusers looks for it

    def overrides(self) -> tuple[str, ...]:
        """What the default graph is told to use them; SDXL's ControlNet has as many pixels as the photo."""
        files = {"checkpoint.path": self.checkpoint, "lora.clay.path": self.lora, "controlnet.path": self.controlnet}
        files |= {"ip_adapter.path": self.adapter, "ip_adapter.encoder": self.encoder}
        return ("edges.scale=1.0", *(f"{setting}={path}" for setting, path in files.items()))


def _write_adapters(made: Files, dims: Dims, vision: Vision) -> None:
    """A kohya LoRA for UNet and text encoders, a ControlNet, a plain IP-Adapter of 4 tokens and its encoder."""
    image_encoder(made.encoder, sizes=vision)
    ip_adapter(made.adapter, dims, embedding=vision.embedding)
    controlnet(made.controlnet, dims)
    lora(made.lora, dims, rank=16)


def write(path: Path, dims: Dims = FULL) -> int:
    """Write the single file, one tensor after another; how many bytes it has (6.9 GB)."""
    layout = dict(sorted(tensors(dims).items()))
    header = _header({name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in layout.items()})
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for seed, (name, tensor) in enumerate(layout.items()):
            drawn = draw({name: tuple(tensor.shape)}, seed)[name] if tensor.is_meta else tensor
            file.write(drawn.numpy().tobytes())
        return file.tell()


def tensors(dims: Dims = FULL) -> Tensors:
    """Every tensor of the file by its name in it; those to be drawn are on the meta device."""
    parts = {name: {key: _empty(shape) for key, shape in part.items()} for name, part in shapes(dims).items()}
    return single_file(parts)


def _empty(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float16, device="meta")


def _header(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> bytes:
    """The JSON header of a safetensors file, padded to eight bytes."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in layout.items():
        size = dtype.itemsize * torch.Size(shape).numel()
        kind = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}[dtype]
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8)
