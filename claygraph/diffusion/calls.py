"""The device calls a stage can await. Light to import: each brings in what it needs when it runs."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from claygraph.diffusion import footprint
from claygraph.stage import Call
from claygraph.values import Checkpoint, Conditioning, Image, Latent, Lora, Model, Prompt, Size, Weights

if TYPE_CHECKING:
    import torch

    from claygraph.memory import Memory
    from claygraph.values import Floats

SIZE = Size()


@dataclass(frozen=True, eq=False)
class EncodeText(Call[Conditioning]):
    """A prompt through both text encoders: weights in the text as ``(word:1.2)``, any length.

    ``clip_skip`` counts layers from the end: -1 the last, -2 (SDXL's) the one before. ``text_l`` is what CLIP-L reads
    where that is not ``text``; ``embeddings`` are the files that ``embedding:NAME`` stands for, by name.
    """

    checkpoint: Checkpoint
    loras: tuple[Lora, ...]
    text: str
    clip_skip: int = -2
    text_l: str | None = None
    size: Size = SIZE
    embeddings: tuple[tuple[str, Weights], ...] = ()
    name: ClassVar[str] = "encode_text"

    @property
    def batch_key(self) -> Hashable:
        return self.checkpoint

    @classmethod
    def run_batch(cls, calls: Sequence[EncodeText], memory: Memory) -> list[Conditioning]:
        from claygraph.diffusion.text import encode

        return encode(calls, memory)


@dataclass(frozen=True, eq=False)
class EncodeImage(Call[Latent]):
    """A picture through the VAE's encoder: the mean of the posterior, unscaled; in tiles where ``tile`` is not 0.

    ``tile`` and ``overlap`` are pixels.
    """

    checkpoint: Checkpoint
    image: Image
    tile: int = 0
    overlap: int = 64
    name: ClassVar[str] = "encode_image"

    @property
    def batch_key(self) -> Hashable:
        return self.checkpoint, self.image.size, self.tile, self.overlap

    @property
    def row_bytes(self) -> int:
        return footprint.encoder(self.checkpoint, *self.image.size, self.tile)

    @classmethod
    def run_batch(cls, calls: Sequence[EncodeImage], memory: Memory) -> list[Latent]:
        from claygraph.diffusion.vae import encode

        return encode(calls, memory)


@dataclass(frozen=True, eq=False)
class DecodeLatent(Call[Image]):
    """Latents (unscaled) through the VAE's decoder; in tiles where ``tile``, in pixels of the picture, is not 0."""

    checkpoint: Checkpoint
    latent: Latent
    tile: int = 0
    overlap: int = 64
    name: ClassVar[str] = "decode_latent"

    @property
    def batch_key(self) -> Hashable:
        return self.checkpoint, self.latent.samples.shape, self.tile, self.overlap

    @property
    def row_bytes(self) -> int:
        height, width = (self.checkpoint.downscale * side for side in self.latent.samples.shape[1:])
        return footprint.decoder(self.checkpoint, height, width, self.tile)

    @classmethod
    def run_batch(cls, calls: Sequence[DecodeLatent], memory: Memory) -> list[Image]:
        from claygraph.diffusion.vae import decode

        return decode(calls, memory)


@dataclass(frozen=True, eq=False)
class EmbedImages(Call["Floats"]):
    """Pictures as image tokens, float32 ``[T, channels]``: CLIP vision encoder, then the IP-Adapter's projection.

    Several are joined by ``combine`` (one of ``adapter_files.COMBINATIONS``). No picture at all gives the tokens of the
    unconditional half. ``crop`` and ``sharpening`` are those of ``clip_pictures.prepare``.
    """

    adapter: Weights
    encoder: Weights
    images: tuple[Image, ...] = ()
    combine: str = "concat"
    crop: str = "none"
    sharpening: float = 0.0
    name: ClassVar[str] = "embed_images"

    @property
    def batch_key(self) -> Hashable:
        return self.adapter, self.encoder

    @classmethod
    def run_batch(cls, calls: Sequence[EmbedImages], memory: Memory) -> list[Floats]:
        from claygraph.diffusion.ip_adapter import embed

        return embed(calls, memory)


@dataclass(frozen=True, eq=False)
class ReadTags(Call["Floats"]):
    """A picture through a WD14-format ONNX tagger (a folder with ``model.onnx``): one probability per CSV row."""

    tagger: Weights
    image: Image
    name: ClassVar[str] = "read_tags"

    @property
    def batch_key(self) -> Hashable:
        return self.tagger

    @classmethod
    def run_batch(cls, calls: Sequence[ReadTags], memory: Memory) -> list[Floats]:
        from claygraph.diffusion.wd14 import read

        return read(calls, memory)


@dataclass(frozen=True, eq=False)
class Denoise(Call["torch.Tensor"]):
    """One evaluation of the denoiser with classifier-free guidance.

    ``x`` is float32 ``[1, C, h, w]`` in the sampler's space (latents times the scaling factor, plus sigma times noise);
    the value is the denoised x0 of the same shape. ``cfg`` exactly 1 skips the negative half, unless ``both`` asks for
    its prediction beside the guided one: then the value is ``[2, C, h, w]``, the guided x0 and the negative half's.
    ``sigmas`` are those of the run's schedule, by which a ControlNet's keyframes count its steps. Calls share a batch
    where checkpoint and latent size agree: samplers, sigmas, guidance (1 too), prompts of any length, LoRAs, image
    prompts and ControlNets may differ from row to row, or be absent.
    """

    model: Model
    prompt: Prompt
    x: torch.Tensor
    sigma: float
    cfg: float
    step: int = 0
    steps: int = 1
    both: bool = False
    sigmas: Sequence[float] = ()
    name: ClassVar[str] = "denoise"

    @property
    def has_negative(self) -> bool:
        """Whether the negative half is computed at all."""
        return self.both or self.cfg != 1.0

    @property
    def batch_key(self) -> Hashable:
        return self.model.checkpoint, tuple(self.x.shape)

    @property
    def affinity(self) -> Hashable:
        return self.model.loras

    @property
    def progress(self) -> tuple[int, int]:
        return self.step, self.steps

    @property
    def row_bytes(self) -> int:
        height, width = self.x.shape[2:]
        return footprint.unet(self.model.checkpoint, height, width, 2)

    @classmethod
    def run_batch(cls, calls: Sequence[Denoise], memory: Memory) -> list[torch.Tensor]:
        from claygraph.diffusion.denoise import denoise

        return denoise(calls, memory)
