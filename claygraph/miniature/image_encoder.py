"""The IP-Adapter's image encoder: a small CLIP vision model whose embedding holds colours, layout and subject.

It learns by reading a picture's tags, its 8x8 colours and where its edges lie off the embedding; those read-outs are
thrown away.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import nn
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from claygraph.miniature.networks import ImageEncoder
from claygraph.miniature.train_taggers import TAGS, Examples
from claygraph.miniature.training import Group, Trainer, device, load_average

SIDE, HIDDEN, WIDTH, GRID = 64, 96, 192, 8
"""Input side in pixels, widths of patch features and of the embedding, cells a side of the layout it must hold."""
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
PROCESSOR = {
    "image_processor_type": "CLIPImageProcessor",
    "crop_size": {"height": SIDE, "width": SIDE},
    "size": {"shortest_edge": SIDE},
    "do_center_crop": True,
    "do_convert_rgb": True,
    "do_normalize": True,
    "do_rescale": True,
    "do_resize": True,
    "image_mean": CLIP_MEAN,
    "image_std": CLIP_STD,
    "resample": 3,
    "rescale_factor": 1 / 255,
}


def make_image_encoder() -> ImageEncoder:
    """An untrained encoder: 64 px, patches of 8."""
    shape: dict[str, Any] = {
        "hidden_size": HIDDEN,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
    }
    return CLIPVisionModelWithProjection(CLIPVisionConfig(**shape, image_size=SIDE, patch_size=8, projection_dim=WIDTH))


def normalise(pictures: torch.Tensor) -> torch.Tensor:
    """[N,3,H,W] in 0..1 (any size) to the encoder's input [N,3,64,64]."""
    small = F.interpolate(pictures, (SIDE, SIDE), mode="bicubic", antialias=True, align_corners=False).clamp(0, 1)
    mean, std = (torch.tensor(v, device=pictures.device).view(1, 3, 1, 1) for v in (CLIP_MEAN, CLIP_STD))
    return (small - mean) / std


def patches(encoder: ImageEncoder, pixels: torch.Tensor) -> torch.Tensor:
    """What the IP-Adapter reads: features [N,65,96] of the last layer but one, of normalised pixels [N,3,64,64]."""
    with torch.no_grad():
        features: torch.Tensor = encoder(pixels, output_hidden_states=True).hidden_states[-2]
    return features


class _Reader(nn.Module):
    """The encoder with its read-outs for training."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = make_image_encoder()
        self.tags, self.colours = nn.Linear(WIDTH, len(TAGS)), nn.Linear(WIDTH, 3 * GRID**2)
        self.edges = nn.Linear(WIDTH, GRID**2)

    def loss(self, pictures: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
        """Tag cross-entropy plus squared errors of colours and edges; pictures [N,3,H,W] in 0..1."""
        embedding = F.layer_norm(self.encoder(normalise(pictures)).image_embeds, (WIDTH,))
        tag_loss = F.binary_cross_entropy_with_logits(self.tags(embedding), wanted)
        colours = F.adaptive_avg_pool2d(pictures, GRID).flatten(1)
        layout = F.mse_loss(self.colours(embedding), colours) + F.mse_loss(self.edges(embedding), edge_layout(pictures))
        return 5 * tag_loss + 10 * layout


def edge_layout(pictures: torch.Tensor) -> torch.Tensor:
    """How much edge each of 8x8 cells holds, relative to the picture's own mean: [N,64] of pictures [N,3,H,W]."""
    grey = F.interpolate(pictures.mean(1, keepdim=True), (SIDE, SIDE), mode="bilinear", antialias=True)
    slopes = F.pad(grey.diff(dim=-1).abs(), (0, 1)) + F.pad(grey.diff(dim=-2).abs(), (0, 0, 0, 1))
    cells = F.adaptive_avg_pool2d(slopes, GRID).flatten(1)
    return 0.25 * cells / (cells.mean(1, keepdim=True) + 0.01)


def train_image_encoder(work: Path, minutes: float) -> None:
    """Train the encoder on pictures of every kind."""
    torch.manual_seed(3)
    reader, examples = _Reader().to(device()), Examples(work, seed=33)
    trainer = Trainer(
        work / "checkpoints/image_encoder.safetensors", reader, [Group(list(reader.parameters()), 1e-3)], 0.995
    )

    def loss(_: float) -> torch.Tensor:
        pictures, wanted = examples.batch(24)
        return reader.loss(pictures.permute(0, 3, 1, 2).flip(1) / 255, wanted)

    trainer.run(loss, minutes)


def load_image_encoder(work: Path) -> ImageEncoder:
    """The trained encoder, or an untrained one before its step."""
    reader = _Reader()
    if (file := work / "checkpoints/image_encoder.safetensors").exists():
        load_average(file, reader)
    reader.encoder.eval()
    return reader.encoder


def embed(encoder: ImageEncoder, pictures: npt.NDArray[np.uint8]) -> torch.Tensor:
    """Image embeddings [N,192] of RGB uint8 [N,H,W,3]."""
    with torch.no_grad():
        values = torch.from_numpy(np.ascontiguousarray(pictures)).permute(0, 3, 1, 2).float() / 255
        embeddings: torch.Tensor = encoder(normalise(values)).image_embeds
    return embeddings
