"""Parity of prompts and LoRAs, and the UNet on recorded inputs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from claygraph import files
from claygraph.diffusion import lora as lora_module
from claygraph.diffusion.calls import Denoise
from claygraph.diffusion.checkpoint import load_unet
from claygraph.diffusion.image_attention import image_prompts
from claygraph.diffusion.lora_blocks import by_block, summed
from claygraph.diffusion.rows import Row
from claygraph.stages.lora import LoraStack
from claygraph.stages.prompt import EncodePrompt
from claygraph.values import Conditioning, ImagePrompt, Model, Prompt
from tests.parity_reference import (
    CONDITIONING,
    PROBE,
    Array,
    Case,
    Compared,
)
from tests.parity_sampling import sampled
from tests.parity_world import World, known_inputs, make, only

MIDDLE = 4
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
        settings["text_l"] = asked["text_l"]
    if "text_g" in asked:
        settings |= {name: asked[name] for name in SIZES}
    found: Prompt = world.run(make(EncodePrompt, **settings), lora=model)
    return found.positive


def size_vector(world: World, case: Case, found: Conditioning) -> Array:
    """What the UNet's size embedding is given for this prompt: pooled text, then six sinusoids."""
    seen: list[Array] = []
    height, width = (case.inputs.get(side, 1024) // 8 for side in ("height", "width"))
    unet = world.memory.get(("parity unet",), lambda: load_unet(world.model.checkpoint, world.memory))

    def keep(_: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append(inputs[0].numpy())

    call = Denoise(world.model, Prompt(found, found), torch.zeros(1, 4, height, width), 1.0, 1.0)
    with every(unet.add_embedding.linear_1.in_features, keep):
        call.run_batch([call], world.memory)
    return seen[0]


def every(width: int, keep: Any) -> Any:
    """Show ``keep`` the input of every linear layer that reads vectors of this width."""

    def hook(module: torch.nn.Module, inputs: Any) -> None:
        if isinstance(module, torch.nn.Linear) and module.in_features == width and inputs[0].ndim == 2:
            keep(module, inputs)

    return torch.nn.modules.module.register_module_forward_pre_hook(hook)


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
    import json

    header = files.header("lora", path)
    if not any(name.startswith("unet.") and ".lora_A." in name for name in header):
        return None
    told = json.loads(str(header.get("__metadata__", {}).get("lora_adapter_metadata", "{}")))
    rank, alpha = (told.get(f"text_encoder.{name}", told.get(name)) for name in ("r", "lora_alpha"))
    return float(alpha) / float(rank) if rank and alpha else 1.0


def base_probe(world: World) -> dict[str, Array]:
    """The recorded inputs of the UNet."""
    return dict(np.load(only(world.weights / "base", "expected_base.npz")))


@torch.inference_mode()
def probe(world: World, model: Model, given: dict[str, Array], prompts: Sequence[ImagePrompt] = ()) -> Array:
    """The UNet's raw output on recorded inputs, with the model's LoRAs and, one for each row, image prompts."""
    memory, checkpoint = world.memory, model.checkpoint
    unet = memory.get(("unet", checkpoint.weights, checkpoint.config), lambda: load_unet(checkpoint, memory))
    for each in model.loras:
        lora_module.attach(unet, "unet", each.weights, memory)
    count = len(given["unet_sample"])
    strengths = summed((each.weights.digest, by_block(each)) for each in model.loras)
    lora_module.set_strengths(unet, [strengths] * count)
    added = {"text_embeds": tensor(given["unet_pooled"]), "time_ids": tensor(given["unet_time_ids"])}
    with image_prompts(unet, _rows(model, prompts), memory) if prompts else nullcontext():
        output = unet(
            tensor(given["unet_sample"]),
            torch.from_numpy(np.array(given["unet_timestep"])),
            tensor(given["unet_context"]),
            added_cond_kwargs=added,
        ).sample
    return np.array(output.numpy())


def tensor(array: Array) -> torch.Tensor:
    """Float32, its own copy."""
    return torch.from_numpy(np.array(array, np.float32))


def _rows(model: Model, prompts: Sequence[ImagePrompt]) -> list[Row]:
    nothing = Conditioning(np.zeros((77, 1), np.float32), np.zeros(1, np.float32))
    text = Prompt(nothing, nothing)
    models = [replace(model, image_prompts=(each,)) for each in prompts]
    return [Row(Denoise(each, text, torch.zeros(1, 4, 1, 1), 1.0, 1.0), negative=False) for each in models]
