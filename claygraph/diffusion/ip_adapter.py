"""IP-Adapter: pictures as tokens, by CLIP's vision encoder and the projection in an adapter file (arXiv 2308.06721)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from claygraph import files
from claygraph.diffusion import checkpoint
from claygraph.diffusion.adapter_files import check_kind
from claygraph.diffusion.clip_pictures import prepare, preprocess
from claygraph.diffusion.describe import shapes
from claygraph.diffusion.image_encoder import load_encoder
from claygraph.diffusion.resampler import AnyProjection, projection
from claygraph.errors import WeightsError

if TYPE_CHECKING:
    from claygraph.diffusion.calls import EmbedImages
    from claygraph.memory import Memory
    from claygraph.values import Floats, Weights


@torch.inference_mode()
def embed(calls: Sequence[EmbedImages], memory: Memory) -> list[Floats]:
    """The tokens of each call, float32 ``[T, channels]``; a picture that several calls name is encoded once."""
    first = calls[0]
    encoder = memory.get(("image_encoder", first.encoder.digest), lambda: load_encoder(first.encoder, memory))
    to_tokens = memory.get(("projection", first.adapter.digest), lambda: _load_projection(first.adapter, memory))
    _check_fit(first, encoder, to_tokens)
    seen = _see(calls, encoder, to_tokens, memory)
    absent = memory.get(("no_image", first.batch_key), lambda: _absent(encoder, to_tokens))
    joined = [combine([seen[key] for key in _keys(call)] or [absent], call.combine) for call in calls]
    tokens = to_tokens(torch.cat(joined)).split([len(each) for each in joined])
    return [each.flatten(0, 1).float().cpu().numpy() for each in tokens]


def _keys(call: EmbedImages) -> list[tuple[int, str, float]]:
    return [(id(image), call.crop, call.sharpening) for image in call.images]


def _see(
    calls: Sequence[EmbedImages], encoder: Any, to_tokens: AnyProjection, memory: Memory
) -> dict[tuple[int, str, float], Tensor]:
    """Features of every picture, as its call wants it prepared."""
    wanted = {
        key: (image.pixels, *key[1:]) for call in calls for key, image in zip(_keys(call), call.images, strict=True)
    }
    if not wanted:
        return {}
    size = encoder.config.image_size
    pixels = torch.stack([preprocess(prepare(*each, size), size) for each in wanted.values()])
    features = [_features(encoder, to_tokens, some) for some in pixels.split(memory.batch)]
    return dict(zip(wanted, torch.cat(features), strict=True))


def combine(features: Sequence[Tensor], how: str) -> Tensor:
    """Features of several pictures as those of one ``[1, ...]``, or side by side ``[N, ...]`` for "concat".

    As in IPAdapter_plus: "norm average" divides every number by its norm over the pictures, "subtract" takes the mean
    of the others from the first.
    """
    stacked = torch.stack(list(features))
    if how == "concat" or len(features) == 1:
        return stacked
    joined: Tensor = _JOIN[how](stacked.float())
    return joined[None].to(stacked.dtype)


_JOIN: dict[str, Any] = {
    "add": lambda stacked: stacked.sum(0),
    "subtract": lambda stacked: stacked[0] - stacked[1:].mean(0),
    "average": lambda stacked: stacked.mean(0),
    "norm average": lambda stacked: (stacked / stacked.norm(dim=0, keepdim=True)).mean(0),
    "max": lambda stacked: stacked.amax(0),
    "min": lambda stacked: stacked.amin(0),
}


def _features(encoder: Any, to_tokens: AnyProjection, pixels: Tensor) -> Tensor:
    """What a projection reads: the plain type the image embedding, the others the penultimate layer's patches."""
    patches = to_tokens.reads_patches
    seen = encoder(pixels.to(encoder.device, encoder.dtype), output_hidden_states=patches)
    features: Tensor = seen.hidden_states[-2] if patches else seen.image_embeds
    return features


def _absent(encoder: Any, to_tokens: AnyProjection) -> Tensor:
    """Features for the unconditional half, as in IPAdapter_plus: of a black picture, but zeros for the plain type."""
    size = encoder.config.image_size
    black = preprocess(torch.zeros(size, size, 3, dtype=torch.uint8).numpy(), size)[None]
    features = _features(encoder, to_tokens, black)[0]
    return features if to_tokens.reads_patches else torch.zeros_like(features)


def _load_projection(adapter: Weights, memory: Memory) -> AnyProjection:
    return projection(read(adapter, "image_proj.", memory))


def _check_fit(call: EmbedImages, encoder: Any, to_tokens: AnyProjection) -> None:
    made = encoder.config.hidden_size if to_tokens.reads_patches else encoder.config.projection_dim
    if made != to_tokens.width:
        raise WeightsError(
            f"image_encoder={files.locate(call.encoder.path).name!r} makes features of width {made}, but "
            f"ip_adapter={files.locate(call.adapter.path).name!r} reads {to_tokens.width}; "
            "give the encoder it was trained with (files named vit-h: CLIP ViT-H, ip-adapter_sdxl: CLIP ViT-bigG)."
        )


def read(adapter: Weights, part: str, memory: Memory) -> dict[str, Tensor]:
    """The tensors of one part of an adapter file, by their names in it; other kinds of file are refused."""
    path = files.locate(adapter.path)
    check_kind(path.name, shapes(path))
    tensors = checkpoint.read(path, memory.device, memory.dtype, (part,))
    return {name.removeprefix(part): tensor for name, tensor in tensors.items()}
