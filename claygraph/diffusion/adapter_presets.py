"""The presets of IPAdapter_plus for SDXL: which adapter file and image encoder they mean, and where these may lie."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from claygraph.errors import SettingError, WeightsError, check_choice, nearest
from claygraph.files import PICKLES

VIT_H, VIT_G = "CLIP-ViT-H-14-laion2B-s32B-b79K", "CLIP-ViT-bigG-14-laion2B-39B-b160k"
ADAPTER_FOLDERS = ("ipadapter", "IP-Adapter/sdxl_models", "sdxl_models")
COPIES = {VIT_H: "IP-Adapter/models/image_encoder", VIT_G: "IP-Adapter/sdxl_models/image_encoder"}
"""Where the encoders lie in a copy of the repository h94/IP-Adapter."""


class Preset(NamedTuple):
    """An adapter file and the image encoder it was trained with."""

    adapter: str
    encoder: str


PRESETS: Mapping[str, Preset] = {
    "STANDARD (medium strength)": Preset("ip-adapter_sdxl_vit-h", VIT_H),
    "VIT-G (medium strength)": Preset("ip-adapter_sdxl", VIT_G),
    "PLUS (high strength)": Preset("ip-adapter-plus_sdxl_vit-h", VIT_H),
    "PLUS FACE (portraits)": Preset("ip-adapter-plus-face_sdxl_vit-h", VIT_H),
    "Composition": Preset("ip_plus_composition_sdxl", VIT_H),
}

_SD15, _FACE = "is for SD1.5", "needs a face recogniser, which is not supported"
REFUSED: Mapping[str, str] = {
    "LIGHT - SD1.5 only (low strength)": _SD15,
    "FULL FACE - SD1.5 only (portraits stronger)": _SD15,
    "FACEID": _FACE,
    "FACEID PLUS - SD1.5 only": _SD15,
    "FACEID PLUS V2": _FACE,
    "FACEID PORTRAIT (style transfer)": _FACE,
    "FACEID PORTRAIT UNNORM - SDXL only (strong)": _FACE,
    "Kolors": "is for the Kolors model",
}


def check_preset(preset: str) -> None:
    """Raise ``SettingError`` unless the preset is for SDXL and needs nothing but the picture."""
    if preset in REFUSED:
        raise SettingError(f"ip_adapter.preset={preset!r} {REFUSED[preset]}; give one of {', '.join(PRESETS)}.")
    check_choice("ip_adapter.preset", preset, PRESETS)


def find_adapter(preset: str, models: str) -> str:
    """The path of a preset's adapter file below the folder ``models``."""
    folders = [Path(models, folder) for folder in ADAPTER_FOLDERS]
    return _find(f"ip_adapter.preset={preset!r} needs the adapter", PRESETS[preset].adapter, folders, "path")


def find_encoder(preset: str, models: str) -> str:
    """The path of a preset's image encoder, a folder or a single file, below the folder ``models``."""
    wanted = PRESETS[preset].encoder
    copy = Path(models, COPIES[wanted])
    if copy.is_dir():
        return str(copy)
    needs = f"ip_adapter.preset={preset!r} needs the image encoder"
    return _find(needs, wanted, [Path(models, "clip_vision")], "encoder", [copy])


def _find(needs: str, wanted: str, folders: Sequence[Path], setting: str, also: Sequence[Path] = ()) -> str:
    """The file or folder of this name, whatever its case and punctuation; safetensors before anything else."""
    present = [path for folder in folders if folder.is_dir() for path in sorted(folder.iterdir())]
    fitting = [path for path in present if _letters(_stem(path)) == _letters(wanted)]
    if fitting:
        return str(min(fitting, key=lambda path: path.suffix in PICKLES))
    searched = ", ".join(_searched([*folders, *also]))
    raise WeightsError(
        f"{needs} {wanted}.safetensors, which is not in {searched}{_alike(wanted, present)} "
        f"Put it there, or name a file in ip_adapter.{setting}."
    )


def _stem(path: Path) -> str:
    return path.stem if path.suffix in (".safetensors", *PICKLES) else path.name


def _letters(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def _searched(folders: Sequence[Path]) -> Iterator[str]:
    for folder in folders:
        yield str(folder) if folder.is_dir() else f"{folder} (no such folder)"


def _alike(wanted: str, present: Sequence[Path]) -> str:
    return nearest(f"{wanted}.safetensors", [path.name for path in present])
