"""What may differ between the calls of a batch: everything but the checkpoint and the latent's size."""

from __future__ import annotations

from dataclasses import replace

import pytest

from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.checkpoint import load_unet
from claygraph.diffusion.conditions import forwards
from claygraph.values import Lora
from tests import tiny
from tests.denoising import base, by_hand, call, diffusers_unet, error, image_prompt, memory, prompt, run, weights

CLOSE = 5e-5
UNET = diffusers_unet()
LENGTHS = [(77, 77), (154, 77), (77, 231), (308, 154), (231, 924)]


def lora(seed: int = 10, model: float = 0.7, conv: bool = False) -> Lora:
    return Lora(weights(tiny.lora, f"lora_{seed}_{conv}.safetensors", parts=("unet",), seed=seed, conv=conv), model)


def forwards_of(*calls: Denoise) -> list[int]:
    """Rows of each forward that the batch takes."""
    rows: list[int] = []
    unet = memory().get(("unet", base().weights, None), lambda: load_unet(base(), memory()))
    handle = unet.conv_in.register_forward_pre_hook(lambda module, inputs: rows.append(len(inputs[0])))
    run(*calls)
    handle.remove()
    return rows


def same_alone(*calls: Denoise) -> None:
    assert len({one.batch_key for one in calls}) == 1
    for together, one in zip(run(*calls), calls, strict=True):
        assert error(together, run(one)[0]) < CLOSE


def test_only_checkpoint_and_size_keep_calls_apart() -> None:
    one = call()
    assert one.batch_key != call(checkpoint=base("v_prediction")).batch_key
    assert one.batch_key != call(size=(8, 16)).batch_key


def test_prompts_of_any_lengths_share_a_forward() -> None:
    calls = [replace(call(seed=n), prompt=prompt(n, *lengths)) for n, lengths in enumerate(LENGTHS)]
    assert forwards_of(*calls) == [2 * len(calls)]
    same_alone(*calls)
    for one, found in zip(calls, run(*calls), strict=True):
        assert error(found, by_hand(UNET, one)) < CLOSE


def test_lengths_with_too_much_in_common_are_run_apart() -> None:
    lengths = [(77, 77), (5 * 77, 77), (7 * 77, 3 * 77), (77, 4 * 77)]
    calls = [replace(call(seed=n), prompt=prompt(n, *some)) for n, some in enumerate(lengths)]
    assert forwards_of(*calls) == [6, 1, 1]
    same_alone(*calls)


def test_a_text_is_repeated_four_times_at_most_or_up_to_twelve_rows() -> None:
    assert forwards([77, 154, 231, 308]) == [[0, 1, 2, 3]]
    assert forwards([77, 385]) == [[0, 1]]
    assert forwards([231, 308, 385, 385]) == [[0, 1], [2, 3]]
    assert forwards([77] * 3) == [[0, 1, 2]]


def test_calls_with_and_without_a_negative_half_share_a_forward() -> None:
    calls = [call(cfg=1.0), call(2.1, 3.0, 1), replace(call(0.4, 1.0, 2), both=True), call(0.9, 1.0, 3)]
    assert forwards_of(*calls) == [6]
    same_alone(*calls)
    for one, found in zip(calls, run(*calls), strict=True):
        assert error(found[:1], by_hand(UNET, one)) < CLOSE


STACKS = {
    "one has none": [(lora(),), (), (lora(model=-0.4),)],
    "other files": [(lora(),), (lora(11),), (lora(12, conv=True),), ()],
    "other orders": [(lora(), lora(11, 0.3)), (lora(11, 0.5), lora(model=0.2)), (lora(11),)],
    "blocks of one": [(replace(lora(), blocks=(("IN", 0.0), ("MID", 0.5))),), (lora(),), ()],
}


@pytest.mark.parametrize("stacks", STACKS)
def test_calls_with_any_loras_share_a_forward(stacks: str) -> None:
    calls = [call(1.0 + n, 2.0, 4, loras=stack) for n, stack in enumerate(STACKS[stacks])]
    assert forwards_of(*calls) == [2 * len(calls)]
    same_alone(*calls)
    assert error(run(call(1.0, 2.0, 4))[0], run(calls[0])[0]) > 100 * CLOSE


def test_everything_at_once() -> None:
    calls = [
        replace(call(14.0, 7.0, 0, loras=(lora(),)), prompt=prompt(0, 154, 77)),
        replace(call(0.03, 1.0, 1, image_prompts=(image_prompt(0.6),)), prompt=prompt(1, 231, 77)),
        replace(call(2.0, 1.0, 2, loras=(lora(11), lora(12, conv=True))), both=True),
        call(1.1, 0.5, 3, loras=(lora(12, -1.0, conv=True),), image_prompts=(image_prompt(1.0, 5, end=0.2),)),
        call(3.0, 4.0, 4),
    ]
    same_alone(*calls)
