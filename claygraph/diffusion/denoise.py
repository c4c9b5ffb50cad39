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
from claygraph.diffusion.rows import Row, rows_of, table_of
from claygraph.diffusion.schedules import timestep_of

if TYPE_CHECKING:
    from claygraph.diffusion.calls import Denoise
    from claygraph.memory import Memory

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
    x = torch.cat([row.call.x.to(memory.device, torch.float32) for row in rows])
    sigma = torch.tensor([row.call.sigma for row in rows], device=memory.device)[:, None, None, None]
    inputs = _inputs(rows, x / (sigma**2 + 1).sqrt(), memory)

    def use_loras(rows: Sequence[Row]) -> None:
        set_strengths(unet, [summed((lora.weights.digest, by_block(lora)) for lora in row.model.loras) for row in rows])

    extra = residuals(unet, rows, inputs, memory, use_loras)
    use_loras(rows)
    with image_prompts(unet, rows, memory):
        output = unet(**inputs, **extra, return_dict=False)[0].float()
    return x0(x, sigma, output, rows[0].model.checkpoint.prediction)


def x0(x: Tensor, sigma: Tensor, output: Tensor, prediction: str) -> Tensor:
    """The clean picture the model sees in ``x = x0 + sigma * noise``, from its output for ``x / sqrt(sigma^2 + 1)``.

    ``epsilon``: the noise. ``v_prediction``: Salimans and Ho 2022 (arXiv 2202.00512), in this scale of ``x``.
    """
    if prediction == "epsilon":
        return x - sigma * output
    return x / (sigma**2 + 1) - output * sigma / (sigma**2 + 1).sqrt()


def _inputs(rows: Sequence[Row], sample: Tensor, memory: Memory) -> dict[str, Any]:
    """What the UNet and ControlNets are both given."""
    table = table_of(rows[0].model.checkpoint)
    steps = [timestep_of(row.call.sigma, table) for row in rows]
    height, width = (SIZE_UNIT * side for side in sample.shape[2:])
    size = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32, device=memory.device)
    pooled = torch.stack([torch.tensor(row.conditioning.pooled) for row in rows])
    return {
        "sample": sample.to(memory.dtype),
        "timestep": torch.tensor(steps, device=memory.device),
        "encoder_hidden_states": _text(rows).to(memory.device, memory.dtype),
        "added_cond_kwargs": {
            "text_embeds": pooled.to(memory.device, memory.dtype),
            "time_ids": size.expand(len(rows), -1),
        },
    }


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
