"""Image prompts in the UNet: scalings, swapped blocks, masks and mixed batches, against the formula written out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.image_attention import cross_attentions
from claygraph.diffusion.image_rows import grid
from claygraph.diffusion.weight_types import BLOCKS, SCALINGS, SWAPPED, block_scales, factors, listed_scales
from claygraph.errors import SettingError
from claygraph.values import ImagePrompt
from tests import tiny_adapters
from tests.denoising import CONTEXT, by_hand, call, diffusers_unet, error, floats, image_prompt, run, weights

CLOSE = 5e-5


class WrittenOut:
    """Attention of one half to the text and to image prompts, one prompt, one head, one formula at a time."""

    def __init__(self, block: int, layer: int) -> None:
        self.block, self.layer = block, layer
        self.prompts: tuple[ImagePrompt, ...] = ()
        self.negative, self.latent = False, (8, 8)

    def __call__(self, attn: Any, hidden_states: Tensor, encoder_hidden_states: Tensor, **_: Any) -> Tensor:
        query, text = attn.to_q(hidden_states)[0], encoder_hidden_states[0]
        out = softmax_attention(query, attn.to_k(text), attn.to_v(text), attn.heads)
        for prompt in self.prompts:
            out = out + self.heard(prompt, query, attn.heads)
        projected: Tensor = attn.to_out[0](out)[None]
        return projected

    def heard(self, prompt: ImagePrompt, query: Tensor, heads: int) -> Tensor:
        """What one prompt adds ``[N, width]``: section by section as IPAdapter_plus 9d076a3 defines it."""
        weight = prompt.scales[self.block]
        if weight == 0:
            return torch.zeros_like(query)
        positive, negative = torch.tensor(prompt.tokens), torch.tensor(prompt.negative)
        if self.block in prompt.swapped:
            positive, negative = positive * 0, positive
        tokens, file = negative if self.negative else positive, load_file(prompt.adapter.path)
        name = f"ip_adapter.{2 * self.layer + 1}"
        key, value = (tokens @ file[f"{name}.to_{part}_ip.weight"].float().T for part in "kv")
        if "C penalty" in prompt.scaling:
            weight = weight * query.shape[1] / 1280
        if prompt.scaling == "V only":
            added = softmax_attention(query, key, value, heads) * weight
        elif prompt.scaling.startswith("K+V"):
            added = softmax_attention(query, key * weight, value * weight, heads)
        else:
            mean = value.mean(0, keepdim=True)
            added = softmax_attention(query, key * weight, value - mean + weight * mean, heads)
        return added if prompt.mask is None else added * self.masked(prompt.mask, len(query))

    def masked(self, mask: Any, count: int) -> Tensor:
        step = {64: 1, 16: 2, 4: 4}[count]
        return torch.tensor(halved(mask, mask.shape[0] // (8 // step))).reshape(-1, 1)


def halved(mask: Any, times: int) -> Any:
    """Bilinear interpolation to 1 / times of the size, times even: the mean of the middle 2 x 2 of every square."""
    middle = times // 2
    parts = [mask[row::times, column::times] for row in (middle - 1, middle) for column in (middle - 1, middle)]
    return np.mean(parts, axis=0)


def softmax_attention(query: Tensor, key: Tensor, value: Tensor, heads: int) -> Tensor:
    split = [part.reshape(len(part), heads, -1) for part in (query, key, value)]
    width = split[0].shape[2]
    parts = [
        torch.softmax(split[0][:, head] @ split[1][:, head].T / width**0.5, 1) @ split[2][:, head]
        for head in range(heads)
    ]
    return torch.cat(parts, 1)


@cache
def written_out() -> tuple[Any, list[WrittenOut]]:
    unet = diffusers_unet()
    processors = [WrittenOut(block, layer) for layer, (block, _) in enumerate(cross_attentions(unet))]
    for (_, attention), processor in zip(cross_attentions(unet), processors, strict=True):
        attention.set_processor(processor)
    return unet, processors


def expected(one: Denoise, *prompts: ImagePrompt) -> Tensor:
    unet, processors = written_out()
    for processor in processors:
        processor.prompts = prompts or one.model.image_prompts

    def tell(arguments: dict[str, Any], negative: bool) -> None:
        for processor in processors:
            processor.negative = negative

    return by_hand(unet, one, tell)


def several(prompt: ImagePrompt, count: int) -> ImagePrompt:
    """The prompt with tokens of that many pictures, its negative tokens as before."""
    return replace(prompt, tokens=floats(900 + count, 4 * count, CONTEXT))


def half_mask(size: int = 16) -> Any:
    mask = np.zeros((size, size), np.float32)
    mask[:, size // 2 :] = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    return mask


KINDS: dict[str, dict[str, Any]] = {
    "V only": {},
    "K+V": {"scaling": "K+V"},
    "K+V penalty": {"scaling": "K+V w/ C penalty"},
    "K+mean": {"scaling": "K+mean(V) w/ C penalty"},
    "style precise": {"scales": block_scales("style transfer precise", 1.0, boost=2.0), "swapped": frozenset({3})},
    "composition precise": {
        "scales": block_scales("composition precise", 0.8, boost=1.3),
        "swapped": SWAPPED["composition precise"],
    },
    "mask": {"mask": half_mask()},
    "mask K+mean": {"mask": half_mask(32), "scaling": "K+mean(V) w/ C penalty"},
    "none": {"scales": (0.0,) * BLOCKS},
}


def of_kind(name: str, seed: int = 0) -> ImagePrompt:
    return replace(image_prompt(1.4, seed=seed), **KINDS[name])


@pytest.mark.parametrize("name", KINDS)
def test_every_kind_is_the_formula(name: str) -> None:
    one = call(1.3, image_prompts=(of_kind(name),))
    found = run(one)[0]
    assert error(found, expected(one)) < CLOSE
    if name not in ("V only", "none"):
        assert error(expected(one, image_prompt(1.4)), found) > 2 * CLOSE


def test_tokens_of_several_pictures_meet_one_picture_for_the_negative_half() -> None:
    one = call(1.3, image_prompts=(several(image_prompt(0.9), 3),))
    assert error(run(one)[0], expected(one)) < CLOSE


def test_adapters_stack() -> None:
    other = weights(tiny_adapters.ip_adapter, "other_seed.safetensors", seed=77)
    stack = (image_prompt(0.8, seed=1), replace(of_kind("K+V", 2), adapter=other), of_kind("style precise", 3))
    one = call(1.3, image_prompts=stack)
    assert error(run(one)[0], expected(one)) < CLOSE


def test_all_kinds_share_a_batch_and_are_their_calls_alone() -> None:
    other = weights(tiny_adapters.ip_adapter, "other_seed.safetensors", seed=77)
    stacks: list[tuple[ImagePrompt, ...]] = [(of_kind(name, seed),) for seed, name in enumerate(KINDS)]
    stacks += [(), (several(image_prompt(0.7), 2),), (replace(image_prompt(1.0), adapter=other), of_kind("mask"))]
    stacks += [(image_prompt(1.0, start=0.9),)]
    calls = [call(0.5 + n / 4, 2.0, n, image_prompts=stack) for n, stack in enumerate(stacks)]
    assert len({one.batch_key for one in calls}) == 1
    for together, one in zip(run(*calls), calls, strict=True):
        assert error(together, run(one)[0]) < CLOSE


def test_who_has_no_image_prompt_is_not_touched_by_those_who_have() -> None:
    together = run(call(), call(seed=1, image_prompts=(of_kind("K+mean"),)))
    without = run(call(), call(seed=1))
    assert torch.equal(together[0], without[0])
    assert error(together[1], without[1]) > 10 * CLOSE


def test_a_white_mask_is_none_and_a_black_one_is_no_adapter() -> None:
    white, black = (np.full((5, 7), value, np.float32) for value in (1, 0))
    free = image_prompt(1.0)
    found = [run(call(image_prompts=(replace(free, mask=mask),)))[0] for mask in (white, black)]
    assert error(found[0], run(call(image_prompts=(free,)))[0]) < 1e-6
    assert error(found[1], run(call())[0]) < 1e-6


@pytest.mark.parametrize(
    ("latent", "counts"),
    [((128, 128), {64 * 64: (64, 64), 32 * 32: (32, 32)}), ((9, 101), {5 * 51: (5, 51), 3 * 26: (3, 26)})],
)
def test_masks_are_laid_on_the_grid_of_the_layer(latent: tuple[int, int], counts: dict[int, tuple[int, int]]) -> None:
    assert {count: grid(*latent, count) for count in counts} == counts


def test_masks_fit_a_latent_of_odd_sides() -> None:
    prompt = replace(image_prompt(1.0), mask=half_mask())
    assert run(call(size=(9, 13), image_prompts=(prompt,)))[0].isfinite().all()


@pytest.mark.parametrize("scaling", SCALINGS)
def test_factors_of_each_scaling(scaling: str) -> None:
    wanted = {
        "V only": (1, 1, 0.5),
        "K+V": (0.5, 1, 0.5),
        "K+V w/ C penalty": (0.25, 1, 0.25),
        "K+mean(V) w/ C penalty": (0.25, 0.25, 1),
    }
    assert factors(scaling, 0.5, 640) == pytest.approx(wanted[scaling])


def test_boosts_are_for_the_swapped_blocks() -> None:
    assert block_scales("style transfer precise", 1.0, boost=2.0)[3] == 2.0
    assert block_scales("style transfer precise", 0.7)[3] == 0.7
    precise = block_scales("composition precise", 0.8, boost=0.3)
    assert precise == pytest.approx([0.03] * 3 + [0.8] + [0.03] * 2 + [0.3] + [0.03] * 4)


def test_listed_weights_are_times_the_strength_and_others_zero() -> None:
    assert listed_scales("x", "3:2.5, 6:1", 0.5) == (0, 0, 0, 1.25, 0, 0, 0.5, 0, 0, 0, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [("3", "BLOCK:STRENGTH"), ("3:a", "BLOCK:STRENGTH"), ("11:1", "numbered 0 to 10"), ("3:99", "-10 to 10")],
)
def test_other_lists_are_refused(text: str, said: str) -> None:
    with pytest.raises(SettingError, match=f"layer_weights.*{said}"):
        listed_scales("ip_adapter.layer_weights", text, 1.0)
