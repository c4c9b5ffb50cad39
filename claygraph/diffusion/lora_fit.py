"""Which layers of a checkpoint a LoRA file changes, from headers alone: no tensor is loaded, no torch imported."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from claygraph import files
from claygraph.diffusion import describe
from claygraph.diffusion.lora_files import PREFIXES, Held, Roles, Shape, changed_shape, held, same_shape
from claygraph.diffusion.lora_names import diffusers_name, spellings
from claygraph.errors import WeightsError
from claygraph.values import Checkpoint, Weights

CONTEXT = ("attn2.to_k", "attn2.to_v")
FAMILIES = {
    768: "a Stable Diffusion 1.x LoRA",
    1024: "a Stable Diffusion 2.x LoRA",
    1280: "a LoRA for the SDXL refiner",
    2048: "an SDXL LoRA",
}
CLIP_LAYER = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.out_proj")
CLIP_NORMS = ("layer_norm1", "layer_norm2")


class Fit(NamedTuple):
    """A file and one component: tensor names by role for each layer of the component that the file changes.

    ``spelled`` is how the file spells the layer; ``missed`` are layers of the file that the component does not have.
    """

    layers: Mapping[str, Roles]
    spelled: Mapping[str, str]
    missed: tuple[str, ...]


def match(path: Path, part: str, shapes: Mapping[str, Shape]) -> Fit:
    """The layers of a component that a file changes; ``shapes`` are those of the component's weights, by layer name.

    Raises ``WeightsError`` where a change has another shape than its weight, or where none finds its layer.
    """
    file, known = held(path), spellings(part, shapes)
    spelled = {known[layer]: layer for layer in file.parts[part] if layer in known}
    fits = {name: file.parts[part][layer] for name, layer in spelled.items()}
    shaped = {name: changed_shape(roles, file.shapes) for name, roles in fits.items()}
    _check_shapes(path, shaped, shapes)
    whole = {name: roles for name, roles in fits.items() if shaped[name]}
    missed = _missed(file, part, {spelled[name] for name in whole})
    if not whole and (file.parts[part] or not any(file.parts[each] for each in PREFIXES)):
        raise WeightsError(
            f"lora {path.name!r} fits no layer of this checkpoint's {part}: none of its {len(missed)} layers is known, "
            f"such as {next(iter(missed), None)!r}; give an SDXL LoRA in kohya's, diffusers' or peft's layout."
        )
    return Fit(whole, spelled, missed)


def _missed(file: Held, part: str, taken: set[str]) -> tuple[str, ...]:
    """Layers left over; those of no component are counted with the UNet, or with any where the file has no other."""
    alone = not any(file.parts[each] for each in PREFIXES)
    nobodys = file.parts[""] if part == "unet" or alone else {}
    return tuple(layer for layer in {**file.parts[part], **nobodys} if layer not in taken)


def _check_shapes(path: Path, changed: Mapping[str, Shape | None], shapes: Mapping[str, Shape]) -> None:
    """Raise ``WeightsError`` for the first layer that does not fit, those that tell the model's family first."""
    for name, found in sorted(changed.items(), key=lambda item: not item[0].endswith(CONTEXT)):
        if found and not same_shape(found, shapes[name]):
            raise WeightsError(
                f"lora {path.name!r} does not fit the checkpoint: {_misfit(name, found, shapes[name])}; "
                "give a LoRA made for this model family."
            )


def _misfit(name: str, found: Shape, wanted: Shape) -> str:
    if name.endswith(CONTEXT) and len(found) > 1 and found[1] != wanted[1]:
        kind = FAMILIES.get(found[1], "a LoRA for another model")
        return f"it looks like {kind}: its context width is {found[1]}, this checkpoint wants {wanted[1]}"
    return f"at {name} it changes a weight of shape {found}, this checkpoint's is {wanted}"


@lru_cache(maxsize=256)
def fit(lora: Weights, checkpoint: Checkpoint, parts: tuple[str, ...]) -> tuple[tuple[str, int, int], ...]:
    """``(component, layers changed, layers of the file left over)`` for each of ``parts`` the file has something for.

    Raises ``WeightsError`` as ``match`` does, before any weight is loaded.
    """
    path, found = files.locate(lora.path), []
    for part in parts:
        if shapes := layers_of(checkpoint, part):
            done = match(path, part, shapes)
            found += [(part, len(done.layers), len(done.missed))] if done.layers or done.missed else []
    return tuple(found)


def layers_of(checkpoint: Checkpoint, part: str) -> dict[str, Shape]:
    """Shapes of a checkpoint's weights by layer, under diffusers' and transformers' names."""
    return _unet(checkpoint) if part == "unet" else _text(describe.component(checkpoint, part))


def _unet(checkpoint: Checkpoint) -> dict[str, Shape]:
    path = files.locate(checkpoint.weights.path)
    if path.is_dir():
        shards = sorted((path / "unet").glob("*.safetensors"))
        return _weights({name: shape for shard in shards for name, shape in describe.shapes(shard).items()})
    named = _weights(describe.below(describe.shapes(path), describe.UNET))
    return {diffusers_name(name): shape for name, shape in named.items()}


def _weights(shapes: Mapping[str, Shape]) -> dict[str, Shape]:
    return {name.removesuffix(".weight"): shape for name, shape in shapes.items() if name.endswith(".weight")}


def _text(config: Mapping[str, Any]) -> dict[str, Shape]:
    width, inner = int(config.get("hidden_size", 512)), int(config.get("intermediate_size", 2048))
    layer: dict[str, Shape] = dict.fromkeys(CLIP_LAYER, (width, width)) | dict.fromkeys(CLIP_NORMS, (width,))
    layer |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner)}
    numbers = range(int(config.get("num_hidden_layers", 12)))
    found = {f"text_model.encoder.layers.{n}.{name}": shape for n in numbers for name, shape in layer.items()}
    projected = int(config.get("projection_dim", width))
    return found | {"text_model.final_layer_norm": (width,), "text_projection": (projected, width)}
