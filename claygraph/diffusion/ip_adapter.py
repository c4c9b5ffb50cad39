"""IP-Adapter: pictures as tokens, by CLIP's vision encoder and the projection in an adapter file (arXiv 2308.06721)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import interpolate

from claygraph import files
from claygraph.diffusion import checkpoint
from claygraph.diffusion.resampler import Projection, Resampler, projection
from claygraph.errors import WeightsError

if TYPE_CHECKING:
    from claygraph.diffusion.calls import EmbedImage
    from claygraph.memory import Memory
    from claygraph.values import Bytes, Floats, Weights

MEAN = (0.48145466, 0.4578275, 0.40821073)
POSITIONS = "vision_model.embeddings.position_ids"
STD = (0.26862954, 0.26130258, 0.27577711)


@torch.inference_mode()
def embed(calls: Sequence[EmbedImage], memory: Memory) -> list[tuple[Floats, Floats]]:
    """Each picture's tokens and those of no picture, both float32 ``[T, channels]``."""
    first = calls[0]
    encoder = memory.get(("image_encoder", first.encoder.digest), lambda: _load_encoder(first.encoder, memory))
    to_tokens = memory.get(("projection", first.adapter.digest), lambda: _load_projection(first.adapter, memory))
    _check_fit(first, encoder, to_tokens)
    pixels = [preprocess(call.image.pixels, encoder.config.image_size) for call in calls]
    tokens = to_tokens(_features(encoder, to_tokens, torch.stack(pixels)))
    negative = memory.get(("no_image", first.batch_key), lambda: _floats(to_tokens(_absent(encoder, to_tokens))[0]))
    return [(_floats(each), negative) for each in tokens]


def preprocess(pixels: Bytes, size: int) -> Tensor:
    """uint8 ``[H, W, 3]`` as CLIP sees it: float32 ``[3, size, size]``, the middle of the picture, normalised."""
    picture = torch.tensor(pixels).permute(2, 0, 1)[None].float() / 255
    height, width = picture.shape[2:]
    scale = size / min(height, width)
    shape = round(scale * height), round(scale * width)
    if shape != (height, width):
        picture = interpolate(picture, shape, mode="bicubic", antialias=True)
    top, left = (shape[0] - size) // 2, (shape[1] - size) // 2
    square = picture[0, :, top : top + size, left : left + size].mul(255).clamp(0, 255).round() / 255
    return (square - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def _features(encoder: Any, to_tokens: Projection | Resampler, pixels: Tensor) -> Tensor:
    """What a projection reads: the plain type the image embedding, the plus type the penultimate layer's patches."""
    plus = isinstance(to_tokens, Resampler)
    seen = encoder(pixels.to(encoder.device, encoder.dtype), output_hidden_states=plus)
    features: Tensor = seen.hidden_states[-2] if plus else seen.image_embeds
    return features


def _absent(encoder: Any, to_tokens: Projection | Resampler) -> Tensor:
    """Features for the unconditional half, as in IPAdapter_plus: of a black picture for plus, zeros for plain."""
    size = encoder.config.image_size
    black = preprocess(torch.zeros(size, size, 3, dtype=torch.uint8).numpy(), size)[None]
    features = _features(encoder, to_tokens, black)
    return features if isinstance(to_tokens, Resampler) else torch.zeros_like(features)


def _floats(tokens: Tensor) -> Floats:
    return tokens.float().cpu().numpy()


def _load_encoder(encoder: Weights, memory: Memory) -> Any:
    from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

    folder = files.locate(encoder.path)
    config, weights = folder / "config.json", folder / "model.safetensors"
    if not (config.is_file() and weights.is_file()):
        raise WeightsError(f"image_encoder={folder.name!r} is not a folder with config.json and model.safetensors.")
    with torch.device("meta"):
        model = CLIPVisionModelWithProjection(CLIPVisionConfig.from_json_file(config))
    tensors = checkpoint.read(weights, memory.device, memory.dtype)
    embeddings = model.vision_model.embeddings
    embeddings.position_ids = tensors.pop(POSITIONS, torch.arange(embeddings.num_positions)[None]).to(memory.device)
    try:
        model.load_state_dict(tensors, assign=True)
    except RuntimeError as error:
        raise WeightsError(
            f"image_encoder={folder.name!r} does not hold a CLIP vision encoder with a projection as its config.json "
            f"says; give CLIP ViT-H or ViT-bigG. ({str(error).splitlines()[-1].strip()[:120]})"
        ) from error
    return model.eval().requires_grad_(False)


def _load_projection(adapter: Weights, memory: Memory) -> Projection | Resampler:
    return projection(read(adapter, "image_proj.", memory))


def _check_fit(call: EmbedImage, encoder: Any, to_tokens: Projection | Resampler) -> None:
    plus = isinstance(to_tokens, Resampler)
    made = encoder.config.hidden_size if plus else encoder.config.projection_dim
    if made != to_tokens.width:
        raise WeightsError(
            f"image_encoder={files.locate(call.encoder.path).name!r} makes features of width {made}, but "
            f"ip_adapter={files.locate(call.adapter.path).name!r} reads {to_tokens.width}; "
            "give the encoder it was trained with (files named vit-h: CLIP ViT-H, ip-adapter_sdxl: CLIP ViT-bigG)."
        )


def read(adapter: Weights, part: str, memory: Memory) -> dict[str, Tensor]:
    """The tensors of one part of an adapter file, by their names in it; other kinds of file are refused."""
    path = files.locate(adapter.path)
    check_kind(path.name, files.header("ip_adapter", path))
    tensors = checkpoint.read(path, memory.device, memory.dtype, (part,))
    return {name.removeprefix(part): tensor for name, tensor in tensors.items()}


def check_kind(file: str, names: Iterable[str]) -> None:
    """Raise ``WeightsError`` unless tensors of these names make a plain or plus IP-Adapter."""
    found = {name.removeprefix("image_proj.") for name in names}
    if any("lora" in name or name.startswith("perceiver_resampler.") for name in found):
        raise WeightsError(f"ip_adapter={file!r} is of the FaceID type, which needs a face recogniser; {_ACCEPTED}")
    if "proj.3.weight" in found or "proj.2.weight" in found:
        kind = "full" if "proj.3.weight" in found else "FaceID portrait"
        raise WeightsError(f"ip_adapter={file!r} is of the {kind} type, which is not supported; {_ACCEPTED}")
    if not {"latents", "proj.weight"} & found or "ip_adapter.1.to_k_ip.weight" not in found:
        raise WeightsError(f"ip_adapter={file!r} does not hold an IP-Adapter; {_ACCEPTED}")


_ACCEPTED = "give a plain or plus IP-Adapter such as ip-adapter-plus_sdxl_vit-h.safetensors."
