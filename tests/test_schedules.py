"""Schedules, against sigmas recorded from ComfyUI 0.3.64 (``data/samplers/recorded.npz``)."""

from __future__ import annotations

import math
import random
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from diffusers.schedulers.scheduling_utils import AysSchedules

from claygraph.diffusion.schedules import SCHEDULES, sigma_at, sigma_at_percent, sigma_table, sigmas_for, timestep_of
from claygraph.errors import SettingError

RECORDED = np.load(Path(__file__).parent / "data/samplers/recorded.npz")
CASES = [name.split("/")[1:] for name in RECORDED if name.startswith("schedule/")]
TABLE = sigma_table()


def test_every_schedule_of_the_ksampler_was_recorded() -> None:
    assert {case[0] for case in CASES} == set(SCHEDULES) - {"align_your_steps"}


def test_align_your_steps_are_the_published_ten_for_sdxl() -> None:
    """To the published three decimals, which diffusers carries; beyond them the third digit is theirs to round."""
    published = np.array(AysSchedules["StableDiffusionXLSigmas"], dtype=float)
    np.testing.assert_allclose(sigmas_for("align_your_steps", 10), published, rtol=0.002, atol=0.002)


@pytest.mark.parametrize("steps", [1, 4, 7, 20, 33])
def test_align_your_steps_for_other_numbers_are_interpolated_in_the_logarithm(steps: int) -> None:
    ten = np.array(TABLE)[[*np.array(AysSchedules["StableDiffusionXLTimesteps"], dtype=int), 0]]
    places = np.linspace(0, 10, steps + 1)[:-1]
    expected = [*np.exp(np.interp(places, range(11), np.log(ten))), 0]
    np.testing.assert_allclose(sigmas_for("align_your_steps", steps), expected, rtol=1e-6)
    tail = sigmas_for("align_your_steps", 6, 0.6)
    assert tail == sigmas_for("align_your_steps", 10)[-7:]


@pytest.mark.parametrize("case", CASES, ids="/".join)
def test_schedules_equal_the_recorded_ones(case: list[str]) -> None:
    schedule, steps, denoise, kept = case
    sigmas = sigmas_for(schedule, int(steps), float(denoise), drop_penultimate=kept == "dropped")
    np.testing.assert_allclose(sigmas, RECORDED["/".join(["schedule", *case])], rtol=1e-6)


@pytest.mark.parametrize("schedule", ["karras", "sgm_uniform", "normal", "simple", "ddim_uniform", "beta"])
def test_common_schedules_are_equal_to_the_grain_of_brownian_noise(schedule: str) -> None:
    for steps, denoise in ((6, 1.0), (6, 0.6), (20, 1.0), (20, 0.6)):
        recorded = RECORDED[f"schedule/{schedule}/{steps}/{denoise}/whole"].tolist()
        assert [round(s, 6) for s in sigmas_for(schedule, steps, denoise)] == [round(s, 6) for s in recorded]


def test_the_table_of_sdxl() -> None:
    assert len(TABLE) == 1000
    assert np.float32(TABLE[0]) == np.float32(0.029167158529162407)
    assert np.float32(TABLE[-1]) == np.float32(14.614641189575195)
    assert list(TABLE) == sorted(TABLE)


def test_the_table_of_linear_betas() -> None:
    table = sigma_table(1e-4, 2e-2, "linear")
    kept = np.cumprod(1 - np.linspace(1e-4, 2e-2, 1000))
    np.testing.assert_allclose(table, np.sqrt((1 - kept) / kept), rtol=1e-9)


def test_an_unknown_kind_of_betas_is_refused() -> None:
    with pytest.raises(SettingError, match="scaled_linear"):
        sigma_table(kind="scaled_liner")


def test_the_timestep_is_the_nearest_in_log_sigma() -> None:
    logs = np.log(TABLE)
    draw = random.Random(1)
    for sigma in [math.exp(draw.uniform(-4, 3)) for _ in range(500)]:
        assert timestep_of(sigma, TABLE) == np.argmin(np.abs(logs - math.log(sigma)))


def test_every_sigma_of_the_table_is_its_own_timestep() -> None:
    assert [timestep_of(float(np.float32(sigma)), TABLE) for sigma in TABLE] == list(range(1000))
    np.testing.assert_allclose([sigma_at(t, TABLE) for t in range(1000)], TABLE, rtol=3e-7)


def test_sigma_between_timesteps_is_interpolated_in_the_logarithm() -> None:
    assert sigma_at(500.5, TABLE) == pytest.approx(math.sqrt(TABLE[500] * TABLE[501]), rel=1e-6)


def test_percent_runs_from_infinity_to_zero() -> None:
    expected = {0.1: 8.307, 0.2: 5.092, 0.25: 4.086, 0.3: 3.325, 0.4: 2.280, 0.5: 1.616}
    expected |= {0.6: 1.163, 0.7: 0.832, 0.75: 0.695, 0.8: 0.571, 0.9: 0.344}
    for percent, sigma in expected.items():
        assert sigma_at_percent(percent, TABLE) == pytest.approx(sigma, abs=6e-4)
    assert sigma_at_percent(0, TABLE) == math.inf
    assert sigma_at_percent(1, TABLE) == 0


def test_denoise_keeps_the_steps_and_takes_the_end_of_a_longer_schedule() -> None:
    assert sigmas_for("simple", 6, 0.6) == sigmas_for("simple", 10)[-7:]
    assert sigmas_for("karras", 6, 0.99995) == sigmas_for("karras", 6)
    assert sigmas_for("karras", 6, 0) == []
    assert sigmas_for("simple", 1, 0.6) == sigmas_for("simple", 1)


def test_dropping_the_penultimate_keeps_the_steps() -> None:
    longer = sigmas_for("karras", 7)
    assert sigmas_for("karras", 6, drop_penultimate=True) == longer[:-2] + longer[-1:]


def test_ddim_uniform_makes_more_steps_where_they_do_not_divide_the_table() -> None:
    assert [len(sigmas_for("ddim_uniform", steps)) for steps in (5, 6, 20, 30)] == [6, 8, 21, 32]


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("steps", [1, 2, 3, 7, 50, 1500])
def test_sigmas_always_fall_strictly_to_zero(schedule: str, steps: int) -> None:
    sigmas = sigmas_for(schedule, steps)
    assert all(lower < sigma for sigma, lower in pairwise(sigmas))
    assert sigmas[-1] == 0
    assert sigmas[0] <= TABLE[-1] * (1 + 1e-6)


def test_kl_optimal_with_one_step_starts_at_the_top() -> None:
    assert sigmas_for("kl_optimal", 1) == [pytest.approx(TABLE[-1], rel=1e-6), 0]


def test_unknown_schedule_and_impossible_steps_are_refused() -> None:
    with pytest.raises(SettingError, match="'karras'"):
        sigmas_for("karas", 6)
    with pytest.raises(SettingError, match="steps=0"):
        sigmas_for("karras", 0)


def test_planning_needs_no_torch() -> None:
    code = "import sys, claygraph.diffusion.samplers, claygraph.diffusion.schedules as s; s.sigmas_for('karras', 6)"
    heavy = "print(sorted({'torch', 'scipy', 'torchsde'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", f"{code}; {heavy}"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
