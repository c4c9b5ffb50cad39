"""What a competent user writes by hand with diffusers for the picture that claygraph makes: the other side.

Nothing of claygraph is used here. As a script it is the whole thing from a cold start:
python -m benchmarks.by_hand PARTS.json PHOTO SETTINGS.json OUT.png
"""

from __future__ import annotations

import csv
import json
import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import PIL.Image
    import torch

CLAY = "claymation, made-of-clay, stopmotion, polymer clay, ultra light clay, high quality, details, cartoonish"
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "euler": ("EulerDiscreteScheduler", {}),
    "euler_ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
    "dpmpp_2m": ("DPMSolverMultistepScheduler", {}),
    "ddim": ("DDIMScheduler", {}),
}


@dataclass(frozen=True)
class Parts:
    """Where the weights are: ``folder`` is a diffusers pipeline, ``adapter`` an IP-Adapter with image_encoder/ beside.

    ``hint`` is pixels of the ControlNet's hint for one of the picture: 1 with SDXL, 2 where a latent is 4 pixels.
    """

    folder: str
    lora: str
    adapter: str
    controlnet: str
    tagger: str
    hint: int = 1


@dataclass(frozen=True)
class Settings:
    """What varies from picture to picture."""

    lora: float = 1.0
    control: float = 1.0
    image: float = 0.8
    cfg: float = 1.5
    steps: int = 8
    denoise: float = 0.35
    seed: int = 0
    sampler: str = "euler"
    text: str = CLAY


@dataclass(frozen=True, eq=False)
class Read:
    """What is worked out once for a photo and serves every variant of it."""

    words: str
    edges: Any
    latent: torch.Tensor
    embeds: list[torch.Tensor]


class ByHand:
    """The pipeline, loaded once and kept."""

    def __init__(self, parts: Parts, device: str = "cpu", dtype: str = "float32") -> None:
        import onnxruntime
        import torch
        from diffusers import ControlNetModel, StableDiffusionXLControlNetImg2ImgPipeline
        from diffusers.image_processor import VaeImageProcessor

        logging.getLogger("diffusers").setLevel(logging.ERROR)
        kind = getattr(torch, dtype)
        controlnet = ControlNetModel.from_pretrained(parts.controlnet, torch_dtype=kind)
        pipe = StableDiffusionXLControlNetImg2ImgPipeline.from_pretrained(
            parts.folder, controlnet=controlnet, torch_dtype=kind
        )
        pipe.load_lora_weights(parts.lora, adapter_name="clay")
        adapter = Path(parts.adapter)
        pipe.load_ip_adapter(str(adapter.parent), subfolder="", weight_name=adapter.name)
        pipe.control_image_processor = VaeImageProcessor(do_resize=False, do_convert_rgb=True, do_normalize=False)
        pipe.set_progress_bar_config(disable=True)
        self.pipe, self.parts = pipe.to(device), parts
        self.config = pipe.scheduler.config
        self.tagger = onnxruntime.InferenceSession(f"{parts.tagger}/model.onnx", providers=["CPUExecutionProvider"])
        with Path(parts.tagger, "selected_tags.csv").open(newline="", encoding="utf-8") as lines:
            self.tags = [row["name"] if row["category"] != "9" else "" for row in csv.DictReader(lines)]

    def merge(self) -> None:
        """Merge the LoRA into the weights, as it is."""
        self.pipe.fuse_lora(adapter_names=["clay"])
        self.pipe.unload_lora_weights()

    def read(self, photo: PIL.Image.Image, cfg: bool = True) -> Read:
        """Tags, edges, latent and image embedding of a photo; ``cfg`` where guidance will need the negative half."""
        import torch

        with torch.inference_mode():
            pixels = self.pipe.image_processor.preprocess(photo).to(self.pipe.device, self.pipe.vae.dtype)
            latent = self.pipe.vae.encode(pixels).latent_dist.mode() * self.pipe.vae.config.scaling_factor
            embeds = self.pipe.prepare_ip_adapter_image_embeds(photo, None, self.pipe.device, 1, cfg)
        return Read(self.words(photo), self.edges(photo), latent, embeds)

    def words(self, photo: PIL.Image.Image) -> str:
        """The tags above the threshold, without ratings and "photo", joined by commas."""
        import numpy as np
        from PIL import Image

        side = self.tagger.get_inputs()[0].shape[1]
        square, small = Image.new("RGB", (side, side), "white"), photo.copy()
        scale = side / max(photo.size)
        small = small.resize((int(photo.width * scale), int(photo.height * scale)), Image.Resampling.LANCZOS)
        square.paste(small, ((side - small.width) // 2, (side - small.height) // 2))
        pixels = np.asarray(square, np.float32)[None, :, :, ::-1]
        (found,) = self.tagger.run(None, {self.tagger.get_inputs()[0].name: pixels})
        seen = [tag.replace("_", " ") for tag, share in zip(self.tags, found[0], strict=True) if share > 0.05]
        return ", ".join(tag for tag in seen if tag and tag != "photo")

    def edges(self, photo: PIL.Image.Image) -> PIL.Image.Image:
        """Canny edges as the ControlNet's hint."""
        import cv2
        import numpy as np
        from PIL import Image

        size = (photo.width * self.parts.hint, photo.height * self.parts.hint)
        found = cv2.Canny(cv2.resize(np.asarray(photo), size, interpolation=cv2.INTER_CUBIC), 100, 200)
        return Image.fromarray(np.repeat(found[:, :, None], 3, axis=2))

    def make(self, read: Read, settings: Settings) -> PIL.Image.Image:
        """One picture."""
        import torch

        if self.pipe.get_list_adapters():
            self.pipe.set_adapters(["clay"], [{"unet": settings.lora, "text_encoder": 1.0, "text_encoder_2": 1.0}])
        strength = settings.image
        self.pipe.set_ip_adapter_scale({"down": {"block_2": [0.0, strength]}, "up": {"block_0": [0.0, strength, 0.0]}})
        self.pipe.scheduler = self.scheduler(settings.sampler)
        steps = settings.steps // 2 if settings.sampler == "heun" else settings.steps  # two calls of the model each
        total = int(steps / settings.denoise)
        embeds = read.embeds if settings.cfg > 1 else [each[-1:] for each in read.embeds]
        picture: PIL.Image.Image = self.pipe(
            prompt=", ".join(part for part in (read.words, settings.text) if part),
            negative_prompt="",
            image=read.latent,
            control_image=read.edges,
            ip_adapter_image_embeds=embeds,
            num_inference_steps=total,
            strength=(steps + 0.01) / total,
            guidance_scale=settings.cfg,
            controlnet_conditioning_scale=settings.control,
            generator=torch.Generator().manual_seed(settings.seed),
        ).images[0]
        return picture

    def scheduler(self, sampler: str) -> Any:
        """The scheduler that stands for a sampler, its timesteps spaced as by ``sgm_uniform``."""
        import diffusers

        name, options = SCHEDULERS[sampler]
        return getattr(diffusers, name).from_config(self.config, timestep_spacing="trailing", **options)


def opened(path: str | Path) -> PIL.Image.Image:
    """A photo, which has the wanted size already."""
    from PIL import Image

    with Image.open(path) as photo:
        return photo.convert("RGB")


def main(parts: Mapping[str, Any], photo: str, settings: Mapping[str, Any], out: str) -> None:
    """From a cold start to a picture on disk; ``parts`` may name a device and a dtype too."""
    place = {key: parts[key] for key in ("device", "dtype") if key in parts}
    made = ByHand(Parts(**{key: parts[key] for key in Parts.__dataclass_fields__ if key in parts}), **place)
    chosen = Settings(**settings)
    picture = made.make(made.read(opened(photo), chosen.cfg > 1), chosen)
    picture.save(out)


if __name__ == "__main__":
    files = sys.argv[1:]
    main(json.loads(Path(files[0]).read_text()), files[1], json.loads(Path(files[2]).read_text()), files[3])
