"""Textual inversion: words of a prompt that stand for vectors learned from pictures (Gal et al. 2022, 2208.01618).

``embedding:NAME`` in a prompt reads NAME.safetensors from a folder. A file for SDXL holds ``clip_l`` and ``clip_g``,
each ``[vectors, width of that text encoder]``. Nothing here but ``load`` needs torch.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path, PurePath
from typing import TYPE_CHECKING

from claygraph import files
from claygraph.diffusion import describe
from claygraph.diffusion.tokens import Learned, mentions
from claygraph.errors import WeightsError, nearest
from claygraph.values import Checkpoint, Weights

if TYPE_CHECKING:
    from torch import Tensor

    from claygraph.memory import Memory

KEYS = {"text_encoder": ("clip_l", "text_encoders_0"), "text_encoder_2": ("clip_g", "text_encoders_1")}
ENCODERS = {"text_encoder": "CLIP-L", "text_encoder_2": "OpenCLIP bigG"}
SUFFIXES = ("", ".safetensors", *files.PICKLES)


def find(setting: str, folder: str, texts: Iterable[str]) -> dict[str, Weights]:
    """The files of the embeddings that texts name, by name; ``setting`` is the one that names the folder.

    Raises ``WeightsError`` where the folder has no such file, or it is a pickle.
    """
    return dict(_named(setting, folder, raw) for text in texts for raw in mentions(text))


def _named(setting: str, folder: str, raw: str) -> tuple[str, Weights]:
    """A name as a text spells it, which may have commas after it."""
    for name in dict.fromkeys((raw, raw.rstrip(","))):
        for suffix in SUFFIXES if name else ():
            path = files.locate(folder) / f"{name}{suffix}"
            if folder and _inside(name) and os.path.isfile(path):  # noqa: PTH113 - never raises, whatever the name
                return name, files.weights(setting, str(path))
    known = [path.stem for path in files.locate(folder).glob("*.safetensors")] if folder else []
    raise WeightsError(
        f"embedding:{raw.rstrip(',')} has no .safetensors file in {setting}={folder!r}{nearest(raw, known)}"
    )


def _inside(name: str) -> bool:
    """Whether a name stays in its folder."""
    return not PurePath(name).is_absolute() and ".." not in PurePath(name).parts


def learned(checkpoint: Checkpoint, name: str, weights: Weights, part: str) -> tuple[Learned, ...]:
    """The vectors that an embedding has for one text encoder, by number.

    Raises ``WeightsError`` where the file has none, or none of the encoder's width.
    """
    found, width = describe.shapes(Path(weights.path)), int(describe.component(checkpoint, part)["hidden_size"])
    key = next((key for key in KEYS[part] if key in found), next(iter(found)) if len(found) == 1 else "")
    shape = found.get(key, ())
    if len(shape) not in {1, 2} or shape[-1] != width:
        says = f"{list(shape)} numbers for" if key else "nothing for"
        raise WeightsError(
            f"embedding:{name} holds {says} {ENCODERS[part]}, which has vectors of {width}; "
            f"give an embedding made for this kind of checkpoint (tensors {' and '.join(k[0] for k in KEYS.values())})."
        )
    return tuple(Learned(weights, key, row) for row in range(shape[0] if len(shape) == 2 else 1))


def load(token: Learned, memory: Memory) -> Tensor:
    """One vector ``[width]`` on the device, in the encoders' dtype."""
    from claygraph.diffusion.checkpoint import read

    path = Path(token.weights.path)
    tensors = memory.get(
        ("embedding", token.weights, token.key), lambda: read(path, memory.device, memory.dtype, (token.key,))
    )
    vectors = tensors[token.key]
    return vectors.reshape(-1, vectors.shape[-1])[token.row]
