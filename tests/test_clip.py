"""Our CLIP against transformers', and single files' names against diffusers' converters."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    CLIPVisionConfig,
    CLIPVisionModelWithProjection,
)

from claygraph.diffusion.clip import ClipConfig, ImageEncoder, TextEncoder, load_tokenizer
from claygraph.diffusion.describe import SHIPPED
from claygraph.errors import WeightsError

SIZES = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 3, "num_attention_heads": 2}
TEXT = SIZES | {"vocab_size": 49408, "projection_dim": 24}
TEXTS = [
    "a cat",
    "Polymer  CLAY, it's 8K!! 3.5 é ñ 粘土 🙂 ^_^ don't_you",
    "<|endoftext|> x <|startoftext|>",
    "",
    " \n\t a",
    "ﬁ İstanbul ½ A\u030a",
    "x" * 300,
]


def same(ours: torch.nn.Module, theirs: torch.nn.Module) -> None:
    """Give theirs our weights, whichever prefix they have there."""
    state = ours.state_dict()
    if not any(name.startswith("text_model.") for name in theirs.state_dict()):
        state = {name.removeprefix("text_model."): tensor for name, tensor in state.items()}
    left = theirs.load_state_dict(state, strict=False)
    assert not left.unexpected_keys
    assert not [name for name in left.missing_keys if not name.endswith("position_ids")]


@pytest.mark.parametrize("act", ["quick_gelu", "gelu"])
@pytest.mark.parametrize("kind", [CLIPTextModel, CLIPTextModelWithProjection])
@torch.inference_mode()
def test_text_encoders_are_those_of_transformers(kind: Any, act: str) -> None:
    config = TEXT | {"hidden_act": act, "eos_token_id": 49407, "bos_token_id": 49406}
    ours = TextEncoder(ClipConfig.of(config), projection=kind is CLIPTextModelWithProjection).eval()
    theirs = kind(CLIPTextConfig(**config)).eval()
    same(ours, theirs)
    ids = torch.randint(1, 40000, (3, 77), generator=torch.Generator().manual_seed(0))
    ids[:, 0], ids[0, 5], ids[1, 76], ids[2, 1:] = 49406, 49407, 49407, 49407
    wanted, found = theirs(input_ids=ids, output_hidden_states=True), ours(ids)
    for one, other in zip(wanted.hidden_states, found.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wanted.last_hidden_state, found.last_hidden_state, atol=1e-5, rtol=1e-5)
    pooled = wanted.text_embeds if found.embedded is not None else wanted.pooler_output
    torch.testing.assert_close(pooled, found.pooled if found.embedded is None else found.embedded, atol=1e-5, rtol=1e-5)


@torch.inference_mode()
def test_the_image_encoder_is_that_of_transformers() -> None:
    config = SIZES | {"projection_dim": 24, "image_size": 32, "patch_size": 8, "hidden_act": "gelu"}
    ours, theirs = ImageEncoder(ClipConfig.of(config)).eval(), CLIPVisionModelWithProjection(CLIPVisionConfig(**config))
    same(ours, theirs.eval())
    pixels = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    wanted, found = theirs(pixels, output_hidden_states=True), ours(pixels)
    for one, other in zip(wanted.hidden_states, found.hidden_states, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(wanted.image_embeds, found.embedded, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("text", TEXTS)
def test_the_tokenizer_is_that_of_transformers(text: str) -> None:
    wanted = CLIPTokenizer.from_pretrained(SHIPPED / "tokenizer")(text, add_special_tokens=False)["input_ids"]
    assert load_tokenizer(SHIPPED / "tokenizer").encode(text, add_special_tokens=False).ids == wanted


def test_an_activation_that_clip_does_not_have_is_refused() -> None:
    with pytest.raises(WeightsError, match="hidden_act='relu'"):
        ClipConfig.of({"hidden_act": "relu"})


@pytest.mark.long
def test_a_picture_imports_little_and_leaves_diffusers_whole(tmp_path: Path) -> None:
    """In a process of its own: none of what is slow to import is there after a picture, and all of diffusers can be."""
    code = """
import json, sys
from claygraph.cli import main
code = main(sys.argv[1:])
slow = sorted({"transformers", "diffusers", "peft", "accelerate", "sympy", "torch._dynamo"} & set(sys.modules))
from diffusers import StableDiffusionXLControlNetImg2ImgPipeline, UNet2DConditionModel
from claygraph.diffusion.networks import build
small = {"block_out_channels": [8, 8], "norm_num_groups": 2, "cross_attention_dim": 8, "sample_size": 8,
         "down_block_types": ["DownBlock2D"] * 2, "up_block_types": ["UpBlock2D"] * 2, "layers_per_block": 1}
whole, ours = UNet2DConditionModel(**small), build("UNet2DConditionModel", small)
ours.load_state_dict(whole.state_dict())
print(json.dumps([code, slow, hasattr(whole, "load_lora_adapter"), hasattr(ours, "load_lora_adapter")]))
"""
    arguments = [f"out={tmp_path}", "store=null", "photo.size=64", "sampler.steps=1"]
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=True)
    assert json.loads(done.stdout.splitlines()[-1]) == [0, [], True, False]
