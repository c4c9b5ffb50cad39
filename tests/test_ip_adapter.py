"""IP-Adapter, against diffusers' processors and projections, and tokens recorded from IPAdapter_plus 9d076a3."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from claygraph import files
from claygraph.diffusion.adapter_files import check_kind
from claygraph.diffusion.calls import Denoise, EmbedImages
from claygraph.diffusion.checkpoint import load_unet
from claygraph.diffusion.clip_pictures import preprocess
from claygraph.diffusion.image_attention import cross_attentions, image_prompts
from claygraph.diffusion.rows import rows_of
from claygraph.diffusion.weight_types import WEIGHT_TYPES, block_scales
from claygraph.errors import SettingError, WeightsError
from claygraph.values import Image, Weights
from tests import tiny, tiny_adapters
from tests.denoising import (
    CONTEXT,
    base,
    by_hand,
    call,
    diffusers_unet,
    error,
    image_prompt,
    memory,
    picture,
    run,
    weights,
)

CLOSE = 5e-5
DATA = Path(__file__).parent / "data/ip_adapter"
BLOCKS = [
    "down_blocks.1.attentions.0", "down_blocks.1.attentions.1", "down_blocks.2.attentions.0",
    "down_blocks.2.attentions.1", "mid_block.attentions.0", "up_blocks.0.attentions.0", "up_blocks.0.attentions.1",
    "up_blocks.0.attentions.2", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1", "up_blocks.1.attentions.2",
]  # fmt: skip
"""SDXL's spatial transformers as diffusers names them, in the order the UNet calls them."""

SCALES = {
    "linear": [1.0] * 11,
    "ease in": [1.0, 0.9136, 0.8273, 0.7409, 0.6545, 0.5682, 0.4818, 0.3955, 0.3091, 0.2227, 0.1364],
    "ease out": [0.05, 0.1364, 0.2227, 0.3091, 0.3955, 0.4818, 0.5682, 0.6545, 0.7409, 0.8273, 0.9136],
    "ease in-out": [0.05, 0.2227, 0.3955, 0.5682, 0.7409, 0.9136, 0.9136, 0.7409, 0.5682, 0.3955, 0.2227],
    "reverse in-out": [1.0, 0.8273, 0.6545, 0.4818, 0.3091, 0.1364, 0.1364, 0.3091, 0.4818, 0.6545, 0.8273],
    "weak input": [0.2] * 4 + [1.0] * 7,
    "weak output": [1.0] * 5 + [0.2] * 6,
    "weak middle": [1.0] * 4 + [0.2] + [1.0] * 6,
    "strong middle": [0.2] * 4 + [1.0] + [0.2] * 6,
    "style transfer": [0.0] * 6 + [1.0] + [0.0] * 4,
    "composition": [0.0] * 3 + [1.0] + [0.0] * 7,
    "strong style transfer": [1.0] * 3 + [0.0] + [1.0] * 7,
    "style and composition": [0.0] * 3 + [0.5] + [0.0] * 2 + [1.0] + [0.0] * 4,
    "strong style and composition": [1.0] * 3 + [0.5] + [1.0] * 7,
    "style transfer precise": [0.0] * 3 + [1.0] + [0.0] * 2 + [1.0] + [0.0] * 4,
    "composition precise": [0.1] * 3 + [1.0] + [0.1] * 2 + [1.0] + [0.1] * 4,
}


@pytest.mark.parametrize("name", WEIGHT_TYPES)
def test_weight_types_spread_the_strength_over_the_blocks(name: str) -> None:
    assert block_scales(name, 2.0, 1.0) == pytest.approx([2 * scale for scale in SCALES[name]], abs=2e-4)


def test_composition_has_its_own_strength_or_one() -> None:
    assert block_scales("style and composition", 0.6)[3] == 1.0
    assert block_scales("style and composition", 0.6, 0.0)[3] == 0.0
    assert block_scales("composition", 0.6, 0.1)[3] == 0.6


def test_unknown_weight_type_is_named_with_the_nearest() -> None:
    with pytest.raises(SettingError, match=r"'style transfr'.*did you mean 'style transfer'"):
        block_scales("style transfr", 1.0)


def test_plain_tokens_are_those_recorded() -> None:
    recorded = np.load(DATA / "recorded.npz")
    adapter, encoder = (
        Weights(str(path), files.digest(path)) for path in (DATA / "adapter.safetensors", DATA / "encoder")
    )
    call = EmbedImages(adapter, encoder, (Image(recorded["pixels"]),))
    tokens, negative = EmbedImages.run_batch([call, replace(call, images=())], memory())
    assert np.abs(tokens - recorded["tokens"]).max() < 1e-5 * np.abs(recorded["tokens"]).max()
    assert np.abs(negative - recorded["negative"]).max() < 1e-5 * np.abs(recorded["negative"]).max()


def test_clip_sees_the_middle_at_eight_bits() -> None:
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:, 4:12] = (255, 128, 0)
    seen = preprocess(pixels, 8)
    expected = [(1 - 0.48145466) / 0.26862954, (128 / 255 - 0.4578275) / 0.26130258, -0.40821073 / 0.27577711]
    assert seen.shape == (3, 8, 8)
    assert torch.allclose(seen, torch.tensor(expected)[:, None, None].expand(3, 8, 8), atol=1e-6)


def test_clip_sees_a_resized_picture_in_steps_of_a_level() -> None:
    seen = preprocess(picture(1, 50, 90).pixels, 32)
    levels = (seen[0] * 0.26862954 + 0.48145466) * 255
    assert seen.shape == (3, 32, 32)
    assert (levels - levels.round()).abs().max() < 1e-3
    assert levels.std() > 20


def plus_adapter(path: Path) -> Path:
    """A plus adapter with four resampler layers, the number diffusers takes for granted."""
    tensors = load_file(tiny_adapters.ip_adapter(path, plus=True, tokens=16))
    again = {
        name.replace(f"layers.{n}.", f"layers.{n + 2}."): tensor for n in (0, 1) for name, tensor in tensors.items()
    }
    save_file(tiny.contiguous(tensors | again), path)
    return path


def embedding(seed: int, plus: bool = False, size: tuple[int, int] = (40, 60)) -> EmbedImages:
    plain = weights(tiny_adapters.ip_adapter, "plain.safetensors")
    adapter = weights(plus_adapter, "plus.safetensors") if plus else plain
    return EmbedImages(adapter, weights(tiny_adapters.image_encoder, "encoder"), (picture(seed, *size),))


def diffusers_tokens(call: EmbedImages, pixels: torch.Tensor) -> torch.Tensor:
    from transformers import CLIPVisionModelWithProjection

    encoder = CLIPVisionModelWithProjection.from_pretrained(call.encoder.path, dtype=torch.float32)
    tensors = {name.partition("."): tensor.float() for name, tensor in load_file(call.adapter.path).items()}
    parts = {name: tensor for (part, _, name), tensor in tensors.items() if part == "image_proj"}
    layer = diffusers_unet()._convert_ip_adapter_image_proj_to_diffusers(parts, low_cpu_mem_usage=False).float()
    seen = encoder(pixels, output_hidden_states=True)
    tokens: torch.Tensor = layer(seen.hidden_states[-2] if "latents" in parts else seen.image_embeds)
    return tokens.detach().reshape(-1, CONTEXT)


@pytest.mark.parametrize("plus", [False, True])
def test_tokens_are_those_of_diffusers(plus: bool) -> None:
    one = embedding(2, plus)
    (tokens,) = EmbedImages.run_batch([one], memory())
    expected = diffusers_tokens(one, preprocess(one.images[0].pixels, 224)[None])
    assert tokens.shape == (16 if plus else 4, CONTEXT)
    assert error(torch.tensor(tokens), expected) < 1e-5


def test_plus_adapters_get_a_black_picture_for_the_negative_half() -> None:
    one = embedding(2, plus=True)
    black = torch.tensor([-0.48145466 / 0.26862954, -0.4578275 / 0.26130258, -0.40821073 / 0.27577711])
    expected = diffusers_tokens(one, black[None, :, None, None].expand(1, 3, 224, 224))
    (negative,) = EmbedImages.run_batch([replace(one, images=())], memory())
    assert error(torch.tensor(negative), expected) < 1e-5


def test_pictures_of_different_sizes_share_a_batch() -> None:
    calls = [embedding(3, size=(30, 200)), embedding(4, size=(224, 224)), embedding(5, size=(1, 1))]
    for tokens, one in zip(EmbedImages.run_batch(calls, memory()), calls, strict=True):
        assert error(torch.tensor(tokens), torch.tensor(EmbedImages.run_batch([one], memory())[0])) < 1e-5


@cache
def diffusers_adapter() -> Any:
    """diffusers' UNet with the adapter of ``image_prompt`` in its own processors; it is given tokens as they are."""
    unet = diffusers_unet()
    parts: dict[str, dict[str, torch.Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(image_prompt().adapter.path).items():
        parts[name.partition(".")[0]][name.partition(".")[2]] = tensor.float()
    unet._load_ip_adapter_weights([parts], low_cpu_mem_usage=False)
    unet.float().encoder_hid_proj = torch.nn.Identity()
    return unet


def diffusers_result(one: Denoise, strengths: tuple[float, ...]) -> torch.Tensor:
    unet, prompt = diffusers_adapter(), one.model.image_prompts[0]
    for name, processor in unet.attn_processors.items():
        if ".attn2." in name:
            processor.scale = [strengths[BLOCKS.index(name.partition(".transformer_blocks")[0])]]

    def give_tokens(arguments: dict[str, Any], negative: bool) -> None:
        tokens = prompt.negative if negative else prompt.tokens
        arguments["added_cond_kwargs"]["image_embeds"] = [torch.tensor(tokens)[None]]

    return by_hand(unet, one, give_tokens)


STRENGTHS = [(0.7,) * 11, block_scales("style and composition", 0.9, 0.4), block_scales("ease out", 1.0)]


@pytest.mark.parametrize("strengths", STRENGTHS)
def test_attention_to_images_is_that_of_diffusers(strengths: tuple[float, ...]) -> None:
    one = call(1.3, image_prompts=(image_prompt(strengths),))
    expected = diffusers_result(one, strengths)
    assert error(run(one)[0], expected) < CLOSE
    assert error(run(call(1.3))[0], expected) > 20 * CLOSE


@pytest.mark.parametrize("block", range(11))
def test_every_block_has_its_number(block: int) -> None:
    alone = tuple(float(number == block) for number in range(11))
    one = call(image_prompts=(image_prompt(alone),))
    assert error(run(one)[0], diffusers_result(one, alone)) < CLOSE
    assert error(run(call())[0], run(one)[0]) > 10 * CLOSE


def test_strength_zero_is_no_adapter_bit_for_bit() -> None:
    assert torch.equal(run(call(image_prompts=(image_prompt(0.0),)))[0], run(call())[0])


def test_strength_zero_beside_others_is_no_adapter() -> None:
    with_images = run(call(image_prompts=(image_prompt(0.0),)), call(seed=1, image_prompts=(image_prompt(1.0),)))
    without = run(call(), call(seed=1))
    assert torch.equal(with_images[0], without[0])
    assert error(with_images[1], without[1]) > 100 * CLOSE


def test_a_mixed_batch_is_its_calls_alone() -> None:
    prompts = [
        image_prompt(1.0, seed=1),
        image_prompt(block_scales("style transfer", 0.8), seed=2),
        image_prompt(1.5, seed=3, start=0.5),
        image_prompt(0.4, seed=4, end=0.5),
    ]
    calls = [call(0.5 + n, 2.0 + n, n, image_prompts=(each,)) for n, each in enumerate(prompts)]
    for together, one in zip(run(*calls), calls, strict=True):
        assert error(together, run(one)[0]) < CLOSE


def test_prompts_add() -> None:
    halves = image_prompt(0.3), image_prompt(0.5)
    assert error(run(call(image_prompts=halves))[0], run(call(image_prompts=(image_prompt(0.8),)))[0]) < CLOSE


def test_outside_its_window_a_prompt_does_nothing() -> None:
    late, early = (image_prompt(1.0, start=start, end=end) for start, end in ((0.5, 1.0), (0.0, 0.5)))
    for sigma, quiet, heard in ((5.0, late, early), (0.5, early, late)):
        assert torch.equal(run(call(sigma, image_prompts=(quiet,)))[0], run(call(sigma))[0])
        assert torch.equal(*(run(call(sigma, image_prompts=(each,)))[0] for each in (heard, image_prompt(1.0))))


def test_nothing_stays_installed() -> None:
    before = run(call())[0]
    unet = memory().get(("unet", base().weights, None), lambda: load_unet(base(), memory()))
    processors = dict(unet.attn_processors)
    run(call(image_prompts=(image_prompt(1.0),)))
    rows = rows_of([call(image_prompts=(image_prompt(1.0),))])
    with pytest.raises(KeyError), image_prompts(unet, rows, memory()):
        unet.attn_processors["down_blocks.9"]
    with image_prompts(unet, rows, memory()):
        assert unet.attn_processors != processors
    assert unet.attn_processors == processors
    assert torch.equal(run(call())[0], before)


def test_layers_are_in_the_order_of_adapter_files() -> None:
    unet = diffusers_unet()
    names = {id(module): name for name, module in unet.named_modules()}
    blocks = [block for block, _ in cross_attentions(unet)]
    assert blocks == [0, 1, 2, 2, 3, 3, 5, 5, 6, 6, 7, 7, 8, 9, 10, 4, 4]
    for block, attention in cross_attentions(unet):
        assert names[id(attention)].startswith(BLOCKS[block] + ".transformer_blocks")


def test_an_adapter_for_another_family_is_refused_by_name() -> None:
    file = weights(tiny_adapters.ip_adapter, "other.safetensors", dims=tiny.Dims(text=(64, 4)))
    other = replace(image_prompt(1.0), adapter=file)
    with pytest.raises(
        WeightsError, match=r"'other.safetensors'.*tokens of width 112, but 'base.safetensors' reads 80"
    ):
        run(call(image_prompts=(other,)))


KEY: dict[str, tuple[int, ...]] = {"ip_adapter.1.to_k_ip.weight": (64, 2048)}


@pytest.mark.parametrize(
    ("shapes", "said"),
    [
        ({"image_proj.proj.0.weight": (1,), "ip_adapter.0.to_q_lora.down.weight": (1,)}, "FaceID type"),
        ({"image_proj.perceiver_resampler.proj_in.weight": (1,)}, "FaceID type.*face recogniser"),
        ({"image_proj.proj.2.weight": (1,)}, "FaceID portrait type.*face recogniser"),
        ({"image_proj.latents": (1, 16, 2048)}, "Kolors type"),
        ({"model.diffusion_model.out.2.weight": (1,)}, "does not hold an IP-Adapter"),
    ],
)
def test_other_kinds_of_file_are_refused(shapes: dict[str, tuple[int, ...]], said: str) -> None:
    with pytest.raises(WeightsError, match=f"ip_adapter='x.safetensors'.*{said}.*plain, plus or full"):
        check_kind("x.safetensors", shapes | KEY)


@pytest.mark.parametrize("name", ["proj.weight", "latents", "proj.3.weight"])
def test_plain_plus_and_full_files_are_accepted(name: str) -> None:
    check_kind("x.safetensors", KEY | {f"image_proj.{name}": (1, 16, 1280)})
    with pytest.raises(WeightsError, match="does not hold an IP-Adapter"):
        check_kind("x.safetensors", {f"image_proj.{name}": (1, 16, 1280)})


def test_an_encoder_of_another_width_is_refused(tmp_path: Path) -> None:
    one = embedding(1)
    tensors = load_file(one.adapter.path) | {"image_proj.proj.weight": torch.zeros(4 * CONTEXT, 24)}
    save_file(tensors, tmp_path / "bigger.safetensors")
    other = EmbedImages(Weights(str(tmp_path / "bigger.safetensors"), "bigger"), one.encoder, one.images)
    with pytest.raises(WeightsError, match=r"'encoder' makes features of width 20.*'bigger.safetensors' reads 24"):
        EmbedImages.run_batch([other], memory())
