"""What an IP-Adapter file is, read from its header alone: no tensor is loaded, no torch imported."""

from __future__ import annotations

from collections.abc import Mapping

from claygraph import files
from claygraph.diffusion.describe import component, shapes
from claygraph.errors import WeightsError
from claygraph.values import Checkpoint, Weights

COMBINATIONS = ("concat", "add", "subtract", "average", "norm average", "max", "min")
"""How several pictures become one prompt: all tokens side by side, or one set from their joined CLIP embeddings."""

CROPS = ("none", "top", "bottom", "left", "right", "center", "pad")
"""What part of a picture the image encoder is shown (``crop_position`` of IPAdapter_plus; "none" leaves it to CLIP)."""

FAMILIES = {768: "SD1.5", 1024: "SD2", 2048: "SDXL"}
FIRST_KEY = "ip_adapter.1.to_k_ip.weight"
KOLORS_WIDTH = 2048
_ACCEPTED = "give a plain, plus or full IP-Adapter such as ip-adapter-plus_sdxl_vit-h.safetensors."


def check_kind(file: str, found: Mapping[str, tuple[int, ...]]) -> None:
    """Raise ``WeightsError`` unless tensors of these names and shapes make a plain, plus or full IP-Adapter."""
    names = {name.removeprefix("image_proj.") for name in found}
    if refused := _refused(names, found):
        raise WeightsError(f"ip_adapter={file!r} is of the {refused}; {_ACCEPTED}")
    if not {"latents", "proj.weight", "proj.3.weight"} & names or FIRST_KEY not in found:
        raise WeightsError(f"ip_adapter={file!r} does not hold an IP-Adapter; {_ACCEPTED}")


def _refused(names: set[str], found: Mapping[str, tuple[int, ...]]) -> str:
    """Which of the kinds that are not supported these tensors are of, if any."""
    if any("lora" in name or name.startswith("perceiver_resampler.") for name in names):
        return "FaceID type, which needs a face recogniser"
    if "proj.2.weight" in names and "proj.3.weight" not in names:
        return "FaceID portrait type, which needs a face recogniser"
    kolors = found.get("image_proj.latents", (0,))[-1] == KOLORS_WIDTH
    return "Kolors type, which is for another model" if kolors else ""


def check_fit(adapter: Weights, checkpoint: Checkpoint) -> None:
    """Raise ``WeightsError`` unless the adapter's image tokens are as wide as the text the checkpoint reads."""
    path = files.locate(adapter.path)
    check_kind(path.name, shapes(path))
    found, context = shapes(path)[FIRST_KEY][1], component(checkpoint, "unet")["cross_attention_dim"]
    if found != context:
        base = files.locate(checkpoint.weights.path).name
        raise WeightsError(
            f"ip_adapter={path.name!r} does not fit the checkpoint: it has image tokens of width {found}"
            f"{_family(found)}, but {base!r} reads {context}{_family(context)}; give an adapter for that kind of "
            "checkpoint."
        )


def _family(width: int) -> str:
    return f" ({FAMILIES[width]})" if width in FAMILIES else ""
