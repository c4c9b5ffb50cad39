"""Which strength and weights are in force at each step, against cases worked out by hand."""

from __future__ import annotations

from collections.abc import Callable
from math import cos, pi

import pytest

from claygraph.diffusion.keyframes import in_force, interpolated, passed_by
from claygraph.diffusion.schedules import sigma_at_percent, sigma_table
from claygraph.values import Control, Keyframe, LayerWeights
from tests.controls import control, schedule

TABLE = sigma_table()
SOFT, HALF = LayerWeights(soft=0.825), LayerWeights(layers=(0.5,) * 9)


def over(one: Control, sigmas: list[float]) -> list[tuple[float, LayerWeights]]:
    """What is in force at each step of a run."""
    return [in_force(one, passed_by(sigma, sigmas), TABLE) for sigma in sigmas[:-1]]


def strengths(sigmas: list[float], *frames: Keyframe) -> list[float]:
    return [strength for strength, _ in over(control(keyframes=frames), sigmas)]


def test_without_keyframes_strength_and_weights_stay() -> None:
    assert over(control(layers=SOFT), schedule()) == [(1.0, SOFT)] * 6


def test_a_keyframe_begins_when_sigma_has_fallen_to_its_start() -> None:
    """Six simple steps begin at 0, 0.166, 0.333, 0.5, 0.666 and 0.833 of the training schedule."""
    assert strengths(schedule(), Keyframe(0.3, 0.5), Keyframe(0.6, 0.25)) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert strengths(schedule(), Keyframe(0.6, 0.25), Keyframe(0.3, 0.5)) == [1, 1, 0.5, 0.5, 0.25, 0.25]
    assert strengths(schedule(), Keyframe(0.0, 0.5)) == [0.5] * 6
    assert strengths(schedule(), Keyframe(0.95, 0.5)) == [1.0] * 6


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5, 0.8])
def test_the_step_at_a_keyframes_start_belongs_to_it(share: float) -> None:
    sigmas = [14.0, sigma_at_percent(share, TABLE), 0.03, 0.0]
    assert strengths(sigmas, Keyframe(share, 0.5)) == [1.0, 0.5, 0.5]


def test_guaranteed_steps_hold_the_next_keyframe_back() -> None:
    first, second = Keyframe(0.3, 0.5, guarantee_steps=3), Keyframe(0.4, 0.25)
    assert strengths(schedule(), first, second) == [1, 1, 0.5, 0.5, 0.5, 0.25]


def test_keyframes_passed_within_one_step_take_their_turns_if_guaranteed() -> None:
    frames = [Keyframe(start, strength) for start, strength in ((0.2, 0.8), (0.25, 0.6), (0.3, 0.4))]
    assert strengths(schedule(), *frames) == [1, 1, 0.8, 0.6, 0.4, 0.4]
    loose = [Keyframe(frame.start, frame.strength, guarantee_steps=0) for frame in frames]
    assert strengths(schedule(), *loose) == [1, 1, 0.4, 0.4, 0.4, 0.4]


def test_keyframes_before_the_run_guarantee_nothing() -> None:
    """At denoise 0.6 the run begins at 0.4."""
    frames = Keyframe(0.1, 0.9, guarantee_steps=4), Keyframe(0.2, 0.5, guarantee_steps=2), Keyframe(0.45, 0.2)
    assert strengths(schedule(0.6), *frames) == [0.5, 0.2, 0.2, 0.2, 0.2, 0.2]


def test_weights_are_inherited_unless_that_is_off() -> None:
    frames = (Keyframe(0.1, 1.0, HALF), Keyframe(0.3, 0.7), Keyframe(0.45, 1.0, inherit_missing=False))
    found = [weights for _, weights in over(control(layers=SOFT, keyframes=frames), schedule())]
    assert found == [SOFT, HALF, HALF, LayerWeights(), LayerWeights(), LayerWeights()]


def test_midpoint_evaluations_are_no_steps() -> None:
    sigmas = schedule()
    assert passed_by((sigmas[1] * sigmas[2]) ** 0.5, sigmas)[:-1] == sigmas[:2]
    assert passed_by(sigmas[2], sigmas) == sigmas[:3]
    assert passed_by(3.0, []) == [3.0]


CURVES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: x,
    "ease-in": lambda x: x * x,
    "ease-out": lambda x: 2 * x - x * x,
    "ease-in-out": lambda x: 0.5 - 0.5 * cos(pi * x),
}


@pytest.mark.parametrize("easing", CURVES)
def test_interpolation_spaces_starts_equally_and_eases_strengths(easing: str) -> None:
    frames = interpolated(Keyframe(0.2, 1.5, SOFT), 0.8, 0.3, easing, 50)
    assert [frame.start for frame in frames] == pytest.approx([0.2 + 0.6 * k / 49 for k in range(50)])
    assert [f.strength for f in frames] == pytest.approx([1.5 - 1.2 * CURVES[easing](k / 49) for k in range(50)])
    assert [frame.guarantee_steps for frame in frames] == [1] + [0] * 49
    assert {frame.weights for frame in frames} == {SOFT}


def test_a_run_follows_the_interpolation() -> None:
    """Steps at 0.2 and later take the last of the keyframes passed; the first is held for one step."""
    frames = interpolated(Keyframe(0.2, 1.0), 0.7, 0.0, "linear", 6)  # starts 0.2, 0.3, ... with 1, 0.8, ...
    assert strengths(schedule(), *frames) == pytest.approx([1.0, 1.0, 1.0, 0.4, 0.2, 0.0])
