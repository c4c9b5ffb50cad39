"""The denoiser: one UNet forward for all calls of a batch, whatever their strengths, windows, guidance and sigmas."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from claygraph.diffusion.checkpoint import load_unet
from claygraph.diffusion.controlnet import residuals
from claygraph.diffusion.image_attention import image_prompts
from claygraph.diffusion.lora import attach, set_strengths
from claygraph.diffusion.lora_blocks import by_block, summed
from claygraph.diffusion.prediction import timestep, unet_input, x0
from claygraph.diffusion.rows import Row, rows_of

if TYPE_CHECKING:
    from claygraph.diffusion.calls import Denoise
    from claygraph.memory import Memory
    from claygraph.values import Size

SIZE_UNIT = 8


def denoise(calls: Sequence[Denoise], memory: Memory) -> list[Tensor]:
    """The denoised x0 of every call, float32 ``[1, C, h, w]`` (two with ``both``) on the device of its ``x``."""
    model = calls[0].model
    key = ("unet", model.checkpoint.weights, model.checkpoint.config)
    unet = memory.get(key, lambda: load_unet(model.checkpoint, memory))
    for file in dict.fromkeys(lora.weights for call in calls for lora in call.model.loras if lora.model):
        attach(unet, "unet", file, memory)
    return _guided(calls, _halves(unet, rows_of(calls), memory))


@torch.inference_mode()
def _halves(unet: Any, rows: Sequence[Row], memory: Memory) -> Tensor:
    """x0 of every row, float32 ``[R, C, h, w]``."""
    checkpoint = rows[0].model.checkpoint
    x = torch.cat([row.call.x.to(memory.device, torch.float32) for row in rows])
    sigma = torch.tensor([row.call.sigma for row in rows], device=memory.device)[:, None, None, None]
    inputs = _inputs(rows, unet_input(x, sigma, checkpoint), memory)

    def use_loras(rows: Sequence[Row]) -> None:
        set_strengths(unet, [summed((lora.weights.digest, by_block(lora)) for lora in row.model.loras) for row in rows])

    extra = residuals(unet, rows, inputs, memory, use_loras)
    use_loras(rows)
    with image_prompts(unet, rows, memory):
        output = unet(**inputs, **extra, return_dict=False)[0].float()
    return x0(x, sigma, output, checkpoint)


def _inputs(rows: Sequence[Row], sample: Tensor, memory: Memory) -> dict[str, Any]:
    """What the UNet and ControlNets are both given."""
    steps = [timestep(row.call.sigma, row.model.checkpoint) for row in rows]
    sizes = [size_vector(row.conditioning.size, *sample.shape[2:]) for row in rows]
    pooled = torch.stack([torch.tensor(row.conditioning.pooled) for row in rows])
    return {
        "sample": sample.to(memory.dtype),
        "timestep": torch.tensor(steps, device=memory.device),
        "encoder_hidden_states": _text(rows).to(memory.device, memory.dtype),
        "added_cond_kwargs": {
            "text_embeds": pooled.to(memory.device, memory.dtype),
            "time_ids": torch.tensor(sizes, dtype=torch.float32, device=memory.device),
        },
    }


def size_vector(size: Size, height: int, width: int) -> tuple[int, ...]:
    """Height, width, crop from the top, from the left, target height, target width: SDXL's order.

    ``height`` and ``width`` are those of the latent.
    """
    high = SIZE_UNIT * height if size.height is None else size.height
    wide = SIZE_UNIT * width if size.width is None else size.width
    target_high = high if size.target_height is None else size.target_height
    target_wide = wide if size.target_width is None else size.target_width
    return high, wide, size.crop_h, size.crop_w, target_high, target_wide


def _text(rows: Sequence[Row]) -> Tensor:
    """Text states ``[R, T, channels]``; repetition, which attention does not notice, brings them to one length."""
    hidden = [torch.tensor(row.conditioning.hidden) for row in rows]
    length = math.lcm(*{len(each) for each in hidden})
    return torch.stack([each.repeat(length // len(each), 1) for each in hidden])


def _guided(calls: Sequence[Denoise], halves: Tensor) -> list[Tensor]:
    """Each call's x0: negative plus ``cfg`` times the way from there to positive; after it, if asked, negative."""
    results, rest = [], iter(halves.split(1))
    for call in calls:
        first = next(rest)
        guided = first + call.cfg * (next(rest) - first) if call.has_negative else first
        results.append((torch.cat([guided, first]) if call.both else guided).to(call.x.device))
    return results
