"""What a checkpoint is, read from safetensors headers and JSON alone: no tensor is loaded, no torch imported."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from struct import iter_unpack
from typing import Any

from claygraph import files
from claygraph.diffusion.dimensions import Config, Shapes, text_2_config, text_config, unet_config, vae_config
from claygraph.diffusion.prediction import MARKERS, configured, marked
from claygraph.errors import WeightsError
from claygraph.values import Checkpoint, Weights

SHIPPED = Path(__file__).parent / "sdxl"
UNET = "model.diffusion_model."
VAE = ("first_stage_model.", "vae.")
CLIP_L = "conditioner.embedders.0.transformer."
CLIP_G = "conditioner.embedders.1.model."


def describe(weights: Weights, config: Weights | None = None, vae: Weights | None = None) -> Checkpoint:
    """The checkpoint these files make, with its prediction type, noise schedule and latent scale.

    Raises ``WeightsError`` if the file is cut short, is not an SDXL checkpoint, or lacks one of its parts.
    """
    checkpoint = Checkpoint(weights, config, vae)
    check_family(checkpoint)
    _check_parts(checkpoint)
    scheduler, latent = _shipped("scheduler") | component(checkpoint, "scheduler"), component(checkpoint, "vae")
    scale = component(replace(checkpoint, vae=None), "vae")  # the UNet's, whichever VAE makes the picture
    described = replace(
        checkpoint,
        beta_start=float(scheduler["beta_start"]),
        beta_end=float(scheduler["beta_end"]),
        beta_schedule=str(scheduler["beta_schedule"]),
        downscale=2 ** (len(latent["block_out_channels"]) - 1),
        **configured(scheduler, scale) | _marked(checkpoint),
    )
    _check_latent(described, latent.get("latent_channels", 4))
    return described


def _marked(checkpoint: Checkpoint) -> dict[str, Any]:
    """What markers inside a single file say of its prediction; a scheduler in ``checkpoint.config`` wins over them."""
    path = files.locate(checkpoint.weights.path)
    if path.is_dir() or (checkpoint.config and _from_folder(files.locate(checkpoint.config.path), "scheduler")):
        return {}
    marks = {name: numbers(path, name) for name in MARKERS if name in shapes(path)}
    return marked(marks, metadata(path))


def _check_latent(checkpoint: Checkpoint, channels: int) -> None:
    """Raise ``WeightsError`` unless mean and deviation of the latents, where named, fit the VAE."""
    for part, values in {"mean": checkpoint.latent_mean, "deviation": checkpoint.latent_std}.items():
        if len(values) not in {0, channels} or (part == "deviation" and not all(value > 0 for value in values)):
            name = files.locate(checkpoint.weights.path).name
            raise WeightsError(
                f"checkpoint={name!r} names the {part} of its latents as {list(values)}, but they have {channels} "
                "channels; give the file its maker published."
            )


def component(checkpoint: Checkpoint, part: str) -> Config:
    """The config of ``unet``, ``vae``, ``text_encoder``, ``text_encoder_2`` or ``scheduler``.

    First of: the folder ``checkpoint.config``, the file's own (header or folder), SDXL's with sizes read from shapes.
    """
    own = checkpoint.vae if part == "vae" and checkpoint.vae else checkpoint.weights
    for found in _declared(checkpoint, own, part):
        if found:
            return found
    return _shipped(part) | _measured(own, part)


def _declared(checkpoint: Checkpoint, own: Weights, part: str) -> Iterator[Config | None]:
    if checkpoint.config and own is checkpoint.weights:
        yield _from_folder(files.locate(checkpoint.config.path), part)
    path = files.locate(own.path)
    if path.is_dir():
        yield _from_folder(path, part) or (_json(path / "config.json") if own is checkpoint.vae else None)
    else:
        yield _parsed(metadata(path).get("diffusers_config", "{}"), f"diffusers_config of {path.name!r}").get(part)


def _from_folder(folder: Path, part: str) -> Config | None:
    return _json(folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json"))


def _json(path: Path) -> Config | None:
    return _parsed(path.read_text(), str(path)) if path.is_file() else None


def _parsed(text: str, source: str) -> Config:
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise WeightsError(f"{source} is not a JSON object ({error}); fetch it again.") from None


def _shipped(part: str) -> Config:
    return _from_folder(SHIPPED, part) or {}


def _measured(own: Weights, part: str) -> Config:
    path = files.locate(own.path)
    if path.is_dir() or part == "scheduler":
        return {}
    found = shapes(path)
    if part == "vae":
        return vae_config(below(found, *VAE) or found)
    if part == "unet":
        pooled = found.get(f"{CLIP_G}text_projection", (0, 1280))[1]
        return unet_config(below(found, UNET), pooled)
    return text_config(below(found, CLIP_L)) if part == "text_encoder" else text_2_config(below(found, CLIP_G))


def below(names: Mapping[str, Any], *prefixes: str) -> dict[str, Any]:
    """The entries whose name begins with one of the prefixes, without it."""
    return {
        name.removeprefix(prefix): value
        for prefix in prefixes
        for name, value in names.items()
        if name.startswith(prefix)
    }


def shapes(path: Path) -> Shapes:
    """Names and shapes of the tensors of a safetensors file."""
    return _read(path, _stamp(path))[0]


def metadata(path: Path) -> dict[str, str]:
    """The ``__metadata__`` of a safetensors file's header."""
    return _read(path, _stamp(path))[1]


def numbers(path: Path, name: str) -> tuple[float, ...]:
    """The values of one small tensor of a safetensors file; none where it has over 64, or is not of floats."""
    entry: dict[str, Any] = dict(files.header("weights", path)[name])
    begin, end = entry["data_offsets"]
    code = {"F16": "e", "BF16": "f", "F32": "f", "F64": "d"}.get(entry["dtype"])
    if code is None or end - begin > 64 * 8:
        return ()
    with path.open("rb") as file:
        file.seek(8 + int.from_bytes(file.read(8), "little") + begin)
        data = file.read(end - begin)
    if entry["dtype"] == "BF16":  # the upper half of a float32
        data = b"".join(b"\0\0" + data[k : k + 2] for k in range(0, len(data), 2))
    return tuple(value for (value,) in iter_unpack(f"<{code}", data))


def _stamp(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


@lru_cache(maxsize=64)
def _read(path: Path, stamp: tuple[int, int]) -> tuple[Shapes, dict[str, str]]:
    if path.is_dir():
        raise WeightsError(f"{path.name!r} is a folder; give the .safetensors file in it.")
    header: dict[str, Any] = dict(files.header("weights", path))
    notes = dict(header.pop("__metadata__", None) or {})
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    with path.open("rb") as file:
        start = 8 + int.from_bytes(file.read(8), "little")
    if start + end > stamp[0]:
        missing = start + end - stamp[0]
        raise WeightsError(f"{path.name!r} is cut short by {missing} of {start + end} bytes; fetch it again.")
    return {name: tuple(entry["shape"]) for name, entry in header.items()}, notes


def check_family(checkpoint: Checkpoint) -> None:
    """Raise ``WeightsError`` unless the weights hold an SDXL UNet; say what they look like instead."""
    path = files.locate(checkpoint.weights.path)
    found = family_of_folder(path) if path.is_dir() else family(shapes(path))
    if found != "SDXL":
        raise WeightsError(
            f"checkpoint={path.name!r} is not an SDXL checkpoint: it looks like {found}; "
            "give an SDXL base model, as one .safetensors file or a diffusers folder."
        )


def _check_parts(checkpoint: Checkpoint) -> None:
    """Raise ``WeightsError`` unless text encoders and a VAE are there."""
    path = files.locate(checkpoint.weights.path)
    for part, prefixes in {"text_encoder": (CLIP_L,), "text_encoder_2": (CLIP_G,), "vae": VAE}.items():
        there = (path / part).is_dir() if path.is_dir() else bool(below(shapes(path), *prefixes))
        if not there and not (part == "vae" and checkpoint.vae):
            where = part if path.is_dir() else f"{prefixes[0]}*"
            remedy = "name one in checkpoint.vae=FILE" if part == "vae" else "give a full checkpoint, not a UNet alone"
            raise WeightsError(f"checkpoint={path.name!r} holds no {part} ({where}); {remedy}.")


def family_of_folder(path: Path) -> str:
    """What kind of model a diffusers folder holds, in words; ``SDXL`` for an SDXL checkpoint."""
    unet = _from_folder(path, "unet")
    if unet:
        return "SDXL" if unet.get("addition_embed_type") == "text_time" else _by_context(unet["cross_attention_dim"])
    alone = (_json(path / "config.json") or {}).get("_class_name")
    return f"one component of a model ({alone})" if alone else "a folder without unet/config.json"


def family(found: Mapping[str, tuple[int, ...]]) -> str:
    """What kind of model the tensors of a file make, in words; ``SDXL`` for an SDXL checkpoint."""
    if f"{UNET}label_emb.0.0.weight" in found:
        refiner = any(name.startswith("conditioner.embedders.0.model.") for name in found)
        return "the SDXL refiner" if refiner else "SDXL"
    if contexts := [shape[1] for name, shape in found.items() if name.endswith("attn2.to_k.weight") and UNET in name]:
        return _by_context(contexts[0])
    return next(
        (kind for marks, kind in _MARKS if any(mark in name for name in found for mark in marks)), "none we know"
    )


def _by_context(width: int) -> str:
    return {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x"}.get(width, "an older Stable Diffusion")


_MARKS: list[tuple[tuple[str, ...], str]] = [
    (("lora_", ".hada_", ".lokr_"), "a LoRA"),
    (("controlnet_cond_embedding", "control_model.", "input_hint_block"), "a ControlNet"),
    (("image_proj.", "ip_adapter."), "an IP-Adapter"),
    (("vision_model.", "visual."), "an image encoder"),
    (("double_blocks.", "joint_blocks."), "a Flux or Stable Diffusion 3 model"),
    (("down_blocks.0.resnets.0.time_emb_proj", "add_embedding."), "the UNet of a diffusers folder"),
    (("decoder.conv_in",), "a VAE"),
    (("text_model.", "transformer.resblocks."), "a text encoder"),
]
