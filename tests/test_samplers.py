"""Samplers, against k-diffusion, against runs recorded from ComfyUI 0.3.64, and against exact solutions."""

from __future__ import annotations

import math
import sys
from collections.abc import Coroutine, Sequence
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from claygraph.diffusion.noise import initial, step_noise
from claygraph.diffusion.samplers import SAMPLERS, Denoise
from claygraph.diffusion.samplers_ode import lagrange_integral
from claygraph.diffusion.samplers_sde import ancestral_step
from claygraph.diffusion.schedules import sigmas_for

RECORDED = np.load(Path(__file__).parent / "data/samplers/recorded.npz")
IN_K_DIFFUSION = {
    "euler": "euler",
    "ddim": "euler",
    "heun": "heun",
    "dpm_2": "dpm_2",
    "lms": "lms",
    "dpmpp_2m": "dpmpp_2m",
    "euler_ancestral": "euler_ancestral",
    "ddpm": "euler_ancestral",
    "dpm_2_ancestral": "dpm_2_ancestral",
    "dpmpp_2s_ancestral": "dpmpp_2s_ancestral",
    "dpmpp_sde": "dpmpp_sde",
    "dpmpp_2m_sde": "dpmpp_2m_sde",
    "dpmpp_2m_sde_heun": "dpmpp_2m_sde",
    "dpmpp_3m_sde": "dpmpp_3m_sde",
}


def drive(coroutine: Coroutine[Any, Any, Tensor]) -> Tensor:
    """The result of a coroutine that never has to wait."""
    with pytest.raises(StopIteration) as done:
        coroutine.send(None)
    result: Tensor = done.value.value
    return result


def run(name: str, denoise: Denoise, x: Tensor, sigmas: Sequence[float], seed: int = 0) -> Tensor:
    """One sampler's result, with the step noise it asks for."""
    sampler = SAMPLERS[name]
    noise = step_noise(sampler.noise, seed, x, sigmas)
    return drive(sampler.run(denoise, x, sigmas, noise))


def two_hills(x: Tensor, sigma: float | Tensor) -> Tensor:
    """The exact denoiser of data that lie at -1 or 1, each with deviation 0.3."""
    spread = 0.09 + sigma**2
    return (0.09 * x + sigma**2 * torch.tanh(x / spread)) / spread


def one_hill(x: Tensor, sigma: float) -> Tensor:
    """The exact denoiser of Gaussian data of mean 0.5 and deviation 0.3."""
    return (0.09 * x + sigma**2 * 0.5) / (0.09 + sigma**2)


async def to_two_hills(x: Tensor, sigma: float) -> Tensor:
    return two_hills(x, sigma)


async def to_one_hill(x: Tensor, sigma: float) -> Tensor:
    return one_hill(x, sigma)


@pytest.fixture(scope="module")
def k_diffusion() -> ModuleType:
    """k-diffusion's ``sampling.py`` on its own: its package would import torchvision, its ODE solver is not needed."""
    package = find_spec("k_diffusion")
    if package is None or not package.submodule_search_locations:
        pytest.skip("k-diffusion is not installed")
    patch = pytest.MonkeyPatch()
    parent, utils, odes = ModuleType("k_lone"), ModuleType("k_lone.utils"), ModuleType("torchdiffeq")
    parent.__path__ = []
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    odes.odeint = None  # type: ignore[attr-defined]
    for module in (parent, utils, odes):
        patch.setitem(sys.modules, module.__name__, module)
    file = Path(package.submodule_search_locations[0]) / "sampling.py"
    spec = spec_from_file_location("k_lone.sampling", file)
    if spec is None or spec.loader is None:
        pytest.fail(f"cannot load {file}")
    sampling = module_from_spec(spec)
    spec.loader.exec_module(sampling)
    patch.undo()
    return sampling


@pytest.mark.parametrize("steps", [2, 3, 9])
@pytest.mark.parametrize("name", IN_K_DIFFUSION)
def test_samplers_equal_k_diffusion(name: str, steps: int, k_diffusion: ModuleType) -> None:
    sigmas = sigmas_for("karras", steps, 0.7, SAMPLERS[name].drop_penultimate)
    if name == "lms":  # theirs integrates to 0, the recorded one ends at the denoised latent, and so does ours
        sigmas.pop()
    x = initial(3, (1, 4, 6, 5)).double() * sigmas[0]
    options: dict[str, Any] = {"solver_type": "heun"} if name.endswith("2m_sde_heun") else {}
    if SAMPLERS[name].noise != "none":
        drawn = step_noise(SAMPLERS[name].noise, 5, x, sigmas)
        options["noise_sampler"] = lambda sigma, lower: drawn(float(sigma), float(lower))
    theirs = getattr(k_diffusion, f"sample_{IN_K_DIFFUSION[name]}")
    expected = theirs(two_hills, x, torch.tensor(sigmas, dtype=torch.float64), disable=True, **options)
    torch.testing.assert_close(run(name, to_two_hills, x, sigmas, seed=5), expected, rtol=0, atol=1e-9)


class Recorded:
    """The model and the noise of a recorded run: checks what it is asked for, and answers what was answered then.

    Of ``ipndm`` only the first ``x`` is on record.
    """

    def __init__(self, name: str) -> None:
        self.x, self.x0 = (RECORDED[f"run/{name}/{key}"] for key in ("x", "x0"))
        self.sigmas = RECORDED[f"run/{name}/sigmas"].tolist()
        self.draws = iter(RECORDED.get(f"run/{name}/noise", []))
        self.step = 0

    async def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The recorded prediction of this step, if ``x`` is the recorded one."""
        assert sigma == self.sigmas[self.step]
        for recorded in self.x[self.step : self.step + 1]:
            np.testing.assert_allclose(x.numpy(), recorded, rtol=0, atol=1e-6 * np.abs(self.x).max())
        self.step += 1
        return torch.from_numpy(self.x0[self.step - 1])

    def noise(self, sigma: float, lower: float) -> Tensor:
        """The recorded draw of this step."""
        assert [sigma, lower] == self.sigmas[self.step - 1 : self.step + 1]
        return torch.from_numpy(next(self.draws))


@pytest.mark.parametrize("name", [name for name in SAMPLERS if f"run/{name}/x0" in RECORDED])
def test_samplers_repeat_the_recorded_runs(name: str) -> None:
    model = Recorded(name)
    result = drive(SAMPLERS[name].run(model.denoise, torch.from_numpy(model.x[0]), model.sigmas, model.noise))
    latent = RECORDED[f"run/{name}/latent"]
    np.testing.assert_allclose(result.numpy() / 0.13025, latent, rtol=0, atol=1e-6 * np.abs(latent).max())


@pytest.mark.parametrize("name", SAMPLERS)
def test_the_model_is_asked_at_the_recorded_sigmas(name: str) -> None:
    asked = []

    async def denoise(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return x * 0

    sigmas = sigmas_for("karras", 6, 0.6, SAMPLERS[name].drop_penultimate)
    run(name, denoise, torch.ones(1, 4, 2, 2), sigmas)
    np.testing.assert_allclose(sigmas, RECORDED[f"run/{name}/sigmas"], rtol=1e-6)
    np.testing.assert_allclose(asked, RECORDED[f"run/{name}/eval_sigmas"], rtol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_ends_at_a_denoised_latent_that_does_not_change(name: str) -> None:
    target = torch.linspace(-2, 2, 64).reshape(1, 4, 4, 4)

    async def denoise(x: Tensor, sigma: float) -> Tensor:
        return target

    sigmas = sigmas_for("sgm_uniform", 7)
    result = run(name, denoise, target + initial(0, (1, 4, 4, 4)) * sigmas[0], sigmas)
    torch.testing.assert_close(result, target, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.noise == "none"])
def test_samplers_without_step_noise_draw_none(name: str) -> None:
    def noise(sigma: float, lower: float) -> Tensor:
        pytest.fail("noise was drawn")

    drive(SAMPLERS[name].run(to_two_hills, initial(0, (1, 4, 4, 4)), sigmas_for("karras", 5), noise))


def solution(x: Tensor, start: float, end: float) -> Tensor:
    """Where the probability flow of ``one_hill`` takes ``x`` between two sigmas."""
    return 0.5 + (x - 0.5) * math.sqrt((0.09 + end**2) / (0.09 + start**2))


def error(name: str, steps: int) -> float:
    """Largest distance from the exact solution after equal steps from sigma 3 to 1."""
    sigmas = [3 - 2 * k / steps for k in range(steps + 1)]
    x = initial(1, (1, 4, 8, 8)).double() * 3
    return (run(name, to_one_hill, x, sigmas) - solution(x, 3, 1)).abs().max().item()


@pytest.mark.parametrize("name", ["heun", "dpm_2", "lms", "ipndm", "dpmpp_2m", "res_multistep"])
def test_second_order_samplers_quarter_the_error_in_half_steps(name: str) -> None:
    assert math.log2(error(name, 40) / error(name, 80)) > 1.8
    assert error(name, 40) < error("euler", 40) / 10


@pytest.mark.parametrize("name", ["euler", "heunpp2", "gradient_estimation"])
def test_every_other_sampler_at_least_gains_from_more_steps(name: str) -> None:
    assert math.log2(error(name, 40) / error(name, 80)) > 0.8


@pytest.mark.parametrize("name", [n for n, sampler in SAMPLERS.items() if sampler.noise != "none" and n != "lcm"])
def test_stochastic_samplers_keep_mean_and_spread_of_the_data(name: str) -> None:
    sigmas = sigmas_for("karras", 100, 1.0, SAMPLERS[name].drop_penultimate)
    result = run(name, to_one_hill, initial(2, (1, 4, 32, 32)) * sigmas[0], sigmas, seed=2)
    assert result.mean().item() == pytest.approx(0.5, abs=0.015)
    assert result.std().item() == pytest.approx(0.3, abs=0.02)


def test_lcm_is_the_last_denoised_latent() -> None:
    sigmas = sigmas_for("sgm_uniform", 4)
    x = initial(0, (1, 4, 8, 8)) * sigmas[0]
    draw = step_noise("white", 0, x, sigmas)
    expected = x
    for sigma, lower in pairwise(sigmas):
        expected = two_hills(expected, sigma)
        expected = expected + lower * draw(sigma, lower) if lower else expected
    assert torch.equal(run("lcm", to_two_hills, x, sigmas), expected)


def test_no_sigmas_leave_x_alone() -> None:
    def noise(sigma: float, lower: float) -> Tensor:
        pytest.fail("noise was drawn")

    x = torch.ones(1, 4, 2, 2)
    for sampler in SAMPLERS.values():
        assert drive(sampler.run(to_one_hill, x, [], noise)) is x


def test_ancestral_steps_make_the_next_sigma() -> None:
    down, up = ancestral_step(5.0, 2.0)
    assert math.hypot(down, up) == pytest.approx(2.0)
    assert ancestral_step(5.0, 0.0) == (0.0, 0.0)


def test_lagrange_integrals_are_exact_for_cubics() -> None:
    nodes = [4.0, 2.5, 1.0, -1.0]
    exact = (0.5**4 - 1.0**4) / 4 - (0.5**2 - 1.0**2)
    found = sum((node**3 - 2 * node) * lagrange_integral(nodes, k, 1.0, 0.5) for k, node in enumerate(nodes))
    assert found == pytest.approx(exact, rel=1e-12)


def test_a_run_may_stop_above_zero() -> None:
    x = initial(4, (1, 4, 4, 4)).double() * 2
    whole = run("euler", to_two_hills, x, [2.0, 1.5, 1.0, 0.5, 0.0])
    half: Tensor = run("euler", to_two_hills, x, [2.0, 1.5, 1.0])
    torch.testing.assert_close(run("euler", to_two_hills, half, [1.0, 0.5, 0.0]), whole)
