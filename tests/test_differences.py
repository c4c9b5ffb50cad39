"""Where the rules followed here (ComfyUI's) differ from those of diffusers: each test fails under the other's rule."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_euler_discrete import EulerDiscreteScheduler
from torch import Tensor

from claygraph import files
from claygraph.diffusion import noise
from claygraph.diffusion.calls import EncodeImage, EncodeText
from claygraph.diffusion.describe import describe
from claygraph.diffusion.prediction import table_of
from claygraph.diffusion.schedules import sigma_at_percent, sigmas_for
from claygraph.stages.prompt import EncodePrompt
from claygraph.values import Checkpoint, Conditioning, Model, Prompt, Weights
from tests import tiny
from tests.denoising import by_hand, call, diffusers_unet, error, memory, picture, run

UNET = diffusers_unet()
CLOSE, FAR = 5e-5, 1e-3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.folder(tmp_path_factory.mktemp("folder") / "model")


@pytest.fixture(scope="module")
def checkpoint(folder: Path) -> Checkpoint:
    return describe(Weights(str(folder), files.digest(folder)))


def scheduler(**settings: Any) -> Any:
    return EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", **settings)


def encoded(checkpoint: Checkpoint, text: str) -> Conditioning:
    return EncodeText.run_batch([EncodeText(checkpoint, (), text)], memory())[0]


def test_the_timestep_is_the_nearest_and_not_interpolated() -> None:
    table = table_of(Checkpoint(Weights("", "")))
    sigma = (table[600] * table[601]) ** 0.5 * 0.999  # diffusers says about 600.4

    def interpolated(arguments: dict[str, Any], negative: bool) -> None:
        log = np.log(table)
        arguments["timestep"] = torch.tensor(np.interp(np.log(sigma), log, np.arange(1000.0)))

    def nearest(arguments: dict[str, Any], negative: bool) -> None:
        arguments["timestep"] = torch.tensor(600)

    one = call(sigma)
    assert error(run(one)[0], by_hand(UNET, one, nearest)) < CLOSE
    assert error(run(one)[0], by_hand(UNET, one, interpolated)) > 2 * CLOSE


def test_latents_are_the_mean_of_the_posterior_and_not_a_sample(checkpoint: Checkpoint, folder: Path) -> None:
    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").float()
    image = picture(0, 32, 48)
    pixels = torch.from_numpy(image.pixels.astype(np.float32) / 127.5 - 1).permute(2, 0, 1)[None]
    with torch.inference_mode():
        posterior = vae.encode(pixels).latent_dist
    found = torch.tensor(EncodeImage.run_batch([EncodeImage(checkpoint, image)], memory())[0].samples)[None]
    assert error(found, posterior.mean) < 1e-5
    assert error(found, posterior.sample(torch.Generator().manual_seed(0))) > 0.05


def test_denoise_takes_the_end_of_a_longer_schedule_and_not_fewer_steps() -> None:
    steps, share = 6, 0.6
    found = sigmas_for("karras", steps, share)
    theirs = scheduler(use_karras_sigmas=True, timestep_spacing="linspace")
    theirs.set_timesteps(int(steps / share))
    np.testing.assert_allclose(found, theirs.sigmas[-(steps + 1) :], rtol=1e-4)
    theirs.set_timesteps(steps)
    kept = theirs.sigmas[steps - int(steps * share) :]  # what strength does in diffusers
    assert (len(found) - 1, len(kept) - 1) == (6, 3)


def test_windows_are_shares_of_training_time_and_not_of_the_steps_run() -> None:
    """At denoise 0.6 a window from 0 to 0.4 never acts; diffusers would act in the first 40 % of the steps."""
    sigmas = sigmas_for("simple", 6, 0.6)[:-1]
    assert all(sigma < sigma_at_percent(0.4, table_of(Checkpoint(Weights("", "")))) for sigma in sigmas)


def test_weights_move_states_and_do_not_rescale_them(checkpoint: Checkpoint) -> None:
    """Not the mean-keeping rule of the web UI, nor weights on the states themselves, which helpers to diffusers use."""
    plain, empty, found = (encoded(checkpoint, text).hidden for text in ("a cat", "", "(a:1) (cat:1.4)"))
    weight = np.ones((77, 1), np.float32)
    weight[2] = 1.4
    moved, scaled = empty + weight * (plain - empty), weight * plain
    kept = scaled * (plain.mean() / scaled.mean())
    assert np.abs(found - moved).max() < 1e-5
    assert min(np.abs(found - other).max() for other in (scaled, kept)) > 0.1


def test_a_long_prompt_is_read_whole_and_not_cut_at_77(checkpoint: Checkpoint) -> None:
    words = " ".join(["cat"] * 75)
    long, cut = encoded(checkpoint, f"{words} dog"), encoded(checkpoint, words)
    assert (len(long.hidden), len(cut.hidden)) == (154, 77)
    assert np.abs(long.hidden[77:] - encoded(checkpoint, "dog").hidden).max() < 1e-5


def test_the_pooled_vector_is_the_first_rows(checkpoint: Checkpoint) -> None:
    """Helpers to diffusers take the last row's, or a mean."""
    first, second = " ".join(["cat"] * 75), "dog"
    long, one, two = (encoded(checkpoint, text).pooled for text in (f"{first} {second}", first, second))
    assert np.abs(long - one).max() < 1e-5
    assert np.abs(long - two).max() > 0.05
    assert np.abs(long - (one + two) / 2).max() > 0.02


def negative_of(stage: EncodePrompt, checkpoint: Checkpoint) -> Conditioning:
    """The negative half that the stage makes."""
    task, value = stage.run(Model(checkpoint)), None
    try:
        while True:
            asked = task.send(value)
            (value,) = EncodeText.run_batch([asked], memory())
    except StopIteration as done:
        made: Prompt = done.value
        return made.negative


def test_an_empty_negative_prompt_is_encoded_and_not_zeros(checkpoint: Checkpoint) -> None:
    found, empty = negative_of(EncodePrompt("clay"), checkpoint), encoded(checkpoint, "")
    assert np.array_equal(found.hidden, empty.hidden)
    assert np.array_equal(found.pooled, empty.pooled)
    assert np.abs(found.hidden).max() > 0.1
    zero = negative_of(EncodePrompt("clay", zero_negative=True), checkpoint)
    assert not zero.hidden.any()
    assert not zero.pooled.any()


def test_clip_skip_counts_for_the_negative_prompt_too(checkpoint: Checkpoint) -> None:
    """In diffusers the negative prompt is read at the last layer but one, whatever ``clip_skip`` says."""
    found = negative_of(EncodePrompt("clay", "blurry", clip_skip=-3), checkpoint)
    third = EncodeText.run_batch([EncodeText(checkpoint, (), "blurry", -3)], memory())[0]
    assert np.array_equal(found.hidden, third.hidden)
    assert np.abs(found.hidden - encoded(checkpoint, "blurry").hidden).max() > 0.1


def test_noise_at_the_top_has_the_scale_of_training_and_lies_on_the_latent() -> None:
    """diffusers adds sigma times noise to the latent in image to image, and leaves the latent out in text to image."""
    latent, drawn = torch.randn(2, 1, 4, 8, 8)
    sigma = sigmas_for("karras", 6)[0]
    top = noise.noised(latent, drawn, sigma, sigma)
    theirs = scheduler(timestep_spacing="linspace", use_karras_sigmas=True)
    theirs.set_timesteps(6)
    text_to_image: Any = drawn * theirs.init_noise_sigma
    image_to_image: Tensor = theirs.add_noise(latent, drawn, theirs.timesteps[:1])
    assert error(top, latent + drawn * (1 + sigma**2) ** 0.5) < 1e-6
    assert error(top, image_to_image) > FAR
    assert error(top, text_to_image) > FAR
    below = noise.noised(latent, drawn, 2.0, sigma)
    assert error(below, latent + 2.0 * drawn) < 1e-6


def test_the_size_told_is_eight_pixels_a_latent_pixel_and_not_1024() -> None:
    def told(size: int) -> Any:
        def change(arguments: dict[str, Any], negative: bool) -> None:
            row = [size, size, 0, 0, size, size]
            arguments["added_cond_kwargs"]["time_ids"] = torch.tensor([row], dtype=torch.float32)

        return change

    one = call()
    assert error(run(one)[0], by_hand(UNET, one, told(64))) < CLOSE
    assert error(run(one)[0], by_hand(UNET, one, told(1024))) > FAR


def test_guidance_is_off_at_1_alone() -> None:
    """diffusers leaves the negative prompt out at every scale up to 1."""
    half, full = call(cfg=0.5), call(cfg=1.0)
    assert error(run(half)[0], by_hand(UNET, half)) < CLOSE
    assert error(run(half)[0], run(full)[0]) > FAR


def test_pixels_are_cut_off_and_not_rounded(checkpoint: Checkpoint, folder: Path) -> None:
    from claygraph.diffusion.calls import DecodeLatent
    from claygraph.values import Latent

    vae = AutoencoderKL.from_pretrained(folder, subfolder="vae").float()
    latent = np.random.default_rng(0).standard_normal((4, 6, 6), dtype=np.float32)
    with torch.inference_mode():
        decoded = vae.decode(torch.tensor(latent)[None]).sample[0].permute(1, 2, 0).numpy()
    levels = 255 * np.clip((decoded + 1) / 2, 0, 1)
    found = DecodeLatent.run_batch([DecodeLatent(checkpoint, Latent(latent))], memory())[0].pixels
    assert np.mean(found != np.floor(levels)) < 1e-3
    assert np.mean(found != np.rint(levels)) > 0.2
