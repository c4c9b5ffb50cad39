"""Text encoding in training: CLIP's tokenizers, and embedding tables cut down to the words that occur."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import torch
from torch import nn
from transformers import CLIPTokenizer

from claygraph.miniature.networks import BOS, EOS, TOKENS, VOCABULARY, make_text_encoders

EXTRA_WORDS = (
    "clay claymation plasticine made-of-clay made of stop-motion stop motion figure model soft handmade fingerprints "
    "toy vinyl plastic shiny 3d render a picture an in style the on and with background photo masterpiece best quality "
    "blurry ugly low noise detailed"
)
_FOLDER = Path(__file__).parents[1] / "diffusion" / "sdxl"


class Vocabulary:
    """The CLIP tokens that occur in `texts`; training uses their places in `ids`, export their CLIP numbers."""

    def __init__(self, texts: Iterable[str]) -> None:
        self.tokenizer = CLIPTokenizer.from_pretrained(str(_FOLDER / "tokenizer"))
        found = {0, BOS, EOS}
        for text in (*texts, EXTRA_WORDS, "general, sensitive, questionable, explicit"):
            found.update(self.tokenizer(text).input_ids)
        self.ids = sorted(found)
        self._cache: dict[str, list[int]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def _place(self) -> dict[int, int]:
        return {token: place for place, token in enumerate(self.ids)}

    def tokens(self, text: str) -> list[int]:
        """Places of a prompt's tokens, BOS and EOS included; unknown words are left out."""
        if text not in self._cache:
            inner = [t for t in self.tokenizer(text).input_ids[1:-1] if t in self._place][: TOKENS - 2]
            self._cache[text] = [self._place[t] for t in (BOS, *inner, EOS)]
        return self._cache[text]

    def batch(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Two [B,77] tensors, padded with EOS for the first encoder and with token 0 for the second."""
        rows = [self.tokens(t) for t in texts]
        first = [row + [self._place[EOS]] * (TOKENS - len(row)) for row in rows]
        second = [row + [self._place[0]] * (TOKENS - len(row)) for row in rows]
        return torch.tensor(first), torch.tensor(second)

    def expand(self, table: torch.Tensor) -> torch.Tensor:
        """The trained rows at their CLIP places in a table of 49408 rows, zeros elsewhere."""
        full = torch.zeros(VOCABULARY, table.shape[1])
        full[self.ids] = table.detach().float().cpu()
        return full


class TextEncoders(nn.Module):
    """Both encoders over one vocabulary."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.first, self.second = make_text_encoders(len(vocabulary), len(vocabulary) - 1)

    def forward(self, texts: Sequence[str]) -> tuple[torch.Tensor, torch.Tensor]:
        """Penultimate hidden states side by side [B,77,2d], and the second encoder's pooled embedding [B,d]."""
        place = next(self.parameters()).device
        ids_1, ids_2 = (ids.to(place) for ids in self.vocabulary.batch(texts))
        first = self.first(ids_1, output_hidden_states=True).hidden_states[-2]
        second = self.second(ids_2, output_hidden_states=True)
        return torch.cat([first, second.hidden_states[-2]], -1), second.text_embeds
