"""Prompts through both text encoders, many in one pass."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from claygraph import files
from claygraph.diffusion import embeddings, lora
from claygraph.diffusion.checkpoint import load_text_encoders, load_tokenizer, tokenizer_folder
from claygraph.diffusion.lora_blocks import summed
from claygraph.diffusion.tokens import EMPTY, EOS, Chunk, Learned, Token, chunks
from claygraph.values import Conditioning

if TYPE_CHECKING:
    from claygraph.diffusion.calls import EncodeText
    from claygraph.memory import Memory

PADS = {"text_encoder": EOS, "text_encoder_2": 0}
Strengths = tuple[tuple[str, tuple[float, ...]], ...]


class Row(NamedTuple):
    """What one row of an encoder's batch is: its tokens, and the strength of each LoRA."""

    tokens: tuple[Token, ...]
    strengths: Strengths


@torch.inference_mode()
def encode(calls: Sequence[EncodeText], memory: Memory) -> list[Conditioning]:
    """Encode prompts that share a checkpoint, whatever their LoRAs and ``clip_skip``; equal rows are computed once.

    A prompt of ``k`` rows gives ``hidden`` ``[77 k, channels of both encoders]``; ``pooled`` is the second encoder's of
    the first row. Where one encoder's text has fewer rows than the other's, rows of the empty prompt follow.
    """
    prompts = [_prompt(call, memory) for call in calls]
    key = ("text_encoders", calls[0].checkpoint.weights, calls[0].checkpoint.config)
    both = memory.get(key, lambda: load_text_encoders(calls[0].checkpoint, memory))
    first, second = (
        _encoded(encoder, part, calls, [prompt[part] for prompt in prompts], memory)
        for part, encoder in zip(PADS, both, strict=True)
    )
    return [
        Conditioning(torch.cat([left, right], dim=-1).cpu().numpy(), pooled.cpu().numpy(), call.size)
        for call, (left, _), (right, pooled) in zip(calls, first, second, strict=True)
    ]


def _prompt(call: EncodeText, memory: Memory) -> dict[str, list[Chunk]]:
    """The rows that each encoder reads, as many for one as for the other."""
    texts = {"text_encoder": call.text if call.text_l is None else call.text_l, "text_encoder_2": call.text}
    found = {part: _chunks(call, part, text, memory) for part, text in texts.items()}
    longest = max(map(len, found.values()))
    return {part: [*rows, *[EMPTY] * (longest - len(rows))] for part, rows in found.items()}


def _chunks(call: EncodeText, part: str, text: str, memory: Memory) -> list[Chunk]:
    folder = tokenizer_folder(call.checkpoint, part)
    vocabulary = [files.digest(folder / name) for name in ("vocab.json", "merges.txt") if (folder / name).is_file()]
    tokenizer = memory.get(("tokenizer", *vocabulary), lambda: load_tokenizer(folder))
    learned = {name: embeddings.learned(call.checkpoint, name, file, part) for name, file in call.embeddings}
    return chunks(text, lambda words: tokenizer(words, add_special_tokens=False)["input_ids"], learned)


def _encoded(
    encoder: Any, part: str, calls: Sequence[EncodeText], prompts: Sequence[list[Chunk]], memory: Memory
) -> list[tuple[Tensor, Tensor]]:
    """Hidden states float32 ``[77 k, channels]`` and pooled vector float32 ``[channels]`` of each prompt."""
    wanted = [_rows(prompt, _strengths(call)) for prompt, call in zip(prompts, calls, strict=True)]
    number = {row: place for place, row in enumerate(dict.fromkeys(row for rows in wanted for row in rows))}
    output = _run(encoder, part, calls, list(number), memory)
    pooled = (output.pooler_output if part == "text_encoder" else output.text_embeds).float()
    places = [[number[row] for row in rows] for rows in wanted]
    return [
        (_weighted(prompt, p, _layer(output, call.clip_skip).float()), pooled[p[0]])
        for call, prompt, p in zip(calls, prompts, places, strict=True)
    ]


def _strengths(call: EncodeText) -> Strengths:
    total = summed((item.weights.digest, (item.clip,)) for item in call.loras)
    return tuple((digest, strength) for digest, strength in total.items() if any(strength))


def _rows(prompt: Sequence[Chunk], strengths: Strengths) -> list[Row]:
    """The prompt's rows and, where it has weights, the empty prompt's, towards which they pull."""
    weighted = any(weight != 1 for chunk in prompt for weight in chunk.weights)
    return [Row(chunk.tokens, strengths) for chunk in (*prompt, *([EMPTY] if weighted else []))]


def _run(encoder: Any, part: str, calls: Sequence[EncodeText], rows: Sequence[Row], memory: Memory) -> Any:
    """The encoder's output for the rows, with the hidden states of all its layers."""
    used = {digest for row in rows for digest, _ in row.strengths}
    for file in dict.fromkeys(item.weights for call in calls for item in call.loras if item.weights.digest in used):
        lora.attach(encoder, part, file, memory)
    lora.set_strengths(encoder, [dict(row.strengths) for row in rows])
    ids = torch.tensor([Chunk(row.tokens, ()).padded(PADS[part]) for row in rows], device=memory.device)
    with _learned(encoder, rows, memory):
        return encoder(input_ids=ids, output_hidden_states=True)


@contextmanager
def _learned(encoder: Any, rows: Sequence[Row], memory: Memory) -> Iterator[None]:
    """Put learned vectors where words have their own, before positions are added."""
    places = [(r, t, token) for r, row in enumerate(rows) for t, token in enumerate(row.tokens)]
    vectors = [(r, t, embeddings.load(token, memory)) for r, t, token in places if isinstance(token, Learned)]

    def put(_module: Any, _inputs: Any, output: Tensor) -> None:
        for row, place, vector in vectors:
            output[row, place] = vector

    handle = encoder.get_input_embeddings().register_forward_hook(put)
    try:
        yield
    finally:
        handle.remove()


def _layer(output: Any, clip_skip: int) -> Tensor:
    """The hidden state ``clip_skip`` layers from the end, not normalised; past the first layer, the final output."""
    states: tuple[Tensor, ...] = output.hidden_states
    final: Tensor = output.last_hidden_state
    return final if -clip_skip >= len(states) else states[clip_skip]


def _weighted(prompt: Sequence[Chunk], rows: Sequence[int], hidden: Tensor) -> Tensor:
    """The prompt's states ``[77 k, channels]``, each moved by its weight along the way from the empty prompt's."""
    states = hidden[list(rows[: len(prompt)])]
    if len(rows) > len(prompt):
        weights = torch.tensor([chunk.padded_weights() for chunk in prompt], device=hidden.device)
        states = torch.lerp(hidden[rows[-1]].expand_as(states), states, weights[:, :, None])
    return states.flatten(0, 1)
