"""The weights of both sides: made once, before anything is timed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

from benchmarks.by_hand import Parts
from claygraph.diffusion import checkpoint as loading
from claygraph.diffusion.describe import SHIPPED, describe
from claygraph.files import locate, weights
from claygraph.memory import Memory
from claygraph.values import Checkpoint

CLASSES = {
    "vae": ("diffusers", "AutoencoderKL"),
    "unet": ("diffusers", "UNet2DConditionModel"),
    "text_encoder": ("transformers", "CLIPTextModel"),
    "text_encoder_2": ("transformers", "CLIPTextModelWithProjection"),
    "tokenizer": ("transformers", "CLIPTokenizer"),
    "tokenizer_2": ("transformers", "CLIPTokenizer"),
    "scheduler": ("diffusers", "EulerDiscreteScheduler"),
}
OPTIONAL = ("image_encoder", "feature_extractor")


def convert(path: str, folder: Path) -> None:
    """Write a single-file SDXL checkpoint as a diffusers pipeline in ``folder``, in float16."""
    checkpoint = describe(weights("checkpoint.path", path))
    memory = Memory("cpu", "float16")
    encoders = loading.load_text_encoders(checkpoint, memory)
    vae = loading.load_vae(checkpoint, Memory("cpu", "float32")).half()  # not by way of bfloat16
    vae.register_to_config(force_upcast=False)  # as in the VAE published for float16: decoding in float32 takes longer
    models = {"unet": loading.load_unet(checkpoint, memory), "vae": vae}
    models |= dict(zip(("text_encoder", "text_encoder_2"), encoders, strict=True))
    for name, model in models.items():
        model.save_pretrained(folder / name)
    for name in ("tokenizer", "tokenizer_2"):
        shutil.copytree(SHIPPED / name, folder / name)
    _write(folder / "scheduler" / "scheduler_config.json", scheduler(checkpoint))
    index: dict[str, object] = {"_class_name": "StableDiffusionXLPipeline", "force_zeros_for_empty_prompt": False}
    _write(folder / "model_index.json", index | dict(CLASSES) | dict.fromkeys(OPTIONAL, (None, None)))


def scheduler(checkpoint: Checkpoint) -> dict[str, object]:
    """The scheduler's config, for the sampler "euler" at first."""
    return {
        "_class_name": "EulerDiscreteScheduler",
        "beta_start": checkpoint.beta_start,
        "beta_end": checkpoint.beta_end,
        "beta_schedule": checkpoint.beta_schedule,
        "prediction_type": checkpoint.prediction,
        "num_train_timesteps": 1000,
        "timestep_spacing": "trailing",
    }


@dataclass(frozen=True)
class Weights:
    """The same weights as diffusers reads them, and as overrides of our config."""

    parts: Parts
    overrides: tuple[str, ...] = ()


def miniature(folder: Path) -> Weights:
    """The bundled weights; only the checkpoint is written anew, below ``folder`` unless it is there."""
    target = folder / "miniature"
    if not (target / "model_index.json").is_file():
        convert("miniature:checkpoint/clay_mini.safetensors", target)
    named = {
        "lora": "lora/clay.safetensors",
        "adapter": "ip_adapter/ip-adapter_mini.safetensors",
        "controlnet": "controlnet/canny",
        "tagger": "tagger/moat",
    }
    lora, adapter, controlnet, tagger = (str(locate(f"miniature:{path}")) for path in named.values())
    return Weights(Parts(str(target), lora, adapter, controlnet, tagger, hint=2))


def _write(path: Path, content: dict[str, object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content, indent=1), encoding="utf-8")
