"""What ControlNets add, against diffusers' ControlNetModel and UNet asked by hand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import permutations
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import Tensor

from claygraph.diffusion.controlnet import fit
from claygraph.diffusion.controlnet_files import load
from claygraph.diffusion.keyframes import layer_factors
from claygraph.diffusion.rows import Row
from claygraph.diffusion.schedules import sigma_table
from claygraph.diffusion.windows import percent_of
from claygraph.stages.sampler import KSampler
from claygraph.values import Image, Keyframe, LayerWeights, Model, Weights
from tests import tiny_adapters
from tests.controls import CLOSE, HINT, canny, control, depth, diffusers_network, diffusers_result, sampled, schedule
from tests.denoising import base, by_hand, call, diffusers_unet, error, memory, picture, run, weights


@pytest.mark.parametrize("strength", [1.0, 0.35])
def test_controlled_result_is_that_of_diffusers(strength: float) -> None:
    one = call(controls=(control(strength),))
    assert error(run(one)[0], diffusers_result(one, [HINT.pixels])) < CLOSE
    assert error(run(one)[0], run(call())[0]) > 100 * CLOSE


def test_controls_add_as_diffusers_adds_them() -> None:
    from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel

    other = picture(8, 64, 64)
    one = call(controls=(control(0.7), control(0.4, hint=other, weights=depth())))
    both = MultiControlNetModel([diffusers_network(each.weights.path) for each in one.model.controls])
    hints = [torch.from_numpy(hint.pixels / np.float32(255)).permute(2, 0, 1)[None] for hint in (HINT, other)]

    def add_residuals(arguments: dict[str, Any], negative: bool) -> None:
        down, middle = both(**arguments, controlnet_cond=hints, conditioning_scale=[0.7, 0.4], return_dict=False)
        arguments |= {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}

    assert error(run(one)[0], by_hand(diffusers_unet(), one, add_residuals)) < CLOSE


def test_one_network_may_act_twice() -> None:
    other = picture(8, 64, 64)
    one = call(controls=(control(0.7), control(0.4, hint=other)))
    assert error(run(one)[0], diffusers_result(one, [HINT.pixels, other.pixels])) < CLOSE


def test_the_order_of_controls_does_not_matter() -> None:
    lines = weights(tiny_adapters.controlnet, "lines", seed=42)
    stack = (control(0.7), control(0.4, weights=depth()), control(1.3, weights=lines))
    results = [run(call(controls=order))[0] for order in permutations(stack)]
    assert all(torch.equal(result, results[0]) for result in results)


def test_a_hint_of_another_shape_is_cropped_to_the_middle() -> None:
    wide = np.pad(HINT.pixels, ((0, 0), (20, 20), (0, 0)))
    found = run(call(controls=(control(hint=Image(wide)),)))[0]
    assert torch.equal(found, run(call(controls=(control(),)))[0])
    stretched = np.asarray(Pillow.fromarray(wide).resize((64, 64), Pillow.Resampling.LANCZOS))  # diffusers' way
    assert error(found, diffusers_result(call(controls=(control(),)), [stretched])) > 20 * CLOSE


def test_fitting_takes_the_nearest_pixels_of_the_middle() -> None:
    rows = np.arange(7, dtype=np.uint8)[:, None, None] * np.ones((1, 3, 3), np.uint8)
    assert (fit(rows, 3, 3)[0, :, 0] * 255).round().tolist() == [2, 3, 4]
    assert (fit(rows, 14, 6)[0, :, 0] * 255).round().tolist() == [n // 2 for n in range(14)]
    columns = np.arange(71, dtype=np.uint8)[None, :, None] * np.ones((54, 1, 3), np.uint8)
    centres = 8 + (np.arange(128) + 0.5) * 55 / 128
    assert (fit(columns, 128, 128)[0, 5] * 255).round().tolist() == np.floor(centres).tolist()


MISSING = Weights("nowhere.safetensors", "missing")


def test_strength_zero_is_no_control_bit_for_bit_and_loads_nothing() -> None:
    assert torch.equal(run(call(controls=(control(0.0, weights=MISSING),)))[0], run(call())[0])


def test_outside_its_window_a_control_does_nothing() -> None:
    for sigma, window in ((5.0, (0.5, 1.0)), (0.5, (0.0, 0.5))):
        silent = control(1.0, *window, weights=MISSING)
        assert torch.equal(run(call(sigma, controls=(silent,)))[0], run(call(sigma))[0])


def test_strength_zero_beside_others_is_no_control() -> None:
    found = run(call(controls=(control(0.0),)), call(seed=1, controls=(control(1.0),)))
    alone = run(call(), call(seed=1))
    assert torch.equal(found[0], alone[0])
    assert error(found[1], alone[1]) > 100 * CLOSE


def gain(*factors: float) -> Any:
    """Residuals of the first control times these factors, the middle's last."""
    return lambda place, negative, parts: [part * factor for part, factor in zip(parts, factors, strict=True)]


def test_soft_weights_are_those_of_the_table() -> None:
    expected = [0.177, 0.215, 0.260, 0.315, 0.382, 0.463, 0.562, 0.681, 0.825, 1.0]
    assert layer_factors(LayerWeights(soft=0.825), 9) == pytest.approx(expected, abs=6e-4)
    assert layer_factors(LayerWeights(soft=0.825), 12)[0] == pytest.approx(0.0994, abs=6e-5)
    one = call(controls=(control(0.8, layers=LayerWeights(soft=0.825)),))
    exact = [0.825 ** (9 - i) for i in range(9)]
    assert error(run(one)[0], diffusers_result(one, weigh=gain(*exact, 1.0))) < CLOSE
    off_by_one = [0.825 ** (8 - i) for i in range(9)]
    assert error(run(one)[0], diffusers_result(one, weigh=gain(*off_by_one, 1.0))) > 10 * CLOSE


def test_every_residual_may_have_a_weight_of_its_own() -> None:
    layers = (0.5, 0.0, 2.0, 1.0, 0.3, 1.5, 0.7, 0.2, 0.9)
    one = call(controls=(control(1.2, layers=LayerWeights(layers=layers, middle=0.4)),))
    assert error(run(one)[0], diffusers_result(one, weigh=gain(*layers, 0.4))) < CLOSE


def test_weights_given_and_soft_weights_multiply() -> None:
    both = layer_factors(LayerWeights(0.5, (1.0, 2.0), 3.0), 2)
    assert both == [0.25, 1.0, 3.0]


@pytest.mark.parametrize("share", [0.0, 0.4])
def test_the_negative_half_may_get_less(share: float) -> None:
    one = call(controls=(control(0.9, layers=LayerWeights(uncond=share)),))

    def weigh(place: int, negative: bool, parts: list[Tensor]) -> list[Tensor]:
        return [part * share for part in parts] if negative else parts

    assert error(run(one)[0], diffusers_result(one, weigh=weigh)) < CLOSE


def test_a_network_is_asked_once_about_rows_that_differ_in_its_strength() -> None:
    rows: list[int] = []
    one = call(controls=(control(1.0),))
    calls = [one, *(replace(one, model=replace(one.model, controls=(control(s),))) for s in (0.5, 0.25, 0.0))]
    alone = [run(each)[0] for each in calls]
    network = load(canny(), memory().get(("unet", base().weights, None), lambda: None), memory()).model
    handle = network.conv_in.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    together = run(*calls)
    handle.remove()
    assert rows == [2]
    assert all(error(a, b) < CLOSE for a, b in zip(together, alone, strict=True))


def test_keyframes_count_the_steps_of_each_rows_own_schedule() -> None:
    start = percent_of(3.0, sigma_table())
    frames = (Keyframe(start, 1.0, guarantee_steps=2), Keyframe(start, 0.2))
    one = replace(call(sigma=2.0, controls=(control(keyframes=frames),)), sigmas=(3.0, 2.5, 2.0, 0.0))
    calls = [one, replace(one, sigmas=(3.0, 2.0, 0.0))]
    alone = [run(each)[0] for each in calls]
    assert error(alone[0], alone[1]) > 100 * CLOSE
    assert all(error(a, b) < CLOSE for a, b in zip(run(*calls), alone, strict=True))


def test_networks_are_asked_about_the_rows_they_act_on() -> None:
    calls = [call(controls=(control(layers=LayerWeights(uncond=0.0)),)), call(seed=1), call(seed=2, cfg=3.0)]
    run(*calls)
    rows: list[int] = []
    network = load(canny(), memory().get(("unet", base().weights, None), lambda: None), memory()).model
    handle = network.conv_in.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    run(*calls)
    handle.remove()
    assert rows == [1]


MASK = Image(np.repeat(np.random.default_rng(3).integers(0, 256, (64, 64, 1), dtype=np.uint8), 3, axis=2))


@pytest.mark.parametrize("side", [64, 40])
def test_a_mask_weighs_every_residual_at_its_own_size(side: int) -> None:
    pixels = cv2.resize(MASK.pixels, (side, side), interpolation=cv2.INTER_NEAREST)
    one = call(controls=(control(1.1, mask=Image(pixels.astype(np.uint8))),))
    full = cv2.resize(pixels[:, :, 0] / np.float32(255), (64, 64), interpolation=cv2.INTER_LINEAR)

    def weigh(place: int, negative: bool, parts: list[Tensor]) -> Sequence[Tensor]:
        sizes = [(int(part.shape[3]), int(part.shape[2])) for part in parts]
        masks = [cv2.resize(full, size, interpolation=cv2.INTER_LINEAR) for size in sizes]
        return [part * torch.from_numpy(mask) for part, mask in zip(parts, masks, strict=True)]

    assert error(run(one)[0], diffusers_result(one, weigh=weigh)) < CLOSE


def test_a_white_mask_is_none_and_a_black_one_no_control() -> None:
    white, black = (Image(np.full((30, 50, 3), level, np.uint8)) for level in (255, 0))
    assert torch.equal(run(call(controls=(control(mask=white),)))[0], run(call(controls=(control(),)))[0])
    assert torch.equal(run(call(controls=(control(mask=black),)))[0], run(call())[0])


def test_keyframes_multiply_strength_and_bring_weights() -> None:
    frames = (Keyframe(0.3, 0.5), Keyframe(0.6, 0.25, LayerWeights(soft=0.7)))
    sigmas = schedule()
    factors = [1.0, 1.0, 0.5, 0.5, 0.25, 0.25]
    for sigma, factor in zip(sigmas[:-1], factors, strict=True):
        layers = LayerWeights(soft=0.7) if factor == 0.25 else LayerWeights()
        moving = call(sigma, controls=(control(0.8, keyframes=frames),))
        still = call(sigma, controls=(control(0.8 * factor, layers=layers),))
        assert error(run(replace(moving, sigmas=sigmas))[0], run(still)[0]) < CLOSE


@pytest.mark.parametrize("steps", [1, 2])
def test_keyframes_count_the_steps_of_the_sampler(steps: int) -> None:
    """Both begin with the first step, but the first one is held; so it acts as in a window over these steps."""
    sampler = KSampler(steps=3, scheduler="simple", denoise=0.5, cfg=1.0)
    places = [percent_of(sigma, sigma_table()) for sigma in sampler.sigmas(sigma_table())[:-1]]
    frames = (Keyframe(places[0], 0.9, guarantee_steps=steps), Keyframe(places[0], 0.0))
    held = sampled(sampler, Model(base(), controls=(control(keyframes=frames),)))
    windowed = sampled(sampler, Model(base(), controls=(control(0.9, end=places[steps] - 0.01),)))
    assert np.abs(held.samples - windowed.samples).max() < CLOSE * np.abs(windowed.samples).max()


ACTIVE = [
    (1.0, 0.0, 0.6, "111100", "111000"),
    (1.0, 0.0, 0.8, "111110", "111100"),
    (0.6, 0.0, 0.8, "111100", "111100"),
    (0.6, 0.0, 0.6, "110000", "111000"),
    (0.6, 0.0, 0.4, "000000", "110000"),
    (0.6, 0.2, 1.0, "111111", "001111"),
]


@pytest.mark.parametrize(("denoise", "start", "end", "expected", "diffusers"), ACTIVE)
def test_windows_lie_in_the_training_schedule(
    denoise: float, start: float, end: float, expected: str, diffusers: str
) -> None:
    one = control(1.0, start, end)
    steps = [Row(call(sigma, controls=(one,)), False) for sigma in schedule(denoise)[:-1]]
    assert "".join(str(int(row.active(one))) for row in steps) == expected
    counted = [not (i / 6 < start or (i + 1) / 6 > end) for i in range(6)]  # diffusers' rule, in steps of the run
    assert "".join(str(int(kept)) for kept in counted) == diffusers


@pytest.mark.parametrize(("denoise", "start", "end", "expected", "diffusers"), ACTIVE)
def test_a_run_follows_the_window(denoise: float, start: float, end: float, expected: str, diffusers: str) -> None:
    for place, sigma in enumerate(schedule(denoise)[:-1]):
        changed = not torch.equal(run(call(sigma, controls=(control(1.0, start, end),)))[0], run(call(sigma))[0])
        assert changed == (expected[place] == "1")


def test_a_mixed_batch_is_its_calls_alone() -> None:
    """Different networks, none, hints, windows, masks, weights and keyframes in one forward pass."""
    soft, half = LayerWeights(soft=0.825, uncond=0.3), LayerWeights(layers=(0.5,) * 9)
    stacks = [
        (control(1.0),),
        (control(0.3, hint=picture(5, 80, 50)), control(0.6, weights=depth(), layers=soft)),
        (control(2.0, start=0.5),),
        (),
        (control(0.9, end=0.3, weights=depth()),),
        (control(0.7, mask=MASK, layers=half, keyframes=(Keyframe(0.1, 0.4),)), control(0.2)),
    ]
    calls = [call(0.5 + 2 * n, 1.5 + n, n, controls=each) for n, each in enumerate(stacks)]
    assert len({one.batch_key for one in calls}) == 1
    for together, one in zip(run(*calls), calls, strict=True):
        assert error(together, run(one)[0]) < CLOSE


def test_a_hint_is_embedded_once_for_all_steps() -> None:
    hint, other = picture(21, 64, 64), picture(22, 64, 64)
    run(call(controls=(control(hint=hint),)))
    network = load(canny(), memory().get(("unet", base().weights, None), lambda: None), memory())
    seen: list[int] = []
    handle = network.embedding.register_forward_hook(lambda *args: seen.append(1))
    for sigma in schedule()[:-1]:
        run(call(sigma, controls=(control(hint=hint),)), call(sigma, controls=(control(0.4, hint=other),)))
    handle.remove()
    assert len(seen) == 1  # the other one
    assert run(call(size=(8, 16), controls=(control(hint=hint),)))[0].shape[3] == 16
    kept = len(network.hints)
    del hint
    assert len(network.hints) == kept - 1
