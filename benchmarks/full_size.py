"""A full-size SDXL single file with random weights: the names, shapes and size of a real one, made with little memory.

One block of small normal float16 numbers is written over and over: what they are does not matter to a loader.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from claygraph.diffusion.describe import SHIPPED
from tests.tiny import Dims, shapes, shapes_of
from tests.tiny_layouts import Tensors, single_file

BLOCK = 2**24
TEXTS = Dims(text=(768, 12), text_2=(1280, 32))


def write(path: Path) -> int:
    """Write the file; how many bytes it has (6.9 GB)."""
    layout = {name: (tensor.dtype, tuple(tensor.shape)) for name, tensor in sorted(tensors().items())}
    header, total = _header(layout)
    block = (torch.randn(BLOCK // 2, generator=torch.Generator().manual_seed(0)) * 0.02).half().numpy().tobytes()
    with path.open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for start in range(0, total, BLOCK):
            file.write(block[: total - start])
        return file.tell()


def tensors() -> Tensors:
    """Every tensor of the file by its name in it, on the meta device."""
    parts: dict[str, Mapping[str, tuple[int, ...]]] = {
        name: shapes_of(name, json.loads((SHIPPED / name / "config.json").read_text())) for name in ("unet", "vae")
    }
    parts |= {name: shapes(TEXTS)[name] for name in ("text_encoder", "text_encoder_2")}
    return single_file({name: {key: _empty(shape) for key, shape in part.items()} for name, part in parts.items()})


def _empty(shape: tuple[int, ...]) -> torch.Tensor:
    return torch.empty(shape, dtype=torch.float16, device="meta")


def _header(layout: Mapping[str, tuple[torch.dtype, tuple[int, ...]]]) -> tuple[bytes, int]:
    """The JSON header of a safetensors file, padded to eight bytes, and the bytes that follow it."""
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, (dtype, shape) in layout.items():
        size = dtype.itemsize * torch.Size(shape).numel()
        kind = {torch.float16: "F16", torch.float32: "F32", torch.int64: "I64"}[dtype]
        entries[name] = {"dtype": kind, "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = json.dumps(entries).encode()
    return text + b" " * (-len(text) % 8), end
