"""The prompt: what the tagger saw and the clay words, through both text encoders."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from claygraph.diffusion.calls import EncodeText
from claygraph.diffusion.counting import rows_of
from claygraph.diffusion.embeddings import find
from claygraph.errors import SettingError, check_flag, check_whole
from claygraph.stage import Stage
from claygraph.values import Conditioning, Model, Prompt, Size, Tags

LARGEST = 16384
SHORT = 75  # characters are no fewer than tokens


@dataclass(frozen=True)
class EncodePrompt(Stage):
    """Tags, then ``text``, joined by ``separator``; ``negative`` is the negative prompt.

    Words can be weighted as in ``(clay:1.3)``; a prompt may be longer than 77 tokens. ``weigh_tags`` gives each tag the
    tagger's probability as its weight. ``clip_skip`` counts layers from the end (-2 is SDXL's). ``text_l`` and
    ``negative_l`` are what CLIP-L reads instead, ``text_g`` and ``negative_g`` what OpenCLIP bigG does.
    ``zero_negative`` gives zeros for the negative prompt, as diffusers does; an empty one is encoded otherwise.
    ``embedding:NAME`` in a text is the textual inversion NAME.safetensors in the folder ``embeddings``.

    SDXL is told of a picture's size: ``width``, ``height``, ``crop_w``, ``crop_h``, ``target_width``, ``target_height``
    (pixels, 0 to 16384); null stands for 8 pixels per latent pixel, and for the target for ``width`` and ``height``.
    """

    text: str = ""
    negative: str = ""
    separator: str = ", "
    weigh_tags: bool = False
    clip_skip: int = -2
    text_g: str | None = None
    text_l: str | None = None
    negative_g: str | None = None
    negative_l: str | None = None
    zero_negative: bool = False
    embeddings: str = ""
    width: int | None = None
    height: int | None = None
    crop_w: int = 0
    crop_h: int = 0
    target_width: int | None = None
    target_height: int | None = None

    def __post_init__(self) -> None:
        check_whole("prompt.clip_skip", self.clip_skip, -24, -1)
        check_flag("prompt.weigh_tags", self.weigh_tags)
        check_flag("prompt.zero_negative", self.zero_negative)
        for name, value in vars(self.size()).items():
            if value is not None:
                check_whole(f"prompt.{name}", value, 0, LARGEST)
        if self.zero_negative and any(self.negatives()):
            raise SettingError("prompt.zero_negative=true leaves no negative prompt; give prompt.negative='' with it.")

    def size(self) -> Size:
        """What SDXL is told of the picture's size."""
        return Size(self.width, self.height, self.crop_w, self.crop_h, self.target_width, self.target_height)

    def texts(self) -> tuple[str, str]:
        """The positive prompt without tags, as OpenCLIP bigG and CLIP-L read it."""
        return _or(self.text_g, self.text), _or(self.text_l, self.text)

    def negatives(self) -> tuple[str, str]:
        """The negative prompt, as OpenCLIP bigG and CLIP-L read it."""
        return _or(self.negative_g, self.negative), _or(self.negative_l, self.negative)

    def notes(self, upstream: Mapping[str, Stage]) -> Sequence[str]:  # noqa: ARG002 - how long tags are is not known
        texts = {"prompt.text": max(self.texts(), key=len), "prompt.negative": max(self.negatives(), key=len)}
        return [
            f"{setting} has more than 77 tokens: it is read in {rows_of(text)} rows, of which the first decides most."
            for setting, text in texts.items()
            if len(text) > SHORT and rows_of(text) > 1
        ]

    def files(self) -> Sequence[str]:
        found = find("prompt.embeddings", self.embeddings, (*self.texts(), *self.negatives()))
        return [weights.path for weights in found.values()]

    async def run(self, lora: Model, tagger: Tags | None = None) -> Prompt:
        words = self.written(tagger or Tags())
        text, text_l = (self.separator.join(part for part in (words, own) if part) for own in self.texts())
        positive = await self._encode(lora, text, text_l)
        negative = await self._encode(lora, *self.negatives())
        negative = _zeros(negative) if self.zero_negative else negative
        return Prompt(positive, negative, text, self.negatives()[0])

    def _encode(self, model: Model, text: str, text_l: str) -> EncodeText:
        found = find("prompt.embeddings", self.embeddings, (*self.texts(), *self.negatives()))
        other = None if text_l == text else text_l
        return EncodeText(model.checkpoint, model.loras, text, self.clip_skip, other, self.size(), tuple(found.items()))

    def written(self, tags: Tags) -> str:
        """The tags as the prompt spells them."""
        words = [escape(tag) for tag, _ in tags.tags]
        if self.weigh_tags:
            words = [f"({word}:{probability:.3f})" for word, (_, probability) in zip(words, tags.tags, strict=True)]
        return self.separator.join(words) + (", " if words and tags.trailing_comma else "")


def _or(own: str | None, shared: str) -> str:
    return shared if own is None else own


def _zeros(conditioning: Conditioning) -> Conditioning:
    """Zeros instead of an encoded prompt, in its shapes."""
    import numpy as np

    hidden, pooled = np.zeros_like(conditioning.hidden), np.zeros_like(conditioning.pooled)
    return Conditioning(hidden, pooled, conditioning.size)


def escape(tag: str) -> str:
    """A tag with its parentheses escaped, so that they do not weigh it."""
    return re.sub(r"([()])", r"\\\1", tag)
