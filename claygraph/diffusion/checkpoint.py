"""Loading the parts of an SDXL checkpoint, from a single file or a diffusers folder; never from a network.

Models are built without memory and take over the file's tensors, already on the device and in the right dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import safe_open
from torch.overrides import TorchFunctionMode

from claygraph import files
from claygraph.diffusion import describe, single_file
from claygraph.diffusion.clip import ClipConfig, TextEncoder
from claygraph.diffusion.describe import below
from claygraph.diffusion.networks import build
from claygraph.errors import WeightsError
from claygraph.values import Checkpoint

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    from claygraph.memory import Memory

Tensors = dict[str, torch.Tensor]
M = TypeVar("M", bound=torch.nn.Module)
UNUSED = ("position_ids", "logit_scale")
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def load_unet(checkpoint: Checkpoint, memory: Memory) -> UNet2DConditionModel:
    """The UNet, in ``memory.dtype``."""

    config = describe.component(checkpoint, "unet")
    model: UNet2DConditionModel = empty(lambda: build("UNet2DConditionModel", config))
    source = files.locate(checkpoint.weights.path)
    tensors = _part(source, "unet", (describe.UNET,), memory.device, memory.dtype)
    if not source.is_dir():
        tensors = single_file.unet(below(tensors, describe.UNET))
    return _fill(model, tensors, f"the UNet of {source.name!r}")


def load_vae(checkpoint: Checkpoint, memory: Memory) -> AutoencoderKL:
    """The VAE of the checkpoint, or the one that replaces it, in ``memory.vae_dtype``."""

    config = describe.component(checkpoint, "vae")
    model: AutoencoderKL = empty(lambda: build("AutoencoderKL", config))
    source = files.locate((checkpoint.vae or checkpoint.weights).path)
    prefixes = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.") if checkpoint.vae else ()
    tensors = _part(source, "vae", (*describe.VAE, *prefixes), memory.device, memory.vae_dtype)
    return _fill(model, _vae_names(tensors), f"the VAE of {source.name!r}")


def _vae_names(tensors: Tensors) -> Tensors:
    if any(name.endswith("encoder.mid.block_1.conv1.weight") for name in tensors):
        return single_file.vae(below(tensors, *describe.VAE) or tensors)
    return {_renamed(name, OLD_ATTENTION): tensor for name, tensor in tensors.items()}


def _renamed(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def load_text_encoders(checkpoint: Checkpoint, memory: Memory) -> tuple[TextEncoder, TextEncoder]:
    """Both text encoders (CLIP-L, OpenCLIP bigG), in ``memory.dtype``."""
    first, second = (_load_text_encoder(checkpoint, part, memory) for part in ("text_encoder", "text_encoder_2"))
    return first, second


def _load_text_encoder(checkpoint: Checkpoint, part: str, memory: Memory) -> TextEncoder:
    config, source = ClipConfig.of(describe.component(checkpoint, part)), files.locate(checkpoint.weights.path)
    model = empty(lambda: TextEncoder(config, projection=part == "text_encoder_2"))
    prefix = describe.CLIP_L if part == "text_encoder" else describe.CLIP_G
    tensors = _part(source, part, (prefix,), memory.device, memory.dtype)
    if not source.is_dir():
        tensors = below(tensors, prefix)
        tensors = single_file.open_clip(tensors) if part == "text_encoder_2" else tensors
    return _fill(
        model, {_with_model(name): tensor for name, tensor in tensors.items()}, f"the {part} of {source.name!r}"
    )


def _with_model(name: str) -> str:
    """A text encoder's tensor as files have named it, with the prefix that newer ones leave out."""
    return name if name.startswith(("text_model.", "text_projection")) else f"text_model.{name}"


def tokenizer_folder(checkpoint: Checkpoint, part: str = "text_encoder") -> Path:
    """Where the tokenizer of a text encoder lies: with the configs or the weights, or else SDXL's own."""
    name = part.replace("text_encoder", "tokenizer")
    given = [files.locate(weights.path) for weights in (checkpoint.config, checkpoint.weights) if weights]
    return next((path / name for path in given if (path / name / "vocab.json").is_file()), describe.SHIPPED / name)


def empty(make: Callable[[], M]) -> M:
    """What ``make`` returns, on the meta device, where it takes no memory."""
    with torch.device("meta"), _Unfilled():
        return make()


class _Unfilled(TorchFunctionMode):
    """While it lasts ``torch.nn.init`` does nothing, in this thread: what has no memory yet needs no numbers."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__module__", "") == "torch.nn.init":
            return args[0] if args else kwargs["tensor"]
        return func(*args, **kwargs or {})


def _part(source: Path, part: str, prefixes: tuple[str, ...], device: torch.device, dtype: torch.dtype) -> Tensors:
    """The tensors of one component: all in a folder's part, those under ``prefixes`` in a single file."""
    if not source.is_dir():
        return read(source, device, dtype, prefixes)
    tensors: Tensors = {}
    for file in _shards(source / part if (source / part).is_dir() else source):
        tensors |= read(file, device, dtype)
    return tensors


def _shards(folder: Path) -> Iterable[Path]:
    """The folder's weight files, in the variant without a suffix such as ``.fp16`` where there is one."""
    found = sorted(folder.glob("*.safetensors"))
    plain = [file for file in found if ".fp16." not in file.name and ".non_ema." not in file.name]
    return plain or found


def read(path: Path, device: torch.device, dtype: torch.dtype | None, prefixes: tuple[str, ...] = ("",)) -> Tensors:
    """The tensors of a safetensors file whose names begin with one of ``prefixes``; floats become ``dtype``."""
    names = [name for name in describe.shapes(path) if name.startswith(prefixes)]
    with safe_open(path, framework="pt", device=str(device)) as file:
        return {name: _as(file.get_tensor(name), dtype) for name in names}


def _as(tensor: torch.Tensor, dtype: torch.dtype | None) -> torch.Tensor:
    """Floats in this dtype, one tensor after another so that only one is there twice; others as they are."""
    return tensor.to(dtype) if tensor.is_floating_point() else tensor


def _fill(model: M, tensors: Tensors, source: str) -> M:
    """Give the model its tensors, ready for inference; raise ``WeightsError`` for the first that does not fit."""
    wanted = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    found = {name: tuple(tensor.shape) for name, tensor in tensors.items() if not name.endswith(UNUSED)}
    faults = [name for name in wanted | found if wanted.get(name) != found.get(name)]
    if faults:
        name = faults[0]
        raise WeightsError(
            f"{source} does not fit its config: {name} is {found.get(name, 'missing')} in the file and "
            f"{wanted.get(name, 'unknown')} in the config ({len(faults)} tensors differ); "
            "give the folder with this model's configs as checkpoint.config=FOLDER."
        )
    model.load_state_dict({name: tensors[name] for name in wanted}, assign=True)
    return model.eval().requires_grad_(False)
