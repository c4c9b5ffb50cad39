"""A plain deterministic img2img sampler, for looking at the family while it is trained."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from claygraph.miniature.clayify import edges
from claygraph.miniature.family import Base
from claygraph.miniature.latents import encode
from claygraph.miniature.networks import ControlNet, Vae, added, alphas_cumprod
from claygraph.miniature.train_vae import to_pictures

Pixels = npt.NDArray[np.uint8]


@dataclass
class Rig:
    """Everything a picture needs; `lora` maps LoRA names to strengths, `image` is an IP embedding [1,96] or None."""

    base: Base
    vae: Vae
    controlnet: ControlNet
    lora: dict[str, float] = field(default_factory=dict)
    control: float = 1.0
    image: torch.Tensor | None = None

    def set_lora(self, **strengths: float) -> None:
        """Switch the added LoRAs to these strengths."""
        self.lora = strengths
        for model in (self.base.unet, self.base.text.first, self.base.text.second):
            present = [n for n in strengths if n in getattr(model, "peft_config", {})]
            if present:
                model.set_adapter(present)
                for module in model.modules():
                    scaling: dict[str, float] = getattr(module, "scaling", {})
                    scaling.update({name: strengths[name] for name in present if name in scaling})


@torch.no_grad()
def img2img(
    rig: Rig, pictures: Pixels, prompts: list[str], denoise: float, steps: int = 20, cfg: float = 1.5, seed: int = 0
) -> Pixels:
    """RGB uint8 [N,H,W,3] to the same shape: `steps` is the full schedule, of which the last `denoise` part is run."""
    clean = encode(rig.vae, pictures).float()
    hint = torch.from_numpy(np.stack([edges(p) for p in pictures])).float()[:, None].expand(-1, 3, -1, -1) / 255
    power = alphas_cumprod()
    times = torch.linspace(999, 0, steps + 1).long()[steps - round(steps * denoise) :]
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(clean.shape[1:], generator=generator).expand_as(clean)
    x = power[times[0]].sqrt() * clean + (1 - power[times[0]]).sqrt() * noise
    texts = rig.base.text(prompts + [""] * len(prompts))
    for now, after in pairwise(times):
        velocity = _guided(rig, x, int(now), texts, hint, cfg)
        signal, sigma = power[now].sqrt(), (1 - power[now]).sqrt()
        guess, eps = signal * x - sigma * velocity, signal * velocity + sigma * x
        x = power[after].sqrt() * guess + (1 - power[after]).sqrt() * eps
    return to_pictures(rig.vae.decode(x / rig.vae.config.scaling_factor).sample)


def _guided(
    rig: Rig, x: torch.Tensor, time: int, texts: tuple[torch.Tensor, torch.Tensor], hint: torch.Tensor, cfg: float
) -> torch.Tensor:
    both, (hidden, pooled) = torch.cat([x, x]), texts
    times = torch.full((len(both),), time)
    extra: dict[str, Any] = {}
    if rig.control:
        down, middle = rig.controlnet(
            both,
            times,
            hidden,
            torch.cat([hint, hint]),
            rig.control,
            added_cond_kwargs=added(pooled, both),
            return_dict=False,
        )
        extra = {"down_block_additional_residuals": down, "mid_block_additional_residual": middle}
    conditions: dict[str, Any] = added(pooled, both)
    if rig.image is not None:
        image = rig.image.expand(len(x), -1)
        conditions["image_embeds"] = [torch.cat([image, torch.zeros_like(image)])[:, None]]
    velocity = rig.base.unet(both, times, hidden, added_cond_kwargs=conditions, **extra).sample
    with_text, without = velocity.chunk(2)
    result: torch.Tensor = without + cfg * (with_text - without)
    return result
