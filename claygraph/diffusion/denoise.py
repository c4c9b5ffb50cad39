"""The denoiser: one UNet forward for all calls of a batch, whatever their strengths, windows, guidance and sigmas."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from claygraph.diffusion.checkpoint import load_unet
from claygraph.diffusion.conditions import forwards, inputs
from claygraph.diffusion.controlnet import residuals
from claygraph.diffusion.image_attention import image_prompts
from claygraph.diffusion.lora import attach, set_strengths
from claygraph.diffusion.lora_merge import arrange, strengths_of
from claygraph.diffusion.prediction import unet_input, x0
from claygraph.diffusion.rows import Row, rows_of

if TYPE_CHECKING:
    from claygraph.diffusion.calls import Denoise
    from claygraph.memory import Memory


def denoise(calls: Sequence[Denoise], memory: Memory) -> list[Tensor]:
    """The denoised x0 of every call, float32 ``[1, C, h, w]`` (two with ``both``) on the device of its ``x``."""
    model = calls[0].model
    key = ("unet", model.checkpoint.weights, model.checkpoint.config)
    unet = memory.get(key, lambda: load_unet(model.checkpoint, memory))
    for file in dict.fromkeys(lora.weights for call in calls for lora in call.model.loras if lora.model):
        attach(unet, "unet", file, memory)
    rows = rows_of(calls)
    if how := arrange(unet, rows):
        for call in calls:
            call.notes["lora"] = how
    return _guided(calls, _halves(unet, rows, memory))


@torch.inference_mode()
def _halves(unet: Any, rows: Sequence[Row], memory: Memory) -> Tensor:
    """x0 of every row, float32 ``[R, C, h, w]``, in one forward unless the lengths of their texts forbid it."""
    groups = forwards([len(row.conditioning.hidden) for row in rows])
    found = torch.cat([_forward(unet, [rows[number] for number in numbers], memory) for numbers in groups])
    return found if len(groups) == 1 else found[torch.tensor([*chain(*groups)]).argsort()]


def _forward(unet: Any, rows: Sequence[Row], memory: Memory) -> Tensor:
    checkpoint = rows[0].model.checkpoint
    x = torch.cat([row.call.x.to(memory.device, torch.float32) for row in rows])
    sigma = torch.tensor([row.call.sigma for row in rows], device=memory.device)[:, None, None, None]
    given = inputs(rows, unet_input(x, sigma, checkpoint), memory)

    def use_loras(rows: Sequence[Row]) -> None:
        set_strengths(unet, [strengths_of(row.model.loras) for row in rows])

    extra = residuals(unet, rows, given, memory, use_loras)
    use_loras(rows)
    with image_prompts(unet, rows, memory):
        output = unet(**given, **extra, return_dict=False)[0].float()
    return x0(x, sigma, output, checkpoint)


def _guided(calls: Sequence[Denoise], halves: Tensor) -> list[Tensor]:
    """Each call's x0: negative plus ``cfg`` times the way from there to positive; after it, if asked, negative."""
    results, rest = [], iter(halves.split(1))
    for call in calls:
        first = next(rest)
        guided = first + call.cfg * (next(rest) - first) if call.has_negative else first
        results.append((torch.cat([guided, first]) if call.both else guided).to(call.x.device))
    return results
