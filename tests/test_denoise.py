"""The denoiser, against diffusers' UNet asked by hand, one row at a time."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.checkpoint import load_unet
from claygraph.diffusion.rows import in_window
from claygraph.diffusion.schedules import sigma_at_percent, sigma_table, sigmas_for
from claygraph.memory import Memory
from claygraph.values import Lora, Prompt, Size
from tests import tiny
from tests.denoising import base, by_hand, call, diffusers_unet, error, memory, prompt, run, weights

CLOSE = 5e-5
UNET = diffusers_unet()


@pytest.mark.parametrize("sigma", [14.61, 2.276, 0.4, 0.03])
def test_guided_result_is_that_of_diffusers(sigma: float) -> None:
    one = call(sigma)
    assert error(run(one)[0], by_hand(UNET, one)) < CLOSE


def test_size_vector_is_eight_pixels_per_latent_pixel_high_then_wide() -> None:
    wide = call(size=(8, 16))
    assert error(run(wide)[0], by_hand(UNET, wide)) < CLOSE
    assert by_hand(UNET, wide).shape == (1, 4, 8, 16)


def test_sizes_are_data_of_each_half() -> None:
    def told(arguments: dict[str, Any], negative: bool) -> None:
        row = [320, 4096, 512, 7, 64, 128] if negative else [64, 96, 0, 0, 64, 96]
        arguments["added_cond_kwargs"]["time_ids"] = torch.tensor([row], dtype=torch.float32)

    plain, one = call(seed=1), call(size=(8, 12))
    negative = replace(one.prompt.negative, size=Size(4096, 320, 7, 512, 128, 64))
    one = replace(one, prompt=Prompt(one.prompt.positive, negative))
    assert error(run(one)[0], by_hand(UNET, one, told)) < CLOSE
    assert error(run(one)[0], by_hand(UNET, one)) > 1e-3
    square = replace(one, x=plain.x)
    assert square.batch_key == plain.batch_key
    assert error(run(plain, square)[0], run(plain)[0]) < CLOSE


def test_prediction_type_comes_from_the_checkpoint() -> None:
    epsilon, velocity = (call(checkpoint=base(kind)) for kind in ("epsilon", "v_prediction"))
    output = (epsilon.x - run(replace(epsilon, cfg=1.0))[0]) / 2.0
    expected = epsilon.x / 5 - output * 2 / 5**0.5
    assert error(run(replace(velocity, cfg=1.0))[0], expected) < CLOSE


def test_cfg_of_one_is_the_positive_half_alone() -> None:
    one = call(cfg=1.0)
    other = replace(one, prompt=Prompt(one.prompt.positive, prompt(9).negative))
    assert error(run(one)[0], by_hand(UNET, one)) < CLOSE
    assert torch.equal(run(one)[0], run(other)[0])


@pytest.mark.parametrize("cfg", [1.0, 2.0])
def test_both_gives_the_negative_prediction_beside_the_guided_one(cfg: float) -> None:
    one = replace(call(cfg=cfg), both=True)
    guided, negative = run(one)[0].split(1)
    assert error(guided, by_hand(UNET, one)) < CLOSE
    assert error(negative, by_hand(UNET, replace(one, cfg=0.0))) < CLOSE


def test_calls_for_one_and_for_both_share_a_batch() -> None:
    one, other = call(seed=1), replace(call(seed=2), both=True)
    assert one.batch_key == other.batch_key
    for together, alone in zip(run(one, other), (run(one)[0], run(other)[0]), strict=True):
        assert error(together, alone) < CLOSE


def test_one_forward_serves_the_whole_batch() -> None:
    rows: list[int] = []
    run(call())
    unet = memory().get(("unet", base().weights, None), lambda: load_unet(base(), memory()))
    handle = unet.conv_in.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    run(call(seed=1), call(seed=2), call(seed=3))
    handle.remove()
    assert rows == [6]


def test_rows_that_ask_the_same_are_computed_once() -> None:
    rows: list[int] = []
    one = call(cfg=1.5)
    calls = [one, replace(one, cfg=4.0), call(seed=1), replace(one, x=one.x.clone()), replace(one, sigma=one.sigma / 2)]
    alone = [run(each)[0] for each in calls]
    unet = memory().get(("unet", base().weights, None), lambda: load_unet(base(), memory()))
    handle = unet.conv_in.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    together = run(*calls)
    handle.remove()
    assert rows == [6]
    assert all(error(a, b) < CLOSE for a, b in zip(together, alone, strict=True))
    assert error(together[0], together[1]) > 100 * CLOSE


def test_a_mixed_batch_is_its_calls_alone() -> None:
    calls = [call(sigma, cfg, seed) for seed, (sigma, cfg) in enumerate([(14.6, 7.0), (2.3, 1.5), (0.03, 4.0)])]
    for together, alone in zip(run(*calls), (run(each)[0] for each in calls), strict=True):
        assert error(together, alone) < CLOSE


@pytest.mark.parametrize(("positive", "negative"), [(154, 77), (77, 154), (154, 231)])
def test_prompts_of_any_lengths_share_a_forward(positive: int, negative: int) -> None:
    one = replace(call(), prompt=prompt(3, positive, negative))
    assert error(run(one)[0], by_hand(UNET, one)) < CLOSE


def test_result_can_be_used_outside_and_leaves_x_alone() -> None:
    one = call()
    before = one.x.clone()
    (found,) = run(one)
    assert (one.x - found).dtype == torch.float32
    assert torch.equal(one.x, before)


def test_half_precision_is_only_inside_the_models() -> None:
    one = call()
    (found,) = Denoise.run_batch([one], Memory("cpu", "bfloat16"))
    assert found.dtype == torch.float32
    assert CLOSE < error(found, run(one)[0]) < 0.1


def test_lora_strengths_differ_within_a_batch() -> None:
    file = weights(tiny.lora, "lora.safetensors", parts=("unet",))
    calls = [call(seed=4, loras=(Lora(file, model=strength),)) for strength in (0.0, 0.6, -1.0)]
    together = run(*calls)
    assert error(together[0], run(call(seed=4))[0]) < CLOSE
    assert error(together[1], together[0]) > 1e-3
    for found, each in zip(together, calls, strict=True):
        assert error(found, run(each)[0]) < CLOSE


def test_a_lora_listed_twice_counts_twice() -> None:
    file = weights(tiny.lora, "lora.safetensors", parts=("unet",))
    twice, once = call(loras=(Lora(file, 0.3), Lora(file, 0.5))), call(loras=(Lora(file, 0.8),))
    assert error(run(twice)[0], run(once)[0]) < 1e-6


WINDOWS = [
    (1.0, 0.0, 0.6, "111100"),
    (1.0, 0.0, 0.8, "111110"),
    (0.6, 0.0, 0.8, "111100"),
    (0.6, 0.0, 0.6, "110000"),
    (0.6, 0.0, 0.4, "000000"),
    (0.6, 0.2, 1.0, "111111"),
]


@pytest.mark.parametrize(("denoise", "start", "end", "active"), WINDOWS)
def test_windows_are_shares_of_the_training_schedule(denoise: float, start: float, end: float, active: str) -> None:
    sigmas = sigmas_for("simple", 6, denoise)[:-1]
    found = [in_window(sigma, start, end, sigma_table()) for sigma in sigmas]
    assert "".join(str(int(each)) for each in found) == active


@pytest.mark.parametrize("percent", [0.1, 0.25, 0.4, 0.55, 0.7, 0.9])
def test_both_ends_of_a_window_are_inside(percent: float) -> None:
    table = sigma_table()
    edge = sigma_at_percent(percent, table)
    for sigma in (
        edge,
        float(np.nextafter(np.float32(edge), np.float32(0))),
        float(np.nextafter(np.float32(edge), np.float32(20))),
    ):
        assert in_window(sigma, percent, 1.0, table)
        assert in_window(sigma, 0.0, percent, table)
    assert not in_window(edge * 1.001, percent, 1.0, table)
    assert not in_window(edge * 0.999, 0.0, percent, table)


def test_a_schedule_that_starts_on_the_edge_is_inside() -> None:
    first = sigmas_for("sgm_uniform", 6, 0.6)[0]
    assert in_window(first, 0.0, 0.4, sigma_table())
    assert not in_window(sigmas_for("simple", 6, 0.6)[0], 0.0, 0.4, sigma_table())


def test_calls_with_other_strengths_may_share_a_batch() -> None:
    file = weights(tiny.lora, "lora.safetensors", parts=("unet",))
    one, other = (call(sigma, cfg, loras=(Lora(file, cfg),)) for sigma, cfg in ((2.0, 3.0), (1.0, 0.5)))
    assert one.batch_key == other.batch_key
