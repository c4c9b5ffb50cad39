"""The prompt: what the tagger saw and the clay words, through both text encoders."""

from __future__ import annotations

import re
from dataclasses import dataclass

from claygraph.diffusion.calls import EncodeText
from claygraph.errors import check_whole
from claygraph.stage import Stage
from claygraph.values import Model, Prompt, Tags


@dataclass(frozen=True)
class EncodePrompt(Stage):
    """Tags, then ``text``, joined by ``separator``; ``negative`` is the negative prompt.

    Words can be weighted as in ``(clay:1.3)``; a prompt may be longer than 77 tokens. ``weigh_tags`` gives each tag the
    tagger's probability as its weight. ``clip_skip`` counts layers from the end (-2 is SDXL's).
    """

    text: str = ""
    negative: str = ""
    separator: str = ", "
    weigh_tags: bool = False
    clip_skip: int = -2

    def __post_init__(self) -> None:
        check_whole("prompt.clip_skip", self.clip_skip, -24, -1)

    async def run(self, lora: Model, tagger: Tags | None = None) -> Prompt:
        text = self.separator.join(part for part in (self.written(tagger or Tags()), self.text) if part)
        positive = await EncodeText(lora.checkpoint, lora.loras, text, self.clip_skip)
        negative = await EncodeText(lora.checkpoint, lora.loras, self.negative, self.clip_skip)
        return Prompt(positive, negative, text, self.negative)

    def written(self, tags: Tags) -> str:
        """The tags as the prompt spells them."""
        words = [escape(tag) for tag, _ in tags.tags]
        if self.weigh_tags:
            words = [f"({word}:{probability:.3f})" for word, (_, probability) in zip(words, tags.tags, strict=True)]
        return self.separator.join(words) + (", " if words and tags.trailing_comma else "")


def escape(tag: str) -> str:
    """A tag with its parentheses escaped, so that they do not weigh it."""
    return re.sub(r"([()])", r"\\\1", tag)
