"""The denoiser: one UNet forward for all calls of a batch, whatever their strengths, windows, guidance and sigmas."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from claygraph.diffusion.alike import distinct
from claygraph.diffusion.checkpoint import load_unet
from claygraph.diffusion.compiled import fast, padded
from claygraph.diffusion.conditions import forwards, inputs
from claygraph.diffusion.controlnet import residuals
from claygraph.diffusion.image_attention import image_prompts
from claygraph.diffusion.kept import recent
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
    how = "beside" if memory.compile else arrange(unet, rows)
    for call in calls:
        if strengths_of(call.model.loras):
            call.notes["lora"] = how
    return _guided(calls, _halves(unet, rows, memory))


@torch.inference_mode()
def _halves(unet: Any, rows: Sequence[Row], memory: Memory) -> Tensor:
    """x0 of every row, float32 ``[R, C, h, w]``, in one forward unless the lengths of their texts forbid it."""
    rows, places = distinct(rows, lambda row: row, lambda row: (id(row.model), row.negative, tuple(row.call.sigmas)))
    groups = forwards([len(row.conditioning.hidden) for row in rows])
    found = torch.cat([_forward(unet, [rows[n] for n in numbers], memory)[: len(numbers)] for numbers in groups])
    return found[torch.tensor([*chain(*groups)]).argsort()[places]]


def _forward(unet: Any, rows: Sequence[Row], memory: Memory) -> Tensor:
    """x0 of the rows, and of what they were padded by for a compiled network."""
    rows, checkpoint = (padded(rows) if memory.compile else rows), rows[0].model.checkpoint
    x = torch.cat([row.call.x.to(memory.device, torch.float32) for row in rows])
    sigma = torch.tensor([row.call.sigma for row in rows], device=memory.device)[:, None, None, None]
    given = inputs(rows, unet_input(x, sigma, checkpoint), memory, recent(unet))

    def use_loras(rows: Sequence[Row]) -> None:
        set_strengths(unet, [strengths_of(row.model.loras) for row in rows], fixed=memory.compile)

    extra = residuals(unet, rows, given, memory, use_loras)
    use_loras(rows)
    with image_prompts(unet, rows, memory):
        output = fast(unet, memory)(**given, **extra, return_dict=False)[0].float()
    return x0(x, sigma, output, checkpoint)


def _guided(calls: Sequence[Denoise], halves: Tensor) -> list[Tensor]:
    """Each call's x0: negative plus ``cfg`` times the way from there to positive; after it, if asked, negative."""
    results, rest = [], iter(halves.split(1))
    for call in calls:
        first = next(rest)
        guided = first + call.cfg * (next(rest) - first) if call.has_negative else first
        results.append((torch.cat([guided, first]) if call.both else guided).to(call.x.device))
    return results
