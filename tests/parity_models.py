"""Parity of what steers the denoiser by pictures, IP-Adapters and ControlNets, and of all stages at once."""

from __future__ import annotations

import re
from collections.abc import Generator, Iterator
from typing import Any

import numpy as np

from claygraph import files
from claygraph.stages.controlnet import ControlNet
from claygraph.stages.ip_adapter import IpAdapter
from claygraph.stages.prompt import EncodePrompt
from claygraph.values import Image, ImagePrompt, Model, Prompt, Weights
from tests.parity_nodes import CONTROL_INPUTS, adapter_file, control_file, controls, ip_settings, pictures
from tests.parity_pictures import decoded, differing, hint_of, picture, recorded_canny
from tests.parity_reference import EDGES, LATENT, LEVEL, MASKED, PROBE, Case, Compared, Unsupported, absolute, relative
from tests.parity_sampling import sampled
from tests.parity_text import base_probe, near_prompt, probe, stacked
from tests.parity_world import World, as_mask, has_port, image, known_inputs, make, only, prompt

MIDDLE = 4


def ip_adapter(case: Case, world: World) -> Iterator[Compared]:
    """Image prompts: their tokens and the picture; ``probe/`` cases: the UNet's output."""
    if case.id.startswith("probe/"):
        yield _ip_probe(case, world)
    elif "chain" in case.inputs:
        known_inputs(case, "chain")
        yield from _ip_chain(case, world)


def _ip_chain(case: Case, world: World) -> Iterator[Compared]:
    model, alive = world.model, case.id.startswith("middle_alive")
    for node in case.inputs["chain"]:
        model = add_images(case, world, model, dict(node), alive)
    yield from _tokens(case, model)
    yield from sampled(case, world, model, prompt(case), _tolerance(case, world))


def _tolerance(case: Case, world: World) -> float:
    """The usual one, or what a mask between two of a picture's 256 levels costs."""
    masks = [255 * case.array(node["mask"]) for node in case.inputs["chain"] if "mask" in node]
    if all(np.allclose(mask, np.rint(mask), atol=1e-3) for mask in masks):
        return LATENT
    world.notes.append(f"{case.id}: its float mask became a picture of 256 levels; the latent may be {MASKED:g} off")
    return MASKED


def _tokens(case: Case, model: Model) -> Iterator[Compared]:
    """The recorded tokens of the chain's image prompts, as long as there is one of ours for each of theirs."""
    for number, images in enumerate(model.image_prompts):
        for name, found in (("cond", images.tokens), ("uncond", images.negative)):
            output = f"tokens{number}_{name}"
            if output in case.outputs and found.size == case.wanted(output).size:
                wanted = case.wanted(output)
                yield case.near(output, found.reshape(wanted.shape))


def add_images(case: Case, world: World, model: Model, node: dict[str, Any], alive: bool) -> Model:
    """One recorded IP-Adapter node as the stage."""
    settings, ports = ip_settings(world, node), pictures(case, node)
    if not alive:
        blocks = dict(settings.get("blocks", {}))
        trial = make(IpAdapter, **settings)
        if trial.scales()[MIDDLE]:
            world.differs("middle block")
            settings["blocks"] = blocks | {MIDDLE: 0.0}
    found: Model = world.run(make(IpAdapter, **settings), lora=model, **ports)
    return found


def _ip_probe(case: Case, world: World) -> Compared:
    """The UNet with the recorded image embeddings' tokens, a picture for each row."""
    recorded = np.load(only(world.weights / "ip_adapter", "expected_ip_adapter.npz"))
    kind, weight = case.inputs["ipadapter"], float(case.inputs["weight"])
    scales = [weight] * 11
    if "as_shipped" in case.id:
        world.differs("middle block")
        scales[MIDDLE] = 0.0
    path = adapter_file(world, kind)
    adapter, nothing = Weights(path, files.digest(path)), recorded[f"{kind}_uncond_tokens"][0]
    prompts = [ImagePrompt(adapter, np.array(each), nothing, tuple(scales)) for each in recorded[f"{kind}_tokens"]]
    return case.near("unet_out", probe(world, world.model, base_probe(world), prompts), PROBE)


def controlnet(case: Case, world: World) -> Iterator[Compared]:
    """ControlNets: the picture; ``inputs/hint_...`` cases: the hint."""
    if "uint8" in case.outputs:
        yield from _hint(case, world)
        return
    known_inputs(case, *CONTROL_INPUTS)
    model = world.model
    for each in controls(case.inputs) if not case.id.startswith("none/") else ():
        model = add_control(case, world, model, each)
    yield from sampled(case, world, model, prompt(case))


def add_control(case: Case, world: World, model: Model, each: dict[str, Any]) -> Model:
    """One recorded ControlNet node as the stage."""
    hint, ports = each.pop("hint"), dict[str, Any]()
    mask = each.pop("mask", None)
    if mask is not None:
        if not has_port(ControlNet, "control_mask"):
            raise Unsupported("ControlNet has no input control_mask")
        ports["control_mask"] = as_mask(case.array(mask))
    stage = make(ControlNet, path=control_file(world, each.pop("file")), **each)
    edges = hint if isinstance(hint, Image) else image(case, hint)
    found: Model = world.run(stage, ip_adapter=model, edges=edges, **ports)
    return found


def _hint(case: Case, world: World) -> Iterator[Compared]:
    """Hints that the recorded tool's Canny made of the section's photo; the others are inputs."""
    levels = re.search(r"low ([\d.]+) high ([\d.]+)", str(case.record.get("say", "")))
    if levels:
        found = recorded_canny(world, image(case, "inputs/photo_uint8"), *map(float, levels.groups()))
        yield differing(case, found)


def workflow(case: Case, world: World) -> Iterator[Compared]:
    """Every stage after another, each intermediate compared, each fed by the stage before it."""
    asked = case.inputs
    left_out = set(asked.get("left_out", ()))
    model = stacked(world, asked["loras"])
    made: Prompt = world.run(EncodePrompt(text=asked["positive"], negative=asked["negative"]), lora=model)
    yield from near_prompt(case, made)
    content, style = (image(case, asked[name]) for name in ("content_image", "style_image"))
    if asked.get("ipadapter") and not left_out & {"ip", "no_ip", "ipadapter"}:
        node = dict(asked["ipadapter"])
        settings = ip_settings(world, node | {"ipadapter": node["file"]})
        ports = {"photo": content, "style_image": style, "composition_image": content}
        model = world.run(make(IpAdapter, **settings), lora=model, **ports)
        yield from _workflow_tokens(case, model)
    if asked.get("controlnet") and not left_out & {"controlnet", "no_controlnet"}:
        hint = yield from _workflow_hint(case, world, content)
        (control,) = controls({**asked["controlnet"], "hint": "canny"})
        model = add_control(case, world, model, control | {"hint": hint})
    yield from sampled(case, world, model, made)
    yield picture(world, case, case.wanted("latent")[0], "image_f16")
    found = decoded(world, case.wanted("latent")[0])
    yield Compared("image_uint8", absolute(found / 255, case.wanted("image_uint8").reshape(found.shape) / 255), LEVEL)


def _workflow_tokens(case: Case, model: Model) -> Iterator[Compared]:
    """Style and composition tokens, whichever comes first."""
    for output in ("ip_tokens0_style", "ip_tokens1_composition"):
        if output in case.outputs:
            wanted = case.wanted(output)
            found = [relative(each.tokens.reshape(wanted.shape), wanted) for each in model.image_prompts]
            yield Compared(output, min(found, default=float("inf")), LATENT)


def _workflow_hint(case: Case, world: World, content: Image) -> Generator[Compared, None, Image]:
    """The content's edges, recorded if there is no detector of that kind."""
    recorded = image(case, case.outputs["canny_uint8"])
    try:
        found = hint_of(world, content, case.inputs["canny"])
    except Unsupported as error:
        world.notes.append(f"workflow: {error}; the recorded edges were given instead")
        return recorded
    yield Compared("canny_uint8", float((found.pixels != recorded.pixels).any(-1).mean()), EDGES)
    return recorded
