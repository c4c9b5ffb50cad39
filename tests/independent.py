"""The parts of a clay picture without claygraph: diffusers, transformers, k-diffusion and formulas on tiny weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from tests import tiny
from tests.tiny_layouts import ldm_unet

SCALE = 0.13025
BOS, EOS = 49406, 49407
MEAN = (0.48145466, 0.4578275, 0.40821073)
STD = (0.26862954, 0.26130258, 0.27577711)
PARTS = {"unet": 0, "vae": 1, "text_encoder": 2, "text_encoder_2": 3}
"""Components in the order their seeds are given out."""

Words = tuple[Tensor, Tensor]  # hidden [1, tokens, channels] and pooled [1, channels]
Change = Callable[[dict[str, Any], bool], None]


class Halves(NamedTuple):
    """Both encoded prompts."""

    positive: Words
    negative: Words


@cache
def k_sampling() -> ModuleType:
    """k-diffusion's ``sampling.py`` on its own: its package would import torchvision."""
    package = find_spec("k_diffusion")
    if package is None or not package.submodule_search_locations:
        raise ModuleNotFoundError("k-diffusion is not installed")
    parent, utils, odes = ModuleType("k_alone"), ModuleType("k_alone.utils"), ModuleType("torchdiffeq")
    parent.__path__ = []
    utils.append_dims = lambda x, dims: x[(...,) + (None,) * (dims - x.ndim)]  # type: ignore[attr-defined]
    odes.odeint = None  # type: ignore[attr-defined]
    had = {module.__name__: sys.modules.get(module.__name__) for module in (odes,)}
    sys.modules |= {module.__name__: module for module in (parent, utils, odes)}
    spec = spec_from_file_location("k_alone.sampling", Path(package.submodule_search_locations[0]) / "sampling.py")
    assert spec is not None
    assert spec.loader is not None
    sampling = module_from_spec(spec)
    spec.loader.exec_module(sampling)
    for name, module in had.items():
        sys.modules.pop(name) if module is None else sys.modules.update({name: module})
    return sampling


@cache
def table() -> Tensor:
    """Sigma of every training timestep, float64."""
    kept = (1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000, dtype=torch.float64) ** 2).cumprod(0)
    return ((1 - kept) / kept).sqrt()


# --- weights


def tensors(part: str) -> dict[str, Tensor]:
    """The float32 weights of a component, as the tiny checkpoint holds them."""
    return {name: tensor.float() for name, tensor in tiny.draw(tiny.shapes()[part], PARTS[part]).items()}


def merged(part: str, loras: Sequence[tuple[Path, float]]) -> dict[str, Tensor]:
    """A component's weights plus ``strength * alpha / rank * up down`` of every LoRA, alpha where the file has one."""
    total = tensors(part)
    for path, strength in loras:
        found = {name: tensor.float() for name, tensor in load_file(path).items()}
        for name in (name for name in total if name.endswith(".weight")):
            total[name] = total[name] + strength * _update(found, part, name.removesuffix(".weight"), total[name])
    return total


def _update(found: Mapping[str, Tensor], part: str, layer: str, like: Tensor) -> Tensor:
    prefix = {"unet": "lora_unet_", "text_encoder": "lora_te1_", "text_encoder_2": "lora_te2_"}[part]
    kohya = prefix + (ldm_unet(layer) if part == "unet" else layer).replace(".", "_")
    for down, up in ((f"{kohya}.lora_down", f"{kohya}.lora_up"), (f"{part}.{layer}.lora_A", f"{part}.{layer}.lora_B")):
        if f"{down}.weight" in found:
            low, high = found[f"{down}.weight"].flatten(1), found[f"{up}.weight"].flatten(1)
            scale = float(found.get(f"{kohya}.alpha", torch.tensor(float(len(low))))) / len(low)
            return scale * (high @ low).reshape(like.shape)
    return torch.zeros_like(like)


def unet(loras: Sequence[tuple[Path, float]] = ()) -> Any:
    """diffusers' UNet with LoRAs merged into its weights."""
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    model = UNet2DConditionModel.from_config(tiny.configs()["unet"])
    model.load_state_dict(merged("unet", loras))
    return model.eval().requires_grad_(False)


@cache
def vae() -> Any:
    """diffusers' VAE."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    model = AutoencoderKL.from_config(tiny.configs()["vae"])
    model.load_state_dict(tensors("vae"))
    return model.eval().requires_grad_(False)


def encoders(loras: Sequence[tuple[Path, float]] = ()) -> tuple[Any, Any]:
    """transformers' text encoders with LoRAs merged."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    made = []
    for part, kind in (("text_encoder", CLIPTextModel), ("text_encoder_2", CLIPTextModelWithProjection)):
        model = kind(CLIPTextConfig(**tiny.configs()[part]))
        weights = merged(part, loras)
        names = {name.removeprefix("text_model.") for name in model.state_dict()}
        bare = any(not name.startswith("text_model.") for name in model.state_dict() if "embeddings" in name)
        renamed = {name.removeprefix("text_model.") if bare else name: tensor for name, tensor in weights.items()}
        missing = model.load_state_dict(renamed, strict=False)
        assert not [name for name in missing.missing_keys if "position_ids" not in name], names
        ready: Any = model
        made.append(ready.eval().requires_grad_(False))
    return made[0], made[1]


# --- text


@cache
def tokenizer() -> Any:
    """CLIP's tokenizer, from the vocabulary that is shipped."""
    from transformers import CLIPTokenizer

    return CLIPTokenizer.from_pretrained(tiny.SHIPPED / "tokenizer")


@torch.inference_mode()
def words(segments: Sequence[tuple[str, float]], loras: Sequence[tuple[Path, float]] = (), layer: int = -2) -> Words:
    """A prompt of at most 75 tokens, given as weighted segments: ``empty + weight * (states - empty)`` per token."""
    ids, weights = [BOS], [1.0]
    for text, weight in segments:
        found = tokenizer()(text, add_special_tokens=False)["input_ids"]
        ids, weights = ids + found, weights + [weight] * len(found)
    both = encoders(loras)
    hidden, pooled = _states(both, [*ids, EOS], layer)
    if any(weight != 1 for weight in weights):
        empty, _ = _states(both, [BOS, EOS], layer)
        hidden = empty + torch.tensor([*weights, *[1.0] * (77 - len(weights))])[None, :, None] * (hidden - empty)
    return hidden, pooled


def _states(both: tuple[Any, Any], ids: Sequence[int], layer: int) -> Words:
    rows = [torch.tensor([[*ids, *[pad] * (77 - len(ids))]]) for pad in (EOS, 0)]
    left, right = (model(row, output_hidden_states=True) for model, row in zip(both, rows, strict=True))
    return torch.cat([left.hidden_states[layer], right.hidden_states[layer]], -1), right.text_embeds


def size_vector(pooled: Tensor, height: int, width: int) -> Tensor:
    """What the UNet's size embedding reads: pooled text, then cosines and sines of six numbers."""
    angles = torch.exp(-np.log(10000) * torch.arange(8) / 8)
    parts = [torch.cat([(side * angles).cos(), (side * angles).sin()]) for side in (height, width, 0, 0, height, width)]
    return torch.cat([pooled[0], *parts])[None]


# --- pictures


def image_tokens(adapter: Path, encoder: Path, pixels: np.ndarray[Any, Any]) -> tuple[Tensor, Tensor]:
    """A plain IP-Adapter's tokens ``[1, T, channels]`` of a picture 224 x 224, and those of zeros."""
    from transformers import CLIPVisionModelWithProjection

    model = CLIPVisionModelWithProjection.from_pretrained(encoder, dtype=torch.float32)
    seen = (torch.from_numpy(pixels).float() / 255 - torch.tensor(MEAN)) / torch.tensor(STD)
    embedding = model(seen.permute(2, 0, 1)[None]).image_embeds.detach()
    weights = {name.removeprefix("image_proj."): tensor.float() for name, tensor in load_file(adapter).items()}
    norm = weights["norm.weight"], weights["norm.bias"]

    def project(given: Tensor) -> Tensor:
        flat = given @ weights["proj.weight"].T + weights["proj.bias"]
        return torch.nn.functional.layer_norm(flat.reshape(1, -1, len(norm[0])), norm[0].shape, *norm)

    return project(embedding), project(torch.zeros_like(embedding))


def with_images(model: Any, adapter: Path, scales: Sequence[Sequence[float]]) -> Any:
    """The UNet with diffusers' own processors for as many pictures as there are ``scales``, one a block each."""
    parts: dict[str, dict[str, Tensor]] = {"image_proj": {}, "ip_adapter": {}}
    for name, tensor in load_file(adapter).items():
        parts[name.partition(".")[0]][name.partition(".")[2]] = tensor.float()
    model._load_ip_adapter_weights([parts] * len(scales), low_cpu_mem_usage=False)
    model.float().encoder_hid_proj = torch.nn.Identity()
    called = [name for name, module in model.named_modules() if type(module).__name__ == "Transformer2DModel"]
    order = [part for side in ("down", "mid", "up") for part in called if part.startswith(side)]
    for name, processor in model.attn_processors.items():
        if ".attn2." in name:
            block = order.index(name.partition(".transformer_blocks")[0])
            processor.scale = [each[block] for each in scales]
    return model


@cache
def network(folder: Path) -> Any:
    """diffusers' ControlNet."""
    from diffusers.models.controlnets.controlnet import ControlNetModel

    return ControlNetModel.from_pretrained(folder).float().requires_grad_(False)


def give_images(tokens: Sequence[tuple[Tensor, Tensor]]) -> Change:
    """Adds image tokens to a UNet's arguments."""

    def change(arguments: dict[str, Any], negative: bool) -> None:
        arguments["added_cond_kwargs"]["image_embeds"] = [pair[negative] for pair in tokens]

    return change


def give_hint(folder: Path, hint: np.ndarray[Any, Any], strength: float, start: float = 0, end: float = 1) -> Change:
    """Adds a ControlNet's residuals to a UNet's arguments while the timestep lies in its window."""
    picture = torch.from_numpy(hint / np.float32(255)).permute(2, 0, 1)[None]

    def change(arguments: dict[str, Any], negative: bool) -> None:
        if (1 - end) * 999 <= arguments["timestep"] <= (1 - start) * 999:
            shared = {**arguments, "added_cond_kwargs": dict(arguments["added_cond_kwargs"])}
            down, middle = network(folder)(
                **shared, controlnet_cond=picture, conditioning_scale=strength, return_dict=False
            )
            arguments |= {"down_block_additional_residuals": tuple(down), "mid_block_additional_residual": middle}

    return change


# --- sampling


class Run(NamedTuple):
    """What a sampling run made, and where it asked the model."""

    latent: Tensor
    sigmas: list[float]


@torch.no_grad()
def sample(
    name: str,
    text: Halves,
    latent: Tensor,
    sigmas: Sequence[float],
    noise: Tensor,
    cfg: float = 4.0,
    model: Any = None,
    changes: Sequence[Change] = (),
    draws: Sequence[Tensor] = (),
) -> Run:
    """k-diffusion's sampler, in double precision around the model; ``draws`` are its step noise in order.

    ``latent`` is unscaled, ``[1, 4, h, w]``.
    """
    network, asked, left = model or unet(), list[float](), iter(draws)
    loud = (1 + sigmas[0] ** 2) ** 0.5 if abs(sigmas[0] - float(table()[-1])) < 1e-4 else sigmas[0]
    x = (SCALE * latent + loud * noise).double()

    def x0(x: Tensor, sigma: Tensor, **_: Any) -> Tensor:
        asked.append(float(sigma))
        return guided(network, text, x.float(), float(sigma), cfg, changes).double()

    options = {"noise_sampler": lambda *_: next(left)} if draws else {}
    sampler = getattr(k_sampling(), f"sample_{name}")
    made = sampler(x0, x, torch.tensor(sigmas, dtype=torch.float64), disable=True, **options)
    return Run((made / SCALE).float(), asked)


def guided(network: Any, text: Halves, x: Tensor, sigma: float, cfg: float, changes: Sequence[Change] = ()) -> Tensor:
    """x0 with guidance; ``cfg`` 1 is the positive half alone."""
    halves = []
    for negative, (hidden, pooled) in ((True, text.negative), (False, text.positive)):
        height, width = 8 * x.shape[2], 8 * x.shape[3]
        sizes = torch.tensor([[height, width, 0, 0, height, width]], dtype=torch.float32)
        arguments: dict[str, Any] = {
            "sample": x / (sigma**2 + 1) ** 0.5,
            "timestep": (table().log() - np.log(sigma)).abs().argmin(),
            "encoder_hidden_states": hidden,
            "added_cond_kwargs": {"text_embeds": pooled, "time_ids": sizes},
        }
        for change in changes:
            change(arguments, negative)
        halves.append(x - sigma * network(**arguments, return_dict=False)[0])
    result: Tensor = halves[1] if cfg == 1 else halves[0] + cfg * (halves[1] - halves[0])
    return result
