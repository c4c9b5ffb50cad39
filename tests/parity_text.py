"""Parity of prompts and LoRAs, and the UNet on recorded inputs."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch

from claygraph import files
from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.schedules import sigma_table
from claygraph.stages.lora import LoraStack
from claygraph.stages.prompt import EncodePrompt
from claygraph.values import Conditioning, ImagePrompt, Model, Prompt
from tests.parity_reference import CONDITIONING, PROBE, Array, Case, Compared
from tests.parity_sampling import sampled
from tests.parity_world import World, known_inputs, make, only, setting_of

SIZES = ("width", "height", "crop_w", "crop_h", "target_width", "target_height")


def text(case: Case, world: World) -> Iterator[Compared]:
    """Prompts through ``EncodePrompt``; ``skip-N/...`` cases name the layer."""
    known_inputs(case, "prompt", "text_g", "text_l", "tokens_l", "weights_l", "tokens_g", "weights_g", *SIZES)
    skip = int(case.id.split("/")[0].removeprefix("skip")) if case.id.startswith("skip-") else -2
    found = encoded(world, world.model, case, skip)
    if "cond" in case.outputs:
        yield case.near("cond", found.hidden[None], CONDITIONING)
        yield case.near("pooled", found.pooled[None], CONDITIONING)
    if "adm_y" in case.outputs:
        yield case.near("adm_y", size_vector(world, case, found), CONDITIONING)


def encoded(world: World, model: Model, case: Case, skip: int = -2) -> Conditioning:
    """A case's positive prompt through the stage."""
    asked = case.inputs
    settings: dict[str, Any] = {"text": asked.get("prompt", asked.get("text_g", "")), "clip_skip": skip}
    if asked.get("text_l", settings["text"]) != settings["text"]:
        settings[setting_of(EncodePrompt, "text_l")] = asked["text_l"]
    if "text_g" in asked:
        settings |= {setting_of(EncodePrompt, name): asked[name] for name in SIZES}
    found: Prompt = world.run(make(EncodePrompt, **settings), lora=model)
    return found.positive


def size_vector(world: World, case: Case, found: Conditioning) -> Array:
    """What the UNet's size embedding is given for this prompt: pooled text, then six sinusoids."""
    height, width = (case.inputs.get(side, 1024) // 8 for side in ("height", "width"))
    call = Denoise(world.model, Prompt(found, found), torch.zeros(1, 4, height, width), 1.0, 1.0)
    with spied() as seen:
        call.run_batch([call], world.memory)
    return seen.vectors[0]


@dataclass
class Spied:
    """What went into the UNet's size embedding, and what came out of the UNet, call by call."""

    vectors: list[Array] = field(default_factory=list)
    outputs: list[Array] = field(default_factory=list)


@contextmanager
def spied(sizes: Array | None = None) -> Iterator[Spied]:
    """While it lasts, every UNet is watched, and told other ``sizes`` (six numbers) if they are given."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    seen, real = Spied(), UNet2DConditionModel.forward

    def forward(unet: Any, *args: Any, **kwargs: Any) -> Any:
        if sizes is not None:
            kwargs["added_cond_kwargs"] = kwargs["added_cond_kwargs"] | {"time_ids": tensor(sizes)[None]}
        hook = unet.add_embedding.register_forward_pre_hook(lambda _, given: seen.vectors.append(given[0].numpy()))
        result = real(unet, *args, **kwargs)
        hook.remove()
        seen.outputs.append(result[0].numpy())
        return result

    with patch.object(UNet2DConditionModel, "forward", forward):
        yield seen


def lora(case: Case, world: World) -> Iterator[Compared]:
    """A LoRA stack: the prompts it encodes, the UNet it makes, and the picture."""
    known_inputs(case, "latent", "loras")
    case = _mended(case, world)
    model = stacked(world, case.inputs["loras"])
    asked = EncodePrompt(text=case.inputs["positive"], negative=case.inputs["negative"])
    made: Prompt = world.run(asked, lora=model)
    yield from near_prompt(case, made)
    if "unet_probe" in case.outputs:
        yield case.near("unet_probe", probe(world, model, base_probe(world)), PROBE)
    yield from sampled(case, world, model, made)


def _mended(case: Case, world: World) -> Case:
    """The case recorded with the tool mended, where it fails on Tucker LoKr."""
    loras = case.inputs["loras"]
    mended = case.peer(case.id.replace("lycoris_lokr", "lycoris_lokr_contiguous", 1))
    if any(each["file"].startswith("lycoris_lokr.") for each in loras) and mended and mended.id != case.id:
        world.differs("tucker lokr")
        return mended
    return case


def near_prompt(case: Case, made: Prompt) -> Iterator[Compared]:
    """Both halves of a prompt."""
    for short, half in (("pos", made.positive), ("neg", made.negative)):
        if f"{short}_cond" in case.outputs:
            yield case.near(f"{short}_cond", half.hidden[None], CONDITIONING)
            yield case.near(f"{short}_pooled", half.pooled[None], CONDITIONING)


def stacked(world: World, loras: Sequence[dict[str, Any]]) -> Model:
    """The checkpoint with LoRAs of the set."""
    stack = {f"lora{number}": _lora(world, each) for number, each in enumerate(loras)}
    found: Model = world.run(LoraStack.of(**stack), checkpoint=world.model)
    return found


def _lora(world: World, each: dict[str, Any]) -> dict[str, Any]:
    """One LoRA at its recorded strengths; a peft file at those it came to when its UNet half was not loaded."""
    path = Path(only(world.weights / "lora", each["file"].replace("_contiguous", "")))
    model, clip = each["strength_model"], each["strength_clip"]
    scale = _peft_scale(path)
    if scale is not None:
        world.differs("peft")
        model, clip = 0.0, clip / scale
    return {"path": str(path), "model": model, "clip": clip}


def _peft_scale(path: Path) -> float | None:
    """``alpha / rank`` that a peft file's metadata tells (1 if it tells none); None for other layouts."""
    header = files.header("lora", path)
    if not any(name.startswith("unet.") and ".lora_A." in name for name in header):
        return None
    told = json.loads(str(header.get("__metadata__", {}).get("lora_adapter_metadata", "{}")))
    rank, alpha = (told.get(f"text_encoder.{name}", told.get(name)) for name in ("r", "lora_alpha"))
    return float(alpha) / float(rank) if rank and alpha else 1.0


def base_probe(world: World) -> dict[str, Array]:
    """The recorded inputs of the UNet."""
    return dict(np.load(only(world.weights / "base", "expected_base.npz")))


def probe(world: World, model: Model, given: dict[str, Array], prompts: Sequence[ImagePrompt] = ()) -> Array:
    """The UNet's raw output on recorded inputs, with the model's LoRAs and, one for each row, image prompts."""
    table, found = sigma_table(), []
    for row, sample in enumerate(given["unet_sample"]):
        half = Conditioning(given["unet_context"][row], given["unet_pooled"][row])
        sigma = table[int(given["unet_timestep"][row])]
        steered = replace(model, image_prompts=(prompts[row],)) if prompts else model
        x = tensor(sample)[None] * math.hypot(1, sigma)
        call = Denoise(steered, Prompt(half, half), x, sigma, 1.0)
        with spied(given["unet_time_ids"][row]) as seen:
            call.run_batch([call], world.memory)
        found.append(seen.outputs[0][0])
    return np.stack(found)


def tensor(array: Array) -> torch.Tensor:
    """Float32, its own copy."""
    return torch.from_numpy(np.array(array, np.float32))
