"""The prompt stage: which texts it has encoded, and what it makes of them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from claygraph.diffusion.calls import EncodeText
from claygraph.errors import SettingError
from claygraph.stages.prompt import EncodePrompt
from claygraph.values import Checkpoint, Conditioning, Model, Prompt, Size, Tags, Weights

MODEL = Model(Checkpoint(Weights("x.safetensors", "0")))
TAGS = Tags((("cat", 0.9), ("hat (red)", 0.25)))


def driven(stage: EncodePrompt, tags: Tags | None = None, encoded: Any = "encoded") -> tuple[list[EncodeText], Prompt]:
    """What the stage asks to be encoded, positive then negative, and what it makes of the answers."""
    task, asked = stage.run(MODEL, tags), []
    try:
        call = task.send(None)
        while True:
            asked.append(call)
            call = task.send(encoded)
    except StopIteration as done:
        return asked, done.value


def texts(stage: EncodePrompt, tags: Tags | None) -> list[str]:
    """The positive and negative texts that the stage asks to be encoded."""
    return [call.text for call in driven(stage, tags)[0]]


@pytest.mark.parametrize(
    ("stage", "tags", "text"),
    [
        (EncodePrompt("clay"), TAGS, r"cat, hat \(red\), clay"),
        (EncodePrompt("clay", weigh_tags=True), TAGS, r"(cat:0.900), (hat \(red\):0.250), clay"),
        (EncodePrompt("clay", separator=" | "), Tags(), "clay"),
        (EncodePrompt("clay"), replace(TAGS, trailing_comma=True), r"cat, hat \(red\), , clay"),
        (EncodePrompt(""), replace(TAGS, trailing_comma=True), r"cat, hat \(red\), "),
        (EncodePrompt("clay"), Tags(trailing_comma=True), "clay"),
        (EncodePrompt("clay"), None, "clay"),
        (EncodePrompt(""), TAGS, r"cat, hat \(red\)"),
        (EncodePrompt(""), None, ""),
    ],
)
def test_tags_come_before_the_text(stage: EncodePrompt, tags: Tags | None, text: str) -> None:
    assert texts(stage, tags) == [text, ""]


def test_the_negative_prompt_is_encoded_too() -> None:
    assert texts(EncodePrompt("clay", "blurry"), None) == ["clay", "blurry"]


def test_each_encoder_may_have_a_text_of_its_own_after_the_tags() -> None:
    stage = EncodePrompt("clay", "blurry", text_l="soft", negative_g="dark")
    (positive, negative), prompt = driven(stage, TAGS)
    assert (positive.text, positive.text_l) == (r"cat, hat \(red\), clay", r"cat, hat \(red\), soft")
    assert (negative.text, negative.text_l) == ("dark", "blurry")
    assert (prompt.text, prompt.negative_text) == (r"cat, hat \(red\), clay", "dark")
    assert [call.text_l for call in driven(EncodePrompt("clay", text_g="x", text_l="x"))[0]] == [None, None]


def test_sizes_go_with_both_halves() -> None:
    size = Size(4096, 320, 7, 512, 128, 64)
    stage = EncodePrompt(width=4096, height=320, crop_w=7, crop_h=512, target_width=128, target_height=64)
    assert [call.size for call in driven(stage)[0]] == [size, size]
    assert driven(EncodePrompt())[0][0].size == Size(None, None, 0, 0, None, None)


def test_a_zero_negative_is_zeros_in_the_shapes_of_an_encoded_one() -> None:
    encoded = Conditioning(np.ones((77, 8), np.float32), np.ones(4, np.float32), Size(64, 64))
    zero = driven(EncodePrompt("clay", zero_negative=True), None, encoded)[1].negative
    assert (zero.hidden.shape, zero.pooled.shape, zero.size) == ((77, 8), (4,), Size(64, 64))
    assert not zero.hidden.any()
    assert not zero.pooled.any()
    assert driven(EncodePrompt("clay"), None, encoded)[1].negative is encoded


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"clip_skip": -25}, "from -24 to -1"),
        ({"clip_skip": 0}, "from -24 to -1"),
        ({"width": -8}, "prompt.width=-8 is out of range; give a number from 0 to 16384"),
        ({"target_height": 64.5}, "prompt.target_height=64.5 is no whole number"),
        ({"negative": "blurry", "zero_negative": True}, "leaves no negative prompt"),
    ],
)
def test_settings_out_of_range_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(SettingError, match=said):
        EncodePrompt(**settings)
