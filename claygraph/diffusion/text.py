"""Prompts through both text encoders, many in one pass."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from claygraph.diffusion import lora
from claygraph.diffusion.checkpoint import load_text_encoders, load_tokenizer
from claygraph.diffusion.lora_blocks import summed
from claygraph.diffusion.tokens import EMPTY, EOS, Chunk, chunks
from claygraph.values import Conditioning

if TYPE_CHECKING:
    from claygraph.diffusion.calls import EncodeText
    from claygraph.memory import Memory

PADS = {"text_encoder": EOS, "text_encoder_2": 0}
Strengths = tuple[tuple[str, tuple[float, ...]], ...]


class Row(NamedTuple):
    """What one row of the batch is: its tokens, and the strength of each LoRA."""

    ids: tuple[int, ...]
    strengths: Strengths


@torch.inference_mode()
def encode(calls: Sequence[EncodeText], memory: Memory) -> list[Conditioning]:
    """Encode prompts that share a checkpoint, LoRA files and ``clip_skip``; equal rows are computed once.

    A prompt of ``k`` rows gives ``hidden`` ``[77 k, channels of both encoders]``; ``pooled`` comes from its first row.
    """
    prompts = [_prompt(call, memory) for call in calls]
    rows = list(dict.fromkeys(row for prompt, strengths in prompts for row in _rows(prompt, strengths)))
    hidden, pooled = _run(calls[0], rows, memory)
    number = {row: index for index, row in enumerate(rows)}
    return [_assemble(prompt, [number[row] for row in _rows(prompt, s)], hidden, pooled) for prompt, s in prompts]


def _prompt(call: EncodeText, memory: Memory) -> tuple[list[Chunk], Strengths]:
    tokenizer = memory.get(
        ("tokenizer", call.checkpoint.weights, call.checkpoint.config), lambda: load_tokenizer(call.checkpoint)
    )
    strengths = summed((item.weights.digest, (item.clip,)) for item in call.loras)
    found = chunks(call.text, lambda segment: tokenizer(segment, add_special_tokens=False)["input_ids"])
    return found, tuple(strengths.items())


def _rows(prompt: Sequence[Chunk], strengths: Strengths) -> list[Row]:
    """The prompt's rows and, where it has weights, the empty prompt's, towards which they pull."""
    weighted = any(weight != 1 for chunk in prompt for weight in chunk.weights)
    return [Row(chunk.ids, strengths) for chunk in (*prompt, *([EMPTY] if weighted else []))]


def _run(call: EncodeText, rows: Sequence[Row], memory: Memory) -> tuple[torch.Tensor, torch.Tensor]:
    """Hidden states float32 ``[rows, 77, channels of both]`` and pooled vectors float32 ``[rows, channels]``."""
    key = ("text_encoders", call.checkpoint.weights, call.checkpoint.config)
    encoders = memory.get(key, lambda: load_text_encoders(call.checkpoint, memory))
    used = {digest for row in rows for digest, strength in row.strengths if any(strength)}
    hidden = []
    for part, encoder in zip(PADS, encoders, strict=True):
        for item in (item for item in call.loras if item.weights.digest in used):
            lora.attach(encoder, part, item.weights, memory)
        lora.set_strengths(encoder, [dict(row.strengths) for row in rows])
        ids = torch.tensor([Chunk(row.ids, ()).padded(PADS[part]) for row in rows], device=memory.device)
        output: Any = encoder(input_ids=ids, output_hidden_states=True)
        hidden.append(_layer(output, call.clip_skip).float())
    return torch.cat(hidden, dim=-1), output.text_embeds.float()


def _layer(output: Any, clip_skip: int) -> torch.Tensor:
    """The hidden state ``clip_skip`` layers from the end, not normalised; past the first layer, the final output."""
    states: tuple[torch.Tensor, ...] = output.hidden_states
    final: torch.Tensor = output.last_hidden_state
    return final if -clip_skip >= len(states) else states[clip_skip]


def _assemble(prompt: Sequence[Chunk], rows: Sequence[int], hidden: torch.Tensor, pooled: torch.Tensor) -> Conditioning:
    states = hidden[list(rows[: len(prompt)])]
    if len(rows) > len(prompt):
        weights = torch.tensor([chunk.padded_weights() for chunk in prompt], device=hidden.device)
        states = torch.lerp(hidden[rows[-1]].expand_as(states), states, weights[:, :, None])
    return Conditioning(states.flatten(0, 1).cpu().numpy(), pooled[rows[0]].cpu().numpy())
