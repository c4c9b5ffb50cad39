from dataclasses import replace

import pytest

from claygraph.diffusion.calls import EncodeText
from claygraph.stages.prompt import EncodePrompt
from claygraph.values import Checkpoint, Model, Tags, Weights

MODEL = Model(Checkpoint(Weights("x.safetensors", "0")))
TAGS = Tags((("cat", 0.9), ("hat (red)", 0.25)))


def texts(stage: EncodePrompt, tags: Tags | None) -> list[str]:
    """The positive and negative texts that the stage asks to be encoded."""
    task, asked = stage.run(MODEL, tags), []
    try:
        call = task.send(None)
        while True:
            assert isinstance(call, EncodeText)
            asked.append(call.text)
            call = task.send("encoded")
    except StopIteration:
        return asked


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
