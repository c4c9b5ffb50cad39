"""The sampler stages: denoised tails, parts of schedules, and masks, on the small model; against loops written out."""

from __future__ import annotations

from collections.abc import Coroutine
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from claygraph.diffusion import noise
from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.schedules import sigma_table, sigmas_for
from claygraph.errors import SettingError
from claygraph.stages.controlnet import ControlNet
from claygraph.stages.sampler import KSampler
from claygraph.stages.sampler_advanced import KSamplerAdvanced
from claygraph.values import Latent, Mask, Model
from tests.denoising import base, error, floats, memory, prompt

TABLE = sigma_table()
MODEL, PROMPT = Model(base()), prompt()
SOURCE = Latent(4 * floats(3, 4, 8, 8))
SCALE = 0.13025


def drive(task: Coroutine[Any, Any, Latent]) -> Latent:
    """The result of a stage whose calls are run one by one."""
    value = None
    try:
        while True:
            call = task.send(value)
            (value,) = type(call).run_batch([call], memory())
    except StopIteration as done:
        result: Latent = done.value
        return result


def ask(x: Tensor, sigma: float, cfg: float = 2.0) -> Tensor:
    """The model's guided prediction."""
    return Denoise.run_batch([Denoise(MODEL, PROMPT, x, sigma, cfg)], memory())[0]


def source() -> Tensor:
    return torch.tensor(SOURCE.samples)[None] * SCALE


def found(latent: Latent) -> Tensor:
    return torch.tensor(latent.samples)[None] * SCALE


def euler(x: Tensor, sigmas: list[float]) -> Tensor:
    """Euler's method, a step for each pair of sigmas."""
    for sigma, lower in pairwise(sigmas):
        x = x + (x - ask(x, sigma)) / sigma * (lower - sigma)
    return x


def advanced(**settings: Any) -> KSamplerAdvanced:
    return KSamplerAdvanced(scheduler="karras", steps=6, cfg=2.0, noise_seed=5, **settings)


def test_ksampler_is_euler_over_the_end_of_a_longer_schedule() -> None:
    made = drive(KSampler("euler", "karras", 3, 2.0, 0.5, 5).run(MODEL, PROMPT, SOURCE))
    sigmas = sigmas_for("karras", 6)[-4:]
    expected = euler(source() + noise.initial(5, (1, 4, 8, 8)) * sigmas[0], sigmas)
    assert error(found(made), expected) < 1e-5


def test_denoise_0_leaves_the_latent_alone() -> None:
    assert drive(KSampler(denoise=0.0).run(MODEL, PROMPT, SOURCE)) is SOURCE


@pytest.mark.parametrize("mask", [None, Mask(np.ones((8, 8), np.float32))])
@pytest.mark.parametrize("name", ["euler", "euler_cfg_pp"])
@pytest.mark.parametrize("kind", [KSampler, KSamplerAdvanced])
def test_the_model_is_told_the_whole_schedule_and_whether_both_halves_are_wanted(
    kind: type[KSampler | KSamplerAdvanced], name: str, mask: Mask | None
) -> None:
    stage = kind(name, steps=2)
    call = stage.run(MODEL, PROMPT, SOURCE, mask).send(None)
    assert (list(call.sigmas), call.step, call.steps) == (stage.sigmas(TABLE), 1, 2)
    assert call.both == (name == "euler_cfg_pp")


@pytest.mark.parametrize("kind", [KSampler, KSamplerAdvanced])
def test_plan_notes_what_never_acts_in_any_sampler(kind: type[KSampler | KSamplerAdvanced]) -> None:
    [note] = kind(scheduler="simple", steps=2).notes({"controlnet": ControlNet("x", start=0.99)})
    assert note.startswith("controlnet never acts")


def test_cfg_1_asks_without_the_negative_prompt() -> None:
    other = prompt(9)
    mixed = type(PROMPT)(PROMPT.positive, other.negative)
    one, two = (drive(KSampler("euler", "karras", 2, 1.0, 0.5).run(MODEL, p, SOURCE)) for p in (PROMPT, mixed))
    assert np.array_equal(one.samples, two.samples)


@pytest.mark.parametrize("sampler_name", ["euler", "dpm_2"])
def test_the_whole_range_is_ksampler_at_denoise_1(sampler_name: str) -> None:
    plain = drive(KSampler(sampler_name, "karras", 6, 2.0, 1.0, 5).run(MODEL, PROMPT, SOURCE))
    made = drive(advanced(sampler_name=sampler_name).run(MODEL, PROMPT, SOURCE))
    assert np.array_equal(plain.samples, made.samples)


def test_two_samplers_go_on_from_each_other() -> None:
    first = drive(advanced(end_at_step=3, return_with_leftover_noise=True).run(MODEL, PROMPT, SOURCE))
    second = drive(advanced(start_at_step=3, add_noise=False).run(MODEL, PROMPT, first))
    whole = drive(advanced().run(MODEL, PROMPT, SOURCE))
    assert error(found(second), found(whole)) < 1e-5
    assert error(found(first), found(whole)) > 0.01


def test_without_leftover_noise_the_last_step_goes_down_to_none() -> None:
    made = drive(advanced(end_at_step=2).run(MODEL, PROMPT, SOURCE))
    sigmas = [*sigmas_for("karras", 6)[:2], 0.0]
    start = source() + noise.initial(5, (1, 4, 8, 8)) * (1 + sigmas[0] ** 2) ** 0.5
    assert error(found(made), euler(start, sigmas)) < 1e-5


def test_a_late_start_adds_the_noise_of_its_first_sigma() -> None:
    made = drive(advanced(start_at_step=4).run(MODEL, PROMPT, SOURCE))
    sigmas = sigmas_for("karras", 6)[4:]
    assert error(found(made), euler(source() + noise.initial(5, (1, 4, 8, 8)) * sigmas[0], sigmas)) < 1e-5


@pytest.mark.parametrize("part", [{"start_at_step": 6}, {"start_at_step": 3, "end_at_step": 3}, {"end_at_step": 0}])
def test_no_step_to_take_leaves_the_latent_alone(part: dict[str, int]) -> None:
    assert drive(advanced(**part).run(MODEL, PROMPT, SOURCE)) is SOURCE


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"add_noise": "disable"}, "add_noise='disable' is not known; give true or false"),
        ({"return_with_leftover_noise": 1}, "give true or false"),
        ({"start_at_step": -1}, "from 0 to 10000"),
        ({"end_at_step": 10001}, "from 0 to 10000"),
        ({"sampler_name": "eulr"}, "did you mean 'euler'"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        KSamplerAdvanced(**settings)


def half_mask(size: int = 64) -> Mask:
    """The right half is made anew, with a column of half weight between."""
    share = np.zeros((size, size), np.float32)
    share[:, size // 2 :] = 1
    share[:, 3 * size // 8 : size // 2] = 0.5
    return Mask(share)


def share() -> Tensor:
    """The same at the latent's size: no interpolation is needed where a latent pixel's surroundings are alike."""
    row = torch.tensor([0, 0, 0, 0.5, 1, 1, 1, 1])
    return row.expand(1, 1, 8, 8)


@pytest.mark.parametrize(("sampler_name", "seed"), [("euler", 5), ("ddim", 6)])
def test_outside_of_a_mask_the_model_sees_the_noised_source_and_answers_the_source(
    sampler_name: str, seed: int
) -> None:
    """Written out; ddim draws the noise outside anew, from the next seed."""
    stage = KSampler(sampler_name, "karras", 3, 2.0, 0.5, 5)
    made = drive(stage.run(MODEL, PROMPT, SOURCE, half_mask()))
    sigmas, drawn = sigmas_for("karras", 3, 0.5), noise.initial(5, (1, 4, 8, 8))
    around = noise.initial(seed, (1, 4, 8, 8))
    x = source() + drawn * sigmas[0]
    for sigma, lower in pairwise(sigmas):
        seen = x * share() + (source() + around * sigma) * (1 - share())
        denoised = ask(seen, sigma) * share() + source() * (1 - share())
        x = x + (x - denoised) / sigma * (lower - sigma)
    assert error(found(made), x) < 1e-5


@pytest.mark.parametrize("sampler_name", ["euler", "dpmpp_2m", "euler_ancestral", "dpmpp_sde", "heun", "euler_cfg_pp"])
def test_outside_of_a_mask_the_latent_is_kept(sampler_name: str) -> None:
    stage = KSampler(sampler_name, "karras", 3, 2.0, 0.7)
    made = drive(stage.run(MODEL, PROMPT, SOURCE, half_mask()))
    change = np.abs(made.samples - SOURCE.samples).max(axis=(0, 1))
    assert change[:3].max() < 1e-4
    assert change[4:].min() > 0.05


def test_a_mask_of_ones_is_no_mask_and_one_of_zeros_the_source() -> None:
    stage = KSampler("dpmpp_2m", "karras", 3, 2.0, 0.7)
    plain = drive(stage.run(MODEL, PROMPT, SOURCE))
    everywhere, nowhere = (
        drive(stage.run(MODEL, PROMPT, SOURCE, Mask(np.full((64, 64), level, np.float32)))) for level in (1, 0)
    )
    assert error(found(everywhere), found(plain)) < 1e-6
    assert error(found(nowhere), source()) < 1e-5


def test_masks_are_data_and_share_batches() -> None:
    """A run with a mask beside one without asks for the same kind of batch, and gives what it gives alone."""
    stage = KSampler("euler", "karras", 2, 2.0, 0.5)
    tasks = [stage.run(MODEL, PROMPT, SOURCE, mask) for mask in (None, half_mask())]
    values: list[Any] = [None, None]
    results: list[Latent] = []
    while not results:
        try:
            calls = [task.send(value) for task, value in zip(tasks, values, strict=True)]
            assert calls[0].batch_key == calls[1].batch_key
            values = Denoise.run_batch(calls, memory())
        except StopIteration as done:
            results.append(done.value)
    with pytest.raises(StopIteration) as last:
        tasks[1].send(values[1])
    alone = [drive(stage.run(MODEL, PROMPT, SOURCE, mask)) for mask in (None, half_mask())]
    for together, single in zip([results[0], last.value.value], alone, strict=True):
        assert error(found(together), found(single)) < 1e-5
