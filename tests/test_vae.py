"""Pictures to latents and back, against diffusers' own VAE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from claygraph import files
from claygraph.diffusion.calls import DecodeLatent, EncodeImage
from claygraph.diffusion.checkpoint import load_vae
from claygraph.diffusion.describe import describe
from claygraph.diffusion.tiles import in_tiles
from claygraph.diffusion.vae import crop, decode, encode
from claygraph.errors import SettingError
from claygraph.memory import Memory
from claygraph.stages.decode import Decode
from claygraph.stages.encode import Encode
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
    return Image(pixels)


def latent(height: int, width: int, seed: int = 0) -> Latent:
    return Latent(np.random.default_rng(seed).standard_normal((4, height, width), dtype=np.float32))


def test_latents_are_the_mean_of_the_posterior(checkpoint: Checkpoint, reference: AutoencoderKL) -> None:
    image = picture(32, 48)
    pixels = torch.from_numpy(image.pixels.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        expected = reference.encode(pixels).latent_dist.mean[0].numpy()
    found = encode([EncodeImage(checkpoint, image)], MEMORY)[0]
    assert (found.samples.shape, found.samples.dtype.name) == ((4, 4, 6), "float32")
    assert np.abs(found.samples - expected).max() <= 1e-5


def test_pixels_are_cut_off_not_rounded(checkpoint: Checkpoint, reference: AutoencoderKL) -> None:
    given = latent(4, 6)
    with torch.inference_mode():
        decoded = reference.decode(torch.tensor(given.samples)[None]).sample[0].permute(1, 2, 0).numpy()
    expected = np.clip(255.0 * np.clip((decoded + 1) / 2, 0, 1), 0, 255).astype(np.uint8)
    found = decode([DecodeLatent(checkpoint, given)], MEMORY)[0]
    assert (found.pixels.shape, found.pixels.dtype.name) == ((32, 48, 3), "uint8")
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


def by_hand(network: Any, x: torch.Tensor, tile: int, overlap: int, scale: float) -> torch.Tensor:
    """Tiles added up place by place: the mean of three shapes of tiles, weighted by the distance to their edges."""
    sums = torch.zeros(1)
    size = [int(side * scale) for side in x.shape[2:]]
    for high, wide in ((2 * tile, tile // 2), (tile // 2, 2 * tile), (tile, tile)):
        total, weight = torch.zeros(1, 1, *size), torch.zeros(size)
        rows = range(0, x.shape[2] - overlap, high - overlap) if x.shape[2] > high else [0]
        columns = range(0, x.shape[3] - overlap, wide - overlap) if x.shape[3] > wide else [0]
        for top, left in ((top, left) for top in rows for left in columns):
            part = network(x[:, :, top : top + high, left : left + wide])
            total = total.expand(*part.shape[:2], *size).clone()
            feather, (rise, run) = int(overlap * scale), part.shape[2:]
            for i in range(rise):
                for j in range(run):
                    down = min(1, (i + 1) / feather) * min(1, (rise - i) / feather) if feather < rise else 1
                    across = min(1, (j + 1) / feather) * min(1, (run - j) / feather) if feather < run else 1
                    total[:, :, int(top * scale) + i, int(left * scale) + j] += part[:, :, i, j] * down * across
                    weight[int(top * scale) + i, int(left * scale) + j] += down * across
        sums = sums + total / weight
    return sums / 3


def test_tiles_are_blended_by_their_distance_to_the_edge() -> None:
    def uneven(part: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.interpolate(part - part.mean(), scale_factor=2)

    x = torch.randn(1, 3, 22, 37)
    torch.testing.assert_close(in_tiles(uneven, x, 8, 2, 2), by_hand(uneven, x, 8, 2, 2), atol=1e-5, rtol=0)


def test_a_network_that_sees_one_place_is_not_changed_by_tiles() -> None:
    x = torch.randn(2, 3, 40, 23)
    torch.testing.assert_close(in_tiles(torch.tanh, x, 8, 2, 1), torch.tanh(x))
    halved = in_tiles(lambda part: part[:, :1, ::2, ::2], x[:, :, :, :22], 8, 2, 0.5)
    torch.testing.assert_close(halved, x[:, :1, ::2, :22:2])


def test_tiled_latents_and_pictures_are_those_of_diffusers_tile_by_tile(
    checkpoint: Checkpoint, reference: AutoencoderKL
) -> None:
    image, given = picture(96, 136), latent(12, 17)
    pixels = torch.from_numpy(image.pixels.astype(np.float32) / 255 * 2 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        mean = by_hand(lambda part: reference.encode(part).latent_dist.mean, pixels, 64, 16, 1 / 8)
        decoded = by_hand(lambda part: reference.decode(part).sample, torch.tensor(given.samples)[None], 8, 2, 8)
    found = encode([EncodeImage(checkpoint, image, 64, 16)], MEMORY)[0].samples
    assert np.abs(found - mean[0].numpy()).max() <= 1e-4
    whole = encode([EncodeImage(checkpoint, image)], MEMORY)[0].samples
    assert np.abs(found - whole).max() > 1e-3
    made = decode([DecodeLatent(checkpoint, given, 64, 16)], MEMORY)[0].pixels
    expected = ((decoded[0] + 1) / 2).clamp(0, 1).mul(255).permute(1, 2, 0).numpy().astype(np.uint8)
    assert np.mean(made != expected) <= 1e-3


@pytest.mark.parametrize("what", ["encode", "decode"])
def test_a_picture_that_memory_does_not_hold_is_done_in_tiles(
    what: str, checkpoint: Checkpoint, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The real VAE, on a device that holds 64 x 64 pixels at once."""
    vae = load_vae(checkpoint, MEMORY)
    unbounded, most = getattr(vae, what), 64 * 64 if what == "encode" else 8 * 8

    def bounded(x: torch.Tensor) -> Any:
        if x[:, 0].numel() > most:
            raise torch.OutOfMemoryError("too large")
        return unbounded(x)

    memory = Memory("cpu", "float32")
    memory.get(("vae", checkpoint.weights, checkpoint.config), lambda: vae)
    monkeypatch.setattr(vae, what, bounded)
    monkeypatch.setattr("claygraph.diffusion.vae.TILE", 64)
    monkeypatch.setattr("claygraph.diffusion.vae.OVERLAP", {"encode": 16, "decode": 16})
    calls: list[Any] = [
        EncodeImage(checkpoint, picture(64, 96, seed)) if what == "encode" else DecodeLatent(checkpoint, latent(8, 12))
        for seed in (0, 1)
    ]
    with pytest.raises(torch.OutOfMemoryError):
        type(calls[0]).run_batch(calls, memory)
    (found,) = type(calls[0]).run_batch(calls[:1], memory)
    assert f"as by {what}.tile=64" in caplog.text
    (expected,) = type(calls[0]).run_batch([replace(calls[0], tile=64, overlap=16)], memory)
    same = "samples" if what == "encode" else "pixels"
    assert np.array_equal(getattr(found, same), getattr(expected, same))


@pytest.mark.parametrize("stage", [Encode, Decode])
def test_tiles_out_of_range_are_refused(stage: type[Encode] | type[Decode]) -> None:
    name = stage.__name__.lower()
    for settings, said in (((300,), "no multiple of 64"), ((512, 200), "from 0 to 128"), ((512, 20), "multiple of 8")):
        with pytest.raises(SettingError, match=f"{name}.*{said}"):
            stage(*settings)
