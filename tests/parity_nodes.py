"""The recorded tool's IP-Adapter and ControlNet nodes in the words of claygraph's stages."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from claygraph import values
from claygraph.stages.ip_adapter import IpAdapter
from claygraph.values import Image
from tests.parity_reference import Case, Unsupported
from tests.parity_world import World, as_mask, has_port, image, only

STYLE_COMPOSITION = "style and composition"
IP_NODES = {
    "IPAdapterAdvanced", "IPAdapterStyleComposition", "IPAdapterPreciseStyleTransfer", "IPAdapterPreciseComposition",
    "IPAdapterMS",
}  # fmt: skip
IP_INPUTS = {
    "node", "ipadapter", "file", "image", "image_style", "image_composition", "image_negative", "mask", "weight",
    "weight_type", "weight_style", "weight_composition", "expand_style", "combine_embeds", "start_at", "end_at",
    "embeds_scaling", "style_boost", "composition_boost", "layer_weights", "weight_faceidv2",
}  # fmt: skip
CONTROL_INPUTS = (
    "node", "control_net", "file", "hint", "strength", "start_percent", "end_percent", "chain", "soft_weights", "mask",
)  # fmt: skip


def adapter_file(world: World, kind: str) -> str:
    """The set's ``plain`` or ``plus`` adapter."""
    return only(world.weights / "ip_adapter", "*plus*.safetensors" if kind == "plus" else "ip-adapter_*.safetensors")


def ip_settings(world: World, node: Mapping[str, Any]) -> dict[str, Any]:
    """A node's inputs as settings of ``IpAdapter``."""
    if node["node"] not in IP_NODES:
        raise Unsupported(f"no stage for the node {node['node']}")
    if odd := sorted(set(node) - IP_INPUTS):
        raise Unsupported(f"nothing here reads the node's input {', '.join(odd)}")
    settings = {
        "path": adapter_file(world, node["ipadapter"]),
        "encoder": str(world.weights / "ip_adapter/image_encoder"),
    }
    settings |= {"start": node["start_at"], "end": node["end_at"]}
    return settings | _strengths(node) | _variants(node)


def _strengths(node: Mapping[str, Any]) -> dict[str, Any]:
    """How the strength is spread over the blocks."""
    kind = node["node"]
    if kind == "IPAdapterStyleComposition":
        spread = ("strong " if node["expand_style"] else "") + STYLE_COMPOSITION
        return {"weight_type": spread, "style": node["weight_style"], "composition": node["weight_composition"]}
    if kind == "IPAdapterMS":
        pairs = (pair.split(":") for pair in node["layer_weights"].split(","))
        return {"weight_type": "linear", "style": 0.0, "blocks": {int(b): node["weight"] * float(w) for b, w in pairs}}
    if kind.startswith("IPAdapterPrecise"):
        part = "style" if kind.endswith("StyleTransfer") else "composition"
        spread = "style transfer precise" if part == "style" else "composition precise"
        return _spread(spread, node["weight"], node[f"{part}_boost"])
    return _spread(node["weight_type"], node["weight"], None)


def _spread(weight_type: str, weight: float, boost: float | None) -> dict[str, Any]:
    """A weight type's strengths: in the pack's list the composition of "style and composition" is 1."""
    settings: dict[str, Any] = {"weight_type": weight_type, "style": weight}
    if STYLE_COMPOSITION in weight_type:
        settings["composition"] = 1.0
    elif weight_type.endswith("precise"):
        settings["boost"] = weight if boost is None else boost
    return settings


def _variants(node: Mapping[str, Any]) -> dict[str, Any]:
    """How strengths act and pictures combine, where that is not the usual way."""
    settings: dict[str, Any] = {}
    if node.get("embeds_scaling", "V only") != "V only":
        settings["embeds_scaling"] = node["embeds_scaling"]
    if "+" in str(node.get("image", "")):
        settings["combine"] = node.get("combine_embeds", "concat")
    return settings


def pictures(case: Case, node: Mapping[str, Any]) -> dict[str, Any]:
    """A node's pictures by the names of the stage's inputs; several, joined by ``+``, go in as one value."""
    names = str(node.get("image") or node["image_style"]).split("+")
    first, *others = (_picture(case, name) for name in names)
    ports: dict[str, Any] = {"photo": first}
    if others:
        ports["style_image"] = _several((first, *others))
    if "image_composition" in node:
        ports |= {"style_image": first, "composition_image": _picture(case, node["image_composition"])}
    if "image_negative" in node:
        ports["negative_image"] = _picture(case, node["image_negative"])
    if "mask" in node:
        ports["attention_mask"] = as_mask(case.array(node["mask"]))
    if odd := [name for name in ports if not has_port(IpAdapter, name)]:
        raise Unsupported(f"IpAdapter has no input {odd[0]}")
    return ports


def _several(images: tuple[Image, ...]) -> Any:
    """Pictures on one wire."""
    kind = vars(values).get("Pictures")
    if kind is None:
        raise Unsupported("IpAdapter takes one picture, not several")
    return kind(images)


def _picture(case: Case, name: str) -> Image:
    return image(case, f"inputs/img_{name}_uint8")


def control_file(world: World, name: str) -> str:
    """A ControlNet of the set: a folder or file of that name, or the same weights in the other layout."""
    stem = name.removeprefix("controlnet/").removesuffix(".safetensors")
    folder = world.weights / "controlnet"
    for path in (folder / stem, folder / f"{stem}.safetensors"):
        if path.exists():
            return str(path)
    for path in sorted(each for each in folder.iterdir() if each.is_dir() or each.suffix == ".safetensors"):
        world.notes.append(f"the set holds no controlnet/{stem}: {path.name}, recorded as equal, was used")
        return str(path)
    raise Unsupported(f"the set holds no controlnet/{stem}")


def controls(asked: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A case's ControlNets as settings of ``ControlNet``, each with its ``file`` and ``hint``."""
    if "chain" in asked:
        return [_control({**asked, "hint": hint, "strength": strength}) for hint, strength in asked["chain"]]
    return [_control(asked)]


def _control(asked: Mapping[str, Any]) -> dict[str, Any]:
    found = {"file": asked.get("control_net", asked.get("file", "canny_ldm")), "hint": f"inputs/hint_{asked['hint']}"}
    found |= {
        "strength": asked["strength"],
        "start": asked.get("start_percent", 0.0),
        "end": asked.get("end_percent", 1.0),
    }
    if asked.get("soft_weights") is not None:
        found["soft"] = asked["soft_weights"]
    if "mask" in asked:
        found["mask"] = asked["mask"]
    return found
