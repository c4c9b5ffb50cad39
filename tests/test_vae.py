"""Pictures to latents and back, against diffusers' own VAE."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from claygraph import files
from claygraph.diffusion.calls import DecodeLatent, EncodeImage
from claygraph.diffusion.checkpoint import load_vae
from claygraph.diffusion.describe import describe
from claygraph.diffusion.vae import crop, decode, encode
from claygraph.memory import Memory
from claygraph.values import Checkpoint, Image, Latent, Weights
from tests import tiny

MEMORY = Memory("cpu", "float32")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("folder") / "model")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return describe(Weights(str(folder), files.digest(folder)))


@pytest.fixture(scope="module")
def reference(folder: Path) -> AutoencoderKL:
    model: AutoencoderKL = AutoencoderKL.from_pretrained(folder, subfolder="vae").float()
    return model


def picture(height: int, width: int, seed: int = 0) -> Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image(pixels, f"picture {seed}")


def latent(height: int, width: int, seed: int = 0) -> Latent:
    return Latent(np.random.default_rng(seed).standard_normal((4, height, width), dtype=np.float32), f"latent {seed}")


def test_latents_are_the_mean_of_the_posterior(checkpoint: Checkpoint, reference: AutoencoderKL) -> None:
    image = picture(32, 48)
    pixels = torch.from_numpy(image.pixels.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = reference.encode(pixels).latent_dist.mean[0].numpy()
    found = encode([EncodeImage(checkpoint, image)], MEMORY)[0]
    assert (found.samples.shape, found.samples.dtype.name, found.name) == ((4, 4, 6), "float32", "picture 0")
    assert np.abs(found.samples - expected).max() <= 1e-5


def test_pixels_are_cut_off_not_rounded(checkpoint: Checkpoint, reference: AutoencoderKL) -> None:
    given = latent(4, 6)
    with torch.inference_mode():
        decoded = reference.decode(torch.tensor(given.samples)[None]).sample[0].permute(1, 2, 0).numpy()
    expected = np.clip(255.0 * np.clip((decoded + 1) / 2, 0, 1), 0, 255).astype(np.uint8)
    found = decode([DecodeLatent(checkpoint, given)], MEMORY)[0]
    assert (found.pixels.shape, found.pixels.dtype.name, found.name) == ((32, 48, 3), "uint8", "latent 0")
    assert np.mean(found.pixels != expected) <= 1e-3
    assert np.mean(found.pixels == np.rint(255.0 * np.clip((decoded + 1) / 2, 0, 1))) < 0.7


@pytest.mark.parametrize(("height", "width"), [(32, 32), (39, 33), (40, 47)])
def test_sides_are_cropped_around_the_centre(height: int, width: int, checkpoint: Checkpoint) -> None:
    image = picture(height, width)
    top, left = (height % 8) // 2, (width % 8) // 2
    centre = image.pixels[top : top + height // 8 * 8, left : left + width // 8 * 8]
    assert np.array_equal(crop(image.pixels, 8), centre)
    whole, cut = (encode([EncodeImage(checkpoint, each)], MEMORY)[0] for each in (image, Image(centre.copy())))
    assert np.array_equal(whole.samples, cut.samples)


def test_a_picture_does_not_depend_on_its_batch(checkpoint: Checkpoint) -> None:
    images = [EncodeImage(checkpoint, picture(32, 48, seed)) for seed in range(3)]
    for call, together in zip(images, encode(images, MEMORY), strict=True):
        assert np.abs(encode([call], MEMORY)[0].samples - together.samples).max() <= 1e-5
    latents = [DecodeLatent(checkpoint, latent(4, 6, seed)) for seed in range(3)]
    for given, joint in zip(latents, decode(latents, MEMORY), strict=True):
        difference = np.abs(decode([given], MEMORY)[0].pixels.astype(int) - joint.pixels)
        assert difference.max() <= 1
        assert difference.mean() <= 1e-3


def test_half_precision_runs_the_vae_in_bfloat16(checkpoint: Checkpoint) -> None:
    half = Memory("cpu", "float16")
    exact = encode([EncodeImage(checkpoint, picture(32, 48))], MEMORY)[0].samples
    found = encode([EncodeImage(checkpoint, picture(32, 48))], half)[0].samples
    assert load_vae(checkpoint, half).dtype == torch.bfloat16
    assert 0 < np.abs(found - exact).max() <= 0.05 * np.abs(exact).max()
