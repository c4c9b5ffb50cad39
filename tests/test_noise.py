"""Noise, against draws recorded from ComfyUI 0.3.64 (``data/samplers/recorded.npz``)."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from claygraph.diffusion.noise import brownian, initial, noised, step_noise, white
from claygraph.diffusion.schedules import sigmas_for, single

RECORDED = np.load(Path(__file__).parent / "data/samplers/recorded.npz")
SHAPE = (1, 4, 16, 16)


def names(start: str) -> list[str]:
    """The recorded arrays whose name starts so."""
    return [name for name in RECORDED if name.startswith(start)]


@pytest.mark.parametrize("name", names("initial/"))
def test_initial_noise_is_the_recorded_one_bit_for_bit(name: str) -> None:
    assert np.array_equal(initial(int(name.split("/")[1]), RECORDED[name].shape).numpy(), RECORDED[name])


@pytest.mark.parametrize("seed", [0, 12345])
def test_white_step_noise_is_the_recorded_one_bit_for_bit(seed: int) -> None:
    draw = white(seed, SHAPE)
    for recorded in RECORDED[f"white/{seed}"]:
        assert np.array_equal(draw(2.0, 1.0).numpy(), recorded)


@pytest.mark.parametrize("name", names("brownian/"))
def test_brownian_noise_is_the_recorded_one(name: str) -> None:
    seed, low, high = name.split("/")[1:]
    draw = brownian(int(seed), SHAPE, *single(float(low), float(high)))
    for pair, recorded in zip(RECORDED[f"pairs{name}"].tolist(), RECORDED[name], strict=True):
        sigma, lower = single(*pair)
        np.testing.assert_allclose(draw(sigma, lower).numpy(), recorded, rtol=0, atol=1e-5)


def test_a_seed_and_a_schedule_alone_give_the_recorded_brownian_noise() -> None:
    sigmas = sigmas_for("karras", 6, 0.6)
    steps = [step for a, b in pairwise(sigmas[:-1]) for step in ((a, math.sqrt(a * b)), (a, b))]
    np.testing.assert_allclose(steps, RECORDED["brownian_run/0/pairs"], rtol=1e-6)
    draw = step_noise("brownian", 0, torch.zeros(SHAPE), sigmas)
    for (sigma, lower), recorded in zip(steps, RECORDED["brownian_run/0/noise"], strict=True):
        np.testing.assert_allclose(draw(sigma, lower).numpy(), recorded, rtol=0, atol=1e-5)


def test_brownian_increments_add_up() -> None:
    draw = brownian(3, SHAPE, 0.03, 14.6)
    parts = draw(8.0, 3.0) * math.sqrt(5) + draw(3.0, 1.0) * math.sqrt(2)
    torch.testing.assert_close(draw(8.0, 1.0) * math.sqrt(7), parts, rtol=0, atol=1e-4)


def test_brownian_noise_has_unit_variance_whatever_the_step() -> None:
    draw = brownian(4, (1, 4, 64, 64), 0.03, 14.6)
    for sigma, lower in ((14.6, 0.03), (14.6, 7.0), (0.5, 0.4), (0.031, 0.03)):
        assert draw(sigma, lower).std().item() == pytest.approx(1, abs=0.03)


def test_the_ends_of_the_range_are_asked_for_without_a_warning() -> None:
    sigmas = sigmas_for("karras", 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        step_noise("brownian", 0, torch.zeros(SHAPE), sigmas)(sigmas[0], sigmas[-2])


@pytest.mark.parametrize("kind", ["white", "brownian"])
def test_step_noise_depends_on_the_seed_alone(kind: str) -> None:
    sigmas = sigmas_for("karras", 4)

    def draws(seed: int) -> torch.Tensor:
        torch.randn(seed + 7)
        draw = step_noise(kind, seed, torch.ones(SHAPE), sigmas)  # type: ignore[arg-type]
        return torch.cat([draw(a, b) for a, b in pairwise(sigmas[:-1])])

    first = draws(1)
    torch.manual_seed(99)
    assert torch.equal(first, draws(1))
    assert not torch.allclose(first, draws(2))


def test_step_noise_takes_the_type_of_x() -> None:
    x = torch.zeros(SHAPE, dtype=torch.float16)
    assert step_noise("white", 0, x, [1.0, 0.5])(1.0, 0.5).dtype == torch.float16


def test_one_step_needs_no_range() -> None:
    assert callable(step_noise("brownian", 0, torch.zeros(SHAPE), [14.6, 0.0]))


def test_white_noise_does_not_repeat_the_initial_noise() -> None:
    assert not torch.allclose(white(5, SHAPE)(2.0, 1.0), initial(5, SHAPE))
    assert white(2**64 - 1, SHAPE)(2.0, 1.0).isfinite().all()


def test_the_first_x_is_the_recorded_one() -> None:
    latent, noise = (torch.from_numpy(RECORDED[f"start/{name}"]) for name in ("latent", "noise"))
    x = noised(0.13025 * latent, noise, sigmas_for("karras", 6, 0.6)[0], 14.614641)
    np.testing.assert_allclose(x.numpy(), RECORDED["start/x"], rtol=0, atol=2e-6)


def test_noise_at_the_top_is_as_loud_as_in_training() -> None:
    latent, noise = torch.full(SHAPE, 0.5), initial(0, SHAPE)
    x = noised(latent, noise, sigmas_for("karras", 6)[0], 14.614641)
    torch.testing.assert_close(x, latent + noise * math.sqrt(1 + 14.614643**2))
