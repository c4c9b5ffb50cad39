"""Loading the parts of an SDXL checkpoint, from a single file or a diffusers folder; never from a network.

Models are built without memory and take over the file's tensors, already on the device and in the right dtype.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from safetensors import safe_open
from torch.overrides import TorchFunctionMode

from claygraph import files
from claygraph.diffusion import describe
from claygraph.errors import WeightsError
from claygraph.values import Checkpoint

if TYPE_CHECKING:
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
    from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    from claygraph.memory import Memory

Tensors = dict[str, torch.Tensor]
Convert = Callable[[Tensors], Tensors]
M = TypeVar("M", bound=torch.nn.Module)
UNUSED = ("position_ids", "logit_scale")
OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def load_unet(checkpoint: Checkpoint, memory: Memory) -> UNet2DConditionModel:
    """The UNet, in ``memory.dtype``."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    config = describe.component(checkpoint, "unet")
    model: UNet2DConditionModel = _empty(lambda: UNet2DConditionModel.from_config(config))
    source = files.locate(checkpoint.weights.path)
    tensors = _part(source, "unet", (describe.UNET,), memory.device, memory.dtype)
    if not source.is_dir():
        tensors = convert_ldm_unet_checkpoint(tensors, model.config)
    return _fill(model, tensors, f"the UNet of {source.name!r}")


def load_vae(checkpoint: Checkpoint, memory: Memory) -> AutoencoderKL:
    """The VAE of the checkpoint, or the one that replaces it, in ``memory.vae_dtype``."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    config = describe.component(checkpoint, "vae")
    model: AutoencoderKL = _empty(lambda: AutoencoderKL.from_config(config))
    source = files.locate((checkpoint.vae or checkpoint.weights).path)
    prefixes = ("encoder.", "decoder.", "quant_conv.", "post_quant_conv.") if checkpoint.vae else ()
    tensors = _part(source, "vae", (*describe.VAE, *prefixes), memory.device, memory.vae_dtype)
    return _fill(model, _vae_names(tensors, model.config), f"the VAE of {source.name!r}")


def _vae_names(tensors: Tensors, config: Mapping[str, Any]) -> Tensors:
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    if any(name.endswith("encoder.mid.block_1.conv1.weight") for name in tensors):
        return dict(convert_ldm_vae_checkpoint(tensors, config))
    return {_renamed(name, OLD_ATTENTION): tensor for name, tensor in tensors.items()}


def _renamed(name: str, table: dict[str, str]) -> str:
    for old, new in table.items():
        name = name.replace(old, new)
    return name


def load_text_encoders(checkpoint: Checkpoint, memory: Memory) -> tuple[CLIPTextModel, CLIPTextModelWithProjection]:
    """Both text encoders (CLIP-L, OpenCLIP bigG), in ``memory.dtype``."""
    from diffusers.loaders.single_file_utils import convert_ldm_clip_checkpoint, convert_open_clip_checkpoint
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    def open_clip(tensors: Tensors) -> Tensors:
        linear, bare = f"{describe.CLIP_G}text_projection.weight", f"{describe.CLIP_G}text_projection"
        tensors = _taken_apart(tensors) | ({bare: tensors[linear].T} if linear in tensors else {})
        return dict(convert_open_clip_checkpoint(second, tensors, prefix=describe.CLIP_G))

    first = _empty_text_encoder(CLIPTextModel, checkpoint, "text_encoder")
    second = _empty_text_encoder(CLIPTextModelWithProjection, checkpoint, "text_encoder_2")
    _fill_text_encoder(first, checkpoint, "text_encoder", convert_ldm_clip_checkpoint, memory)
    _fill_text_encoder(second, checkpoint, "text_encoder_2", open_clip, memory)
    return first, second


def _taken_apart(tensors: Tensors) -> Tensors:
    """OpenCLIP's stacked queries, keys and values as views of their own; the converter would copy them."""
    found: Tensors = {}
    for name, tensor in tensors.items():
        stem, stacked, kind = name.rpartition(".in_proj_")
        parts = tensor.chunk(3) if stacked else ()
        found |= {f"{stem}.{part}_proj.{kind}": each for part, each in zip("qkv", parts, strict=False)}
        found |= {} if stacked else {name: tensor}
    return found


def _empty_text_encoder(kind: Callable[[Any], M], checkpoint: Checkpoint, part: str) -> M:
    from transformers import CLIPTextConfig

    config = CLIPTextConfig.from_dict(describe.component(checkpoint, part))
    return _empty(lambda: kind(config))


def _fill_text_encoder(model: M, checkpoint: Checkpoint, part: str, convert: Convert, memory: Memory) -> None:
    source = files.locate(checkpoint.weights.path)
    prefix = describe.CLIP_L if part == "text_encoder" else describe.CLIP_G
    tensors = _part(source, part, (prefix,), memory.device, memory.dtype)
    tensors = tensors if source.is_dir() else convert(tensors)
    if not hasattr(model, "text_model"):
        tensors = {name.removeprefix("text_model."): tensor for name, tensor in tensors.items()}
    _fill(model, tensors, f"the {part} of {source.name!r}")
    embeddings: Any = getattr(model, "text_model", model).embeddings
    embeddings.position_ids = torch.arange(embeddings.position_embedding.num_embeddings, device=memory.device)[None]


def tokenizer_folder(checkpoint: Checkpoint, part: str = "text_encoder") -> Path:
    """Where the tokenizer of a text encoder lies: with the configs or the weights, or else SDXL's own."""
    name = part.replace("text_encoder", "tokenizer")
    given = [files.locate(weights.path) for weights in (checkpoint.config, checkpoint.weights) if weights]
    return next((path / name for path in given if (path / name / "vocab.json").is_file()), describe.SHIPPED / name)


def load_tokenizer(folder: Path) -> CLIPTokenizer:
    """The tokenizer in a folder, without a limit on the length of texts."""
    from transformers import CLIPTokenizer

    tokenizer: CLIPTokenizer = CLIPTokenizer.from_pretrained(folder, local_files_only=True, model_max_length=2**31)
    return tokenizer


def _empty(build: Callable[[], M]) -> M:
    with torch.device("meta"), _Unfilled():
        return build()


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
