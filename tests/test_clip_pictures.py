"""Pictures for the image encoder: squares, sharpening, and the encoder's single-file layout."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from safetensors.torch import load_file, save_file
from torch.nn.functional import gelu, layer_norm, linear
from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

from claygraph import files
from claygraph.diffusion.calls import EmbedImages
from claygraph.diffusion.clip_pictures import prepare, preprocess
from claygraph.diffusion.image_encoder import load_encoder
from claygraph.diffusion.ip_adapter import combine
from claygraph.errors import WeightsError
from claygraph.values import Weights
from tests import tiny_adapters
from tests.denoising import error, floats, memory, picture, weights


@pytest.mark.parametrize(
    ("crop", "wide", "high"),
    [
        ("center", slice(20, 80), slice(20, 80)),
        ("left", slice(0, 60), slice(20, 80)),
        ("right", slice(40, 100), slice(20, 80)),
        ("top", slice(20, 80), slice(0, 60)),
        ("bottom", slice(20, 80), slice(40, 100)),
    ],
)
def test_the_named_end_of_the_longer_side_stays(crop: str, wide: slice, high: slice) -> None:
    wide_one, high_one = picture(1, 60, 100).pixels, picture(2, 100, 60).pixels
    for pixels, square in ((wide_one, wide_one[:, wide]), (high_one, high_one[high])):
        expected = np.asarray(Pillow.fromarray(square).resize((32, 32), Pillow.Resampling.LANCZOS))
        assert np.array_equal(prepare(pixels, crop, 0.0, 32), expected)


def test_pad_adds_black_bars_and_none_leaves_the_picture_alone() -> None:
    pixels = np.full((40, 80, 3), 200, np.uint8)
    padded = prepare(pixels, "pad", 0.0, 80)
    assert (padded[:18] == 0).all()
    assert (padded[62:] == 0).all()
    assert (padded[22:58] == 200).all()
    assert prepare(pixels, "none", 0.0, 80) is pixels


def sharpened_by_hand(pixels: Any, amount: float) -> Any:
    """Pixel by pixel; outside the picture is black."""
    height, width, _ = pixels.shape
    result = np.zeros_like(pixels)

    def at(row: int, column: int, channel: int) -> float:
        inside = 0 <= row < height and 0 <= column < width
        return float(pixels[row, column, channel]) / 255 if inside else 0.0

    for row, column, channel in np.ndindex(*pixels.shape):
        near = [at(row + down, column + across, channel) for down, across in ((-1, 0), (0, -1), (0, 1), (1, 0))]
        corners = [at(row + down, column + across, channel) for down in (-1, 1) for across in (-1, 1)]
        middle = at(row, column, channel)
        low = min(*near, middle) + min(corners)
        high = max(*near, middle) + max(corners)
        room = math.sqrt(min(low, 2 - high) / high) if high else 0.0
        weight = -room * (1 / 8 + amount * (1 / 5 - 1 / 8))
        result[row, column, channel] = round(255 * min(max((sum(near) * weight + middle) / (1 + 4 * weight), 0), 1))
    return result


@pytest.mark.parametrize("amount", [0.3, 1.0])
def test_sharpening_is_contrast_adaptive(amount: float) -> None:
    rough = picture(3, 4, 4).pixels // 2 + 60
    plain, sharp = (prepare(np.asarray(rough), "center", each, 16) for each in (0.0, amount))
    difference = np.abs(sharp.astype(int) - sharpened_by_hand(plain, amount))
    assert difference.max() <= 1  # a level where float32 rounds to the other side
    assert (difference > 0).mean() < 0.01
    assert sharp.std() > plain.std()


COMBINED = {
    "add": [5.0, 1.0],
    "subtract": [1.0, -1.0],
    "average": [2.5, 0.5],
    "norm average": [(3 + 2) / 13**0.5 / 2, 0.5],
    "max": [3.0, 1.0],
    "min": [2.0, 0.0],
}


@pytest.mark.parametrize("how", COMBINED)
def test_pictures_are_joined(how: str) -> None:
    joined = combine([torch.tensor([3.0, 0.0]), torch.tensor([2.0, 1.0])], how)
    assert joined.shape == (1, 2)
    assert joined[0].tolist() == pytest.approx(COMBINED[how])
    assert combine([torch.tensor([3.0, 0.0])], how).tolist() == [[3.0, 0.0]]


def test_three_pictures_subtract_the_mean_of_the_rest() -> None:
    three = [torch.tensor([number]) for number in (1.0, 2.0, 4.0)]
    assert combine(three, "subtract").tolist() == [[-2.0]]


def of(images: int, combine: str, file: str = "plain.safetensors", **adapter: Any) -> EmbedImages:
    pictures = tuple(picture(seed, 40, 60) for seed in range(images))
    encoder = weights(tiny_adapters.image_encoder, "encoder")
    return EmbedImages(weights(tiny_adapters.ip_adapter, file, **adapter), encoder, pictures, combine)


def test_concat_is_the_tokens_of_each_side_by_side() -> None:
    both = of(2, "concat")
    alone = [EmbedImages(both.adapter, both.encoder, (image,)) for image in both.images]
    found, *parts = EmbedImages.run_batch([both, *alone], memory())
    assert np.abs(found - np.concatenate(parts)).max() < 1e-5
    (averaged,) = EmbedImages.run_batch([of(2, "average")], memory())
    assert averaged.shape == parts[0].shape
    assert np.abs(averaged - parts[0]).max() > 0.01


def test_full_adapters_turn_every_patch_into_a_token() -> None:
    one = of(1, "concat", "full.safetensors", full=True)
    (tokens,) = EmbedImages.run_batch([one], memory())
    file = {name: tensor.float() for name, tensor in load_file(one.adapter.path).items()}
    encoder = CLIPVisionModelWithProjection.from_pretrained(one.encoder.path, dtype=torch.float32)
    with torch.no_grad():
        seen = encoder(preprocess(one.images[0].pixels, 224)[None], output_hidden_states=True).hidden_states[-2]
    first, second, norm = ([file[f"image_proj.proj.{n}.{kind}"] for kind in ("weight", "bias")] for n in (0, 2, 3))
    expected = layer_norm(linear(gelu(linear(seen[0], *first)), *second), norm[0].shape, norm[0], norm[1])
    assert tokens.shape == (257, expected.shape[1])
    assert error(torch.tensor(tokens), expected) < 1e-5


def single_file(path: Path) -> Path:
    """An encoder 64 wide with 16 heads, as one file."""
    config = CLIPVisionConfig(
        hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=16, projection_dim=20,
        image_size=28, patch_size=14, hidden_act="gelu",
    )  # fmt: skip
    torch.manual_seed(0)
    save_file(CLIPVisionModelWithProjection(config).state_dict(), path)
    return path


def test_an_encoder_in_one_file_is_measured(tmp_path: Path) -> None:
    path = single_file(tmp_path / "vision.safetensors")
    encoder = load_encoder(Weights(str(path), files.digest(path)), memory())
    config = encoder.config
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (64, 96, 2)
    assert (config.image_size, config.patch_size, config.projection_dim) == (28, 14, 20)
    again = CLIPVisionModelWithProjection(config)
    again.load_state_dict(load_file(path))
    pixels = torch.from_numpy(floats(1, 1, 3, 28, 28))
    with torch.no_grad():
        assert error(encoder(pixels).image_embeds, again.eval()(pixels).image_embeds) < 1e-6


def test_another_file_is_no_encoder(tmp_path: Path) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"x": torch.zeros(1)}, path)
    with pytest.raises(WeightsError, match=r"image_encoder='other.safetensors'.*no vision_model.*ViT-H"):
        load_encoder(Weights(str(path), "other"), memory())
