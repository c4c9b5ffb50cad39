"""What a LoRA file holds, read from its header alone: kinds of change by component and layer. No torch is imported."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sized
from dataclasses import dataclass
from functools import lru_cache
from math import isfinite, prod
from pathlib import Path
from typing import Any

from claygraph.diffusion import describe
from claygraph.errors import WeightsError

Shape = tuple[int, ...]
Roles = Mapping[str, str]
PAIRS = ("lora_{}.weight", "lora_{}.default.weight", "lora_{}")
SUFFIXES = {
    **{f".{form.format(letter)}": role for form in PAIRS for letter, role in (("A", "down"), ("B", "up"))},
    **{f"{form}{role}.weight": role for form in (".lora_", "_lora.", ".lora.") for role in ("down", "up")},
    **{f".lora_linear_layer.{role}.weight": role for role in ("down", "up")},
    **{f".hada_{name}": f"hada_{name}" for name in ("w1_a", "w1_b", "w2_a", "w2_b", "t1", "t2")},
    **{f".lokr_{name}": f"lokr_{name}" for name in ("w1", "w1_a", "w1_b", "w2", "w2_a", "w2_b", "t2")},
    **{f".lora_magnitude_vector{rest}": "magnitude" for rest in ("", ".weight", ".default.weight")},
    ".lora_mid.weight": "mid",
    ".alpha": "alpha",
    ".dora_scale": "dora_scale",
    ".diff": "diff",
    ".w_norm": "diff",
    ".diff_b": "diff_b",
    ".b_norm": "diff_b",
    ".set_weight": "set",
}
"""How the name of a tensor ends, and what the tensor is for. Of two endings that fit the longer counts."""

_LONGEST_FIRST = sorted(SUFFIXES, key=len, reverse=True)
UNSUPPORTED = {
    ".oft_": "OFT or BOFT",
    "oft_unet_": "OFT",
    ".a2.weight": "GLoRA",
    ".reshape_weight": "weights of another shape (reshape_weight)",
    ".ia3_": "IA3",
    ".lora_embedding_": "low-rank embeddings",
}
BARE = ("down_blocks.", "mid_block.", "up_blocks.", "conv_", "time_embedding.", "add_embedding.")
PREFIXES = {
    "text_encoder": ("lora_te1_", "lora_te_", "text_encoder.", "text_encoders.clip_l."),
    "text_encoder_2": ("lora_te2_", "text_encoder_2.", "text_encoders.clip_g."),
    "unet": ("lora_unet_", "lycoris_", "unet.", "diffusion_model.", "base_model.model.", *BARE),
}
ARCHITECTURES: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = [
    ("Flux", (), ("double_blocks", "single_blocks", "single_transformer_blocks")),
    ("Stable Diffusion 3", ("lora_te3_",), ("joint_blocks", "add_q_proj", "context_block")),
    ("Stable Cascade", ("lora_prior_",), ()),
    ("a transformer model such as Stable Diffusion 3", ("transformer.", "lora_transformer_"), ()),
    ("a transformer model such as Wan", ("diffusion_model.blocks.", "lora_unet_blocks_", "blocks."), ()),
]
"""Other model families with how the names of their LoRAs begin, and what they contain."""


@dataclass(frozen=True)
class Held:
    """What a file holds: tensor names by component, layer (as the file spells it) and role, and every shape.

    What belongs to no component, or has no known role, is under ``""``.
    """

    parts: Mapping[str, Mapping[str, Roles]]
    shapes: Mapping[str, Shape]


def held(path: Path) -> Held:
    """What the file holds; raises ``WeightsError`` unless it is a LoRA for a UNet, of a kind that can be applied."""
    status = path.stat()
    return _held(path, (status.st_size, status.st_mtime_ns))


@lru_cache(maxsize=64)
def _held(path: Path, stamp: tuple[int, int]) -> Held:  # noqa: ARG001 - a changed stamp asks anew
    shapes = describe.shapes(path)
    _check_kind(path, shapes)
    parts: dict[str, dict[str, dict[str, str]]] = {part: {} for part in (*PREFIXES, "")}
    for name in shapes:
        layer, role = _split(name)
        parts[part_of(layer) if role else ""].setdefault(layer, {})[role] = name
    return Held(parts, shapes)


def _split(name: str) -> tuple[str, str]:
    """The layer a tensor belongs to and its role there; a name of no known form is its own layer, of no role."""
    suffix = next((suffix for suffix in _LONGEST_FIRST if name.endswith(suffix)), "")
    layer = name.removesuffix(suffix).replace(".processor.", ".") if suffix else name
    old_output = suffix.startswith("_lora") and layer.endswith("to_out")
    return layer + (".0" if old_output else ""), SUFFIXES.get(suffix, "")


def part_of(layer: str) -> str:
    """The component a layer belongs to, as the file spells it; ``""`` if none is known."""
    return next((part for part, prefixes in PREFIXES.items() if layer.startswith(prefixes)), "")


def _check_kind(path: Path, names: Mapping[str, Shape]) -> None:
    if any(name.startswith("lora_controlnet") for name in names):
        raise WeightsError(f"lora {path.name!r} is a Control-LoRA, which belongs to a ControlNet; give a LoRA.")
    for mark, kind in UNSUPPORTED.items():
        if any(mark in name for name in names):
            raise WeightsError(f"lora {path.name!r} holds {kind}, which cannot be applied; give a LoRA, LoHa or LoKr.")
    if not any(role not in ("", "alpha") for _, role in map(_split, names)):
        raise WeightsError(f"lora {path.name!r} is no LoRA: it looks like {_other(names)}; give a LoRA for SDXL.")
    if family := architecture(names):
        raise WeightsError(f"lora {path.name!r} was made for {family}, not for SDXL; give a LoRA for SDXL.")


def _other(names: Mapping[str, Shape]) -> str:
    """What a file without changes to weights is, in words."""
    if {"clip_l", "clip_g"} & names.keys() or "emb_params" in names:
        return "a textual inversion"
    kind = describe.family(names)
    return f"a checkpoint ({kind})" if kind.startswith(("SDXL", "Stable Diffusion", "the SDXL")) else kind


def architecture(names: Iterable[str]) -> str:
    """The other model family that a LoRA's names belong to, in words; ``""`` if none shows."""
    found = list(names)
    for family, starts, marks in ARCHITECTURES:
        if any(name.startswith(starts) or any(mark in name for mark in marks) for name in found):
            return family
    return ""


def changed_shape(roles: Roles, shapes: Mapping[str, Shape]) -> Shape | None:
    """The shape of the weight that a layer's tensors change; None where tensors of the kind are missing.

    Kernels that a file stores flattened count so: only the first axis and the product of the others can be compared.
    """
    found = {role: shapes[name] for role, name in roles.items()}
    for needed, shape in _KINDS:
        if set(needed) <= found.keys():
            plain = all(len(found[role]) >= 2 for role in needed if role not in _FULL)
            return shape(found) or None if plain else None
    return found["diff_b"][:1] or None if "diff_b" in found else None


def same_shape(found: Shape, wanted: Shape) -> bool:
    """Whether a change fits a weight, however the file flattens kernels; a bias alone fits by its length."""
    return found[0] == wanted[0] and (len(found) == 1 or prod(found[1:]) == prod(wanted[1:]))


def _pair(found: Mapping[str, Shape]) -> Shape:
    kernel = found["mid"][2:] if "mid" in found else found["down"][2:]
    return found["up"][0], found["down"][1], *kernel


def _loha(found: Mapping[str, Shape]) -> Shape:
    if "hada_t1" in found:
        return found["hada_w1_a"][1], found["hada_w1_b"][1], *found["hada_t1"][2:]
    return found["hada_w1_a"][0], found["hada_w1_b"][1]


def _lokr(found: Mapping[str, Shape]) -> Shape:
    first = found.get("lokr_w1") or (found["lokr_w1_a"][0], found["lokr_w1_b"][1])
    second = found.get("lokr_w2") or (found["lokr_w2_a"][0], found["lokr_w2_b"][1])
    if "lokr_t2" in found:
        second = (found["lokr_w2_a"][1], found["lokr_w2_b"][1], *found["lokr_t2"][2:])
    return first[0] * second[0], first[1] * second[1], *second[2:]


_FULL = ("diff", "set")
_LOKR = [
    (first, second)
    for first in (("lokr_w1",), ("lokr_w1_a", "lokr_w1_b"))
    for second in (("lokr_w2",), ("lokr_w2_a", "lokr_w2_b"))
]
_KINDS = [
    (("down", "up"), _pair),
    (("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b"), _loha),
    *(((*first, *second), _lokr) for first, second in _LOKR),
    (("diff",), lambda found: found["diff"]),
    (("set",), lambda found: found["set"]),
]


def rank(found: Mapping[str, Sized]) -> int:
    """What alpha is divided by: the rank of the (second) factor that is a product; 0 where none is."""
    return next((len(found[role]) for role in ("down", "hada_w1_b", "lokr_w2_b", "lokr_w1_b") if role in found), 0)


@dataclass(frozen=True)
class PeftSettings:
    """What a peft file's metadata says of one component: the usual alpha, those of single layers, and the rule."""

    usual: float = 0.0
    special: tuple[tuple[str, float], ...] = ()
    rank_stabilised: bool = False

    def alpha(self, layer: str, rank: int) -> float:
        """The alpha that, divided by the rank, gives the layer's scale; 0 if none is known.

        With ``rank_stabilised`` the scale is alpha / sqrt(rank) (rsLoRA, arXiv 2312.03732).
        """
        named = (alpha for name, alpha in self.special if layer == name or layer.endswith(f".{name}"))
        return next(named, self.usual) * (rank**0.5 if self.rank_stabilised else 1)


def peft_settings(path: Path, part: str) -> PeftSettings:
    """What the metadata (``lora_adapter_metadata``, JSON) says of this component.

    Names in ``alpha_pattern`` are taken literally, as the end of a layer's name; they are never run as patterns.
    """
    try:
        settings: dict[str, Any] = dict(json.loads(describe.metadata(path).get("lora_adapter_metadata", "{}")))
        usual = float(settings.get(f"{part}.lora_alpha") or 0.0)
        special = dict(settings.get(f"{part}.alpha_pattern") or {})
        alphas = tuple((str(name).strip("^$").replace("\\", ""), float(alpha)) for name, alpha in special.items())
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(
            f"lora {path.name!r} has metadata (lora_adapter_metadata) that cannot be read: {error}."
        ) from None
    if not all(isfinite(alpha) for alpha in (usual, *(alpha for _, alpha in alphas))):
        raise WeightsError(f"lora {path.name!r} gives an alpha in its metadata that is no number.")
    return PeftSettings(usual, alphas, bool(settings.get(f"{part}.use_rslora")))
