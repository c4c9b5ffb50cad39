"""Samplers, against k-diffusion, plain loops, runs recorded from ComfyUI 0.3.64, and exact solutions.

``data/samplers/recorded.npz``, ``run/NAME``: a corner of a run on small random weights (6 steps, karras, denoise 0.6,
cfg 4). The sigmas, the step noise, the final latent and, where ComfyUI shows it, each step's ``x`` are ComfyUI's; the
model's answers ``x0`` are those of our own run, within 4e-6 (of the largest) of ComfyUI's wherever it showed them.
"""

from __future__ import annotations

import math
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from claygraph.diffusion.noise import initial, step_noise
from claygraph.diffusion.samplers import SAMPLERS
from claygraph.diffusion.samplers_dpm import fast_orders
from claygraph.diffusion.samplers_step import ancestral_step, integral, lagrange
from claygraph.diffusion.schedules import SCHEDULES, sigmas_for
from tests.plain_samplers import PLAIN
from tests.sampling import IN_K_DIFFUSION, drive, guided, model_of, one_hill, reference, run, two_hills

RECORDED = np.load(Path(__file__).parent / "data/samplers/recorded.npz")
COMFYUI = """
    euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 dpm_2 dpm_2_ancestral lms dpm_fast
    dpm_adaptive dpmpp_2s_ancestral dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp
    dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm
    ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral res_multistep_ancestral_cfg_pp
    gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2 seeds_3 sa_solver sa_solver_pece ddim
    uni_pc uni_pc_bh2
""".split()  # noqa: SIM905
UNFINISHED = ("dpm_fast", "dpm_adaptive")
CFG_PP = [name for name, sampler in SAMPLERS.items() if sampler.both]


def test_every_sampler_of_comfyui_is_there_and_has_an_independent_reference() -> None:
    assert list(SAMPLERS) == COMFYUI
    assert {*IN_K_DIFFUSION, *PLAIN} == set(SAMPLERS)


EXACT, CLOSE = 1e-8, 1e-4
LOOSE = {"dpm_adaptive": 1e-3}
"""In single precision the widths of dpm_adaptive's steps, which it derives from tiny differences, vary a little."""


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_on_every_schedule_equals_its_reference(name: str, schedule: str) -> None:
    """In double precision to 1e-8, in single to 1e-4; relative, where linear_quadratic drives the latent above 1."""
    for steps, denoise in ((1, 1.0), (5, 0.6), (6, 1.0)):
        sigmas = sigmas_for(schedule, steps, denoise, SAMPLERS[name].drop_penultimate)
        x = initial(3, (1, 4, 6, 5)) * sigmas[0]
        noise = step_noise(SAMPLERS[name].noise, 5, x, sigmas)
        expected = reference(name, model_of(name), x, sigmas, noise)
        double, single = (run(name, model_of(name), each, sigmas, seed=5) for each in (x.double(), x))
        largest = max(1.0, expected.abs().max().item())
        torch.testing.assert_close(double, expected, rtol=0, atol=EXACT * largest)
        torch.testing.assert_close(single.double(), expected, rtol=0, atol=LOOSE.get(name, CLOSE) * largest)


class Recorded:
    """The model and the noise of a recorded run: checks what it is asked for, and answers what was answered then."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.answers = zip(self.of("eval_sigmas").tolist(), self.of("x0"), strict=True)
        self.draws = zip(self.of("noise_sigmas").tolist(), self.of("noise"), strict=True)
        self.inputs = iter(self.of("x"))
        self.size = float(self.of("absmax"))

    def of(self, key: str) -> np.ndarray:
        """A recorded array, empty if there is none."""
        return RECORDED[f"run/{self.name}/{key}"] if f"run/{self.name}/{key}" in RECORDED else np.empty(0)

    async def denoise(self, x: Tensor, sigma: float) -> Tensor:
        """The recorded prediction, if sigma and ``x`` are the recorded ones."""
        recorded, x0 = next(self.answers)
        assert sigma == pytest.approx(recorded, rel=1e-6)
        for expected in self.inputs:
            np.testing.assert_allclose(x.numpy(), expected, rtol=0, atol=2e-5 * self.size * 0.13025)
            break
        return torch.from_numpy(x0)

    def noise(self, sigma: float, lower: float) -> Tensor:
        """The recorded draw, if it was for the same part of the way."""
        recorded, draw = next(self.draws)
        assert [sigma, lower] == pytest.approx(recorded, rel=1e-6)
        return torch.from_numpy(draw)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if f"run/{name}/x0" in RECORDED])
def test_samplers_repeat_the_recorded_runs(name: str) -> None:
    model = Recorded(name)
    start = torch.from_numpy(model.of("start"))
    result = drive(SAMPLERS[name].run(model.denoise, start, model.of("sigmas").tolist(), model.noise))
    assert next(model.answers, None) is next(model.draws, None) is None
    np.testing.assert_allclose(result.numpy() / 0.13025, model.of("latent"), rtol=0, atol=2e-5 * model.size)


def test_only_aliases_and_the_sampler_that_weighs_the_whole_picture_are_not_repeated() -> None:
    missing = {name for name in SAMPLERS if f"run/{name}/x0" not in RECORDED}
    assert missing == {"dpm_adaptive", *(name for name in SAMPLERS if name.endswith("_gpu"))}
    for name in missing - {"dpm_adaptive"}:
        assert SAMPLERS[name] == SAMPLERS[name.removesuffix("_gpu")]


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "dpm_adaptive"])
def test_the_model_is_asked_at_the_recorded_sigmas(name: str) -> None:
    asked = []

    def model(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return torch.cat([x * 0] * (1 + SAMPLERS[name].both))

    sigmas = sigmas_for("karras", 6, 0.6, SAMPLERS[name].drop_penultimate)
    run(name, model, torch.ones(1, 4, 2, 2), sigmas)
    np.testing.assert_allclose(sigmas, RECORDED[f"run/{name}/sigmas"], rtol=1e-6)
    np.testing.assert_allclose(asked, RECORDED[f"run/{name}/eval_sigmas"], rtol=1e-6)


@pytest.mark.parametrize("name", SAMPLERS)
def test_every_sampler_ends_at_a_denoised_latent_that_does_not_change(name: str) -> None:
    """But for what noise is left at the sigma where it ends."""
    target, noise = torch.linspace(-2, 2, 64).reshape(1, 4, 4, 4), initial(0, (1, 4, 4, 4))
    sigmas = sigmas_for("sgm_uniform", 7)
    result = run(
        name, lambda x, sigma: torch.cat([target] * (1 + SAMPLERS[name].both)), target + noise * sigmas[0], sigmas
    )
    end = sigmas[-2] if name in UNFINISHED else 0.001 if name.startswith("uni_pc") else 0.0
    torch.testing.assert_close(result, target + noise * end, rtol=0, atol=2e-5)


@pytest.mark.parametrize("name", SAMPLERS)
def test_one_step_is_the_denoised_latent(name: str) -> None:
    sigmas = sigmas_for("karras", 1, 1.0, SAMPLERS[name].drop_penultimate)
    x = initial(6, (1, 4, 4, 4)) * sigmas[0]
    expected = model_of(name)(x, sigmas[0])[:1]
    atol = 5e-3 if name.startswith("uni_pc") else 1e-5
    torch.testing.assert_close(run(name, model_of(name), x, sigmas), expected, rtol=0, atol=atol)


@pytest.mark.parametrize("name", [name for name in SAMPLERS if name != "dpm_adaptive"])
def test_the_tail_of_a_schedule_and_its_extra_steps_are_walked(name: str) -> None:
    """The model is asked first at the top of what is walked, and at every sigma of it where it is asked once a step."""
    for denoise, steps in ((0.6, 6), (1.0, 7)):
        asked: list[float] = []

        def model(x: Tensor, sigma: float, asked: list[float] = asked) -> Tensor:
            asked.append(sigma)
            return model_of(name)(x, sigma)

        sigmas = sigmas_for("ddim_uniform", 6, denoise)
        run(name, model, initial(0, (1, 4, 4, 4)) * sigmas[0], sigmas)
        assert len(sigmas) == steps + 1
        assert asked[0] == sigmas[0]
        assert len(asked) >= steps
        if len(asked) == steps and name != "dpm_fast":
            assert asked == sigmas[:-1]


@pytest.mark.parametrize("name", [name for name, sampler in SAMPLERS.items() if sampler.noise == "none"])
def test_samplers_without_step_noise_draw_none(name: str) -> None:
    def noise(sigma: float, lower: float) -> Tensor:
        pytest.fail("noise was drawn")

    async def denoise(x: Tensor, sigma: float) -> Tensor:
        return model_of(name)(x, sigma)

    drive(SAMPLERS[name].run(denoise, initial(0, (1, 4, 4, 4)), sigmas_for("karras", 5), noise))


@pytest.mark.parametrize("name", [name for name in CFG_PP if name != "dpmpp_2s_ancestral_cfg_pp"])
def test_cfg_pp_without_guidance_is_the_sampler_without_it(name: str) -> None:
    sigmas = sigmas_for("karras", 6)
    x = initial(7, (1, 4, 4, 4)).double() * sigmas[0]
    found = run(name, lambda x, sigma: torch.cat([two_hills(x, sigma)] * 2), x, sigmas)
    torch.testing.assert_close(found, run(name.removesuffix("_cfg_pp"), two_hills, x, sigmas), rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CFG_PP)
def test_cfg_pp_with_guidance_is_not(name: str) -> None:
    sigmas = sigmas_for("karras", 6)
    x = initial(7, (1, 4, 4, 4)).double() * sigmas[0]
    plain = run(name.removesuffix("_cfg_pp"), lambda x, sigma: guided(x, sigma)[:1], x, sigmas)
    assert (run(name, guided, x, sigmas) - plain).abs().max() > 0.01


def solution(x: Tensor, start: float, end: float) -> Tensor:
    """Where the probability flow of ``one_hill`` takes ``x`` between two sigmas."""
    return 0.5 + (x - 0.5) * math.sqrt((0.09 + end**2) / (0.09 + start**2))


def error(name: str, steps: int) -> float:
    """Largest distance from the exact solution after equal steps from sigma 3 to 1."""
    sigmas = [3 - 2 * k / steps for k in range(steps + 1)]
    x = initial(1, (1, 4, 8, 8)).double() * 3
    return (run(name, one_hill, x, sigmas) - solution(x, 3, 1)).abs().max().item()


ORDERS = {
    "euler": 1,
    "heun": 2,
    "heunpp2": 1,
    "dpm_2": 2,
    "lms": 2,
    "dpm_fast": 2,
    "dpmpp_2m": 2,
    "ipndm": 2,
    "ipndm_v": 1,
    "deis": 2,
    "res_multistep": 2,
    "gradient_estimation": 1,
    "ddim": 1,
    "uni_pc": 2,
    "uni_pc_bh2": 2,
}
"""What halving the steps gains at least: the first steps of multistep samplers are of low order, and so is heunpp2's
mean of slopes weighted for a schedule that ends at 0."""
LOW_ORDER_AT_THE_END = ("dpm_fast", "uni_pc", "uni_pc_bh2")


@pytest.mark.parametrize("name", ORDERS)
def test_deterministic_samplers_converge_to_the_exact_solution(name: str) -> None:
    assert math.log2(error(name, 42) / error(name, 84)) > ORDERS[name] - 0.2
    if ORDERS[name] == 2:
        assert error(name, 42) < error("euler", 42) / (3 if name in LOW_ORDER_AT_THE_END else 10)


def test_the_adaptive_sampler_keeps_its_tolerance() -> None:
    x = initial(1, (1, 4, 8, 8)).double() * 3
    asked: list[float] = []

    def model(x: Tensor, sigma: float) -> Tensor:
        asked.append(sigma)
        return one_hill(x, sigma)

    found = run("dpm_adaptive", model, x, [3.0, 1.0])
    assert min(asked) > 1.0
    assert (found - solution(x, 3, 1)).abs().max() < 0.01


def test_every_deterministic_sampler_was_measured() -> None:
    quiet = {name for name, sampler in SAMPLERS.items() if sampler.noise == "none" and not sampler.both}
    assert quiet == {*ORDERS, "dpm_adaptive"}


@pytest.mark.parametrize("name", [n for n, s in SAMPLERS.items() if s.noise != "none" and not s.both and n != "lcm"])
def test_stochastic_samplers_keep_mean_and_spread_of_the_data(name: str) -> None:
    sigmas = sigmas_for("karras", 100, 1.0, SAMPLERS[name].drop_penultimate)
    result = run(name, one_hill, initial(2, (1, 4, 32, 32)) * sigmas[0], sigmas, seed=2)
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
    assert torch.equal(run("lcm", two_hills, x, sigmas), expected)


@pytest.mark.parametrize(("schedule", "draws"), [("karras", 1), ("simple", 3)])
def test_sa_solver_draws_inside_its_window_only(schedule: str, draws: int) -> None:
    """As often as ComfyUI's was seen to draw."""
    drawn = []

    def noise(sigma: float, lower: float) -> Tensor:
        drawn.append(lower)
        return torch.zeros(1, 4, 4, 4)

    async def denoise(x: Tensor, sigma: float) -> Tensor:
        return two_hills(x, sigma)

    drive(SAMPLERS["sa_solver"].run(denoise, initial(0, (1, 4, 4, 4)), sigmas_for(schedule, 6, 0.6), noise))
    assert len(drawn) == draws


def test_no_sigmas_leave_x_alone() -> None:
    def noise(sigma: float, lower: float) -> Tensor:
        pytest.fail("noise was drawn")

    async def denoise(x: Tensor, sigma: float) -> Tensor:
        pytest.fail("the model was asked")

    x = torch.ones(1, 4, 2, 2)
    for sampler in SAMPLERS.values():
        assert drive(sampler.run(denoise, x, [], noise)) is x


def test_ancestral_steps_make_the_next_sigma() -> None:
    down, up = ancestral_step(5.0, 2.0)
    assert math.hypot(down, up) == pytest.approx(2.0)
    assert ancestral_step(5.0, 0.0) == (0.0, 0.0)


def test_dpm_fast_uses_up_its_evaluations() -> None:
    assert [fast_orders(n) for n in (1, 2, 3, 4, 6, 8)] == [[1], [2], [2, 1], [3, 1], [3, 2, 1], [3, 3, 2]]


def test_integrals_of_lagrange_polynomials_are_exact_for_cubics() -> None:
    nodes = [4.0, 2.5, 1.0, -1.0]
    exact = (0.5**4 - 1.0**4) / 4 - (0.5**2 - 1.0**2)
    found = sum(
        (node**3 - 2 * node) * integral(lambda at, k=k: lagrange(nodes, k, at), 1.0, 0.5)  # type: ignore[misc]
        for k, node in enumerate(nodes)
    )
    assert found == pytest.approx(exact, rel=1e-12)


def test_a_run_may_stop_above_zero() -> None:
    x = initial(4, (1, 4, 4, 4)).double() * 2
    whole = run("euler", two_hills, x, [2.0, 1.5, 1.0, 0.5, 0.0])
    half = run("euler", two_hills, x, [2.0, 1.5, 1.0])
    torch.testing.assert_close(run("euler", two_hills, half, [1.0, 0.5, 0.0]), whole)
