"""The ControlNet stage: how configs spell it, and what it refuses."""

from __future__ import annotations

from typing import Any

import pytest
from hydra import compose, initialize_config_module

from claygraph import plan
from claygraph.errors import SettingError
from claygraph.stages.controlnet import ControlNet
from claygraph.values import Keyframe, LayerWeights, Model
from tests.controls import HINT, canny
from tests.denoising import base, picture

MODEL = Model(base())


def graph(*overrides: str) -> Any:
    with initialize_config_module("claygraph.conf", version_base="1.3"):
        return plan.graph_of(compose("config", [*overrides, "out=nowhere"]))


def test_settings_become_a_control() -> None:
    keyframes = [{"start": 0.5, "strength": 0.3, "soft": 0.9}, {"start": 0.7, "inherit_missing": False}]
    stage = ControlNet.of(path=canny().path, strength=0.8, soft=0.825, layers=[1] * 9, uncond=0, keyframes=keyframes)
    [made] = stage.run(MODEL, HINT, picture(1, 8, 8)).controls
    assert made.layers == LayerWeights(0.825, (1,) * 9, 1.0, 0)
    frames = (Keyframe(0.5, 0.3, LayerWeights(0.9)), Keyframe(0.7, inherit_missing=False))
    assert (made.weights, made.strength, made.keyframes) == (canny(), 0.8, frames)
    assert made.hint is HINT
    assert made.mask is not None


def test_a_keyframe_with_an_end_becomes_many() -> None:
    entry = {"start": 0.2, "end": 0.8, "to": 0.1, "interpolation": "ease-out", "intervals": 7, "middle": 0.5}
    frames = ControlNet.of(path="x", keyframes=[entry, {"start": 0.9}]).keyframes
    assert len(frames) == 8
    assert (frames[6].start, frames[6].strength) == pytest.approx((0.8, 0.1))
    assert frames[3].weights == LayerWeights(middle=0.5)


def test_strength_zero_leaves_the_model_as_it_is() -> None:
    assert ControlNet.of(path="nowhere", strength=0.0).run(MODEL, HINT) is MODEL


def test_stages_chain() -> None:
    first, second = (ControlNet.of(path=canny().path, strength=strength) for strength in (0.4, 0.6))
    assert [each.strength for each in second.run(first.run(MODEL, HINT), HINT).controls] == [0.4, 0.6]


BAD: list[tuple[dict[str, Any], str]] = [
    ({"strength": 11}, "controlnet.strength=11 .* from 0 to 10"),
    ({"start": 0.6, "end": 0.5}, "controlnet.end=0.5 .* from 0.6 to 1"),
    ({"soft": 1.1}, "controlnet.soft=1.1 .* from 0 to 1"),
    ({"uncond": -1}, "controlnet.uncond=-1 .* from 0 to 1"),
    ({"middle": "x"}, "controlnet.middle='x'"),
    ({"layers": [1.0] * 13}, "controlnet.layers has 13 numbers; give 9, or none"),
    ({"layers": [1.0] * 8 + [20]}, "controlnet.layers.8=20 .* from 0 to 10"),
    ({"keyframes": [0.5]}, "controlnet.keyframes.0=0.5 is no mapping; give one such as"),
    ({"keyframes": [{}, {"strenth": 1}]}, "keyframes.1.strenth is not a setting; did you mean 'strength'"),
    ({"keyframes": [{"start": 2}]}, "keyframes.0.start=2 .* from 0 to 1"),
    ({"keyframes": [{"strength": None}]}, "keyframes.0.strength=None"),
    ({"keyframes": [{"guarantee_steps": 0.5}]}, "keyframes.0.guarantee_steps=0.5 is no whole number"),
    ({"keyframes": [{"inherit_missing": 3}]}, "keyframes.0.inherit_missing=3 is neither true nor false"),
    ({"keyframes": [{"soft": 2}]}, "keyframes.0.soft=2"),
    ({"keyframes": [{"start": 0.5, "end": 0.4}]}, "keyframes.0.end=0.4 .* from 0.5 to 1"),
    ({"keyframes": [{"to": 11}]}, "keyframes.0.to=11"),
    (
        {"keyframes": [{"to": 0, "interpolation": "easein"}]},
        "interpolation='easein' is not known; did you mean 'ease-in'",
    ),
    ({"keyframes": [{"to": 0, "intervals": 1}]}, "keyframes.0.intervals=1 .* from 2 to 100"),
]


@pytest.mark.parametrize(("settings", "said"), BAD)
def test_bad_settings_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        ControlNet.of(path="x", **settings)


def test_a_second_control_is_one_override_away() -> None:
    nodes = graph("controlnet_2=miniature", "controlnet_2.strength=0.2", "edges@edges_2=lineart").graph["nodes"]
    assert nodes["sampler"].inputs["controlnet"] is nodes["controlnet_2"]
    assert nodes["controlnet_2"].inputs["ip_adapter"] is nodes["controlnet"]
    assert nodes["controlnet_2"].inputs["edges"] is nodes["edges_2"]
    assert (nodes["controlnet_2"].stage.strength, type(nodes["edges_2"].stage).__name__) == (0.2, "Lineart")


def test_the_second_control_stays_where_the_first_is_off() -> None:
    nodes = graph("controlnet_2=miniature", "controlnet=none").graph["nodes"]
    assert nodes["controlnet_2"].inputs["ip_adapter"] is nodes["ip_adapter"]


def test_a_third_control_and_a_mask_are_wired_by_name() -> None:
    third = ["+controlnet@controlnet_3=miniature", "+controlnet_3.inputs.ip_adapter=controlnet_2"]
    mask = "+control_mask={_target_: claygraph.stages.edges.SoftEdges}"
    nodes = graph("controlnet_2=miniature", *third, "sampler.inputs.controlnet=controlnet_3", mask).graph["nodes"]
    assert nodes["sampler"].inputs["controlnet"] is nodes["controlnet_3"]
    assert nodes["controlnet_3"].inputs["ip_adapter"] is nodes["controlnet_2"]
    assert nodes["controlnet"].inputs["control_mask"] is nodes["control_mask"]


def test_keyframes_can_be_written_on_the_command_line() -> None:
    nodes = graph("controlnet.keyframes=[{start: 0.5, strength: 0.3}]", "controlnet.soft=0.825").graph["nodes"]
    stage = nodes["controlnet"].stage
    assert (stage.keyframes, stage.soft) == ((Keyframe(0.5, 0.3),), 0.825)
